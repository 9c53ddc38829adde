"""The gate before a training: its window is checked, what was found is kept, bad rows are refused.

What is checked, and why, is `mlops.dataset.quality`'s; this module reads and writes the tables.
"""

from __future__ import annotations

import logging
from typing import Any

import pandas as pd
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json, RealDictCursor

from mlops.dataset.card import Card
from mlops.dataset.errors import DataError, DataQualityError
from mlops.dataset.quality import Finding, check_window, findings_text, refused
from mlops.dataset.rows import label_arrivals
from mlops.dataset.windows import split_window
from mlops.settings import Settings, get_settings

logger = logging.getLogger(__name__)


def require_quality(
    connection: Connection,
    card: Card,
    frame: pd.DataFrame,
    start: str,
    end: str,
    training_id: str,
    settings: Settings | None = None,
) -> list[Finding]:
    """Check `frame`, the rows of `start` to `end`, and return what is only warned of.

    `ops.data_checks` holds what was found either way. Raises DataQualityError if anything is
    refused, or the window cannot be cut into fitting and validation; its row is committed before
    (with whatever else the caller's transaction holds), so that it is kept.
    """
    settings = settings or get_settings()
    findings = check_window(frame, card, settings, label_arrivals(connection, card, start, end))
    if not any(finding.check == "schema" for finding in findings):
        findings = [*_window_findings(frame, card, settings), *findings]
    faults = refused(findings)
    _store(connection, card, training_id, findings)
    if faults:
        connection.commit()
        raise DataQualityError(f"the rows of {start} to {end} ({card.name})", faults)
    if findings:
        logger.warning("training %s: %s", training_id, findings_text(findings))
    return findings


def read_data_check(connection: Connection, training_id: str) -> dict[str, Any] | None:
    """Return the row of `ops.data_checks` (`findings` is a list of dicts), None without one."""
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            "SELECT training_id, card, passed, findings, checked_at FROM ops.data_checks"
            " WHERE training_id = %s",
            (training_id,),
        )
        row = cursor.fetchone()
    return None if row is None else dict(row)


def data_check_text(connection: Connection, training_id: str) -> str:
    """Return what was found before a training, for its log."""
    row = read_data_check(connection, training_id)
    if row is None:
        return "data quality: not checked"
    return findings_text([Finding(**finding) for finding in row["findings"]])


def _window_findings(frame: pd.DataFrame, card: Card, settings: Settings) -> list[Finding]:
    try:
        split_window(frame, card.time.validation_months, settings.validation_min_rows)
    except DataError as error:
        return [Finding("window", "refuse", problem) for problem in error.problems]
    return []


def _store(connection: Connection, card: Card, training_id: str, findings: list[Finding]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.data_checks (training_id, card, passed, findings)"
            " VALUES (%s, %s, %s, %s) ON CONFLICT (training_id) DO UPDATE SET"
            " passed = excluded.passed, findings = excluded.findings, checked_at = now()",
            (
                training_id,
                card.name,
                not refused(findings),
                Json([finding.as_dict() for finding in findings]),
            ),
        )
