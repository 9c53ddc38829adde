"""The report of a retrain, also of one that failed; never changes what it tells of.

Written when a retrain is closed, and again when its challenger's months are measured: only then is
it known what the retrain was worth.
"""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

from mlops.database import undone
from mlops.dataset.card import Card
from mlops.dataset.timeline import period_of
from mlops.reporting import pictures
from mlops.reporting.library import retrain_path, write_page
from mlops.reporting.pages import number, render
from mlops.reporting.words import RETRAINS_SQL, headline
from mlops.settings import Settings, get_settings

logger = logging.getLogger(__name__)

LATEST = 20
"""So many closed retrains are looked at for reports that are missing."""


def report_retrain(
    connection: Connection, card: Card, retrain_id: str, settings: Settings | None = None
) -> Path | None:
    """Write the report of a retrain that is closed; return its path.

    Any fault is logged, and None returned: no report is a reason for a retrain to fail.
    """
    settings = settings or get_settings()
    try:
        path = retrain_path(settings.reports_dir, retrain_id)
        with undone(connection):
            facts = _read(connection, card, retrain_id)
        return write_page(path, retrain_page(card, **facts))
    except Exception:
        logger.exception("the report of retrain %s could not be written", retrain_id)
        return None


def refresh_retrains(
    connection: Connection, card: Card, version: str, settings: Settings | None = None
) -> list[Path]:
    """Write the reports that closed retrains lack, and anew that of the retrain behind `version`.

    One can be missing where a retrain was given up from outside, or Mage was killed as it closed.
    """
    settings = settings or get_settings()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, challenger FROM ops.retrains WHERE card = %s AND finished_at IS NOT NULL"
            " ORDER BY finished_at DESC LIMIT %s",
            (card.name, LATEST),
        )
        closed = cursor.fetchall()
    written = []
    for retrain_id, challenger in closed:
        try:
            there = retrain_path(settings.reports_dir, retrain_id).is_file()
        except ValueError:
            continue
        if there and challenger != version:
            continue
        path = report_retrain(connection, card, retrain_id, settings)
        written += [path] if path else []
    return written


def retrain_page(
    card: Card,
    *,
    retrain: dict[str, Any],
    training: dict[str, Any] | None,
    check: dict[str, Any] | None,
    stay: dict[str, Any] | None,
    months: list[dict[str, Any]],
) -> str:
    """Return the page of a retrain, by its rows of `ops` and the months of its two versions."""
    gate = retrain["gate"]
    board = (training or {}).get("leaderboard") or []
    best: dict[str, Any] = next(
        (entry["metrics"] for entry in board if entry["status"] == "finished"), {}
    )
    ended, began = retrain["finished_at"], retrain["started_at"]
    return render(
        "retrain.html",
        card=card,
        retrain=retrain,
        headline=headline(retrain),
        seconds=None if ended is None else round((ended - began).total_seconds()),
        training=training,
        fitted_rows=best.get("fitting_rows"),
        validated_rows=best.get("validation_rows"),
        stay=stay,
        checked=check is not None,
        findings=(check or {}).get("findings") or [],
        candidates=board,
        gate=gate and {"rule": None, "window_start": None, "window_end": None, **gate},
        gate_rows=_gate_rows(gate) if gate else [],
        gate_picture=_gate_picture(gate) if gate else None,
        slices_picture=_slices_picture(gate) if gate else None,
        months_picture=_months_picture(retrain, stay, months),
        written_at=datetime.now(timezone.utc),
    )


