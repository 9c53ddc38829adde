"""The numbers behind every picture of a version: pure functions of targets, scores and rows.

`target` is an array (n) of 0 and 1 and holds both, `score` an array (n) of probabilities of 1 by a
model that never saw the row. What is returned is of plain lists, numbers and None, so that JSON
keeps it as it is: pictures and cards are drawn from that, never from the rows. Never fits anything.

Intervals are central 95 % ones of stratified bootstrap resamples (`mlops.training.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from mlops.dataset.card import PERIOD, SCORE, TARGET, Card, Costs
from mlops.reporting.pictures import calibration_points
from mlops.training.bootstrap import bootstrap
from mlops.training.metrics import (
    FEWEST_ANSWERS,
    PROFIT_ROWS,
    all_metrics,
    average_precision,
    expected_profit,
    profit_curve,
    roc_auc,
)

CONFIDENCE = 0.95
RESAMPLES = 1000
"""Of ROC AUC and Brier, whose resamples are cheap."""

METRIC_RESAMPLES = 200
"""Of all other metrics, each of which is measured anew: an end rests on five resamples."""

METRIC_ROWS = 10_000
"""Rows that the intervals of all metrics are drawn from: with more they are narrow anyway."""

CURVE_POINTS = 200
SCORE_BINS = 30

MOST_SLICES = 24
"""The largest ones are shown: more is no picture."""

_Array = NDArray[Any]


def metrics(
    target: ArrayLike, score: ArrayLike, threshold: float, costs: Costs | None, seed: int
) -> dict[str, Any]:
    """Return every metric with its interval, in `values`: `{name: {value, low, high}}`.

    Accuracy, F1, precision, recall and profit are those of the decision `score >= threshold`.
    Of more than `METRIC_ROWS` rows the intervals, not the values, are those of so many drawn rows,
    narrowed to what all rows have (an interval shrinks with the square root of the rows).
    """
    truth, scores = _arrays(target, score)
    values = _decided(truth, scores, threshold, costs)
    kept = np.arange(len(truth))
    if len(kept) > METRIC_ROWS:
        kept = np.sort(np.random.default_rng(seed).choice(kept, METRIC_ROWS, replace=False))
    shrink = np.sqrt(len(kept) / len(truth))
    drawn = [
        _decided(truth[kept][rows], scores[kept][rows], threshold, costs)
        for rows in _resamples(truth[kept], METRIC_RESAMPLES, seed)
    ]
    middle = _decided(truth[kept], scores[kept], threshold, costs)
    found = {}
    for name, value in values.items():
        low, high = _central(np.array([each[name] for each in drawn]))
        found[name] = {
            "value": value,
            "low": value + float(shrink) * (low - middle[name]),
            "high": value + float(shrink) * (high - middle[name]),
        }
    return {
        "rows": len(truth),
        "positives": int(truth.sum()),
        "confidence": CONFIDENCE,
        "resamples": METRIC_RESAMPLES,
        "interval_rows": len(kept),
        "values": found,
    }


def roc(target: ArrayLike, score: ArrayLike, threshold: float) -> dict[str, Any]:
    """Return the ROC curve: shares of either answer above each threshold, and the decision's."""
    truth, scores = _arrays(target, score)
    false_rate, true_rate, _ = sk.roc_curve(truth, scores)
    places = _thin(len(false_rate))
    low, high = auc_interval(truth, scores)
    chosen = scores >= threshold
    return {
        "false_positive_rate": false_rate[places].tolist(),
        "true_positive_rate": true_rate[places].tolist(),
        "auc": roc_auc(truth, scores),
        "low": low,
        "high": high,
        "at_threshold": {
            "false_positive_rate": float(chosen[truth == 0].mean()),
            "true_positive_rate": float(chosen[truth == 1].mean()),
        },
    }


