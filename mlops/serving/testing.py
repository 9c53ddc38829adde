"""Score months that no training has seen, twice: by sklearn and over the live API.

The two must agree: this proves the whole way from a request to the answer, on rows that nobody
tuned it on. A version that does not is taken out of production; how good one is decides nothing.
The numbers are stored in `ops.test_results`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json

from mlops.database import connect
from mlops.dataset.card import PERIOD, TARGET, Card, Costs
from mlops.dataset.rows import load_future, periods_to_come, to_records
from mlops.dataset.timeline import month_start
from mlops.registry.models import get_version, load_pipeline
from mlops.serving.client import PredictClient
from mlops.serving.export import ParityError
from mlops.serving.rollback import withdraw
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.fit import score_window
from mlops.training.metrics import accuracy, all_metrics, brier, expected_profit, f1, log_loss
from mlops.training.records import read_training

BATCH = 1000
"""Rows in a request."""


class TestingError(RuntimeError):
    """A version cannot be tested as it stands."""

    __test__ = False  # no test of pytest's


@dataclass(frozen=True)
class TestResult:
    """A version on one month that it has not seen."""

    __test__ = False

    version: str
    period: str
    rows: int
    metrics: dict[str, float]
    max_difference: float
    """Largest difference of probability between API and sklearn."""


def score_production(
    card: Card,
    version: str,
    progress: Callable[[str], object] = print,
    settings: Settings | None = None,
) -> list[TestResult]:
    """Do `score_unseen` in a transaction of its own, and withdraw the version if it is refused.

    Raises ParityError, which says what is in production then, DeploymentError if the former
    champion does not answer, and TestingError.
    """
    settings = settings or get_settings()
    try:
        with connect(settings=settings) as connection:
            return score_unseen(connection, card, version, progress, settings)
    except ParityError as fault:
        with connect(settings=settings) as connection:
            cause = f"version {version} was refused: API and sklearn differ"
            now = withdraw(version, card, connection, cause, progress, settings=settings)
        raise ParityError(f"version {version} is refused. {now}. Found: {fault}") from fault


def score_unseen(
    connection: Connection,
    card: Card,
    version: str,
    progress: Callable[[str], object] = print,
    settings: Settings | None = None,
) -> list[TestResult]:
    """Score the `test_months` months after the version's window, store and return the results.

    The list is empty, and `progress` says so, if the file holds no later month. Raises ParityError,
    naming the worst row, if API and sklearn differ by more than `parity_tolerance` on any row, and
    TestingError if another version answers; nothing is stored then. The caller commits.
    """
    settings = settings or get_settings()
    registered = get_version(card, version, settings)
    training = read_training(connection, registered.tags[tracking.TRAINING_TAG])
    periods = periods_to_come(connection, card, after=training.window_end)[: settings.test_months]
    if not periods:
        progress(f"{card.name} has no month after {training.window_end}: nothing to test on")
        return []
    frame = load_future(connection, card, periods[0], periods[-1])
    expected = score_window(load_pipeline(card, version, settings), card, frame)
    found, model = _score_over_api(card, frame, version, settings)
    differences = np.abs(found - expected)
    worst = int(np.argmax(differences))
    if differences[worst] > settings.parity_tolerance:
        raise ParityError(
            f"file row {frame.index[worst]} ({frame[PERIOD].iloc[worst]}): the API answers "
            f"{found[worst]:.9f}, sklearn {expected[worst]:.9f}; they differ by "
            f"{differences[worst]:.2e}, allowed are {settings.parity_tolerance:.0e}. "
            f"Row: {to_records(frame.iloc[[worst]], card)[0]}"
        )
    results = []
    for period in periods:
        rows = (frame[PERIOD] == period).to_numpy()
        results.append(
            TestResult(
                version=version,
                period=period,
                rows=int(rows.sum()),
                metrics=_measure(frame[TARGET].to_numpy()[rows], found[rows], model),
                max_difference=float(differences[rows].max()),
            )
        )
    _store(connection, results)
    progress(results_text(results))
    return results


def results_text(results: list[TestResult]) -> str:
    """Return results as a table of lines, for logs."""
    columns = (
        ("ROC AUC", "roc_auc", "{:.3f}"),
        ("avg prec", "average_precision", "{:.3f}"),
        ("Brier", "brier", "{:.4f}"),
        ("F1", "f1", "{:.3f}"),
        ("accuracy", "accuracy", "{:.3f}"),
        ("profit", "profit", "{:,.0f}"),
        ("positive", "positive_rate", "{:.1%}"),
    )
    heads = "".join(f"{head:>10}" for head, _, _ in columns)
    lines = [f"{'period':<8}{'rows':>7}{heads}{'API-sklearn':>13}"]
    for result in results:
        values = "".join(
            f"{form.format(result.metrics[key]) if key in result.metrics else '-':>10}"
            for _, key, form in columns
        )
        lines.append(f"{result.period:<8}{result.rows:>7}{values}{result.max_difference:>13.1e}")
    return "\n".join(lines)


def _score_over_api(
    card: Card, frame: pd.DataFrame, version: str, settings: Settings
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the API's probability of each row, and the `model.json` that it answers by."""
    scores: list[float] = []
    with PredictClient.of(settings) as client:
        model = client.model()
        for period, month in frame.groupby(PERIOD, sort=True):
            records = to_records(month, card)
            for start in range(0, len(records), BATCH):
                answer = client.predict(
                    records[start : start + BATCH],
                    period=str(period),
                    purpose="test",
                    request_id=f"test:{card.name}:{version}:{period}:{start}",
                )
                if answer["version"] != version or model["model"] != card.name:
                    raise TestingError(
                        f"the API at {client.url} answers as version {answer['version']} of "
                        f"{model['model']}, expected version {version} of {card.name}: deploy it"
                    )
                scores += [each["probability"] for each in answer["predictions"]]
    return np.array(scores, dtype=np.float64), model


def _measure(target: np.ndarray, scores: np.ndarray, model: dict[str, Any]) -> dict[str, float]:
    threshold = float(model["threshold"])
    costs = Costs.model_validate(model["costs"]) if model.get("costs") else None
    if target.min() != target.max():
        measured = all_metrics(target, scores, threshold, costs)
    else:  # one answer only: ranks mean nothing
        measured = {
            "accuracy": accuracy(target, scores, threshold),
            "brier": brier(target, scores),
            "log_loss": log_loss(target, scores),
            "f1": f1(target, scores, threshold),
        }
        if costs is not None:
            measured["profit"] = expected_profit(target, scores, threshold, costs)
    return {**measured, "positive_rate": float(target.mean()), "threshold": threshold}


def _store(connection: Connection, results: list[TestResult]) -> None:
    with connection.cursor() as cursor:
        for result in results:
            cursor.execute(
                """
                INSERT INTO ops.test_results
                    (model_version, period, rows, metrics, max_difference, tested_at)
                VALUES (%s, %s, %s, %s, %s, clock_timestamp())
                ON CONFLICT (model_version, period) DO UPDATE SET
                    rows = excluded.rows, metrics = excluded.metrics,
                    max_difference = excluded.max_difference, tested_at = excluded.tested_at
                """,
                (
                    result.version,
                    month_start(result.period),
                    result.rows,
                    Json(result.metrics),
                    result.max_difference,
                ),
            )
