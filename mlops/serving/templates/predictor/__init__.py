"""The parts of the predict API; `predict.py` beside this package puts them together."""
