"""What chance explains in a month of so many rows: pure functions of samples, never a judgement.

A month is a sample, and so is the reference that it is compared with; both differ from their world
by chance. Everything here answers how far that reaches: of a distance of distributions, of a share
of missing values, of a ROC AUC and a mean score. What counts as too much is the caller's.

Distances. For samples of n and m rows of one distribution, the difference of the two empirical
distribution functions behaves as that of one sample of nm/(n + m) rows against the distribution
itself (the two-sample form of Donsker's theorem; van der Vaart 1998, section 19.2). So resamples of
the reference with that many rows, measured against the whole reference, show what chance does to
both sides. To draw n rows would take the reference for the truth: where it is as small as the
month, one month in eight would then pass the 99 % quantile, not one in fifty.

Every function takes a seed or draws nothing: the same rows give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import hypergeom, norm, wasserstein_distance

DRAWS = 1000
"""Resamples of a bootstrap."""

SMALLEST_NORM = 0.001
"""Evidently's, for a reference that hardly varies."""

_CELLS = 200_000
"""Numbers that a block of resamples may hold: memory, not the result, depends on it."""


class Interval(NamedTuple):
    """From `low` to `high`, both of the measure's own unit."""

    low: float
    high: float


class Performance(NamedTuple):
    """How well scores do on labelled rows, each figure with its interval.

    `calibration_gap` is the mean score less the share of positives, -1..1: above 0, too many are
    promised. What needs a ROC AUC is None where all labels are of one class. `roc_auc_loss` is that
    of the reference less that of the rows, and `roc_auc_loss_low` the lower end of its interval:
    above 0, the loss is more than chance.
    """

    calibration_gap: float
    calibration_interval: Interval
    roc_auc: float | None = None
    roc_auc_interval: Interval | None = None
    reference_roc_auc: float | None = None
    roc_auc_loss: float | None = None
    roc_auc_loss_low: float | None = None


def wasserstein(reference: ArrayLike, current: ArrayLike) -> float:
    """Return the Wasserstein distance of numbers in standard deviations of the reference.

    Evidently's method `wasserstein`; neither side may hold a NaN.
    """
    known = np.asarray(reference, dtype=np.float64)
    return float(wasserstein_distance(known, current)) / _norm(known)


def jensen_shannon(reference: ArrayLike, current: ArrayLike) -> float:
    """Return the Jensen-Shannon distance of categories, 0 to 0.83 (the root of ln 2).

    Evidently's method `jensenshannon`: over the shares of all values that occur.
    """
    sides = np.asarray(reference, dtype=str), np.asarray(current, dtype=str)
    _, kinds = np.unique(np.concatenate(sides), return_inverse=True)
    known, now = kinds[: len(sides[0])], kinds[len(sides[0]) :]
    counts = [np.bincount(side, minlength=kinds.max() + 1) for side in (known, now)]
    return float(np.nan_to_num(jensenshannon(*counts)))


def wasserstein_noise(reference: ArrayLike, rows: int, confidence: float, seed: int) -> float:
    """Return the distance that a month of `rows` rows reaches by chance, at that `confidence`.

    In Evidently's unit for method `wasserstein`: standard deviations of the reference. `reference`
    holds numbers only, at least one; `rows` is 1 or more.
    """
    values, counts = np.unique(np.asarray(reference, dtype=np.float64), return_counts=True)
    expected = np.cumsum(counts / counts.sum())[:-1]
    norm = _norm(np.repeat(values, counts))
    size = _effective_rows(rows, int(counts.sum()))
    random = np.random.default_rng(seed)
    # Between two neighbouring values both distribution functions are flat: their distance is an
    # area of rectangles.
    by_chance = [
        np.abs(np.cumsum(block, axis=1)[:, :-1] / size - expected) @ np.diff(values) / norm
        for block in _resampled_counts(counts, size, random)
    ]
    return float(np.quantile(np.concatenate(by_chance), confidence))


def jensen_shannon_noise(reference: ArrayLike, rows: int, confidence: float, seed: int) -> float:
    """Return the distance that a month of `rows` rows reaches by chance, at that `confidence`.

    As Evidently computes method `jensenshannon` of categories: over the shares of all that occur,
    with natural logarithms. `reference` holds texts, at least one; `rows` is 1 or more.
    """
    _, counts = np.unique(np.asarray(reference, dtype=str), return_counts=True)
    size = _effective_rows(rows, int(counts.sum()))
    random = np.random.default_rng(seed)
    by_chance = [
        np.nan_to_num(jensenshannon(np.broadcast_to(counts, block.shape), block, axis=1))
        for block in _resampled_counts(counts, size, random)
    ]
    return float(np.quantile(np.concatenate(by_chance), confidence))


def one_sided_by_chance(values: int, rows: int, other_rows: int) -> float:
    """Return how likely it is that none of `values` lie among the `other_rows`, by chance.

    `values` are all that two samples hold together, and lie among the `rows` of one of them. The
    hypergeometric distribution: which rows have a value is random, how many is given.
    """
    return float(hypergeom.pmf(0, rows + other_rows, values, other_rows))


