"""What the page *Reports* lists, and the frame that a report is shown in; needs no Streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pandas as pd
from psycopg2.extensions import connection as Connection

from mlops.reporting.library import Report

COLUMNS = ["report", "version", "period", "outcome", "drift", "roc_auc", "rows", "written_at", "kb"]

OUTCOMES = {"promoted": "promoted", "kept_champion": "kept the champion", "failed": "failed"}

_OPENING = '<html lang="en">'


def read_facts(connection: Connection, card: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what is known of months (index: version, period) and of retrains (index: id)."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT model_version, to_char(period, 'YYYY-MM'), row_count, prediction_drift, roc_auc"
            " FROM grafana.evidently_metrics"
        )
        months = cursor.fetchall()
        cursor.execute(
            "SELECT id, outcome, champion, challenger FROM ops.retrains WHERE card = %s", (card,)
        )
        retrains = cursor.fetchall()
    return (
        pd.DataFrame(months, columns=["version", "period", "rows", "drift", "roc_auc"]).set_index(
            ["version", "period"]
        ),
        pd.DataFrame(retrains, columns=["id", "outcome", "champion", "challenger"]).set_index("id"),
    )


def no_facts() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the frames of `read_facts` where Postgres is away: reports are files, and stay."""
    months = pd.DataFrame(columns=["version", "period", "rows", "drift", "roc_auc"])
    retrains = pd.DataFrame(columns=["id", "outcome", "champion", "challenger"])
    return months.set_index(["version", "period"]), retrains.set_index("id")


def index_of(
    reports: Sequence[Report], months: pd.DataFrame, retrains: pd.DataFrame
) -> pd.DataFrame:
    """Return a row a report, in its order, with COLUMNS; what is not known is None."""
    rows = []
    for report in reports:
        row = dict.fromkeys(COLUMNS)
        row |= {"written_at": report.written_at, "kb": report.bytes / 1000}
        if report.kind == "month":
            row |= {"report": "month", "version": report.version, "period": report.period}
            if (report.version, report.period) in months.index:
                row |= months.loc[(report.version, report.period)].to_dict()
        elif report.kind == "card":
            row |= {"report": "model card", "version": report.version}
        else:
            row["report"] = "retrain"
            if report.retrain in retrains.index:
                known = retrains.loc[report.retrain]
                outcome = OUTCOMES.get(known["outcome"], "running")
                row |= {"outcome": outcome, "version": known["challenger"]}
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def matching(reports: Sequence[Report], kind: str, version: str, period: str) -> list[Report]:
    """Return the reports of a kind (months, retrains, cards), version and period; "" is any."""
    return [
        report
        for report in reports
        if kind in ("", f"{report.kind}s")
        and version in ("", report.version)
        and period in ("", report.period)
    ]


def title_of(report: Report) -> str:
    """Return the name of a report for a person."""
    if report.kind == "month":
        return f"{report.period}, version {report.version}"
    if report.kind == "card":
        return f"Model card of version {report.version}"
    return f"Retrain {report.retrain}"


def file_name(report: Report, detail: bool = False) -> str:
    """Return the name under which a report, or its `detail`, is downloaded."""
    if report.kind == "card":
        return f"model-card-{report.version}.{'pdf' if detail else 'html'}"
    if report.kind == "retrain":
        return f"retrain-{report.retrain}.html"
    return f"version-{report.version}-{report.period}{'-evidently' if detail else ''}.html"


def framed(page: str, theme: str, *, scripts: bool = False) -> str:
    """Return markup that shows `page` in a frame that reaches nothing of the app.

    The frame of the app itself lets a page's scripts act as the app. So the report stands in one of
    its own, sandboxed: without scripts, or, for Evidently's, with scripts that are of no origin: no
    cookie, no address of the app, no other window.
    """
    page = page.replace(_OPENING, f'<html lang="en" data-theme="{escape(theme, quote=True)}">', 1)
    return (
        "<!DOCTYPE html><style>html,body{margin:0;height:100%;overflow:hidden}"
        "iframe{border:0;width:100%;height:100%}</style>"
        f'<iframe sandbox="{"allow-scripts" if scripts else ""}" '
        f'referrerpolicy="no-referrer" srcdoc="{escape(page, quote=True)}"></iframe>'
    )
