"""Whose labels count when a month's performance is judged."""

import numpy as np
import pandas as pd

from mlops.monitoring.monitor import measure_confidence
from mlops.settings import Settings

SETTINGS = Settings(_env_file=None)


def month(rows: int, labelled: int) -> pd.DataFrame:
    random = np.random.default_rng(rows)
    score = random.random(rows)
    target = (random.random(rows) < score).astype(float)
    target[labelled:] = np.nan
    return pd.DataFrame({"score": score, "target": target, "period": "2009-02"})


def labelled_count(current: pd.DataFrame) -> int:
    before = month(500, 500).assign(period="2009-01")
    measured = measure_confidence(before, current, [before], SETTINGS)
    return int(measured.get("labelled_count", 0))


def test_the_labels_of_a_small_month_count_with_those_of_the_month_before():
    assert labelled_count(month(SETTINGS.drift_min_rows - 1, 100)) == 600


def test_a_few_early_labels_of_a_large_month_are_not_made_enough_by_the_month_before():
    """Else its first label would say that the month has been judged (prediction_drift)."""
    assert labelled_count(month(1000, 1)) == 1
    assert labelled_count(month(1000, 0)) == 0
