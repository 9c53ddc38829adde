"""Months played as life would, to see what retraining is worth."""