def precision_recall(target: ArrayLike, score: ArrayLike, threshold: float) -> dict[str, Any]:
    """Return the precision-recall curve; `base` is the precision of a guess, `at_threshold` may be
    None where nobody scores so high."""
    truth, scores = _arrays(target, score)
    precision, recall, _ = sk.precision_recall_curve(truth, scores)
    places = _thin(len(recall))
    chosen = scores >= threshold
    return {
        "recall": recall[::-1][places].tolist(),
        "precision": precision[::-1][places].tolist(),
        "average_precision": average_precision(truth, scores),
        "base": float(truth.mean()),
        "at_threshold": {
            "recall": float(chosen[truth == 1].mean()),
            "precision": float(truth[chosen].mean()),
        }
        if chosen.any()
        else None,
    }


def calibration(target: ArrayLike, score: ArrayLike) -> dict[str, Any]:
    """Return the reliability by groups of equally many rows, with their counts and 95 % intervals.

    `error` is the expected calibration error: the mean distance of a group's share of positives
    from its mean score, by rows (Naeini et al. 2015, with groups of equal size). Intervals are
    Wilson's.
    """
    truth, scores = _arrays(target, score)
    points = calibration_points(truth, scores)
    parts = np.array_split(np.sort(scores), len(points))
    groups = [
        {
            "score": mean,
            "share": share,
            "low": low,
            "high": high,
            "rows": len(part),
            "from": float(part[0]),
            "to": float(part[-1]),
        }
        for (mean, share, low, high), part in zip(points, parts, strict=True)
    ]
    error = sum(abs(each["share"] - each["score"]) * each["rows"] for each in groups) / len(truth)
    return {
        "groups": groups,
        "error": float(error),
        "mean_score": float(scores.mean()),
        "positive_rate": float(truth.mean()),
    }


def gains(target: ArrayLike, score: ArrayLike, threshold: float) -> dict[str, Any]:
    """Return cumulative gains and lift of asking the best-scored first.

    `share` of the rows, `found` of the positives, `lift` their ratio. Equal scores count with their
    mean, so that the order of rows does not matter. `best` is the share at which a model that knows
    everything has found all.
    """
    truth, scores = _arrays(target, score)
    order = np.argsort(-scores, kind="stable")
    ranked, values = truth[order], scores[order]
    lasts = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    # Between two distinct scores everything is a straight line: what chance gives among equals.
    shares = np.concatenate([[0.0], (lasts + 1) / len(truth)])
    found = np.concatenate([[0.0], np.cumsum(ranked)[lasts] / truth.sum()])
    grid = np.arange(1, 101) / 100
    at = np.interp(grid, shares, found)
    chosen = float(np.mean(scores >= threshold))
    return {
        "share": [0.0, *grid.tolist()],
        "found": [0.0, *at.tolist()],
        "lift": (at / grid).tolist(),
        "best": float(truth.mean()),
        "at_threshold": {
            "share": chosen,
            "found": float(np.mean(scores[truth == 1] >= threshold)),
        },
    }


def confusion(target: ArrayLike, score: ArrayLike, threshold: float) -> dict[str, Any]:
    """Return the rows by answer and decision (`score >= threshold`)."""
    truth, scores = _arrays(target, score)
    chosen = scores >= threshold
    return {
        "threshold": threshold,
        "true_positives": int((chosen & (truth == 1)).sum()),
        "false_positives": int((chosen & (truth == 0)).sum()),
        "false_negatives": int((~chosen & (truth == 1)).sum()),
        "true_negatives": int((~chosen & (truth == 0)).sum()),
    }


def profit(
    target: ArrayLike, score: ArrayLike, threshold: float, costs: Costs | None
) -> dict[str, Any] | None:
    """Return the profit by share contacted, per 1,000 rows in `unit`; None without costs."""
    if costs is None:
        return None
    truth, scores = _arrays(target, score)
    everybody = float(scores.min())
    return {
        **dict(costs),
        "per_rows": PROFIT_ROWS,
        "curve": [point._asdict() for point in profit_curve(truth, scores, costs)],
        "chosen": {
            "threshold": threshold,
            "share": float(np.mean(scores >= threshold)),
            "profit": expected_profit(truth, scores, threshold, costs),
        },
        "all": expected_profit(truth, scores, everybody, costs),
    }


