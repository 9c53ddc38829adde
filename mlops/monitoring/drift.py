"""How far a month's traffic has moved from the reference: pure functions over two frames.

Distances are Evidently's, by named methods, so that they do not change with the number of rows:
`wasserstein` (normed by the reference's standard deviation) for numbers and the score,
`jensenshannon` for categories. Nothing here reads or writes a table or a file.

Sampling noise. A small month differs from the reference by chance alone. Measured on Bank Marketing
(docs/monitoring.md has the command): 200 rows drawn from the reference itself, 3,472 rows, lie at a
score drift of 0.09 in the mean and above 0.1 in three of ten draws, so a bare threshold of 0.1
would alarm on months in which nothing has happened. `prediction_drift_noise` is what chance
reaches in a month of that size; a drift that does not pass it is no finding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance

from mlops.dataset.card import Card
from mlops.settings import Settings, get_settings

if TYPE_CHECKING:
    from evidently.core.report import Snapshot

SCORE = "score"
"""The column of both frames that holds the model's probability."""

NUMBER_METHOD = "wasserstein"
CATEGORY_METHOD = "jensenshannon"

ALL_OR_NOTHING = 1.0
"""Drift of a column that has values on one side only; Evidently refuses to measure these."""

_NOISE_DRAWS = 1000
_NOISE_QUANTILE = 0.99
_SMALLEST_NORM = 0.001  # Evidently's, for a reference that hardly varies


@dataclass(frozen=True)
class Drift:
    """What has moved in one month. Distances are 0 for equal distributions and have no unit."""

    prediction_drift: float
    prediction_drift_noise: float
    """What chance alone exceeds in about one of a hundred months of this many rows."""
    columns: dict[str, float]
    """Distance by column, for all columns whose drift the card wants compared."""
    num_drifted_columns: int
    share_drifted_columns: float
    share_missing_values: float
    """Share (0..1) of the current cells, over all features, that hold no value."""
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
    counts as drifted (1). `with_report` adds Evidently's own page, about 4 MB with all it needs.
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
    reference = _comparable(reference, numbers, categories)
    share_missing = missing_share(current, card)
    current = _comparable(current, numbers, categories)

    measurable, distances = [], {}
    for name in [*numbers, *categories]:
        sides = reference[name].notna().any(), current[name].notna().any()
        if all(sides):
            measurable.append(name)
        else:
            distances[name] = ALL_OR_NOTHING if any(sides) else 0.0

    snapshot = _compare(
        reference,
        current,
        [name for name in measurable if name in numbers],
        [name for name in measurable if name in categories],
        settings,
    )
    measured = snapshot.dict()["metrics"]
    distances |= {metric["config"]["column"]: float(metric["value"]) for metric in measured}

    columns = {feature.name: distances[feature.name] for feature in features}
    drifted = sum(distance > settings.column_drift_threshold for distance in columns.values())
    return Drift(
        prediction_drift=distances[SCORE],
        prediction_drift_noise=sampling_noise(
            reference[SCORE].to_numpy(), len(current), settings.seed
        ),
        columns=columns,
        num_drifted_columns=drifted,
        share_drifted_columns=drifted / len(columns) if columns else 0.0,
        share_missing_values=share_missing,
        html_report=snapshot.get_html_str(as_iframe=False) if with_report else None,
    )


def missing_share(frame: pd.DataFrame, card: Card) -> float:
    """Return the share (0..1) of the cells of all features that hold no value; 0 without rows."""
    cells = frame[card.feature_names]
    missing = cells.isna() | (cells == "")
    return float(missing.to_numpy().mean()) if len(cells) else 0.0


def sampling_noise(reference_scores: np.ndarray, rows: int, seed: int) -> float:
    """Return the score drift that chance alone exceeds in about one of a hundred months of `rows`.

    By bootstrap: months drawn from the reference itself, each measured against the reference by the
    distance that Evidently names `wasserstein`. It knows nothing of how months differ from one
    another for good reasons, so it is the least, not the usual, difference.
    """
    generator = np.random.default_rng(seed)
    norm = max(float(np.std(reference_scores)), _SMALLEST_NORM)
    by_chance = [
        wasserstein_distance(reference_scores, generator.choice(reference_scores, rows)) / norm
        for _ in range(_NOISE_DRAWS)
    ]
    return float(np.quantile(by_chance, _NOISE_QUANTILE))


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
