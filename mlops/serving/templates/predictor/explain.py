"""Why a record scores as it does: exact Shapley contributions against the reference customer.

The reference is the typical record of `model.json`. A coalition of fields takes its values from the
record, all other fields keep the reference's; every coalition is scored, and nothing is sampled or
approximated. It answers questions about a score; it never makes a prediction of its own, and logs
nothing.

Shapley (1953), A value for n-person games, is the definition; Lundberg and Lee (2017), A unified
approach to interpreting model predictions, its use for models. It is what SHAP's exact explainer
gives with this one reference as background, and a test holds both to one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.errors import RequestError
from predictor.model import Model

MAX_DIFFERENT = 16
"""Fields that may differ from the reference: 2^16 coalitions, tenths of a second of one core."""

BLOCK_ROWS = 4096
"""Coalitions that are scored at once, so that memory does not grow with their number."""

Worth = Callable[[NDArray[np.bool_]], NDArray[np.float64]]
"""Takes rows of coalitions (a column a player: whether it is in), returns the worth of each."""


def explain(model: Model, body: Any) -> dict[str, Any]:
    """Return what /explain answers about one record, without request id and version.

    `contributions` has an entry a field, the largest first, with the values as the model takes
    them (None: missing, which counts as a value like any other). They sum to `probability -
    reference_probability`. Raises RequestError for what is not one record, for a record that
    /predict refuses too, and if more than MAX_DIFFERENT fields differ from the reference.
    """
    if isinstance(body, list):
        raise RequestError(
            "not_one_record",
            "found a list, expected one record: each is explained by a request of its own",
        )
    record, warnings = model.read(body, 0)
    reference, _ = model.read(model.card["reference"], 0)
    # Each field's two values as ONNX takes them: [0] of the reference, [1] of the record.
    values = {
        each.name: _pair(reference[each.name], record[each.name], each.is_number)
        for each in model.inputs
    }
    different = [name for name, pair in values.items() if not _same(pair)]
    if len(different) > MAX_DIFFERENT:
        raise RequestError(
            "too_many_differences",
            f"{len(different)} fields differ from the reference customer (`reference` of GET"
            f" /model), at most {MAX_DIFFERENT} can be explained exactly: leave the others as they"
            " are there",
        )
    place = {name: number for number, name in enumerate(different)}

    def worth(coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
        feeds = {
            name: (
                pair[coalitions[:, place[name]].astype(np.intp)]
                if name in place
                else np.repeat(pair[:1], len(coalitions), axis=0)
            )
            for name, pair in values.items()
        }
        scores = model.session.run([model.output], feeds)[0]
        return np.asarray(scores[:, 1], dtype=np.float64)

    worths = coalition_worths(worth, len(different))
    # Scored alone, as /predict scores them: one row and many may differ in the last digit.
    alone = [np.full((1, len(different)), whole, dtype=np.bool_) for whole in (False, True)]
    base, probability = (float(worth(each)[0]) for each in alone)
    worths[0], worths[-1] = base, probability
    shares = shapley(worths)
    contributions = [
        {
            "field": name,
            "value": record[name],
            "reference": reference[name],
            "contribution": float(shares[place[name]]) if name in place else 0.0,
        }
        for name in values
    ]
    return {
        "probability": probability,
        "reference_probability": base,
        "decision": model.decisions[probability >= model.threshold],
        "contributions": sorted(contributions, key=lambda each: -abs(each["contribution"])),
        "warnings": warnings,
    }


def coalition_worths(worth: Worth, players: int) -> NDArray[np.float64]:
    """Return the worth of each of the 2^players coalitions; coalition c holds p if bit p is set.

    `worth` is asked for at most BLOCK_ROWS of them at once.
    """
    worths = np.empty(1 << players)
    bits = np.arange(players)
    for start in range(0, len(worths), BLOCK_ROWS):
        block = np.arange(start, min(start + BLOCK_ROWS, len(worths)))
        worths[block] = worth((block[:, None] >> bits & 1).astype(np.bool_))
    return worths


def shapley(worths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Shapley value of each player: its mean gain over all orders of joining.

    `worths` are those of all coalitions, in the order of `coalition_worths`. A coalition S that a
    player joins counts with |S|! (n - |S| - 1)! / n!. The values sum to the worth of all players
    less the worth of none.
    """
    players = len(worths).bit_length() - 1
    numbers = np.arange(len(worths))
    sizes = sum((numbers >> player & 1 for player in range(players)), np.zeros_like(numbers))
    weights = np.array([1 / (players * math.comb(players - 1, size)) for size in range(players)])
    shares = np.empty(players)
    for player in range(players):
        # The middle axis: coalitions without the player, and the same ones with it.
        pairs = worths.reshape(-1, 2, 1 << player)
        joined = sizes.reshape(pairs.shape)[:, 0]
        shares[player] = np.sum(weights[joined] * (pairs[:, 1] - pairs[:, 0]))
    return shares


def _pair(
    reference: float | int | str | None, value: float | int | str | None, is_number: bool
) -> NDArray[Any]:
    """Return the two values as a column of two rows, missing as `Model.score` writes it."""
    missing: float | str = math.nan if is_number else ""
    known = [missing if each is None else each for each in (reference, value)]
    return np.array(known, dtype=np.float32 if is_number else object).reshape(2, 1)


def _same(pair: NDArray[Any]) -> bool:
    """Return whether a field's two values are one to the model: missing is equal to missing."""
    one, other = pair[:, 0].tolist()
    return bool(one == other or (one != one and other != other))
