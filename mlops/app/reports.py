"""Page *Reports*: what monitorings and retrains have written, by version and month, and opens one.

It lists the files that are there and changes nothing. What an address asks for is compared with
that list, and never becomes a path. A report is shown in a frame that reaches nothing of the app.
"""

from __future__ import annotations

import pandas as pd
import psycopg2
import streamlit as st

from mlops.app.report_list import (
    file_name,
    framed,
    index_of,
    matching,
    no_facts,
    read_facts,
    title_of,
)
from mlops.database import connect
from mlops.dataset.card import CardError, load_card
from mlops.reporting.library import Report, ReportError, find_report, list_reports, read_page
from mlops.settings import MissingSecretError, Settings, get_settings

MINUTES = "YYYY-MM-DD HH:mm"
FRAME_HEIGHT = 1100
SUMMARY, EVIDENTLY = "Summary", "Evidently"


def known_facts(settings: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what Postgres knows of months and retrains; nothing, and a notice, if it is away."""
    try:
        card = load_card(settings.card)
        with connect(role="grafana", settings=settings) as connection:
            return read_facts(connection, card.name)
    except (psycopg2.Error, MissingSecretError, CardError):
        st.info(
            "Postgres does not answer, so that outcomes and numbers are left out of the list:"
            f" `{settings.start_command}` starts it. The reports themselves are files.",
            icon=":material/cloud_off:",
        )
        return no_facts()


def asked_for(settings: Settings) -> Report | None:
    """Return the report that the page's address names, if it is there."""
    asked = {
        name: st.query_params[name]
        for name in ("retrain", "version", "period")
        if name in st.query_params
    }
    if not asked:
        return None
    try:
        return find_report(settings.reports_dir, **asked)
    except ReportError:
        st.warning(
            "The report that the address names is not there: it was deleted by age, or has not been"
            " written yet.",
            icon=":material/search_off:",
        )
        return None


def choose(reports: list[Report]) -> list[Report]:
    """Show the filters, and return what passes them."""
    row = st.container(horizontal=True, key="choices")
    kind = row.segmented_control(
        "Kind", ["all", "months", "retrains", "cards"], default="all", key="kind", required=True
    )
    versions = sorted({r.version for r in reports if r.version}, key=int, reverse=True)
    periods = sorted({r.period for r in reports if r.period}, reverse=True)
    version = row.selectbox("Version", ["all", *versions], key="version")
    period = row.selectbox("Month", ["all", *periods], key="period")
    any_of = {"all": "", None: ""}
    return matching(
        reports, any_of.get(kind, kind), any_of.get(version, version), any_of.get(period, period)
    )


def show_list(reports: list[Report], settings: Settings) -> Report | None:
    """Show the list, and return the report that was clicked."""
    table = index_of(reports, *known_facts(settings))
    picked = st.dataframe(
        table,
        hide_index=True,
        placeholder="-",
        height=min(320, 36 * (len(table) + 1) + 4),
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "report": "Report",
            "version": "Version",
            "period": "Month",
            "outcome": st.column_config.TextColumn("Outcome", width=140),
            "drift": st.column_config.NumberColumn("Prediction drift", format="%.3f"),
            "roc_auc": st.column_config.NumberColumn("ROC AUC", format="%.3f"),
            "rows": st.column_config.NumberColumn("Rows", format="localized"),
            "written_at": st.column_config.DatetimeColumn("Written (UTC)", format=MINUTES),
            "kb": st.column_config.NumberColumn("kB", format="%.0f"),
        },
        # Another list is another table: a row that was clicked would now be another report.
        key=f"list-{hash(tuple(report.path for report in reports))}",
    )
    rows = picked["selection"]["rows"]
    return reports[rows[0]] if rows and rows[0] < len(reports) else None


def show_report(report: Report) -> None:
    """Show one report, with its downloads."""
    st.subheader(title_of(report))
    row = st.container(horizontal=True, vertical_alignment="bottom")
    view = SUMMARY
    if report.kind == "month" and report.detail is not None:
        view = row.segmented_control(
            "View", [SUMMARY, EVIDENTLY], default=SUMMARY, key="view", required=True
        )
    detail = view == EVIDENTLY and report.detail is not None
    try:
        page = read_page(report.detail if detail and report.detail else report.path)
    except ReportError as error:
        st.warning(f"It cannot be shown: {error}", icon=":material/error:")
        return
    row.download_button(
        "Download this page",
        page,
        file_name(report, detail),
        "text/html",
        icon=":material/download:",
        on_click="ignore",
    )
    # An older stack wrote Evidently's page, which is drawn by its script, as the month's own.
    scripts = detail or 'content="mlops"' not in page[:1000]
    st.iframe(framed(page, st.context.theme.type or "light", scripts=scripts), height=FRAME_HEIGHT)


def show_page() -> None:
    """Show the list and the report that is chosen: clicked, named by the address, or the latest."""
    settings = get_settings()
    reports = list_reports(settings.reports_dir)
    if not reports:
        st.caption(
            "No report yet: the pipelines *monitor* and *retrain* write them. `make demo` runs the"
            " whole loop."
        )
        return
    asked = asked_for(settings)
    chosen = choose(reports)
    if not chosen:
        st.caption("No report of this kind, version and month.")
        return
    clicked = show_list(chosen, settings)
    size = sum(report.bytes for report in reports) / 1e6
    st.caption(
        f"{len(reports)} reports, {size:.1f} MB. Kept are the latest {settings.reports_keep_months}"
        f" months of each version, and {settings.reports_max_mb} MB in all."
    )
    show_report(clicked or (asked if asked in chosen else None) or chosen[0])


st.title("Reports")
show_page()
