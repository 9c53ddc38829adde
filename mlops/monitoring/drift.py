"""How far a month's traffic has moved from the reference: pure functions over two frames.

Distances are Evidently's, by named methods, so that they do not change with the number of rows:
`wasserstein` (normed by the reference's standard deviation) for numbers and the score,
`jensenshannon` for categories. Nothing here reads or writes a table or a file.

Sampling noise. A small month differs from the reference by chance alone, so beside each distance
stands what chance reaches in a month of that size (`mlops.monitoring.confidence`). A distance that
does not pass both its threshold and chance is no finding (docs/monitoring.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd

from mlops.dataset.card import SCORE, Card, Feature
from mlops.monitoring.confidence import (
    jensen_shannon,
    jensen_shannon_noise,
    missing_more_by_chance,
    one_sided_by_chance,
    wasserstein,
    wasserstein_noise,
)
from mlops.settings import Settings, get_settings

if TYPE_CHECKING:
    from evidently.core.report import Snapshot

NUMBER_METHOD = "wasserstein"
CATEGORY_METHOD = "jensenshannon"

ALL_OR_NOTHING = 1.0
"""Drift of a column that has values on one side only; Evidently refuses to measure these."""


@dataclass(frozen=True)
class ColumnDrift:
    """What one column of a month came to: a row of `grafana.column_drift`.

    `distance` and `noise` (what chance reaches in a month of that many rows) have no unit and are
    None where the card leaves the column's drift out. `drifted` is a distance beyond its threshold
    and beyond chance, `missing_more` a share of missing values (0..1) above that of the reference
    by the margin and by more than chance.
    """

    column_name: str
    kind: Literal["number", "category"]
    distance: float | None
    noise: float | None
    drifted: bool | None
    missing_share: float
    reference_missing_share: float
    missing_more: bool


@dataclass(frozen=True)
class Drift:
    """What has moved in one month. Distances are 0 for equal distributions and have no unit."""

    prediction_drift: float
    prediction_drift_noise: float
    """What chance alone exceeds in about one of a hundred months of this many rows."""
    columns: dict[str, float]
    """Distance by column, for all columns whose drift the card wants compared."""
    num_drifted_columns: int
    """Of these, how many lie beyond their threshold and beyond chance."""
    share_drifted_columns: float
    share_missing_values: float
    """Share (0..1) of the current cells, over all features, that hold no value."""
    by_column: tuple[ColumnDrift, ...] = ()
    """Every feature, in the card's order."""
    html_report: str | None = None


def measure_drift(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    card: Card,
    *,
    with_report: bool = False,
    settings: Settings | None = None,
) -> Drift:
    """Compare `current` with `reference`: rows of features and `score`, missing as the card says.

    A column without any value on both sides has not moved (0); one that has values on one side only
    lies as far off as can be (1). `with_report` adds Evidently's own page, about 4 MB with all it
    needs, and takes the distances from there; without it the same formulas are computed here, in a
    third of the time and without importing Evidently.

    Raises ValueError if a frame has no rows or lacks a column.
    """
    settings = settings or get_settings()
    for name, frame in (("reference", reference), ("current", current)):
        lacking = [c for c in (*card.feature_names, SCORE) if c not in frame.columns]
        if lacking:
            raise ValueError(f"the {name} frame lacks {', '.join(lacking)}")
        if frame.empty:
            raise ValueError(f"the {name} frame has no rows: there is nothing to compare")

    features = [feature for feature in card.features if feature.drift]
    numbers = [f.name for f in features if f.kind == "number"] + [SCORE]
    categories = [f.name for f in features if f.kind == "category"]
    lacked, lacks = _lacks(reference, card), _lacks(current, card)
    reference = _comparable(reference, numbers, categories)
    current = _comparable(current, numbers, categories)

    measurable, distances = [], {}
    for name in [*numbers, *categories]:
        sides = reference[name].notna().any(), current[name].notna().any()
        if all(sides):
            measurable.append(name)
        else:
            distances[name] = ALL_OR_NOTHING if any(sides) else 0.0

    page = None
    if with_report:
        snapshot = _compare(
            reference,
            current,
            [name for name in measurable if name in numbers],
            [name for name in measurable if name in categories],
            settings,
        )
        measured = snapshot.dict()["metrics"]
        distances |= {metric["config"]["column"]: float(metric["value"]) for metric in measured}
        page = snapshot.get_html_str(as_iframe=False)
    else:
        for name in measurable:
            measure = wasserstein if name in numbers else jensen_shannon
            distances[name] = measure(reference[name].dropna(), current[name].dropna())
    noises = {
        name: _noise(reference[name], current[name], name in numbers, settings)
        for name in [*numbers, *categories]
    }
    by_column = tuple(
        _column_drift(
            feature, distances, noises, (lacked[feature.name], lacks[feature.name]), settings
        )
        for feature in card.features
    )
    columns = {feature.name: distances[feature.name] for feature in features}
    drifted = sum(bool(column.drifted) for column in by_column)
    return Drift(
        prediction_drift=distances[SCORE],
        prediction_drift_noise=noises[SCORE],
        columns=columns,
        num_drifted_columns=drifted,
        share_drifted_columns=drifted / len(columns) if columns else 0.0,
        share_missing_values=float(lacks.to_numpy().mean()),
        by_column=by_column,
        html_report=page,
    )


