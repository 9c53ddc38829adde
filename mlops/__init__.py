"""The whole life of a tabular classifier: prepare, train, deploy, test, monitor, retrain."""
