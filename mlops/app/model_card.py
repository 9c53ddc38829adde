"""Page *Model card*: what a version is for, how good it is and where it ends; also as a PDF.

It shows what the evidence has written into `reports/cards` and changes nothing. A card stands in a
frame that reaches nothing of the app.
"""

from __future__ import annotations

import psycopg2
import streamlit as st

from mlops.app.report_list import file_name, framed
from mlops.database import connect
from mlops.dataset.card import CardError, load_card
from mlops.reporting.library import Report, ReportError, list_reports, read_bytes, read_page
from mlops.settings import MissingSecretError, Settings, get_settings

FRAME_HEIGHT = 1250


def champion(settings: Settings) -> str | None:
    """Return the version in production, None if there is none or Postgres is away."""
    try:
        card = load_card(settings.card)
        with (
            connect(role="grafana", settings=settings) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(
                "SELECT model_version FROM ops.deployments WHERE card = %s AND retired_at IS NULL",
                (card.name,),
            )
            row = cursor.fetchone()
    except (psycopg2.Error, MissingSecretError, CardError):
        return None
    return None if row is None else str(row[0])


def choose(cards: list[Report], production: str | None) -> Report:
    """Show the versions that have a card, the newest first, and return the one that is chosen.

    At first it is the one that the address names, else the one in production.
    """
    versions = {str(card.version): card for card in cards}
    names = sorted(versions, key=int, reverse=True)
    asked = st.query_params.get("version", production)
    return versions[
        st.selectbox(
            "Version",
            names,
            index=names.index(asked) if asked in names else 0,
            format_func=lambda name: f"{name}, in production" if name == production else name,
            key="card-version",
        )
    ]


def show_card(card: Report) -> None:
    """Show a card, and offer it as a PDF and as a page."""
    try:
        page = read_page(card.path)
        pdf = None if card.detail is None else read_bytes(card.detail)
    except ReportError as error:
        st.warning(f"It cannot be shown: {error}", icon=":material/error:")
        return
    row = st.container(horizontal=True, vertical_alignment="bottom")
    if pdf is not None:
        row.download_button(
            "Download as PDF",
            pdf,
            file_name(card, True),
            "application/pdf",
            icon=":material/picture_as_pdf:",
            type="primary",
            on_click="ignore",
        )
    row.download_button(
        "Download this page",
        page,
        file_name(card),
        "text/html",
        icon=":material/download:",
        on_click="ignore",
    )
    st.iframe(framed(page, st.context.theme.type or "light"), height=FRAME_HEIGHT)


def show_page() -> None:
    """Show the card of the version that is chosen."""
    settings = get_settings()
    cards = [report for report in list_reports(settings.reports_dir) if report.kind == "card"]
    if not cards:
        st.caption(
            "No model card yet: the pipelines *deploy* and *retrain* write one for each version"
            " that goes to production, after it answers. `make demo` runs the whole loop."
        )
        return
    production = champion(settings)
    if production is not None and production not in {card.version for card in cards}:
        st.info(
            f"Version {production}, in production, has no card yet: its evidence is being written,"
            " or could not be. In Mage, the logs of pipeline *evidence* and of block"
            " *deploy/evidence* say which.",
            icon=":material/hourglass_top:",
        )
    show_card(choose(cards, production))


st.title("Model card")
show_page()
