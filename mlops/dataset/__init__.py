"""Cards, sources, validation, timeline and stored rows of a data set; knows no column by name."""