def score_distribution(target: ArrayLike, score: ArrayLike) -> dict[str, Any]:
    """Return the share of each class by score, in bins of equal width up to the largest score."""
    truth, scores = _arrays(target, score)
    top = min(1.0, float(np.ceil(scores.max() * 20) / 20) or 1.0)
    edges = np.linspace(0.0, top, SCORE_BINS + 1)
    shares = {
        name: (np.histogram(scores[truth == answer], edges)[0] / np.sum(truth == answer)).tolist()
        for name, answer in (("negatives", 0), ("positives", 1))
    }
    return {"edges": edges.tolist(), **shares}


def slices(rows: pd.DataFrame, card: Card) -> list[dict[str, Any]]:
    """Return ROC AUC and calibration of each value of the card's slice columns, columns together.

    `rows` has the features, `target` and `score`. A slice with fewer than `FEWEST_ANSWERS` rows of
    an answer has None for its ROC AUC. At most `MOST_SLICES`, the largest.
    """
    found = []
    for column in card.slice_columns:
        for value, here in rows.groupby(column, observed=True):
            found.append(
                {
                    "column": column,
                    "value": str(value),
                    **_auc_of(here),
                    "share": len(here) / len(rows),
                }
            )
    largest = sorted(found, key=lambda each: -each["rows"])[:MOST_SLICES]
    return [each for each in found if any(each is kept for kept in largest)]


def months(rows: pd.DataFrame, how: str) -> list[dict[str, Any]]:
    """Return ROC AUC and calibration by month of scored rows; `how` says who scored them."""
    return [
        {"period": str(period), "how": how, **_auc_of(here)}
        for period, here in rows.groupby(PERIOD, observed=True)
    ]


def auc_interval(target: ArrayLike, score: ArrayLike) -> tuple[float, float]:
    """Return the ends of the bootstrap interval of the ROC AUC."""
    return _central(bootstrap(target, [score], RESAMPLES).roc_auc[0])


def _auc_of(rows: pd.DataFrame) -> dict[str, Any]:
    truth, scores = rows[TARGET].to_numpy(dtype=np.int64), rows[SCORE].to_numpy(dtype=np.float64)
    positives = int(truth.sum())
    known: dict[str, Any] = {"auc": None, "low": None, "high": None}
    if min(positives, len(truth) - positives) >= FEWEST_ANSWERS:
        low, high = auc_interval(truth, scores)
        known = {"auc": roc_auc(truth, scores), "low": low, "high": high}
    return {
        "rows": len(truth),
        "positives": positives,
        **known,
        "mean_score": float(scores.mean()),
        "positive_rate": float(truth.mean()),
    }


def _decided(
    truth: _Array, scores: _Array, threshold: float, costs: Costs | None
) -> dict[str, float]:
    chosen = scores >= threshold
    hits = float((chosen & (truth == 1)).sum())
    return {
        **all_metrics(truth, scores, threshold, costs),
        "precision": hits / float(chosen.sum()) if chosen.any() else 0.0,
        "recall": hits / float(truth.sum()),
    }


def _resamples(truth: _Array, count: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Yield places of rows, drawn with repetition: as many of each answer as there are."""
    random = np.random.default_rng(seed)
    parts = [np.flatnonzero(truth == answer) for answer in (0, 1)]
    for _ in range(count):
        yield np.concatenate([random.choice(part, len(part)) for part in parts])


def _central(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def _thin(points: int) -> NDArray[np.intp]:
    """Return the places of at most `CURVE_POINTS` points, the first and the last among them."""
    return np.unique(np.linspace(0, points - 1, min(points, CURVE_POINTS)).astype(np.intp))


def _arrays(target: ArrayLike, score: ArrayLike) -> tuple[_Array, _Array]:
    return np.asarray(target, dtype=np.int64), np.asarray(score, dtype=np.float64)
