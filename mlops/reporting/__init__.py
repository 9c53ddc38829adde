"""HTML reports with pictures: of a month, of a retrain; where they lie and how long; notices."""
