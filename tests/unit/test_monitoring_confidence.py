"""What chance explains, against scipy, scikit-learn, and worlds in which nothing has happened."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import fisher_exact, wasserstein_distance
from sklearn.metrics import roc_auc_score

from mlops.monitoring.confidence import (
    estimate_performance,
    jensen_shannon,
    jensen_shannon_noise,
    missing_more_by_chance,
    one_sided_by_chance,
    wasserstein,
    wasserstein_noise,
)

CONFIDENCE = 0.99


def labelled(rows: int, seed: int, mean: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, and scores that are calibrated: so many positives come as they promise."""
    random = np.random.default_rng(seed)
    scores = random.beta(2 * mean, 2 * (1 - mean), rows)
    return (random.random(rows) < scores).astype(int), scores


def test_the_distance_of_numbers_is_scipys_in_deviations_of_the_reference() -> None:
    random = np.random.default_rng(0)
    reference, current = random.normal(40, 10, 500), random.normal(43, 9, 80)
    expected = wasserstein_distance(reference, current) / np.std(reference)
    assert wasserstein(reference, current) == pytest.approx(expected)


def test_the_distance_of_categories_is_that_of_their_shares() -> None:
    # By hand: shares (1/2, 1/2, 0) and (1/2, 0, 1/2), both half from their middle.
    found = jensen_shannon(["a", "b"], ["a", "c"])
    assert found == pytest.approx(np.sqrt(np.log(2) / 2))
    assert jensen_shannon(["a", "b", "b"], ["b", "a", "b"]) == 0
    assert jensen_shannon(["a"], ["b"]) == pytest.approx(np.sqrt(np.log(2)))


@pytest.mark.parametrize("reference_rows", [200, 3500])
def test_a_quiet_month_passes_the_noise_of_numbers_once_in_a_hundred(reference_rows: int) -> None:
    """The reference is a sample as well: for small ones, its own chance counts as much."""
    random = np.random.default_rng(5)
    passed = []
    for _ in range(25):  # references
        reference = random.beta(1, 10, reference_rows)
        noise = wasserstein_noise(reference, 200, CONFIDENCE, seed=42)
        passed += [wasserstein(reference, random.beta(1, 10, 200)) > noise for _ in range(25)]
    assert 0.001 <= np.mean(passed) <= 0.03


@pytest.mark.parametrize("reference_rows", [200, 3500])
def test_a_quiet_month_passes_the_noise_of_categories_once_in_a_hundred(
    reference_rows: int,
) -> None:
    random = np.random.default_rng(6)
    kinds, shares = list("abcdef"), [0.5, 0.2, 0.15, 0.1, 0.04, 0.01]
    passed = []
    for _ in range(40):
        reference = random.choice(kinds, reference_rows, p=shares)
        noise = jensen_shannon_noise(reference, 200, CONFIDENCE, seed=42)
        months = (random.choice(kinds, 200, p=shares) for _ in range(25))
        passed += [jensen_shannon(reference, month) > noise for month in months]
    assert np.mean(passed) <= 0.03


def test_noise_shrinks_with_the_rows_and_is_the_same_for_the_same_seed() -> None:
    scores = np.random.default_rng(5).beta(1, 10, 3000)
    noise = {rows: wasserstein_noise(scores, rows, CONFIDENCE, 42) for rows in (50, 200, 1000)}
    assert noise[50] > noise[200] > noise[1000]
    assert noise[200] > 0.1  # why a threshold alone is not enough
    assert noise[200] == wasserstein_noise(scores, 200, CONFIDENCE, 42)
    assert noise[200] != wasserstein_noise(scores, 200, CONFIDENCE, 43)


def test_noise_needs_no_spread_and_no_company() -> None:
    assert wasserstein_noise([40.0] * 100, 10, CONFIDENCE, 1) == 0
    assert jensen_shannon_noise(["a"] * 100, 10, CONFIDENCE, 1) == 0
    assert np.isfinite(wasserstein_noise([1.0, 2.0], 1, CONFIDENCE, 1))
    assert np.isfinite(jensen_shannon_noise(["a", "b"], 1, CONFIDENCE, 1))


@pytest.mark.parametrize(
    ("missing", "rows", "reference_missing", "reference_rows"),
    [(12, 200, 0, 500), (3, 20, 100, 3000), (0, 200, 10, 500), (200, 200, 0, 500), (1, 1, 1, 1)],
)
def test_missing_more_is_fishers_exact_test(
    missing: int, rows: int, reference_missing: int, reference_rows: int
) -> None:
    table = [
        [missing, rows - missing],
        [reference_missing, reference_rows - reference_missing],
    ]
    expected = fisher_exact(table, alternative="greater").pvalue
    found = missing_more_by_chance(missing, rows, reference_missing, reference_rows)
    assert found == pytest.approx(expected)


