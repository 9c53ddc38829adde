"""Measure every month that a version has answered: drift, and performance where labels are known.

Reads the logged predictions and the version's reference, writes `grafana.evidently_metrics`,
`grafana.column_drift` and one HTML report a month. It raises no alarm: that is the part of the
alert rules, which read what is written here. Running it again measures again and replaces, so it
may be interrupted and repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import Any

import pandas as pd
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values

from mlops.dataset.card import PERIOD, SCORE, TARGET, Card
from mlops.dataset.rows import from_features
from mlops.dataset.timeline import month_start, period_of
from mlops.monitoring.confidence import estimate_performance
from mlops.monitoring.drift import ColumnDrift, Drift, measure_drift, missing_share
from mlops.registry.models import RegistryError, current_deployment, get_version
from mlops.reporting.library import prune
from mlops.reporting.months import report_month
from mlops.reporting.retrains import refresh_retrains
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.errors import TrainingError
from mlops.training.metrics import accuracy, brier, roc_auc

MEASURED_PURPOSES = ("live", "simulation")
"""Whose traffic counts; the test pipeline's own requests say nothing about the world."""

SMALLEST_MONTH = 20
"""Rows below which a distribution is not compared at all: only the row count is stored."""


class NothingToMonitorError(RuntimeError):
    """No version is in production, or its reference cannot be had."""


@dataclass(frozen=True)
class MonthMetrics:
    """One row of `grafana.evidently_metrics`; None where there was too little to measure.

    Accuracy, ROC AUC, Brier and positive rate are the month's own. What follows `labelled_count` is
    of the labels that count for an alarm: the month's own and, while these are fewer than
    `drift_min_rows`, those of the months before it, back to `labelled_since`. Ends of intervals are
    the bootstrap's; `roc_auc_loss` is the reference's ROC AUC less theirs, `calibration_gap` their
    mean score less their positive rate.
    """

    model_version: str
    period: str
    row_count: int
    prediction_drift: float | None = None
    prediction_drift_noise: float | None = None
    num_drifted_columns: int | None = None
    share_drifted_columns: float | None = None
    share_missing_values: float | None = None
    accuracy: float | None = None
    roc_auc: float | None = None
    brier: float | None = None
    positive_rate: float | None = None
    labelled_count: int = 0
    labelled_since: str | None = None
    roc_auc_low: float | None = None
    roc_auc_high: float | None = None
    reference_roc_auc: float | None = None
    roc_auc_loss: float | None = None
    roc_auc_loss_low: float | None = None
    calibration_gap: float | None = None
    calibration_gap_low: float | None = None
    calibration_gap_high: float | None = None


def monitor(
    connection: Connection,
    card: Card,
    version: str | None = None,
    progress: Callable[[str], None] = print,
    settings: Settings | None = None,
) -> list[MonthMetrics]:
    """Measure and store all months answered by `version` (default: the champion), oldest first.

    Each month is stored in the caller's transaction, its report under
    `reports/<version>/<period>.html`. Raises NothingToMonitorError if no version is in production
    or the version has no reference.
    """
    settings = settings or get_settings()
    version = version or _production_version(connection, card)
    periods = answered_periods(connection, version)
    if not periods:
        progress(f"version {version} has answered no live or simulated request yet")
        return []
    reference = load_reference(card, version, settings)
    threshold = load_threshold(card, version, settings)
    measured = []
    earlier: list[pd.DataFrame] = []
    for period in periods:
        current = load_current(connection, card, version, period)
        metrics, drift = measure_month(
            reference, current, card, version, period, threshold, settings, earlier=earlier
        )
        earlier.append(_labelled(current))
        store_metrics(connection, metrics)
        store_columns(connection, version, period, drift.by_column if drift else ())
        report_month(
            connection,
            card,
            version,
            period,
            reference,
            current,
            threshold,
            drift.html_report if drift else None,
            settings,
        )
        progress(_sentence(metrics, settings))
        measured.append(metrics)
    refresh_retrains(connection, card, version, settings)
    in_production = current_deployment(connection, card)
    prune(settings, champion=in_production["model_version"] if in_production else version)
    return measured


