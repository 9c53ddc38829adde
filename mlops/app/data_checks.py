"""Section of page *Models*: what was found in the rows of the latest trainings, refused ones too.

It draws what it is given; the page reads, in its own transaction.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st
from psycopg2.extensions import connection as Connection

LATEST = 50
MINUTES = "YYYY-MM-DD HH:mm"
COLUMNS = ["checked_at", "training", "severity", "check", "message"]


def read_checks(connection: Connection, card: str) -> tuple[pd.DataFrame, int]:
    """Return the findings of the latest LATEST checks, newest first, a row each, and their number.

    Columns: COLUMNS; times are UTC.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT checked_at, training_id, findings FROM ops.data_checks WHERE card = %s"
            " ORDER BY checked_at DESC LIMIT %s",
            (card, LATEST),
        )
        checks = cursor.fetchall()
    rows = [
        (
            checked_at,
            training,
            {"refuse": "refused", "warn": "warned"}.get(finding["severity"], finding["severity"]),
            finding["check"].replace("_", " "),
            finding["message"],
        )
        for checked_at, training, findings in checks
        for finding in findings
    ]
    return pd.DataFrame(rows, columns=COLUMNS), len(checks)


def show_checks(checks: tuple[pd.DataFrame, int]) -> None:
    """Show the findings; nothing at all before the first training."""
    findings, checked = checks
    if not checked:
        return
    st.subheader("Data quality")
    refused = findings.loc[findings["severity"] == "refused", "training"].nunique()
    if findings.empty:
        st.caption(f"Nothing was found in the rows of the latest {checked} training(s).")
        return
    st.caption(
        f"Rows of the latest {checked} training(s), checked before anything was fitted:"
        f" {refused} refused."
    )
    st.dataframe(
        findings,
        hide_index=True,
        column_config={
            "checked_at": st.column_config.DatetimeColumn("Checked (UTC)", format=MINUTES),
            "training": "Training",
            "severity": "Severity",
            "check": "Check",
            "message": st.column_config.TextColumn("What was found"),
        },
        key="data_checks",
    )