def test_a_rare_column_is_empty_in_a_small_month_by_chance() -> None:
    assert one_sided_by_chance(values=35, rows=3500, other_rows=50) > 0.5
    assert one_sided_by_chance(values=3500, rows=3500, other_rows=50) < 1e-6
    assert one_sided_by_chance(1, 1, 1) == pytest.approx(0.5)


def test_performance_is_scikit_learns_with_ties_too() -> None:
    target, scores = labelled(400, seed=1)
    for given in (scores, scores.round(1), np.full(400, 0.3)):
        found = estimate_performance(target, given, target, given, CONFIDENCE, 42)
        assert found.roc_auc == pytest.approx(roc_auc_score(target, given))
        assert found.calibration_gap == pytest.approx(given.mean() - target.mean())
        assert found.roc_auc_loss == pytest.approx(0)


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    target, scores = labelled(300, seed=2)
    found = estimate_performance(target, scores, target, scores, 0.9, 42)
    random = np.random.default_rng(0)
    areas, gaps = [], []
    for _ in range(1000):
        drawn = random.integers(0, 300, 300)
        areas.append(roc_auc_score(target[drawn], scores[drawn]))
        gaps.append(scores[drawn].mean() - target[drawn].mean())
    assert found.roc_auc_interval is not None
    assert found.roc_auc_interval == pytest.approx(np.quantile(areas, [0.05, 0.95]), abs=0.01)
    assert found.calibration_interval == pytest.approx(np.quantile(gaps, [0.05, 0.95]), abs=0.005)


def test_a_calibrated_model_is_seldom_called_otherwise() -> None:
    lost, apart = [], []
    for seed in range(80):
        reference, month = labelled(250, seed), labelled(250, 1000 + seed)
        found = estimate_performance(*month, *reference, CONFIDENCE, 42)
        assert found.roc_auc_loss_low is not None
        lost.append(found.roc_auc_loss_low > 0)
        apart.append(not found.calibration_interval.low < 0 < found.calibration_interval.high)
    assert np.mean(lost) <= 0.03  # one-sided: 0.5 % is meant
    assert np.mean(apart) <= 0.05  # two-sided: 1 %


def test_a_loss_of_order_and_one_of_level_are_told_apart() -> None:
    target, scores = labelled(1000, seed=3)
    reference = labelled(1000, seed=4)
    raised = estimate_performance(target, np.minimum(scores + 0.1, 1), *reference, CONFIDENCE, 42)
    assert raised.calibration_interval.low > 0
    assert raised.roc_auc_loss_low is not None
    assert raised.roc_auc_loss_low < 0
    mixed = np.random.default_rng(1).permutation(scores)
    shuffled = estimate_performance(target, mixed, *reference, CONFIDENCE, 42)
    assert shuffled.roc_auc_loss_low is not None
    assert shuffled.roc_auc_loss_low > 0.1
    low, high = shuffled.calibration_interval
    assert low < 0 < high


def test_one_class_has_a_gap_and_no_roc_auc() -> None:
    target, scores = labelled(100, seed=5)
    found = estimate_performance(np.zeros(100), scores, target, scores, CONFIDENCE, 42)
    assert (found.roc_auc, found.roc_auc_interval, found.roc_auc_loss_low) == (None, None, None)
    assert found.calibration_gap == pytest.approx(scores.mean())


def test_without_a_reference_there_is_no_loss() -> None:
    target, scores = labelled(100, seed=5)
    found = estimate_performance(target, scores, [], [], CONFIDENCE, 42)
    assert found.roc_auc is not None
    assert (found.reference_roc_auc, found.roc_auc_loss, found.roc_auc_loss_low) == (None,) * 3


def test_a_single_positive_is_no_accident() -> None:
    scores = np.linspace(0.01, 0.5, 30)
    target = np.zeros(30)
    target[-1] = 1
    found = estimate_performance(target, scores, target, scores, CONFIDENCE, 42)
    assert found.roc_auc == 1
    assert found.roc_auc_interval == (1, 1)
    assert found.roc_auc_loss_low == 0


def test_a_large_month_is_measured_in_well_under_a_second() -> None:
    target, scores = labelled(4000, seed=1)
    began = time.process_time()
    wasserstein_noise(scores, 4000, CONFIDENCE, 42)
    estimate_performance(target, scores, target, scores, CONFIDENCE, 42)
    assert time.process_time() - began < 1.5  # 0.3 s; machines differ
