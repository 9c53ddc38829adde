"""How good scores are: pure functions of targets and scores; never fits, reads or writes.

`target` is an array (n) of 0 and 1, `score` an array (n) of probabilities of 1. Every function
returns a float, and raises ValueError where the measure does not exist for such a target.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

LIFT_SHARE = 0.1
"""Share of rows that `lift_at_10` looks at: those with the highest scores."""


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

    One of the scores; of several equally good the highest, which bothers the fewest customers.
    """
    target, score = _checked(target, score, both_answers=True)
    precision, recall, thresholds = sk.precision_recall_curve(target, score)
    total = precision + recall
    values = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    values = values[:-1]  # the last point has no threshold
    return float(thresholds[np.flatnonzero(values == values.max())[-1]])


def all_metrics(target: ArrayLike, score: ArrayLike, threshold: float) -> dict[str, float]:
    """Return every metric of this module by its name; accuracy and F1 are those at `threshold`."""
    return {
        "accuracy": accuracy(target, score, threshold),
        "roc_auc": roc_auc(target, score),
        "average_precision": average_precision(target, score),
        "brier": brier(target, score),
        "log_loss": log_loss(target, score),
        "f1": f1(target, score, threshold),
        "lift_at_10": lift_at_10(target, score),
    }


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
