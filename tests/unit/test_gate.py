"""The gate's truth table."""

import json

import numpy as np
import pytest

from mlops.registry.gate import decide

TARGET = np.array([0] * 80 + [1] * 20)
BASE_RATE = 0.15


def scores(right: int, high: float = 0.4, low: float = 0.1) -> np.ndarray:
    """Return scores that find `right` of 20 positives, with a false alarm for each one missed."""
    found = np.full(100, low)
    found[80 : 80 + right] = high
    found[: 20 - right] = high
    return found


GOOD, BETTER, BAD = scores(12), scores(16), scores(1)


@pytest.mark.parametrize(
    ("challenger", "champion", "margin", "promote", "reason"),
    [
        (GOOD, None, 0.0, True, "no champion"),
        (BETTER, GOOD, 0.0, True, "above the champion's"),
        (GOOD, BETTER, 0.0, False, "not above the champion's"),
        (GOOD, GOOD, 0.0, False, "not above the champion's"),
        (BETTER, GOOD, 0.5, False, "by more than 0.5"),
        (BETTER, GOOD, 0.01, True, "by more than 0.01"),
        (BAD, None, 0.0, False, "no better than a guess"),
        (BAD, scores(0), 0.0, False, "no better than a guess"),
        (np.full(100, BASE_RATE), None, 0.0, False, "no better than a guess"),
        (np.full(100, 0.0), None, 0.0, False, "no better than a guess"),
        (scores(16, high=1.0, low=0.9), None, 0.0, False, "Brier"),
    ],
    ids=[
        "first good one",
        "better than the champion",
        "worse than the champion",
        "equal to the champion",
        "better by less than the margin",
        "better by more than the margin",
        "worse than a guess",
        "worse than a guess beside a worse champion",
        "constant at the base rate",
        "constant no",
        "right order but wrong probabilities",
    ],
)
def test_decision(challenger, champion, margin, promote, reason):
    decision = decide(challenger, champion, TARGET, BASE_RATE, margin)
    assert decision.promote is promote
    assert reason in decision.reason


def test_the_numbers_behind_a_decision_are_kept_as_json():
    decision = decide(BETTER, GOOD, TARGET, BASE_RATE)
    kept = json.loads(json.dumps(decision.as_dict(), allow_nan=False))
    assert kept["promote"] is True
    assert kept["numbers"]["rows"] == 100
    assert kept["numbers"]["constant_brier"] == pytest.approx(0.8 * 0.15**2 + 0.2 * 0.85**2)
    assert kept["numbers"]["challenger_roc_auc"] > kept["numbers"]["champion_roc_auc"]


def test_nothing_is_promoted_on_a_window_with_one_answer():
    decision = decide(GOOD[:80], None, TARGET[:80], BASE_RATE)
    assert decision.promote is False
    assert "no comparison" in decision.reason
    assert decision.numbers["challenger_roc_auc"] is None


@pytest.mark.parametrize("challenger", [BAD, scores(16, high=1.0, low=0.9)], ids=["rank", "Brier"])
def test_the_champions_score_is_kept_also_if_the_challenger_is_no_better_than_a_guess(challenger):
    decision = decide(challenger, GOOD, TARGET, BASE_RATE)
    assert "no better than" in decision.reason
    alone = decide(GOOD, None, TARGET, BASE_RATE).numbers["challenger_roc_auc"]
    assert decision.numbers["champion_roc_auc"] == alone
