"""A sample that looks like a data set, generated from its published marginals; never real rows.

For people without internet and without the file, and for cards whose data nobody publishes (then
the marginals were made by hand). The sample has the source's months, rows and positives by month,
and each column's distribution by month: the same drift. Columns are drawn
independently of one another, except where the card says that one follows another; which rows are
positive is drawn by the yearly weights of evidence of their values, so there is something to learn
that holds out of time. The file of marginals is written by `python -m mlops.dataset.derive`.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlops.dataset.card import Card, CardError, Feature, Period
from mlops.dataset.timeline import MONTHS, month_start

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""A number's distribution in a month is given at these; between them it is uniform."""

Shares = dict[str, float]
"""Category → share 0..1; "" is missing."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NumberMarginal(_Part):
    """Distribution of a number in a month: values at QUANTILES, and the share that is missing."""

    at: tuple[float, ...] = Field(min_length=len(QUANTILES), max_length=len(QUANTILES))
    missing: float = Field(0.0, ge=0, le=1)


class NumberWeights(_Part):
    """Weight of evidence of a number: `weights[i]` up to `below[i]`, the last beyond."""

    below: tuple[float, ...]
    weights: tuple[float, ...]


class Month(_Part):
    """What is published of a month; `features` has every feature but the time column."""

    rows: int = Field(gt=0)
    positives: int = Field(ge=0)
    features: dict[str, NumberMarginal | Shares]


class Marginals(_Part):
    """All that a sample is generated from."""

    usual: dict[str, float | str] = Field(
        {}, description="Value of a following column where the one that it follows is missing."
    )
    periods: dict[Period, Month]
    weights: dict[str, dict[str, NumberWeights | Shares]] = Field(
        description="Year → feature → log of (share among positives / share among negatives)."
    )


def load_marginals(card: Card) -> Marginals:
    """Return the card's marginals. Raises CardError if it has none, or wrong ones."""
    path = marginals_path(card)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a safe loader)
        marginals = Marginals.model_validate(content)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise CardError(f"{path}: the marginals of a sample cannot be used: {error}") from error
    for period, month in marginals.periods.items():
        absent = _drawn(card) - month.features.keys()
        if absent:
            raise CardError(f"{path}: periods.{period}: no {', '.join(sorted(absent))}")
    return marginals


# A file of numbers: libyaml reads it ten times faster, where PyYAML was built with it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def marginals_path(card: Card) -> Path:
    """Return where the card's marginals lie. Raises CardError if the card names no such file."""
    if card.sample is None:
        raise CardError(
            f"{card.path}: the card has no `sample`, so nothing can be generated: "
            "set MLOPS_DATA to the data"
        )
    return card.path.parent / card.sample.file


def generate_csv(card: Card, seed: int) -> bytes:
    """Return a generated file in the format of the source: same bytes for the same seed."""
    marginals = load_marginals(card)
    generator = np.random.default_rng(seed)
    time = card.time.column or card.time.period_column
    names = list(
        dict.fromkeys([*card.feature_names, *([time] if time else []), card.target.column])
    )
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=card.separators[0], lineterminator="\n")
    writer.writerow(names)
    for period in sorted(marginals.periods):
        month = marginals.periods[period]
        values = _draw(card, marginals, month, generator)
        evidence = np.zeros(month.rows)
        for name, weights in marginals.weights.get(period[:4], {}).items():
            evidence += _evidence(values[name], weights)
        # The largest of log-weights with Gumbel noise are a weighted draw without replacement.
        order = np.argsort(-(evidence + generator.gumbel(size=month.rows)), kind="stable")
        answers = np.full(month.rows, card.target.negative, dtype=object)
        answers[order[: month.positives]] = card.target.positive
        texts = {name: _texts(card.feature(name), v, card.decimal) for name, v in values.items()}
        if time:
            texts[time] = [_time_text(card, period)] * month.rows
        texts[card.target.column] = answers.tolist()
        writer.writerows(zip(*(texts[name] for name in names), strict=True))
    return buffer.getvalue().encode()


def _drawn(card: Card) -> set[str]:
    return {name for name in card.feature_names if name != card.time.column}


def _draw(
    card: Card, marginals: Marginals, month: Month, generator: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Return the month's values by feature: float64 with NaN, or object with ""."""
    follows = card.sample.follows if card.sample else {}
    values: dict[str, NDArray[Any]] = {}
    for feature in card.features:
        if feature.name == card.time.column:
            continue
        marginal = month.features[feature.name]
        if isinstance(marginal, NumberMarginal):
            drawn = np.interp(generator.random(month.rows), QUANTILES, marginal.at)
            if feature.integer:
                drawn = np.round(drawn)
            drawn[generator.random(month.rows) < marginal.missing] = np.nan
        else:
            shares = np.array(list(marginal.values()), dtype=float)
            drawn = generator.choice(
                np.array(list(marginal), dtype=object), size=month.rows, p=shares / shares.sum()
            )
        values[feature.name] = drawn
    for name, leader in follows.items():
        usual = marginals.usual.get(name)
        fill: Any = usual
        if usual is None:
            fill = np.nan if card.feature(name).kind == "number" else ""
        values[name][_is_missing(values[leader])] = fill
    return values


def _is_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype == object:
        return np.asarray(values == "", dtype=np.bool_)
    return np.isnan(values)


def _evidence(values: NDArray[Any], weights: NumberWeights | Shares) -> NDArray[np.float64]:
    if isinstance(weights, NumberWeights):
        bins = np.searchsorted(np.array(weights.below), values, side="left")
        bins = np.minimum(bins, len(weights.below))
        return np.where(np.isnan(values), 0.0, np.array(weights.weights)[bins])
    return np.array([weights.get(value, 0.0) for value in values], dtype=np.float64)


def _texts(feature: Feature, values: NDArray[Any], decimal: str) -> list[str]:
    """Write values as the source writes them, with its own marker for missing."""
    marker = feature.missing[0] if feature.missing else ""
    if feature.kind == "category":
        return [value or marker for value in values.tolist()]
    form = "{:.0f}" if feature.integer else "{:.6g}"
    return [
        marker if value != value else form.format(value).replace(".", decimal)
        for value in values.tolist()
    ]


def _time_text(card: Card, period: str) -> str:
    start = month_start(period)
    if card.time.kind == "month_order":
        return MONTHS[start.month - 1]
    if card.time.kind == "row_order":
        return period
    return start.strftime(card.time.format or "%Y-%m-%d")
