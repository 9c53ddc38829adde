"""From an alert rule to a started retrain: rules, evaluator, listener."""
