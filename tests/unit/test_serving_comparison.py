"""What is measured of two versions' scores of the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlops.dataset.card import Costs
from mlops.serving import comparison
from mlops.serving.comparison import measure_pair
from mlops.training.metrics import expected_profit

COSTS = Costs(contact=5, success=50, unit="euros")
ROWS = 4000


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores that know much, scores that know little, and labels."""
    random = np.random.default_rng(seed)
    label = (random.random(ROWS) < 0.12).astype(float)
    good = np.clip(0.1 + 0.25 * label + random.normal(0, 0.1, ROWS), 0, 1)
    poor = np.clip(0.1 + 0.05 * label + random.normal(0, 0.1, ROWS), 0, 1)
    return good, poor, label


def measure(
    shadow: np.ndarray, champion: np.ndarray, label: np.ndarray, **changes: Any
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "threshold": 0.2,
        "champion_threshold": 0.15,
        "costs": COSTS,
        "confidence": 0.9,
    }
    return measure_pair(shadow, champion, label, **{**options, "resamples": 500, **changes})


def test_a_version_beside_itself_differs_in_nothing() -> None:
    good, _, label = rows()
    found = measure(good, good, label, champion_threshold=0.2)
    assert found["changed_share"] == 0
    assert found["correlation"] == pytest.approx(1)
    assert found["score_distance"] == 0
    for name in ("roc_auc", "brier", "profit"):
        assert found[name] == found[f"champion_{name}"]
        assert found[f"{name}_low"] == found[f"{name}_high"] == 0


def test_what_is_better_is_better_beyond_the_interval() -> None:
    good, poor, label = rows()
    found = measure(good, poor, label)
    assert found["roc_auc"] > found["champion_roc_auc"]
    assert found["roc_auc_low"] > 0
    assert found["brier_high"] < 0
    assert found["profit_low"] > 0
    turned = measure(poor, good, label, threshold=0.15, champion_threshold=0.2)
    assert turned["roc_auc_high"] < 0
    assert turned["profit_high"] < 0


def test_the_interval_of_profit_is_that_of_rows_drawn_anew() -> None:
    good, poor, label = rows()
    found = measure(good, poor, label, resamples=4000)
    random = np.random.default_rng(1)
    drawn = []
    positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    for _ in range(600):
        chosen = np.concatenate(
            [random.choice(positive, len(positive)), random.choice(negative, len(negative))]
        )
        drawn.append(
            expected_profit(label[chosen], good[chosen], 0.2, COSTS)
            - expected_profit(label[chosen], poor[chosen], 0.15, COSTS)
        )
    width = np.std(drawn)
    assert found["profit_low"] == pytest.approx(np.quantile(drawn, 0.1), abs=0.3 * width)
    assert found["profit_high"] == pytest.approx(np.quantile(drawn, 0.9), abs=0.3 * width)
    gained = found["profit"] - found["champion_profit"]
    assert found["profit_low"] < gained < found["profit_high"]


def test_the_share_of_changed_decisions_is_each_at_its_own_threshold() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    label = np.full(4, np.nan)
    found = measure(scores, scores, label, threshold=0.25, champion_threshold=0.15)
    assert found["changed_share"] == 0.25
    assert "roc_auc" not in found


def test_what_cannot_be_known_is_left_out() -> None:
    good, poor, label = rows()
    no_threshold = measure(good, poor, label, champion_threshold=None)
    assert not no_threshold.keys() & {"changed_share", "profit"}
    assert "roc_auc" in no_threshold
    no_costs = measure(good, poor, label, costs=None)
    assert "profit" not in no_costs
    one_answer = measure(good, poor, np.zeros(ROWS))
    assert not one_answer.keys() & {"roc_auc", "roc_auc_low"}
    assert one_answer["brier"] > 0
    some = np.where(np.arange(ROWS) < 1000, label, np.nan)
    assert measure(good, poor, some)["brier"] == pytest.approx(
        measure(good[:1000], poor[:1000], label[:1000])["brier"]
    )


def test_scores_that_are_all_alike_have_no_correlation() -> None:
    _, poor, label = rows()
    found = measure(np.full(ROWS, 0.3), poor, label)
    assert "correlation" not in found
    assert found["score_distance"] > 0
    assert found["roc_auc"] == 0.5
    assert "score_distance" not in measure(poor, np.full(ROWS, 0.3), label)


def test_value_and_interval_of_a_large_month_are_of_the_same_rows_drawn_by_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a log the rows of one client stand together: the first ones are not the month."""
    good, poor, label = rows()
    order = np.r_[0:ROWS:2, 1:ROWS:2]
    half = ROWS // 2
    ours = np.concatenate([good[order][:half], poor[order][half:]])
    theirs = np.concatenate([poor[order][:half], good[order][half:]])
    monkeypatch.setattr(comparison, "INTERVAL_ROWS", half)
    found = measure(ours, theirs, label[order])
    gained = found["roc_auc"] - found["champion_roc_auc"]
    assert found["roc_auc_low"] < gained < found["roc_auc_high"]
    assert found["roc_auc_low"] < 0 < found["roc_auc_high"], "neither is better"
    assert measure(ours, theirs, label[order]) == found
