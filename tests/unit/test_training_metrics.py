"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest

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
    assert metrics.best_f1_threshold(TARGET, SCORE) == 0.35
    random = np.random.default_rng(1)
    score = random.random(200).round(2)
    target = (random.random(200) < score).astype(int)
    best = max(metrics.f1(target, score, each) for each in score)
    assert metrics.f1(target, score, metrics.best_f1_threshold(target, score)) == best


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
