"""Candidates, fitting, metrics and MLflow runs of one training; never decides what is deployed."""
