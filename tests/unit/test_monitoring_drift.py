"""Drift over two frames: it sees what moved, and odd columns and small months are no trouble."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlops.dataset.card import SCORE, Card, load_card
from mlops.monitoring.drift import measure_drift, missing_share
from mlops.settings import Settings

SETTINGS = Settings(_env_file=None)


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card("bank_marketing")


def sample(card: Card, rows: int, seed: int = 0) -> pd.DataFrame:
    """Return rows in which every column varies, all drawn from one distribution."""
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame()
    for feature in card.features:
        frame[feature.name] = (
            generator.normal(40, 10, rows).astype("float32")
            if feature.kind == "number"
            else generator.choice(["", "a", "b", "c"], rows)
        )
    frame[SCORE] = generator.beta(1, 10, rows)
    return frame


def test_the_same_rows_have_not_moved(card: Card) -> None:
    frame = sample(card, 300)
    drift = measure_drift(frame, frame, card, settings=SETTINGS)
    assert drift.prediction_drift == 0
    assert set(drift.columns.values()) == {0}
    assert (drift.num_drifted_columns, drift.share_drifted_columns) == (0, 0)


def test_what_moved_is_named_and_nothing_else(card: Card) -> None:
    reference, current = sample(card, 5000), sample(card, 5000, seed=1)
    current["age"] += 5
    current["job"] = "d"
    current[SCORE] += 0.05
    drift = measure_drift(reference, current, card, settings=SETTINGS)
    moved = {name for name, distance in drift.columns.items() if distance > 0.1}
    assert moved == {"age", "job"}
    assert drift.num_drifted_columns == 2
    assert drift.share_drifted_columns == pytest.approx(2 / len(drift.columns))
    assert drift.columns["age"] == pytest.approx(0.5, abs=0.05)  # 5 of a deviation of 10
    assert drift.prediction_drift == pytest.approx(0.05 / reference[SCORE].std(), rel=0.1)
    assert drift.prediction_drift > drift.prediction_drift_noise


def test_columns_that_the_card_leaves_out_are_not_compared(card: Card) -> None:
    frame = sample(card, 100)
    drift = measure_drift(frame, frame, card, settings=SETTINGS)
    assert set(drift.columns) == {feature.name for feature in card.features if feature.drift}
    assert {"day", "month"}.isdisjoint(drift.columns)


def test_a_column_without_values_on_both_sides_has_not_moved(card: Card) -> None:
    reference, current = sample(card, 200), sample(card, 200, seed=1)
    for frame in (reference, current):
        frame["pdays"] = np.nan
        frame["poutcome"] = ""
    drift = measure_drift(reference, current, card, with_report=True, settings=SETTINGS)
    assert (drift.columns["pdays"], drift.columns["poutcome"]) == (0, 0)


def test_a_column_that_has_emptied_counts_as_drifted(card: Card) -> None:
    reference = sample(card, 5000)
    current = sample(card, 5000, seed=1).assign(pdays=np.nan, poutcome=None)
    for pair in ((reference, current), (current, reference)):
        drift = measure_drift(*pair, card, settings=SETTINGS)
        assert (drift.columns["pdays"], drift.columns["poutcome"]) == (1, 1)
        assert drift.num_drifted_columns == 2


def test_a_frame_whose_every_feature_is_empty_is_measured(card: Card) -> None:
    reference, current = sample(card, 100), sample(card, 100, seed=1)
    current[card.numbers], current[card.categories] = np.nan, ""
    drift = measure_drift(reference, current, card, with_report=True, settings=SETTINGS)
    assert drift.share_drifted_columns == 1
    assert drift.share_missing_values == 1


def test_a_month_of_one_row_is_measured(card: Card) -> None:
    drift = measure_drift(sample(card, 300), sample(card, 1, 1), card, settings=SETTINGS)
    assert np.isfinite(drift.prediction_drift)
    assert np.isfinite(list(drift.columns.values())).all()


def test_a_constant_reference_does_not_divide_by_zero(card: Card) -> None:
    reference, current = sample(card, 100), sample(card, 100, 1)
    reference["age"], reference[SCORE] = 40.0, 0.1
    drift = measure_drift(reference, current, card, settings=SETTINGS)
    assert np.isfinite([drift.prediction_drift, drift.prediction_drift_noise]).all()


def test_a_category_that_is_no_longer_filled_in_is_drift(card: Card) -> None:
    reference, current = sample(card, 3000), sample(card, 3000, 1)
    current.loc[current["job"] == "a", "job"] = ""
    drift = measure_drift(reference, current, card, settings=SETTINGS)
    assert drift.columns["job"] > 0.1
    assert drift.num_drifted_columns == 1


def test_a_missing_column_and_an_empty_frame_are_named(card: Card) -> None:
    frame = sample(card, 50)
    with pytest.raises(ValueError, match="current frame lacks job"):
        measure_drift(frame, frame.drop(columns="job"), card, settings=SETTINGS)
    with pytest.raises(ValueError, match="reference frame has no rows"):
        measure_drift(frame.head(0), frame, card, settings=SETTINGS)


def test_the_report_is_a_page_that_needs_nothing_else(card: Card) -> None:
    frame = sample(card, 100)
    report = measure_drift(frame, frame, card, with_report=True, settings=SETTINGS).html_report
    assert report is not None
    assert "<script src=" not in report
    assert '<link rel="stylesheet"' not in report
    assert len(report) < 6_000_000


def test_missing_cells_are_counted_over_all_features(card: Card) -> None:
    frame = sample(card, 10)
    frame[card.categories] = "a"
    frame.loc[:4, "age"] = np.nan
    frame.loc[:1, "job"] = ""
    assert missing_share(frame, card) == pytest.approx(7 / (10 * len(card.features)))
