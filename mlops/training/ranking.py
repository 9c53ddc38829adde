"""Which candidate of a training is put forward: pure functions of what their runs came to.

By Brier score, because in a world that moves a wrong level costs as much as a wrong order, and ROC
AUC sees the order only. The first candidate of the file keeps its place unless another is better
beyond chance: taking whoever happens to be ahead on one month is worse out of time than staying
with one (docs/retraining.md has the figures; the idea is the one-standard-error rule of Breiman et
al. 1984, with three of them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops.dataset.card import SCORE, TARGET

STANDARD_ERRORS = 3.0
"""Three, as several candidates try at every training: one in a thousand each, not one in twenty."""


def in_order(
    metrics: Mapping[str, Mapping[str, float]],
    errors: Callable[[str], NDArray[np.float64]],
) -> list[str]:
    """Return the names of `metrics`, the one to put forward first, the others by Brier score.

    `metrics` holds `validation_brier` and `validation_roc_auc` by candidate, in the file's order;
    `errors` returns a candidate's squared error of each validation row, and is asked for two at
    most. Where the two were measured on different rows, the lower Brier score counts.
    """
    ranked = sorted(
        metrics,
        key=lambda name: (
            metrics[name].get("validation_brier", 1.0),
            -metrics[name].get("validation_roc_auc", 0.0),
            name,
        ),
    )
    first = next(iter(metrics), None)
    if first is None or first == ranked[0]:
        return ranked
    if clearly_lower(errors(ranked[0]), errors(first)):
        return ranked
    return [first, *(name for name in ranked if name != first)]


def clearly_lower(
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    standard_errors: float = STANDARD_ERRORS,
) -> bool:
    """Return whether `ours` are lower in the mean by so many standard errors of their difference.

    The rows are the same, so the difference is paired. Where they are not (of different lengths),
    the lower mean counts.
    """
    if len(ours) != len(theirs):
        return bool(ours.mean() < theirs.mean())
    gains = theirs - ours
    standard_error = gains.std(ddof=1) / np.sqrt(len(gains))
    return bool(gains.mean() > standard_errors * standard_error)


def squared_errors(reference: pd.DataFrame) -> NDArray[np.float64]:
    """Return (score - target)² of each row of a candidate's validation."""
    difference = reference[SCORE].to_numpy() - reference[TARGET].to_numpy()
    return np.asarray(difference**2, dtype=np.float64)
