"""How good scores are: pure functions of targets and scores; never fits, reads or writes.

`target` is an array (n) of 0 and 1, `score` an array (n) of probabilities of 1. Every function
returns a float, and raises ValueError where the measure does not exist for such a target.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from mlops.dataset.card import Costs

LIFT_SHARE = 0.1
"""Share of rows that `lift_at_10` looks at: those with the highest scores."""

PROFIT_ROWS = 1000
"""Rows that a profit is stated for, so that windows of any size compare."""

CLEARANCE = 1e-5
"""By how much a threshold lies above all scores: what ONNX may differ by must not reach it."""

FEWEST_ANSWERS = 10
"""Rows of the rarer answer below which there is no ROC AUC to speak of."""

RESAMPLES = 201
"""Of `best_profit_threshold`; odd, so that their median is one of the thresholds."""


class ProfitPoint(NamedTuple):
    """Contacting everybody who scores at least `threshold`.

    `share` (0..1) of the rows is contacted, and `profit` per 1,000 rows comes of it.
    """

    threshold: float
    share: float
    profit: float


def roc_auc(target: ArrayLike, score: ArrayLike) -> float:
    """Return the area under the ROC curve, 0..1; 0.5 for scores that know nothing.

    The chance that a random positive scores higher than a random negative, ties counted half
    (Hanley and McNeil 1982). Knows only the order of scores.
    """
    target, score = _checked(target, score, both_answers=True)
    return float(sk.roc_auc_score(target, score))


def average_precision(target: ArrayLike, score: ArrayLike) -> float:
    """Return the mean precision over the recalls reached, 0..1; the positive rate for a guess.

    Sum of (R_n - R_n-1) P_n over thresholds, without interpolation (scikit-learn's definition).
    """
    target, score = _checked(target, score, both_answers=True)
    return float(sk.average_precision_score(target, score))


def brier(target: ArrayLike, score: ArrayLike) -> float:
    """Return the mean squared error of the score, 0..1, lower is better (Brier 1950)."""
    target, score = _checked(target, score)
    return float(np.mean((score - target) ** 2))


def log_loss(target: ArrayLike, score: ArrayLike) -> float:
    """Return the mean negative log-likelihood in nats, 0 upwards, lower is better (Good 1952).

    A score of exactly 0 or 1 is moved inwards by the smallest step of its type, as scikit-learn
    does, so that one wrong certainty does not make the mean infinite.
    """
    target, score = _checked(target, score)
    return float(sk.log_loss(target, score, labels=[0, 1]))


def accuracy(target: ArrayLike, score: ArrayLike, threshold: float) -> float:
    """Return the share of rows whose decision (score ≥ threshold) is right, 0..1.

    Never a rank: where 5 % are positive, "no" to everybody reaches 0.95.
    """
    target, score = _checked(target, score)
    return float(np.mean((score >= threshold) == (target == 1)))


def f1(target: ArrayLike, score: ArrayLike, threshold: float) -> float:
    """Return the harmonic mean of precision and recall of the decision (score ≥ threshold), 0..1.

    0 if nothing that is positive is found (van Rijsbergen 1979).
    """
    target, score = _checked(target, score)
    return float(sk.f1_score(target, score >= threshold, zero_division=0.0))


def lift_at_10(target: ArrayLike, score: ArrayLike) -> float:
    """Return how many times more positives the best-scored 10 % hold than all rows do.

    1 for a guess, 10 at most. Rows that tie at the cut count with the share that fits in, so equal
    scores give 1 in whatever order the rows are (lift as in Berry and Linoff, Data Mining
    Techniques).
    """
    target, score = _checked(target, score, both_answers=True)
    places = math.ceil(LIFT_SHARE * len(target))
    cut = np.sort(score)[-places]
    above, tied = score > cut, score == cut
    positives = target[above].sum() + target[tied].mean() * (places - above.sum())
    return float(positives / places / target.mean())


def best_f1_threshold(target: ArrayLike, score: ArrayLike) -> float:
    """Return the threshold whose decisions (score ≥ threshold) have the highest F1.

    It lies between two scores; of several equally good it is the highest, which bothers the fewest
    customers.
    """
    target, score = _checked(target, score, both_answers=True)
    precision, recall, thresholds = sk.precision_recall_curve(target, score)
    total = precision + recall
    values = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    values = values[:-1]  # the last point has no threshold
    return _between(float(thresholds[np.flatnonzero(values == values.max())[-1]]), score)


def expected_profit(target: ArrayLike, score: ArrayLike, threshold: float, costs: Costs) -> float:
    """Return the profit per 1,000 rows, in `costs.unit`, of contacting scores ≥ threshold.

    A contact costs `costs.contact`, a positive that is contacted brings `costs.success`; who is not
    contacted costs and brings nothing.
    """
    target, score = _checked(target, score)
    gain = np.where(score >= threshold, _gains(target, costs), 0.0)
    return float(PROFIT_ROWS * gain.mean())


def best_profit_threshold(target: ArrayLike, score: ArrayLike, costs: Costs) -> float:
    """Return the threshold of most profit: the median of the best ones of 201 resamples.

    The best threshold of the rows themselves depends on a few positives near it, and flatters
    itself. The median over bootstrap resamples (rows drawn with repetition; Efron 1979, and
    Breiman 1996 for averaging what is unstable) earns more on rows that were not used, and unlike
    the break-even probability `contact / success` (Elkan 2001) it does not trust the scores to be
    calibrated, which they are not when the world moves (figures in docs/architecture.md, Training).
    Of equally good thresholds of a resample the highest counts, which bothers the fewest customers.

    It lies between two scores. Where contacting nobody is best, it is above them all, and at least
    the break-even probability. The same rows give the same threshold, in whatever order.
    """
    truth, scores = _checked(target, score)
    order = np.lexsort((truth, -scores))
    scores, gains = scores[order], _gains(truth[order], costs)
    # Equal scores are contacted together: a threshold is at the last of them.
    lasts = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    random = np.random.default_rng(0)
    best = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(random.integers(0, len(scores), len(scores)), minlength=len(scores))
        profits = np.cumsum(drawn * gains)[lasts]
        top = int(np.argmax(profits))
        best.append(scores[lasts[top]] if profits[top] > 0 else math.inf)
    threshold = float(np.median(best))
    if math.isinf(threshold):
        return max(costs.break_even, min(float(scores[0]) + CLEARANCE, 1.0))
    return _between(threshold, scores)


def profit_curve(
    target: ArrayLike, score: ArrayLike, costs: Costs, points: int = 100
) -> list[ProfitPoint]:
    """Return the profit of contacting the best-scored 1/points, 2/points, ... and all rows.

    From few contacts to all, each point once: equal scores are contacted together. Contacting
    nobody, which is no point of it, has a profit of 0.
    """
    target, score = _checked(target, score)
    places = np.ceil(np.arange(1, points + 1) * len(score) / points).astype(int) - 1
    thresholds = np.unique(np.sort(score)[::-1][places])[::-1]
    return [
        ProfitPoint(
            threshold=float(threshold),
            share=float(np.mean(score >= threshold)),
            profit=expected_profit(target, score, float(threshold), costs),
        )
        for threshold in thresholds
    ]


def all_metrics(
    target: ArrayLike, score: ArrayLike, threshold: float, costs: Costs | None = None
) -> dict[str, float]:
    """Return every metric of this module by its name.

    Accuracy, F1 and, where there are costs, `profit` (per 1,000 rows) are those at `threshold`.
    """
    profit = {} if costs is None else {"profit": expected_profit(target, score, threshold, costs)}
    return {
        "accuracy": accuracy(target, score, threshold),
        "roc_auc": roc_auc(target, score),
        "average_precision": average_precision(target, score),
        "brier": brier(target, score),
        "log_loss": log_loss(target, score),
        "f1": f1(target, score, threshold),
        "lift_at_10": lift_at_10(target, score),
        **profit,
    }


def _between(threshold: float, score: NDArray[Any]) -> float:
    """Return the middle between a score and the next lower one (or 0).

    The decisions on `score` stay as they are. At the score itself, all rows that share it would be
    decided otherwise where ONNX rounds the last digit down.
    """
    lower = score[score < threshold]
    return (threshold + float(lower.max() if len(lower) else 0.0)) / 2


def _gains(target: NDArray[Any], costs: Costs) -> NDArray[np.float64]:
    """Return what contacting each row brings, its cost taken off."""
    return costs.success * target - costs.contact


def _checked(
    target: ArrayLike, score: ArrayLike, both_answers: bool = False
) -> tuple[NDArray[Any], NDArray[Any]]:
    target, score = np.asarray(target, dtype=np.int64), np.asarray(score, dtype=np.float64)
    if target.shape != score.shape or target.ndim != 1 or len(target) == 0:
        raise ValueError(
            f"found {target.shape} targets and {score.shape} scores, expected one of each a row"
        )
    if not np.isin(target, (0, 1)).all():
        raise ValueError(f"found targets {np.unique(target)[:5]}, expected 0 and 1 only")
    if not ((score >= 0) & (score <= 1)).all():  # NaN fails this too
        raise ValueError("found a score that is no probability, expected 0..1 in every row")
    if both_answers and target.min() == target.max():
        raise ValueError(f"all {len(target)} targets are {target[0]}, expected both answers")
    return target, score