def missing_share(frame: pd.DataFrame, card: Card) -> float:
    """Return the share (0..1) of the cells of all features that hold no value; 0 without rows."""
    return float(_lacks(frame, card).to_numpy().mean()) if len(frame) else 0.0


def _lacks(frame: pd.DataFrame, card: Card) -> pd.DataFrame:
    """Return which cells (rows by features) hold no value."""
    cells = frame[card.feature_names]
    return cells.isna() | (cells == "")


def _noise(reference: pd.Series, current: pd.Series, is_number: bool, settings: Settings) -> float:
    """Return the distance of a column that chance alone reaches, in the unit of its method.

    Where one side has no value: all or nothing, as the distance itself. A column that is filled in
    once in a hundred rows is empty in many a small month.
    """
    confidence = settings.signal_confidence
    known, known_now = reference.dropna(), current.dropna()
    if known.empty or known_now.empty:
        sizes = sorted([(len(known), len(reference)), (len(known_now), len(current))], reverse=True)
        (values, rows), (_, other_rows) = sizes
        by_chance = values > 0 and (one_sided_by_chance(values, rows, other_rows) >= 1 - confidence)
        return ALL_OR_NOTHING if by_chance else 0.0
    measure = wasserstein_noise if is_number else jensen_shannon_noise
    return measure(known.to_numpy(), len(known_now), confidence, settings.seed)


def _column_drift(
    feature: Feature,
    distances: dict[str, float],
    noises: dict[str, float],
    lacks: tuple[pd.Series, pd.Series],
    settings: Settings,
) -> ColumnDrift:
    """Judge one column; `lacks` says of each row of reference and month whether it has no value."""
    lacked, lacks_now = lacks
    share, reference_share = float(lacks_now.mean()), float(lacked.mean())
    by_chance = missing_more_by_chance(
        int(lacks_now.sum()), len(lacks_now), int(lacked.sum()), len(lacked)
    )
    distance = distances.get(feature.name)
    noise = None if distance is None else noises[feature.name]
    return ColumnDrift(
        column_name=feature.name,
        kind=feature.kind,
        distance=distance,
        noise=noise,
        drifted=None
        if distance is None or noise is None
        else distance > max(settings.column_drift_threshold, noise),
        missing_share=share,
        reference_missing_share=reference_share,
        missing_more=(
            share - reference_share > settings.missing_margin
            and by_chance < 1 - settings.signal_confidence
        ),
    )


def _comparable(frame: pd.DataFrame, numbers: list[str], categories: list[str]) -> pd.DataFrame:
    """Return the compared columns as Evidently takes them: float64, and texts.

    A missing category stays as a category of its own, as long as there are others: that a field is
    no longer filled in is drift as well.
    """
    comparable = frame[numbers].apply(pd.to_numeric).astype("float64")
    for name in categories:
        texts = frame[name].fillna("").astype(str)
        comparable[name] = texts if (texts != "").any() else None
    return comparable.reset_index(drop=True)


def _compare(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    numbers: list[str],
    categories: list[str],
    settings: Settings,
) -> Snapshot:
    # Takes 4 to 10 s, and only who measures drift should wait for it.
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    metrics = [
        ValueDrift(
            column=name,
            method=NUMBER_METHOD,
            threshold=settings.prediction_drift_threshold
            if name == SCORE
            else settings.column_drift_threshold,
        )
        for name in sorted(numbers, key=lambda name: name != SCORE)
    ]
    metrics += [
        ValueDrift(column=name, method=CATEGORY_METHOD, threshold=settings.column_drift_threshold)
        for name in categories
    ]
    columns = [*numbers, *categories]
    return Report(metrics).run(
        Dataset.from_pandas(current[columns], data_definition=definition),
        Dataset.from_pandas(reference[columns], data_definition=definition),
    )
