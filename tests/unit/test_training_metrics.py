"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest

from mlops.dataset.card import Costs
from mlops.training import metrics

TARGET = [0, 0, 1, 0, 1]
SCORE = [0.1, 0.4, 0.35, 0.2, 0.8]


def test_roc_auc_is_the_share_of_pairs_in_the_right_order():
    # Positives 0.35 and 0.8 against 0.1, 0.4 and 0.2: five of six pairs.
    assert metrics.roc_auc(TARGET, SCORE) == pytest.approx(5 / 6)


def test_equal_scores_have_a_roc_auc_of_a_half():
    assert metrics.roc_auc(TARGET, [0.3] * 5) == 0.5


def test_average_precision_weighs_precision_by_the_gain_in_recall():
    # By score: 0.8 (1 of 1), 0.4 (no), 0.35 (2 of 3): half of the recall at each hit.
    assert metrics.average_precision(TARGET, SCORE) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_brier_is_the_mean_squared_error():
    by_hand = (0.1**2 + 0.4**2 + 0.65**2 + 0.2**2 + 0.2**2) / 5
    assert metrics.brier(TARGET, SCORE) == pytest.approx(by_hand)


def test_log_loss_is_the_mean_negative_log_likelihood():
    by_hand = -sum(map(math.log, (0.9, 0.6, 0.35, 0.8, 0.8))) / 5
    assert metrics.log_loss(TARGET, SCORE) == pytest.approx(by_hand)


def test_one_wrong_certainty_keeps_log_loss_finite():
    assert math.isfinite(metrics.log_loss([0, 1], [0.0, 0.0]))


def test_accuracy_and_f1_are_those_of_the_decision_at_the_threshold():
    # At 0.35 three are called positive, of which two are: precision 2/3, recall 1.
    assert metrics.accuracy(TARGET, SCORE, 0.35) == pytest.approx(4 / 5)
    assert metrics.f1(TARGET, SCORE, 0.35) == pytest.approx(0.8)
    assert metrics.f1(TARGET, SCORE, 0.9) == 0.0


def test_lift_counts_the_best_scored_tenth():
    target = np.array([1, 1, 0, 0, 0] * 4)  # 8 of 20; the best two rows hold one of them
    score = np.linspace(0.01, 0.99, 20)
    target[-2:] = [1, 0]
    assert metrics.lift_at_10(target, score) == pytest.approx((1 / 2) / target.mean())


def test_lift_of_equal_scores_is_one_in_whatever_order():
    for target in ([1, 0, 0, 0] * 5, [0] * 15 + [1] * 5):
        assert metrics.lift_at_10(target, [0.3] * 20) == pytest.approx(1)


def test_the_threshold_has_the_best_f1_of_all_scores():
    assert metrics.best_f1_threshold(TARGET, SCORE) == pytest.approx((0.35 + 0.2) / 2)
    random = np.random.default_rng(1)
    score = random.random(200).round(2)
    target = (random.random(200) < score).astype(int)
    best = max(metrics.f1(target, score, each) for each in score)
    assert metrics.f1(target, score, metrics.best_f1_threshold(target, score)) == best


@pytest.mark.parametrize("choose", [metrics.best_f1_threshold, lambda *a: profit_threshold(*a)])
def test_rounding_by_the_last_digit_turns_no_decision(choose):
    random = np.random.default_rng(3)
    score = random.choice([0.05, 0.1, 0.15, 0.2, 0.4], 500)  # many rows share a score, as of a tree
    target = (random.random(500) < score).astype(int)
    threshold = choose(target, score)
    decided = score >= threshold
    assert 0 < decided.sum() < 500
    for off in (-1e-6, 1e-6):
        assert ((score + off >= threshold) == decided).all()


COSTS = Costs(contact=5, success=50, unit="euros")


def profit_threshold(target, score):
    return metrics.best_profit_threshold(target, score, COSTS)


def calibrated(rows, seed=0, power=1.0):
    """Return targets and scores; with `power` 1 the scores are the true probabilities."""
    random = np.random.default_rng(seed)
    truth = random.beta(0.8, 8, rows)
    return (random.random(rows) < truth).astype(int), truth**power


