"""How far measures of scores are known: ROC AUC and Brier of bootstrap resamples; pure functions.

Resamples are stratified: positives are drawn from the positives, negatives from the negatives, as
many as there are, so that every resample has a ROC AUC (Efron and Tibshirani 1993, chapter 8). All
models are measured on the same resamples, so their differences are paired. The same rows in the
same order give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CELLS = 1_000_000
"""Rows by resamples that are drawn at a time: what fits into a processor's cache and any memory."""


class Resampled(NamedTuple):
    """Measures of each model (rows) in each resample (columns): both arrays of floats, 0..1."""

    roc_auc: NDArray[np.float64]
    brier: NDArray[np.float64]


def bootstrap(
    target: ArrayLike, scores: Sequence[ArrayLike], resamples: int, seed: int = 0
) -> Resampled:
    """Return ROC AUC and Brier of each of `scores` in each resample of the rows.

    `target` (n) is 0 and 1 and holds both, each of `scores` (n) the probabilities of one model.
    Raises ValueError if a target is another, if one answer is missing, or if lengths differ.
    """
    truth = np.asarray(target)
    models = [np.asarray(each, dtype=np.float64) for each in scores]
    if not np.isin(truth, (0, 1)).all() or truth.min() == truth.max():
        raise ValueError(f"found targets {np.unique(truth)[:5]}, expected both 0 and 1")
    for each in models:
        if each.shape != truth.shape:
            raise ValueError(f"found {each.shape} scores for {truth.shape} targets")
    chosen = truth == 1
    positives, negatives = int(chosen.sum()), int((~chosen).sum())
    prepared = [_Model.of(each[chosen], each[~chosen]) for each in models]
    random = np.random.default_rng(seed)
    aucs, briers = np.empty((2, len(models), resamples))
    step = max(1, _CELLS // len(truth))
    for begin in range(0, resamples, step):
        width = min(step, resamples - begin)
        drawn_1 = _draw(random, positives, width)
        drawn_0 = _draw(random, negatives, width)
        part = slice(begin, begin + width)
        for place, model in enumerate(prepared):
            aucs[place, part] = model.roc_auc(drawn_1, drawn_0)
            briers[place, part] = model.brier(drawn_1, drawn_0)
    return Resampled(aucs, briers)


def _draw(random: np.random.Generator, rows: int, width: int) -> NDArray[np.float64]:
    """Return how often each of `rows` is in each of `width` resamples, as floats."""
    places = random.integers(0, rows, (rows, width)) * width + np.arange(width)
    return np.bincount(places.ravel(), minlength=rows * width).reshape(rows, width).astype(float)


class _Model(NamedTuple):
    """One model's scores, prepared: what stays the same in all resamples."""

    order: NDArray[np.intp]
    """Of the negatives, by score."""
    below: NDArray[np.intp]
    """Of each positive: how many negatives score lower."""
    not_above: NDArray[np.intp]
    """Of each positive: how many negatives score lower, or the same."""
    error_1: NDArray[np.float64]
    error_0: NDArray[np.float64]

    @classmethod
    def of(cls, positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> _Model:
        order = np.argsort(negatives, kind="stable")
        return cls(
            order,
            np.searchsorted(negatives[order], positives, "left"),
            np.searchsorted(negatives[order], positives, "right"),
            (positives - 1.0) ** 2,
            negatives**2,
        )

    def roc_auc(
        self, drawn_1: NDArray[np.float64], drawn_0: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the share of (positive, negative) pairs in the right order, ties counted half."""
        passed = np.zeros((len(drawn_0) + 1, drawn_0.shape[1]))
        np.cumsum(drawn_0[self.order], axis=0, out=passed[1:])
        won = (passed[self.below] + passed[self.not_above]) / 2
        share: NDArray[np.float64] = np.einsum("ij,ij->j", drawn_1, won)
        return share / (len(drawn_1) * len(drawn_0))

    def brier(
        self, drawn_1: NDArray[np.float64], drawn_0: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        errors: NDArray[np.float64] = self.error_1 @ drawn_1 + self.error_0 @ drawn_0
        return errors / (len(drawn_1) + len(drawn_0))
