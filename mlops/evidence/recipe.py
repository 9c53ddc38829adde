"""Fit the recipe of a version again on other rows: fewer months, earlier ones, folds; never logs.

What is served was fitted on all rows of its window, so that nothing may be asked of it on these.
Whatever needs rows that a fit has not seen asks a refit by the same recipe: the folds of validation
(as `mlops.training.fit.score_out_of_fold` deals them), fewer of the latest months before it, and
each month by those before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops.dataset.card import PERIOD, SCORE, TARGET, Card
from mlops.evidence import measures
from mlops.evidence.contributions import Scorer
from mlops.settings import Settings
from mlops.training.candidates import Candidate
from mlops.training.fit import deal_folds, fit_pipeline, score_window
from mlops.training.metrics import roc_auc

logger = logging.getLogger(__name__)

CURVE_SIZES = 4
"""Sizes of a learning curve, the whole window among them."""

FORWARD_MONTHS = 5
"""Latest months before validation that are scored by the months before them."""

Progress = Callable[[str], object]


class Fold(NamedTuple):
    """A part of validation and a scorer that was not fitted on it; `places` are its rows there."""

    score: Scorer
    places: NDArray[np.intp]


@dataclass(frozen=True)
class Recipe:
    """One candidate, or those whose scores are averaged."""

    candidates: tuple[Candidate, ...]

    def fit(self, card: Card, rows: pd.DataFrame, settings: Settings) -> Scorer:
        """Return what scores by this recipe fitted on `rows` (features, target, period)."""
        pipelines = [fit_pipeline(card, each, rows, settings).pipeline for each in self.candidates]

        def score(asked: pd.DataFrame) -> NDArray[np.float64]:
            return np.mean([score_window(each, card, asked) for each in pipelines], axis=0)

        return score


def folds(
    card: Card, recipe: Recipe, earlier: pd.DataFrame, validation: pd.DataFrame, settings: Settings
) -> list[Fold]:
    """Return the folds of validation, each with a scorer fitted on `earlier` and the other folds.

    They are dealt as a training deals them. With one fold validation is whole, and scored by
    `earlier` alone.
    """
    everything = np.arange(len(validation))
    if settings.validation_folds == 1:
        return [Fold(recipe.fit(card, earlier, settings), everything)]
    return [
        Fold(
            recipe.fit(
                card,
                pd.concat([earlier, validation.iloc[others]], ignore_index=True),
                settings,
            ),
            fold,
        )
        for others, fold in deal_folds(validation, settings)
    ]


def scores_of(parts: Sequence[Fold], validation: pd.DataFrame) -> NDArray[np.float64]:
    """Return the score of each row of validation by the fold that it is in."""
    scores = np.empty(len(validation))
    for part in parts:
        scores[part.places] = part.score(validation.iloc[part.places])
    return scores


def curve_sizes(months: int) -> list[int]:
    """Return how many of the latest months are fitted, up to all: 10 gives 1, 2, 5, 10."""
    if months <= CURVE_SIZES:
        return list(range(1, months + 1))
    return sorted({max(1, round(months ** (k / (CURVE_SIZES - 1)))) for k in range(CURVE_SIZES)})


def learning_curve(
    card: Card,
    recipe: Recipe,
    earlier: pd.DataFrame,
    validation: pd.DataFrame,
    whole: Sequence[Fold],
    settings: Settings,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return ROC AUC on validation by how many of the latest months before it were fitted.

    `whole` are the folds fitted on all of `earlier`, so that nothing is fitted twice. `rows` counts
    what is fitted of one fold, its share of validation included.
    """
    target = validation[TARGET].to_numpy()
    periods = sorted(earlier[PERIOD].unique())
    found = []
    for months in curve_sizes(len(periods)):
        part = earlier[earlier[PERIOD] >= periods[-months]].reset_index(drop=True)
        full = months == len(periods)
        dealt = whole if full else folds(card, recipe, part, validation, settings)
        scores = scores_of(dealt, validation)
        low, high = measures.auc_interval(target, scores)
        # With one fold none of validation is fitted.
        fitted = len(validation) * (1 - 1 / len(dealt))
        found.append(
            {
                "months": months,
                "rows": round(len(part) + fitted),
                "auc": roc_auc(target, scores),
                "low": low,
                "high": high,
            }
        )
        progress(f"learning curve: {found[-1]['rows']:,} rows, ROC AUC {found[-1]['auc']:.3f}")
    return found


def forward_months(
    card: Card, recipe: Recipe, earlier: pd.DataFrame, settings: Settings, progress: Progress
) -> list[dict[str, Any]]:
    """Return `measures.months` of the latest `FORWARD_MONTHS` before validation, by those before.

    The first month has none before it. A month that cannot be told (one answer only in what comes
    before, too few rows for the recipe) is left out, and said.
    """
    periods = sorted(earlier[PERIOD].unique())
    found = []
    for period in periods[1:][-FORWARD_MONTHS:]:
        past, rows = earlier[earlier[PERIOD] < period], earlier[earlier[PERIOD] == period]
        try:
            score = recipe.fit(card, past.reset_index(drop=True), settings)
            scored = rows.assign(**{SCORE: score(rows)})
        except ValueError as error:
            progress(f"{period} is left out: {str(error).splitlines()[0]}")
            continue
        found += measures.months(scored, "by the months before")
    return found