def _gate_rows(gate: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for key, name in (("roc_auc", "ROC AUC"), ("brier", "Brier (less is better)")):
        compared = gate.get(key)
        compared = compared if isinstance(compared, dict) else {}
        difference = number(None)
        if compared:
            difference = (
                f"{compared['difference']:+.4f} ({compared['low']:+.4f} to {compared['high']:+.4f})"
            )
        rows.append(
            {
                "name": name,
                "champion": gate.get(f"champion_{key}"),
                "challenger": gate.get(f"challenger_{key}"),
                "difference": difference,
                "better": compared.get("better_share"),
            }
        )
    return rows


def _gate_picture(gate: dict[str, Any]) -> str | None:
    auc, brier = gate.get("roc_auc"), gate.get("brier")
    if not isinstance(auc, dict) or not isinstance(brier, dict):
        return None
    # A Brier score is better when it is lower: turned round, right is better in both rows.
    drawn = [
        pictures.Estimate("ROC AUC", auc["difference"], auc["low"], auc["high"]),
        pictures.Estimate("Brier, lower by", -brier["difference"], -brier["high"], -brier["low"]),
    ]
    return pictures.intervals(
        drawn,
        ("champion better", "challenger better"),
        f"Difference of ROC AUC {auc['difference']:+.4f}, {auc['low']:+.4f} to {auc['high']:+.4f}",
    )


def _slices_picture(gate: dict[str, Any]) -> str | None:
    slices = gate.get("slices") or []
    drawn = [
        pictures.Estimate(
            f"{each['name']} ({each['rows']:,})",
            each["roc_auc"]["difference"],
            each["roc_auc"]["low"],
            each["roc_auc"]["high"],
            bool(each["worse_by"]),
        )
        for each in slices
    ]
    if not drawn:
        return None
    held = ", ".join(gate.get("held_slices") or []) or "none"
    says = f"Difference of ROC AUC in {len(drawn)} slices; badly worse: {held}"
    return pictures.intervals(drawn, ("champion better", "challenger better"), says)


def _months_picture(
    retrain: dict[str, Any], stay: dict[str, Any] | None, months: list[dict[str, Any]]
) -> str | None:
    drawn = []
    for version, role, colour in (
        (retrain["champion"], "champion", "muted"),
        (retrain["challenger"], "challenger", "accent"),
    ):
        points = [
            pictures.Point(period_of(m["period"]), m["roc_auc"])
            for m in months
            if version is not None and m["model_version"] == version
        ]
        if points:
            drawn.append(pictures.Line(f"version {version}, {role}", colour, points))
    if not drawn:
        return None
    marks = []
    served = [
        m["period"] for m in months if m["live"] and m["model_version"] == retrain["challenger"]
    ]
    if stay is not None and served and retrain["champion"]:
        marks = [(period_of(min(served)), f"version {retrain['challenger']} serves")]
    return pictures.lines(drawn, "ROC AUC by month of champion and challenger", marks)


def _read(connection: Connection, card: Card, retrain_id: str) -> dict[str, Any]:
    def rows(statement: str, *values: Any) -> list[dict[str, Any]]:
        with connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(statement, values)
            return [dict(row) for row in cursor.fetchall()]

    found = rows(
        RETRAINS_SQL + " WHERE id = %s AND card = %s",
        retrain_id,
        card.name,
    )
    if not found:
        raise LookupError(f"there is no retrain {retrain_id!r} of {card.name}")
    retrain = found[0]
    # The pipeline trains under the retrain's id; noted in its row only once it has deployed.
    training_id = retrain["training_id"] or retrain_id
    trainings = rows("SELECT * FROM ops.trainings WHERE id = %s", training_id)
    checks = rows("SELECT * FROM ops.data_checks WHERE training_id = %s", training_id)
    stays = rows(
        "SELECT * FROM ops.deployments WHERE card = %s AND model_version = %s"
        " ORDER BY deployed_at DESC LIMIT 1",
        card.name,
        retrain["challenger"],
    )
    versions = [retrain["champion"], retrain["challenger"]]
    # Live traffic counts before the test pipeline's, where a month has both.
    months = rows(
        "SELECT DISTINCT ON (model_version, period) * FROM ("
        " SELECT model_version, period, roc_auc, true AS live FROM grafana.evidently_metrics"
        " UNION ALL SELECT model_version, period, (metrics ->> 'roc_auc')::double precision, false"
        " FROM ops.test_results) AS measured"
        " WHERE model_version = ANY(%s) AND roc_auc IS NOT NULL"
        " ORDER BY model_version, period, live DESC",
        versions,
    )
    return {
        "retrain": retrain,
        "training": trainings[0] if trainings else None,
        "check": checks[0] if checks else None,
        "stay": stays[0] if stays else None,
        "months": months,
    }
