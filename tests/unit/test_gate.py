"""What the gate decides, and the numbers that it decides by."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mlops.dataset.card import Card, load_card
from mlops.registry.gate import GateDecision, decide
from mlops.settings import Settings
from mlops.training.bootstrap import bootstrap
from tests.fixtures.churn import churn_card

ROWS = 1200
RANDOM = np.random.default_rng(3)
TARGET = (np.arange(ROWS) % 5 == 0).astype(np.int8)
BASE_RATE = 0.2
NOISE = RANDOM.normal(size=ROWS)


def scores(signal: float, noise: np.ndarray = NOISE) -> np.ndarray:
    """Return calibrated probabilities of a model that sees the target through noise."""
    seen = signal * TARGET + noise
    odds = BASE_RATE / (1 - BASE_RATE) * np.exp(signal * seen - signal**2 / 2)
    return np.asarray(odds / (1 + odds))


GOOD, BETTER = scores(1.0), scores(1.6)
PLANS = np.where(np.arange(ROWS) % 3 == 0, "basic", "plus")


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> Card:
    return churn_card(tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(_env_file=None, gate_resamples=500)


@pytest.fixture
def judge(card, settings):
    def judged(challenger, champion, target=TARGET, base_rate=BASE_RATE, plans=PLANS, **changed):
        rows = pd.DataFrame({"plan": plans[: len(target)], "target": target})
        found = decide(
            challenger, champion, rows, card, base_rate, settings.model_copy(update=changed)
        )
        json.dumps(found.as_dict(), allow_nan=False)
        return found

    return judged


def rule(decision: GateDecision) -> tuple[bool, str]:
    return decision.promote, decision.numbers["rule"]


def overconfident(right: np.ndarray, power: int = 3) -> np.ndarray:
    """Return scores in the same order, each too far from the middle."""
    odds = (right / (1 - right)) ** power
    return np.asarray(odds / (1 + odds))


@pytest.mark.parametrize(
    ("challenger", "champion", "changed", "expected", "reason"),
    [
        (GOOD, None, {}, (True, "first"), "no champion"),
        (BETTER, GOOD, {}, (True, "better"), "against the champion's"),
        (GOOD, BETTER, {}, (False, "not better"), "not above the champion's"),
        (GOOD, GOOD, {}, (False, "not better"), "not above the champion's"),
        (
            0.4 * BETTER,
            GOOD,
            {"gate_margin": 0.5},
            (False, "not better"),
            "by more than 0.5",
        ),
        (BETTER, GOOD, {"gate_margin": 0.01}, (True, "better"), "by more than 0.01"),
        (GOOD, overconfident(GOOD), {}, (True, "equal and better calibrated"), "Brier"),
        (overconfident(GOOD), GOOD, {}, (False, "not better"), "Brier"),
        (1 - GOOD, None, {}, (False, "no better than a guess"), "ROC AUC"),
        (1 - GOOD, 1 - BETTER, {}, (False, "no better than a guess"), "ROC AUC"),
        (np.full(ROWS, 0.2), None, {}, (False, "no better than a guess"), "ROC AUC"),
        (GOOD / 10 + 0.9, None, {}, (False, "no better than a guess"), "Brier"),
        (GOOD / 10 + 0.9, GOOD, {}, (False, "no better than a guess"), "Brier"),
    ],
    ids=[
        "first good one",
        "better than the champion",
        "worse than the champion",
        "equal to the champion",
        "better by less than the margin",
        "better by more than the margin",
        "equal and better calibrated",
        "equal and worse calibrated",
        "worse than a guess",
        "worse than a guess beside a worse champion",
        "constant at the base rate",
        "right order but wrong probabilities",
        "right order but wrong probabilities beside a champion",
    ],
)
def test_decision(judge, challenger, champion, changed, expected, reason):
    decision = judge(challenger, champion, **changed)
    assert rule(decision) == expected
    assert reason in decision.reason


def test_what_chance_explains_is_not_better(judge):
    """The same signal through other noise: whichever comes out ahead, it is not sure."""
    promoted = 0
    for seed in range(24):
        random = np.random.default_rng(seed)
        ours, theirs = (scores(1.0, random.normal(size=ROWS)) for _ in range(2))
        promoted += judge(ours, theirs, gate_resamples=100, gate_confidence=0.9).promote
    assert promoted <= 6  # a tenth is expected to be called better, and some better calibrated


def test_lower_ranked_by_more_than_equal_is_not_promoted_for_its_calibration(judge):
    champion = overconfident(scores(1.2), 9)
    worse_ranked = judge(GOOD, champion, gate_equal=0.01)
    assert worse_ranked.numbers["brier"]["better_share"] > 0.9
    assert rule(worse_ranked) == (False, "not better")
    assert rule(judge(GOOD, champion, gate_equal=0.3))[1] == "equal and better calibrated"


def test_a_lower_confidence_lets_less_sure_ones_pass(judge):
    little_better = 0.95 * GOOD + 0.05 * BETTER
    sure = judge(little_better, GOOD).numbers["roc_auc"]["better_share"]
    unsure = judge(scores(1.0, NOISE[::-1]), GOOD)
    share = unsure.numbers["roc_auc"]["better_share"]
    assert 0.0 < share < 1.0
    assert sure != share
    assert judge(little_better, GOOD, gate_confidence=max(0.51, sure - 0.01)).promote is True


def test_interval_and_rule_say_the_same(judge):
    for champion in (GOOD, scores(1.4), scores(1.5), scores(1.6, NOISE[::-1])):
        found = judge(BETTER, champion).numbers["roc_auc"]
        assert found["low"] <= found["difference"] <= found["high"]
        assert (found["low"] > 0) == (found["better_share"] >= 0.9)


def test_a_challenger_that_loses_badly_on_a_large_slice_is_held_and_the_slice_is_named(judge):
    knows_nothing_of_basic = np.where(PLANS == "basic", scores(0.01, NOISE[::-1]), scores(2.5))
    pair = knows_nothing_of_basic, GOOD
    decision = judge(*pair)
    assert rule(decision) == (False, "held")
    assert decision.numbers["roc_auc"]["low"] > 0
    assert decision.numbers["held_slices"] == ["plan = basic"]
    (lost,) = [each for each in decision.numbers["slices"] if each["worse_by"]]
    assert lost["rows"] == 400
    assert lost["roc_auc"]["high"] < -0.05
    assert "held: it loses on plan = basic (ROC AUC " in decision.reason
    assert "400 rows" in decision.reason
    # The same loss on a slice too small to judge, or within the margin, does not hold it.
    assert judge(*pair, gate_slice_rows=401).promote
    assert judge(*pair, gate_slice_share=0.4).promote
    assert judge(*pair, gate_slice_margin=1.0).promote


def test_a_missing_value_is_a_slice_with_a_name(judge):
    plans = np.where(np.arange(ROWS) % 2 == 0, "", "plus")
    names = [each["name"] for each in judge(BETTER, GOOD, plans=plans).numbers["slices"]]
    assert names == ["plan = missing", "plan = plus"]


def test_a_slice_with_one_answer_is_left_out(judge):
    plans = np.where(TARGET == 1, "left", "stayed")
    assert judge(BETTER, GOOD, plans=plans).numbers["slices"] == []


def test_slices_are_the_columns_of_the_card_else_its_categories(card):
    assert card.slice_columns == card.categories == ["plan"]
    assert load_card("bank_marketing").slice_columns == [*("job", "contact", "poutcome", "housing")]


def test_the_numbers_behind_a_decision_are_kept_as_json(judge):
    kept = json.loads(json.dumps(judge(BETTER, GOOD).as_dict(), allow_nan=False))
    assert kept["promote"] is True
    numbers = kept["numbers"]
    assert (numbers["rows"], numbers["positives"]) == (1200, 240)
    assert numbers["constant_brier"] == pytest.approx(0.16)
    assert numbers["challenger_roc_auc"] > numbers["champion_roc_auc"]
    difference = numbers["challenger_roc_auc"] - numbers["champion_roc_auc"]
    assert numbers["roc_auc"]["difference"] == pytest.approx(difference)
    assert numbers["brier"]["difference"] < 0  # lower is better


def test_the_numbers_are_kept_also_if_the_challenger_is_no_better_than_a_guess(judge):
    numbers = judge(1 - GOOD, BETTER).numbers
    assert numbers["champion_roc_auc"] == pytest.approx(roc_auc_score(TARGET, BETTER))
    assert numbers["roc_auc"]["high"] < 0
    assert numbers["held_slices"] == ["plan = basic", "plan = plus"]


@pytest.mark.parametrize("champion", [None, GOOD[:20]], ids=["first", "beside a champion"])
@pytest.mark.parametrize("answer", [0, 1])
def test_nothing_is_promoted_on_a_window_with_one_answer(judge, answer, champion):
    decision = judge(GOOD[:20], champion, target=np.full(20, answer))
    assert rule(decision) == (False, "no comparison")
    assert decision.numbers["challenger_roc_auc"] is None


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_a_tiny_window_is_decided_without_a_fault(judge, rows):
    target = np.array([1, *[0] * (rows - 1)])
    right, wrong = np.where(target == 1, 0.9, 0.1), np.full(rows, 0.3)
    assert judge(right, None, target=target).promote
    assert judge(right, wrong, target=target).promote
    assert not judge(wrong, right, target=target).promote


def test_scores_that_are_no_probabilities_are_refused(judge):
    with pytest.raises(ValueError, match="no probability"):
        judge(GOOD + 1, None)
    with pytest.raises(ValueError, match="one of each a row"):
        judge(GOOD[:-1], None)


def test_the_same_rows_give_the_same_decision(judge):
    assert judge(BETTER, GOOD) == judge(BETTER, GOOD)


def test_a_resample_has_the_roc_auc_and_brier_that_sklearn_gives_it():
    """Rows that are drawn again, counted one by one, with many ties among the scores."""
    target, score = TARGET[:60], np.round(GOOD[:60], 1)
    found = bootstrap(target, [score, GOOD[:60]], 30, seed=5)
    random = np.random.default_rng(5)
    positives, negatives = np.flatnonzero(target == 1), np.flatnonzero(target == 0)
    drawn = [
        part[random.integers(0, len(part), (len(part), 30))] for part in (positives, negatives)
    ]
    for place in range(30):
        rows = np.concatenate([part[:, place] for part in drawn])
        for model, values in enumerate((score, GOOD[:60])):
            expected = roc_auc_score(target[rows], values[rows])
            assert found.roc_auc[model, place] == pytest.approx(expected, abs=1e-12)
            expected = np.mean((values[rows] - target[rows]) ** 2)
            assert found.brier[model, place] == pytest.approx(expected, abs=1e-12)


def test_the_bootstrap_spreads_as_theory_says():
    """Standard error of the ROC AUC by DeLong, DeLong and Clarke-Pearson (1988)."""
    found = bootstrap(TARGET, [GOOD], 1000).roc_auc[0]
    wins = GOOD[TARGET == 1][:, None] > GOOD[TARGET == 0]
    variance = sum(np.var(wins.mean(axis=axis)) / wins.shape[1 - axis] for axis in (0, 1))
    assert found.mean() == pytest.approx(roc_auc_score(TARGET, GOOD), abs=0.003)
    assert found.std() == pytest.approx(np.sqrt(variance), rel=0.07)


@pytest.mark.parametrize("target", [[0, 0], [1, 1], [0, 2]])
def test_the_bootstrap_asks_for_both_answers(target):
    with pytest.raises(ValueError, match="both 0 and 1"):
        bootstrap(target, [[0.1, 0.2]], 10)


def test_a_decision_on_3000_rows_takes_seconds_at_most(card):
    random = np.random.default_rng(0)
    target = (random.random(3000) < 0.1).astype(int)
    rows = pd.DataFrame({"plan": random.choice(["a", "b", "c"], 3000), "target": target})
    ours, theirs = (np.clip(random.normal(0.2 + 0.1 * target, 0.1), 0, 1) for _ in range(2))
    begin = time.process_time()
    decide(ours, theirs, rows, card, 0.1, Settings(_env_file=None))
    assert time.process_time() - begin < 3.0