def measure_month(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    card: Card,
    version: str,
    period: str,
    threshold: float,
    settings: Settings,
    with_report: bool = True,
    *,
    earlier: Sequence[pd.DataFrame] = (),
) -> tuple[MonthMetrics, Drift | None]:
    """Return the metrics of one month, and its drift unless the month is smaller than 20 rows.

    `current` is what `load_current` returns, `threshold` what the version decides at. `with_report`
    adds Evidently's page to the drift. `earlier` are the months before that the same version
    answered, oldest first (columns score, target, period are enough): while the month has too few
    labels for an alarm, theirs count with it. It reads and writes no table and no file.
    """
    measured: dict[str, Any] = {
        **measure_performance(current, threshold),
        **measure_confidence(reference, current, earlier, settings),
    }
    drift = None
    if len(current) < SMALLEST_MONTH:
        measured["share_missing_values"] = missing_share(current, card)
    else:
        drift = measure_drift(reference, current, card, with_report=with_report, settings=settings)
        measured |= {
            name: getattr(drift, name)
            for name in (
                "prediction_drift",
                "prediction_drift_noise",
                "num_drifted_columns",
                "share_drifted_columns",
                "share_missing_values",
            )
        }
    return MonthMetrics(version, period, len(current), **measured), drift


def measure_confidence(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    earlier: Sequence[pd.DataFrame],
    settings: Settings,
) -> dict[str, Any]:
    """Return how far performance is known: the fields of `MonthMetrics` from `labelled_count` on.

    Empty while the month itself has no label: the months before it have been judged already.
    """
    counted = _labelled(current)
    if counted.empty:
        return {}
    # A large month of which few labels are in is not judged by the months before it: it waits.
    for month in reversed(earlier) if len(current) < settings.drift_min_rows else ():
        if len(counted) >= settings.drift_min_rows:
            break
        counted = pd.concat([_labelled(month), counted], ignore_index=True)
    # A reference is validation, labelled throughout.
    judged = _labelled(reference) if TARGET in reference else counted.head(0)
    found = estimate_performance(
        counted[TARGET],
        counted[SCORE],
        judged[TARGET],
        judged[SCORE],
        settings.performance_confidence,
        settings.seed,
    )
    low, high = found.roc_auc_interval or (None, None)
    return {
        "labelled_count": len(counted),
        "labelled_since": str(counted[PERIOD].min()),
        "roc_auc_low": low,
        "roc_auc_high": high,
        "reference_roc_auc": found.reference_roc_auc,
        "roc_auc_loss": found.roc_auc_loss,
        "roc_auc_loss_low": found.roc_auc_loss_low,
        "calibration_gap": found.calibration_gap,
        "calibration_gap_low": found.calibration_interval.low,
        "calibration_gap_high": found.calibration_interval.high,
    }


def _labelled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[frame[TARGET].notna(), [SCORE, TARGET, PERIOD]]


def measure_performance(current: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Return accuracy (at `threshold`), ROC AUC, Brier and positive rate of the labelled rows.

    All None without a label; the ROC AUC also where all labels are of one class.
    """
    labelled = current[current[TARGET].notna()]
    if labelled.empty:
        return dict.fromkeys(("accuracy", "roc_auc", "brier", "positive_rate"))
    target, score = labelled[TARGET].astype(int), labelled[SCORE]
    both_classes = target.nunique() == 2
    return {
        "accuracy": accuracy(target, score, threshold),
        "roc_auc": roc_auc(target, score) if both_classes else None,
        "brier": brier(target, score),
        "positive_rate": float(target.mean()),
    }


def answered_periods(connection: Connection, version: str) -> list[str]:
    """Return the months, oldest first, of which `version` answered live or simulated requests."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT period FROM serving.predictions"
            " WHERE model_version = %s AND purpose IN %s ORDER BY period",
            (version, MEASURED_PURPOSES),
        )
        rows: list[tuple[date]] = cursor.fetchall()
    return [period_of(day) for (day,) in rows]