def missing_more_by_chance(
    missing: int, rows: int, reference_missing: int, reference_rows: int
) -> float:
    """Return how likely it is that so many or more of `rows` lack a value, were the shares equal.

    Fisher's exact test, one-sided (1935): it holds for few rows and for shares of nearly nothing,
    where a normal approximation does not. Both counts of rows are 1 or more.
    """
    return float(
        hypergeom.sf(missing - 1, rows + reference_rows, missing + reference_missing, rows)
    )


def estimate_performance(
    target: ArrayLike,
    score: ArrayLike,
    reference_target: ArrayLike,
    reference_score: ArrayLike,
    confidence: float,
    seed: int,
) -> Performance:
    """Return ROC AUC and calibration gap of labelled rows, with intervals of that `confidence`.

    Targets are 0 and 1, scores probabilities; at least one row, of the reference perhaps none.
    All are normal intervals: of the gap, which is a mean, by its standard error, of ROC AUC by that
    of a bootstrap over rows (Efron 1979), since quantiles of 1,000 resamples say little about one
    in a thousand. The loss is that against the reference, both sides resampled, since the
    reference's own ROC AUC is known no better than its rows allow.
    """
    month, reference = _Labelled(target, score), _Labelled(reference_target, reference_score)
    random = np.random.default_rng(seed)
    areas = month.resample(random)
    deviations = float(norm.ppf((1 + confidence) / 2))
    performance = Performance(month.gap, _interval_of_mean(target, score, deviations))
    # A resample may hold one class only, where there are few of the other: it says nothing.
    known = areas[~np.isnan(areas)]
    if month.area is None or not len(known):
        return performance
    performance = performance._replace(
        roc_auc=month.area,
        roc_auc_interval=Interval(
            max(month.area - deviations * float(known.std()), 0.0),
            min(month.area + deviations * float(known.std()), 1.0),
        ),
    )
    if reference.area is None:
        return performance
    losses = reference.resample(random) - areas
    losses = losses[~np.isnan(losses)]
    loss = reference.area - month.area
    return performance._replace(
        reference_roc_auc=reference.area,
        roc_auc_loss=loss,
        roc_auc_loss_low=loss - deviations * float(losses.std()) if len(losses) else None,
    )


def _interval_of_mean(target: ArrayLike, score: ArrayLike, deviations: float) -> Interval:
    """Return between what the mean of score less target lies; -1 to 1 for a single row."""
    misses = np.asarray(score, dtype=np.float64) - np.asarray(target, dtype=np.float64)
    if len(misses) < 2:
        return Interval(-1.0, 1.0)
    reach = deviations * misses.std(ddof=1) / np.sqrt(len(misses))
    return Interval(float(misses.mean() - reach), float(misses.mean() + reach))


class _Labelled:
    """Labelled rows in order of their scores; equal scores are one group."""

    def __init__(self, target: ArrayLike, score: ArrayLike) -> None:
        truth, scores = np.asarray(target, dtype=np.int64), np.asarray(score, dtype=np.float64)
        distinct, groups = np.unique(scores, return_inverse=True)
        kinds = 2 * groups + truth  # a group's negatives, then its positives
        self._kinds = np.bincount(kinds, minlength=2 * len(distinct))
        self.gap = float(np.mean(scores) - np.mean(truth)) if len(scores) else 0.0
        area = float(self._areas(self._kinds[None, :])[0])
        self.area = None if np.isnan(area) else area

    def resample(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Return the ROC AUC of `DRAWS` resamples of the rows, NaN for those of one class."""
        rows = int(self._kinds.sum())
        return np.concatenate(
            [self._areas(block) for block in _resampled_counts(self._kinds, rows, random)]
        )

    @staticmethod
    def _areas(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the ROC AUC for each line of counts (lines by kinds); NaN if one class only.

        The share of pairs in which the positive scores higher, ties counted half: over groups in
        order, the negatives below a positive are a running sum.
        """
        negatives, positives = drawn[:, ::2], drawn[:, 1::2]
        below = np.cumsum(negatives, axis=1) - negatives / 2
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        won = np.einsum("ij,ij->i", positives, below)
        return np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)


def _resampled_counts(
    counts: NDArray[np.int64], size: int, random: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield blocks (resamples by kinds): how often each kind is drawn among `size` rows.

    `counts` says how often each kind stands in the sample that is drawn from.
    """
    kinds = np.repeat(np.arange(len(counts)), counts)
    done = 0
    while done < DRAWS:
        block = min(DRAWS - done, max(1, _CELLS // max(len(counts), size)))
        drawn = kinds[random.integers(0, len(kinds), (block, size))]
        drawn += np.arange(block)[:, None] * len(counts)
        flat = np.bincount(drawn.ravel(), minlength=block * len(counts))
        yield flat.reshape(block, len(counts))
        done += block


def _norm(reference: NDArray[np.float64]) -> float:
    return max(float(np.std(reference)), SMALLEST_NORM)


def _effective_rows(rows: int, reference_rows: int) -> int:
    """Return the size of the one sample that varies as the difference of the two does."""
    return max(1, round(rows * reference_rows / (rows + reference_rows)))
