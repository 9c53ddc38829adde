"""What a model's scores rest on: permutation importance, Shapley contributions; pure functions.

Both ask a model only what it answers to rows (a `Scorer`), whatever it is made of. Neither says
what causes an answer in the world: they say what this model looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops.dataset.card import TARGET, Card
from mlops.training.metrics import roc_auc

Scorer = Callable[[pd.DataFrame], NDArray[np.float64]]
"""Returns the probability (n) of each of n rows of features."""

REPEATS = 5
"""Shuffles of a column."""

EXACT_FIELDS = 10
"""With more, all 2^n coalitions of a row are too many, and orders of joining are drawn instead."""

ORDERS = 32
"""Drawn orders of joining a row, each with its reverse."""

BLOCK_ROWS = 65_536
"""Rows that are scored at once."""


def permutation_importance(
    parts: Sequence[tuple[Scorer, pd.DataFrame]], card: Card, seed: int, repeats: int = REPEATS
) -> list[dict[str, Any]]:
    """Return by how much ROC AUC falls when a column is shuffled, the most important first.

    `parts` are scorers, each with rows that it was not fitted on (features, `target`): the scores
    of all parts together are measured. `loss` is the mean over the shuffles, `low` and `high` their
    extremes (Breiman 2001; Fisher, Rudin and Dominici 2019). A column is shuffled within its part.
    Columns that are not learnt from are left out: their loss is zero by construction.
    """
    random = np.random.default_rng(seed)
    truth = np.concatenate([rows[TARGET].to_numpy() for _, rows in parts])
    whole = roc_auc(truth, np.concatenate([score(rows) for score, rows in parts]))
    found = []
    for feature in card.features:
        if not feature.learn:
            continue
        losses = []
        for _ in range(repeats):
            scores = [
                score(
                    rows.assign(**{feature.name: random.permutation(rows[feature.name].to_numpy())})
                )
                for score, rows in parts
            ]
            losses.append(whole - roc_auc(truth, np.concatenate(scores)))
        found.append(
            {
                "field": feature.name,
                "loss": float(np.mean(losses)),
                "low": float(np.min(losses)),
                "high": float(np.max(losses)),
            }
        )
    return sorted(found, key=lambda each: -each["loss"])


def contributions(
    score: Scorer, rows: pd.DataFrame, reference: pd.Series, fields: Sequence[str], seed: int
) -> NDArray[np.float64]:
    """Return the Shapley contribution (rows by `fields`) of each field to each row's score.

    A coalition of fields takes its values from the row, all others keep those of the one
    `reference` customer, as in the API's `/explain`. A row's contributions sum to its score less
    the reference's. They are exact up to `EXACT_FIELDS` fields (every coalition is scored, Shapley
    1953); with more, the mean over `ORDERS` drawn orders of joining and their reverses (Castro et
    al. 2009; antithetic as in Mitchell et al. 2022), which sum to the same, exactly.
    """
    if len(fields) <= EXACT_FIELDS:
        return _exact(score, rows, reference, fields)
    return _drawn(score, rows, reference, fields, np.random.default_rng(seed))


def shapley_weights(players: int) -> NDArray[np.float64]:
    """Return what each coalition's worth counts for each player (2^players by players).

    Coalition c holds player p if bit p of c is set. A coalition S that p joins counts with
    |S|! (n - |S| - 1)! / n!: with that sign where p is in, against it where p is out.
    """
    numbers = np.arange(1 << players)
    holds = (numbers[:, None] >> np.arange(players) & 1).astype(bool)
    sizes = holds.sum(axis=1)[:, None]
    before = np.where(holds, sizes - 1, sizes)
    chances = np.array([1 / (players * math.comb(players - 1, size)) for size in range(players)])
    # A coalition of all has nobody who could join it, and its `before` is in range for none out.
    weights = chances[np.clip(before, 0, players - 1)]
    return np.where(holds, weights, -weights)


def _exact(
    score: Scorer, rows: pd.DataFrame, reference: pd.Series, fields: Sequence[str]
) -> NDArray[np.float64]:
    coalitions = (np.arange(1 << len(fields))[:, None] >> np.arange(len(fields)) & 1).astype(bool)
    step = max(1, BLOCK_ROWS // len(coalitions))
    weights = shapley_weights(len(fields))
    found = np.empty((len(rows), len(fields)))
    for start in range(0, len(rows), step):
        part = rows.iloc[start : start + step]
        inside = np.tile(coalitions, (len(part), 1))
        mixed = _mix(
            part, np.repeat(np.arange(len(part)), len(coalitions)), inside, reference, fields
        )
        found[start : start + step] = score(mixed).reshape(len(part), -1) @ weights
    return found


def _drawn(
    score: Scorer,
    rows: pd.DataFrame,
    reference: pd.Series,
    fields: Sequence[str],
    random: np.random.Generator,
) -> NDArray[np.float64]:
    players = len(fields)
    found = np.zeros((len(rows), players))
    orders = [random.permutation(players) for _ in range(ORDERS)]
    step = max(1, BLOCK_ROWS // (players + 1))
    for order in [each for pair in orders for each in (pair, pair[::-1])]:
        inside = np.zeros((players + 1, players), dtype=bool)
        for joined, player in enumerate(order):
            inside[joined + 1 :, player] = True
        for start in range(0, len(rows), step):
            part = rows.iloc[start : start + step]
            places = np.repeat(np.arange(len(part)), players + 1)
            mixed = _mix(part, places, np.tile(inside, (len(part), 1)), reference, fields)
            worths = score(mixed).reshape(len(part), players + 1)
            found[start : start + step, order] += np.diff(worths, axis=1)
    return found / (2 * ORDERS)


def _mix(
    rows: pd.DataFrame,
    places: NDArray[np.intp],
    inside: NDArray[np.bool_],
    reference: pd.Series,
    fields: Sequence[str],
) -> pd.DataFrame:
    """Return `rows` at `places`; where not `inside` (a column a field), the reference's values."""
    mixed = {}
    for column in rows.columns:
        values = rows[column].to_numpy()
        if column in fields:
            whose = inside[:, list(fields).index(column)]
            mixed[column] = np.where(whose, values[places], reference[column]).astype(values.dtype)
        else:
            mixed[column] = np.full(len(places), reference[column]).astype(values.dtype)
    return pd.DataFrame(mixed)