def load_current(connection: Connection, card: Card, version: str, period: str) -> pd.DataFrame:
    """Return what `version` was asked in `period`: features, `score`, `target`, `period`.

    Missing is NaN in numbers and "" in categories; `target` is NaN where no label has come yet.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT features, probability, label FROM serving.predictions"
            " WHERE model_version = %s AND period = %s AND purpose IN %s"
            " ORDER BY made_at, request_id, row",
            (version, month_start(period), MEASURED_PURPOSES),
        )
        rows = cursor.fetchall()
    frame = from_features(card, [row[0] for row in rows])
    frame[SCORE] = [row[1] for row in rows]
    frame[TARGET] = pd.Series([row[2] for row in rows], dtype="float64")
    frame[PERIOD] = period
    return frame


def load_reference(card: Card, version: str, settings: Settings | None = None) -> pd.DataFrame:
    """Return the validation rows that `version` was judged on, with its scores, from MLflow.

    Raises NothingToMonitorError, naming version and run, if the version or its reference is gone.
    """
    settings = settings or get_settings()
    try:
        return tracking.load_reference(_run_id(card, version, settings), settings)
    except (RegistryError, TrainingError) as error:
        raise NothingToMonitorError(
            f"version {version} has no reference to compare with: {error}"
        ) from error


def load_threshold(card: Card, version: str, settings: Settings | None = None) -> float:
    """Return the decision threshold that `version` was deployed with, from its MLflow run.

    Raises NothingToMonitorError, naming version and run, if the run does not say.
    """
    settings = settings or get_settings()
    run_id = _run_id(card, version, settings)
    metrics = tracking.client(settings).get_run(run_id).data.metrics
    if "validation_threshold" not in metrics:
        raise NothingToMonitorError(
            f"run {run_id} of version {version} has no metric validation_threshold: train it anew"
        )
    return float(metrics["validation_threshold"])


def _run_id(card: Card, version: str, settings: Settings) -> str:
    run_id = get_version(card, version, settings).run_id
    if not run_id:
        raise NothingToMonitorError(f"version {version} of {card.name} names no MLflow run")
    return str(run_id)


def store_metrics(connection: Connection, metrics: MonthMetrics) -> None:
    """Write one month's row, replacing what was measured before; the caller commits."""
    since = metrics.labelled_since
    values = {
        **asdict(metrics),
        "period": month_start(metrics.period),
        "labelled_since": month_start(since) if since else None,
    }
    names = list(values)
    statement = sql.SQL(
        "INSERT INTO grafana.evidently_metrics ({columns}, update_time)"
        " VALUES ({values}, clock_timestamp())"
        " ON CONFLICT (model_version, period) DO UPDATE"
        " SET ({columns}, update_time) = ({excluded}, excluded.update_time)"
    ).format(
        columns=sql.SQL(", ").join(map(sql.Identifier, names)),
        values=sql.SQL(", ").join(map(sql.Placeholder, names)),
        excluded=sql.SQL(", ").join(sql.Identifier("excluded", name) for name in names),
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def store_columns(
    connection: Connection, version: str, period: str, columns: Iterable[ColumnDrift]
) -> None:
    """Replace what is stored of a month's columns by `columns`; the caller commits."""
    names = [field.name for field in fields(ColumnDrift)]
    key = (version, month_start(period))
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM grafana.column_drift WHERE model_version = %s AND period = %s", key
        )
        execute_values(
            cursor,
            sql.SQL("INSERT INTO grafana.column_drift (model_version, period, {}) VALUES %s")
            .format(sql.SQL(", ").join(map(sql.Identifier, names)))
            .as_string(cursor),
            [(*key, *(getattr(column, name) for name in names)) for column in columns],
        )


def _production_version(connection: Connection, card: Card) -> str:
    deployment = current_deployment(connection, card)
    if deployment is None:
        raise NothingToMonitorError(
            f"no version of {card.name} is in production: run the pipelines train and deploy first"
        )
    return str(deployment["model_version"])


def _sentence(metrics: MonthMetrics, settings: Settings) -> str:
    text = f"{metrics.period}, version {metrics.model_version}: {metrics.row_count:,} rows"
    if metrics.prediction_drift is None or metrics.prediction_drift_noise is None:
        return f"{text}, too few to compare (at least {SMALLEST_MONTH})"
    text += f", prediction drift {metrics.prediction_drift:.3f}"
    if metrics.prediction_drift > settings.prediction_drift_threshold:
        if metrics.row_count < settings.drift_min_rows:
            text += f" (not alarmed on: fewer than {settings.drift_min_rows} rows)"
        elif metrics.prediction_drift <= metrics.prediction_drift_noise:
            text += f" (within chance, {metrics.prediction_drift_noise:.3f} at this size)"
        else:
            text += f" (above {settings.prediction_drift_threshold:g})"
    text += f", {metrics.num_drifted_columns} drifted columns"
    if metrics.roc_auc is not None:
        text += f", ROC AUC {metrics.roc_auc:.3f}"
    return text
