"""The report of a month: what was measured, drawn; never measures anew, never stops a monitoring.

Numbers are read from where `monitor` has just written them, in the same transaction; distributions
are drawn from the rows that it measured.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

from mlops.database import undone
from mlops.dataset.card import SCORE, TARGET, Card
from mlops.dataset.timeline import month_start
from mlops.reporting import pictures
from mlops.reporting.library import ASSETS, DETAIL, month_path, write_page
from mlops.reporting.pages import number, render, share
from mlops.settings import Settings, get_settings
from mlops.training.metrics import roc_auc

logger = logging.getLogger(__name__)


FEWEST_OF_ANSWER = 10
"""Labels of each answer below which a curve would be a staircase."""


@dataclass(frozen=True)
class Signal:
    """What one signal of a month says: `alarm` if it is beyond its limit and beyond chance."""

    name: str
    found: str
    accepted: str
    chance: str
    verdict: str
    alarm: bool = False

    @property
    def says(self) -> str:
        """The numbers in a sentence."""
        return f"{self.found}, accepted {self.accepted}, {self.chance}"


def report_month(
    connection: Connection,
    card: Card,
    version: str,
    period: str,
    reference: pd.DataFrame,
    current: pd.DataFrame,
    threshold: float | None = None,
    evidently_page: str | None = None,
    settings: Settings | None = None,
) -> Path | None:
    """Write the report of a month that is stored already; return its path.

    `reference` and `current` are rows with `score` and `target` (NaN where no label has come),
    `evidently_page` is Evidently's own, if one was made. Any fault is logged, and None returned:
    a picture that cannot be drawn is no reason to know nothing of a month.
    """
    settings = settings or get_settings()
    try:
        path = month_path(settings.reports_dir, version, period)
        # What fails here must not take the caller's transaction along.
        with undone(connection):
            facts = _read(connection, version, period)
        detail = None
        if evidently_page is not None:
            detail = path.with_name(f"{path.stem}{DETAIL}").name
            write_page(path.with_name(detail), without_assets(evidently_page, settings.reports_dir))
        page = month_page(
            card, version, period, reference, current, threshold, detail, settings, **facts
        )
        return write_page(path, page)
    except Exception:
        logger.exception("the report of %s, version %s, could not be written", period, version)
        return None


def month_page(
    card: Card,
    version: str,
    period: str,
    reference: pd.DataFrame,
    current: pd.DataFrame,
    threshold: float | None,
    detail: str | None,
    settings: Settings,
    *,
    metrics: Mapping[str, Any],
    columns: list[dict[str, Any]],
    alerts: list[dict[str, Any]],
) -> str:
    """Return the page of a month, by its row of `grafana.evidently_metrics` and of its columns."""
    labelled = current[current[TARGET].notna()]
    truth, scores = labelled[TARGET].astype(int), labelled[SCORE]
    enough = min(int(truth.sum()), int((1 - truth).sum())) >= FEWEST_OF_ANSWER
    compared = [column for column in columns if column["distance"] is not None]
    reference_auc = _auc(reference)
    return render(
        "month.html",
        card=card,
        version=version,
        period=period,
        row_count=len(current),
        reference_rows=len(reference),
        min_rows=settings.drift_min_rows,
        metrics=metrics,
        reference_auc=reference_auc,
        labelled=len(labelled),
        limits={
            "prediction_drift": f"{settings.prediction_drift_threshold:g}",
            "column_drift": f"{settings.column_drift_threshold:g}",
        },
        drifted=sum(bool(column["drifted"]) for column in compared),
        compared=len(compared),
        signals=signals(metrics, columns, settings),
        alerts=alerts,
        drift_picture=_drift_picture(compared, settings) if compared else None,
        missing_more=[column for column in columns if column["missing_more"]],
        scores_picture=pictures.histogram(
            reference[SCORE], current[SCORE], ("validation", period), threshold
        ),
        roc_picture=_roc_picture(reference, truth, scores, period, reference_auc)
        if enough
        else None,
        calibration_picture=pictures.calibration(
            truth, scores, f"Calibration in {period}: mean score {scores.mean():.3f}, share of "
            f"positives {truth.mean():.3f}",
        )
        if enough
        else None,
        min_of_answer=FEWEST_OF_ANSWER,
        detail=detail,
        written_at=datetime.now(timezone.utc),
    )  # fmt: skip


def signals(
    metrics: Mapping[str, Any], columns: list[dict[str, Any]], settings: Settings
) -> list[Signal]:
    """Return the signals of a month, as the rules read them (`grafana/provisioning/alerting`)."""
    enough = metrics["row_count"] >= settings.drift_min_rows
    drift, noise = metrics["prediction_drift"], metrics["prediction_drift_noise"]
    found = [
        _signal(
            "Prediction drift",
            number(drift),
            f"{settings.prediction_drift_threshold:g}",
            f"chance reaches {number(noise)}",
            _beyond(drift, settings.prediction_drift_threshold),
            drift is not None and noise is not None and drift > noise,
            enough,
        ),
        _signal(
            "Data drift",
            f"{share(metrics['share_drifted_columns'], 0)} of columns",
            f"{settings.drifted_columns_threshold:.0%}",
            "each column beyond its own",
            _beyond(metrics["share_drifted_columns"], settings.drifted_columns_threshold),
            True,
            enough,
        ),
    ]
    worst = max(
        (column for column in columns if column["missing_more"]),
        key=lambda column: column["missing_share"] - column["reference_missing_share"],
        default=None,
    )
    found.append(
        _signal(
            "Missing data",
            "no column"
            if worst is None
            else f"{worst['column_name']} {share(worst['missing_share'])}, was "
            f"{share(worst['reference_missing_share'])}",
            f"{settings.missing_margin:.0%} more",
            "a binomial interval",
            worst is not None,
            True,
            enough,
        )
    )
    counted = (metrics.get("labelled_count") or 0) >= settings.drift_min_rows
    since = metrics.get("labelled_since")
    of_months = f" (labels since {since:%Y-%m})" if since and since < metrics["period"] else ""
    loss, loss_low = metrics.get("roc_auc_loss"), metrics.get("roc_auc_loss_low")
    found.append(
        _signal(
            "Loss of ROC AUC",
            number(loss),
            f"{settings.auc_loss_margin:g}",
            f"at least {number(loss_low)} by bootstrap{of_months}",
            _beyond(loss, settings.auc_loss_margin),
            loss_low is not None and loss_low > 0,
            counted,
        )
    )
    gap = metrics.get("calibration_gap")
    low, high = metrics.get("calibration_gap_low"), metrics.get("calibration_gap_high")
    found.append(
        _signal(
            "Calibration gap",
            number(gap),
            f"±{settings.calibration_margin:g}",
            f"{number(low)} to {number(high)} by bootstrap{of_months}",
            _beyond(None if gap is None else abs(gap), settings.calibration_margin),
            low is not None and high is not None and (low > 0 or high < 0),
            counted,
        )
    )
    return found


def without_assets(page: str, reports_dir: Path) -> str:
    """Return Evidently's page without what all of them share, which is put into `assets` once.

    Of the 3.9 MB of a page, 3.5 MB are the script and 0.1 MB a font. Where this version of
    Evidently writes its page in another way, the page stays as it is: larger, and right.
    """
    import evidently
    from evidently.legacy.utils import dashboard

    static, version = Path(dashboard.STATIC_PATH), evidently.__version__
    script = (static / "index.js").read_text(encoding="utf-8")
    block = f"<script>{script}</script>"
    if page.count(block) != 1:
        return page
    name = f"evidently-{version}.js"
    _keep_asset(reports_dir / ASSETS / name, script)
    page = page.replace(block, f'<script src="../{ASSETS}/{name}"></script>')
    font = base64.b64encode((static / "material-ui-icons.woff2").read_bytes()).decode()
    # The font only draws a few icons; it stays where it cannot be found as it was.
    return page.replace(
        f"url(data:font/ttf;base64,{font}) format('woff2');", "local('Material Icons');"
    )


def _keep_asset(path: Path, text: str) -> None:
    if not path.is_file() or path.stat().st_size != len(text.encode()):
        write_page(path, text)


def _read(connection: Connection, version: str, period: str) -> dict[str, Any]:
    month = (version, month_start(period))
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            "SELECT * FROM grafana.evidently_metrics WHERE model_version = %s AND period = %s",
            month,
        )
        metrics = cursor.fetchone()
        cursor.execute(
            "SELECT * FROM grafana.column_history WHERE model_version = %s AND period = %s"
            " ORDER BY column_name",
            month,
        )
        columns = [dict(row) for row in cursor.fetchall()]
        cursor.execute(
            "SELECT rule, status, received_at, decision, retrain FROM ops.alerts"
            " WHERE body -> 'labels' ->> 'model_version' = %s"
            " AND body -> 'labels' ->> 'period' = %s ORDER BY received_at",
            (version, period),
        )
        alerts = [dict(row) for row in cursor.fetchall()]
    if metrics is None:
        raise LookupError(f"{period} of version {version} is not measured")
    return {"metrics": dict(metrics), "columns": columns, "alerts": alerts}


def _signal(
    name: str, found: str, accepted: str, chance: str, beyond: bool, sure: bool, enough: bool
) -> Signal:
    if not beyond:
        verdict = "not measured" if found == number(None) else "within its limit"
    elif not sure:
        verdict = "within chance"
    elif not enough:
        verdict = "beyond both, of too few rows"
    else:
        verdict = "beyond its limit and chance"
    return Signal(name, found, accepted, chance, verdict, beyond and sure and enough)


def _beyond(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def _auc(rows: pd.DataFrame) -> float | None:
    target = rows[TARGET]
    return roc_auc(target, rows[SCORE]) if target.nunique() == 2 else None


def _drift_picture(columns: list[dict[str, Any]], settings: Settings) -> str:
    drawn = [
        pictures.Bar(
            column["column_name"],
            column["distance"],
            column["noise"],
            bool(column["drifted"]),
            f", since {column['drifted_since']:%Y-%m}" if column["drifted_since"] else "",
        )
        for column in sorted(columns, key=lambda column: -column["distance"])
    ]
    drifted = [bar.label for bar in drawn if bar.flagged]
    return pictures.bars(
        drawn,
        settings.column_drift_threshold,
        f"Drift by column; drifted: {', '.join(drifted) or 'none'}",
    )


def _roc_picture(
    reference: pd.DataFrame,
    target: pd.Series,
    score: pd.Series,
    period: str,
    reference_auc: float | None,
) -> str:
    area = roc_auc(target, score)
    curves = [(f"{period}, {area:.3f}", "accent", target, score)]
    if reference_auc is not None:
        named = f"validation, {reference_auc:.3f}"
        curves.insert(0, (named, "muted", reference[TARGET], reference[SCORE]))
    return pictures.roc(curves, f"ROC AUC {area:.3f} in {period}, {number(reference_auc)} before")
