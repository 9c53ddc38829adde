"""Reads what a card leaves out as well, to look at it and to compare; never for a training.

A card says of such a column only why no model may see it. So its kind is read off its values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mlops.dataset.card import Card
from mlops.dataset.sources import RawData, read_source
from mlops.settings import Settings, get_settings


def read_with_left_out(card: Card, settings: Settings | None = None) -> tuple[Card, RawData]:
    """Return a card of which nothing is left out, every column is learnt from, and its rows.

    The columns that `card` leaves out come last. One of numbers only is a number, else a category;
    no text means missing there but those that do in any column. Raises DataError if the source
    cannot be used, or lacks one of them, as the generated sample lacks them all.
    """
    settings = settings or get_settings()
    more = [
        {"name": name, "kind": "category", "description": f"Left out: {why}"}
        for name, why in card.left_out.items()
    ]
    raw = read_source(_with(card, more), settings)
    frame = raw.frame.copy()
    for column in more:
        numbers = _as_numbers(frame[column["name"]])
        if numbers is not None:
            frame[column["name"]] = numbers
            column["kind"] = "number"
    return _with(card, more), replace(raw, frame=frame)


def _with(card: Card, more: list[dict[str, Any]]) -> Card:
    features = [{**feature.model_dump(), "learn": True} for feature in card.features]
    return Card.model_validate(
        {**card.model_dump(), "features": [*features, *more], "left_out": {}, "sample": None}
    )


def _as_numbers(texts: pd.Series) -> pd.Series | None:
    """Return a column of texts as float32, missing as NaN; None if one of them is no number."""
    try:
        return pd.to_numeric(texts.where(texts != "", None), errors="raise").astype(np.float32)
    except (TypeError, ValueError):
        return None