def test_profit_is_that_of_those_who_are_contacted_per_thousand_rows():
    # At 0.35 three are contacted, two of them say yes: 2 x 50 - 3 x 5 = 85 from five rows.
    assert metrics.expected_profit(TARGET, SCORE, 0.35, COSTS) == pytest.approx(85 / 5 * 1000)
    assert metrics.expected_profit(TARGET, SCORE, 0.9, COSTS) == 0.0
    everybody = (2 * 50 - 5 * 5) / 5 * 1000
    assert metrics.expected_profit(TARGET, SCORE, 0.0, COSTS) == pytest.approx(everybody)
    assert "profit" not in metrics.all_metrics(TARGET, SCORE, 0.35)
    assert metrics.all_metrics(TARGET, SCORE, 0.35, COSTS)["profit"] == pytest.approx(17_000)


def test_the_threshold_of_calibrated_scores_is_near_the_break_even():
    target, score = calibrated(50_000)
    assert COSTS.break_even == 0.1
    assert profit_threshold(target, score) == pytest.approx(0.1, abs=0.02)
    # Scores that are too low by a square are decided at the square.
    target, score = calibrated(50_000, power=2)
    assert profit_threshold(target, score) == pytest.approx(0.01, abs=0.004)


def test_the_threshold_earns_nearly_what_the_best_of_all_does():
    target, score = calibrated(2000, seed=1)
    best = max(metrics.expected_profit(target, score, each, COSTS) for each in score)
    ours = metrics.expected_profit(target, score, profit_threshold(target, score), COSTS)
    assert 0.93 * best <= ours <= best
    assert ours > max(0, metrics.expected_profit(target, score, 0, COSTS))


def test_the_threshold_is_the_same_for_the_same_rows_in_any_order():
    target, score = calibrated(500)
    score = score.round(2)  # equal ones, too
    first = profit_threshold(target, score)
    assert profit_threshold(target, score) == first
    order = np.random.default_rng(5).permutation(500)
    assert profit_threshold(target[order], score[order]) == first


def test_where_nobody_is_worth_a_contact_nobody_is_contacted():
    assert profit_threshold([0] * 50, np.linspace(0, 0.05, 50)) == 0.1  # the break-even
    high = np.linspace(0, 0.8, 50)
    assert profit_threshold([0] * 50, high) == pytest.approx(0.8, abs=2e-5)
    assert (high < profit_threshold([0] * 50, high)).all()


def test_where_everybody_is_worth_a_contact_everybody_is_contacted():
    score = np.linspace(0.2, 0.8, 50)
    assert profit_threshold([1] * 50, score) == pytest.approx(0.1)


def test_the_curve_goes_from_few_contacts_to_all():
    target, score = calibrated(3472)
    curve = metrics.profit_curve(target, score, COSTS)
    assert len(curve) == 100
    shares = [point.share for point in curve]
    assert shares == sorted(set(shares))
    assert shares[0] == pytest.approx(0.01, abs=1e-3)
    assert shares[-1] == 1.0
    assert curve[-1].profit == pytest.approx(metrics.expected_profit(target, score, 0, COSTS))
    for point in curve[::9]:
        assert point.profit == metrics.expected_profit(target, score, point.threshold, COSTS)


def test_the_curve_of_few_rows_or_equal_scores_has_each_point_once():
    assert len(metrics.profit_curve(TARGET, SCORE, COSTS)) == 5
    (all_rows,) = metrics.profit_curve([0, 1, 0], [0.3] * 3, COSTS)
    assert (all_rows.threshold, all_rows.share) == (0.3, 1.0)


@pytest.mark.parametrize(
    ("target", "score", "message"),
    [
        ([0, 1], [0.5], "expected one of each a row"),
        ([], [], "expected one of each a row"),
        ([0, 2], [0.5, 0.5], "expected 0 and 1 only"),
        ([0, 1], [0.5, float("nan")], "no probability"),
        ([0, 1], [0.5, 1.5], "no probability"),
        ([1, 1], [0.5, 0.6], "expected both answers"),
    ],
)
def test_what_has_no_roc_auc_is_refused(target, score, message):
    with pytest.raises(ValueError, match=message):
        metrics.roc_auc(target, score)
