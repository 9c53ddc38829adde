"""Drift and performance of a version, month by month."""
