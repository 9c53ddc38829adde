"""What drift says about the real months, and what it says where nothing has happened.

Prints the figures that docs/monitoring.md shows:

    MLOPS_DATA=<bank.zip> pytest tests/integration/test_monitoring_real_data.py -s
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest

from mlops.dataset.card import SCORE, Card, load_card
from mlops.dataset.sources import read_source
from mlops.monitoring.confidence import wasserstein, wasserstein_noise
from mlops.monitoring.drift import Drift, measure_drift
from mlops.settings import Settings
from mlops.training.candidates import get_candidate
from mlops.training.fit import learn, score_window

DATA = os.environ.get("MLOPS_DATA")

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA, reason="MLOPS_DATA does not name the real Bank Marketing file"),
]


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(_env_file=None, data=DATA, search_trials=0)


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card("bank_marketing")


@pytest.fixture(scope="module")
def scored(card: Card, settings: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The reference and all later months, scored by the model of the history."""
    frame = read_source(card, settings).frame
    known = frame["period"] <= card.time.history_until
    candidate = get_candidate("XGBClassifier", settings.candidates)
    champion = learn(card, candidate, frame[known].reset_index(drop=True), settings)
    later = frame[~known].reset_index(drop=True)
    return champion.reference, later.assign(**{SCORE: score_window(champion.pipeline, card, later)})


@pytest.fixture(scope="module")
def months(
    scored: tuple[pd.DataFrame, pd.DataFrame], card: Card, settings: Settings
) -> dict[str, tuple[int, Drift]]:
    reference, later = scored
    return {
        str(period): (len(rows), measure_drift(reference, rows, card, settings=settings))
        for period, rows in later.groupby("period")
    }


def test_the_first_month_to_come_has_drifted_beyond_chance(
    months: dict[str, tuple[int, Drift]], settings: Settings
) -> None:
    print("\nperiod   rows  drift  by chance  drifted columns")
    for period, (rows, drift) in months.items():
        print(
            f"{period} {rows:6,} {drift.prediction_drift:6.3f} {drift.prediction_drift_noise:10.3f}"
            f" {drift.num_drifted_columns:7} of {len(drift.columns)}"
        )
    rows, drift = months["2009-03"]
    assert rows >= settings.drift_min_rows
    assert drift.prediction_drift > settings.prediction_drift_threshold
    assert drift.prediction_drift > drift.prediction_drift_noise


def test_months_drawn_from_the_reference_itself_hardly_ever_alarm(
    scored: tuple[pd.DataFrame, pd.DataFrame], card: Card, settings: Settings
) -> None:
    reference, _ = scored
    scores = reference[SCORE].to_numpy()
    generator = np.random.default_rng(1)
    print("\nrows  mean drift  above 0.1  above 0.1 and chance")
    for rows in (200, 400, 1000):
        noise = wasserstein_noise(scores, rows, settings.signal_confidence, settings.seed)
        # On draws that the noise has not seen.
        drifts = np.array(
            [wasserstein(scores, generator.choice(scores, rows)) for _ in range(2000)]
        )
        bare = np.mean(drifts > settings.prediction_drift_threshold)
        alarms = np.mean(drifts > max(settings.prediction_drift_threshold, noise))
        print(f"{rows:5,} {drifts.mean():11.3f} {bare:9.1%} {alarms:9.1%}")
        assert alarms <= 0.03
        if rows == settings.drift_min_rows:
            assert bare > 0.1  # why the threshold alone is not enough
