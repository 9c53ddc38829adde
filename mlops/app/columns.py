"""Page *Columns*: which column has drifted or fails to come, by how much, and since when.

It reads what `monitor` measured (role `grafana`) and changes nothing. What it reads is put together
in `column_rows`, its figures are made in `column_charts`.
"""

from __future__ import annotations

import pandas as pd
import psycopg2
import streamlit as st
from psycopg2.extensions import connection as Connection

from mlops.app import charts, column_charts
from mlops.app.column_rows import read_columns, read_month, read_reference, read_versions
from mlops.database import connect
from mlops.dataset.card import Card, CardError, load_card
from mlops.settings import MissingSecretError, Settings, get_settings

REFRESH_S = 60

DRIFT, MISSING = "Drift", "Missing values"


def show_table(columns: pd.DataFrame) -> None:
    """Show how each column is in the latest month, the ones that are off on top."""
    latest = columns[columns["period"] == columns["period"].max()]
    order = ["missing_more", "drifted", "distance"]
    known = latest.assign(drifted=latest["drifted"].eq(True)).sort_values(
        order, ascending=False, na_position="last"
    )
    st.subheader(f"The latest month, {columns['period'].max()}")
    st.dataframe(
        known,
        hide_index=True,
        placeholder="-",
        height=37 + 35 * len(known),
        column_order=[
            *("column_name", "drifted_since", "distance", "noise"),
            *("missing_since", "missing_share", "reference_missing_share"),
        ],
        column_config={
            "column_name": st.column_config.TextColumn("Column"),
            "drifted_since": st.column_config.TextColumn(
                "Drifted since", help="First month of the unbroken run; none: it has not drifted."
            ),
            "distance": st.column_config.NumberColumn(
                "Distance",
                format="%.3f",
                help="From the reference: normed Wasserstein for numbers, Jensen-Shannon for"
                " categories. None: the card leaves this column's drift out.",
            ),
            "noise": st.column_config.NumberColumn(
                "By chance", format="%.3f", help="What chance reaches in a month of this size."
            ),
            "missing_since": st.column_config.TextColumn("Missing more since"),
            "missing_share": st.column_config.NumberColumn("Missing", format="percent"),
            "reference_missing_share": st.column_config.NumberColumn(
                "In the reference", format="percent"
            ),
        },
        key="columns-latest",
    )


def show_distribution(
    connection: Connection, card: Card, columns: pd.DataFrame, version: str, settings: Settings
) -> None:
    """Let the reader choose column and month, and show its values beside the reference's."""
    st.subheader("What it looks like")
    latest = columns[columns["period"] == columns["period"].max()]
    worst = latest.sort_values("distance", ascending=False, na_position="last")["column_name"]
    months = sorted(columns["period"].unique(), reverse=True)
    row = st.container(horizontal=True, key="choices")
    with row.container():
        name = st.selectbox("Column", list(worst), key="columns-column")
    with row.container():
        period = st.selectbox("Month", months, key="columns-month")
    features = {feature.name: feature for feature in card.features}
    if name not in features or period is None:
        st.caption("The card does not know this column any more.")
        return
    feature = features[name]
    found = read_reference(connection, card, feature, version, settings)
    month = read_month(connection, card, feature, version, period)
    if month.empty:
        st.caption("The prediction log holds no row of that month any more.")
        return
    reference, months_of_it = (None, "") if found is None else found
    st.caption(
        f"{feature.description}. {len(month):,} rows of {period}"
        + (
            f" beside {len(reference):,} of the reference, {months_of_it}."
            if reference is not None
            else ". The rows that version was judged on are not known here."
        )
    )
    colours = charts.palette(st.context.theme.type)
    if feature.kind == "number":
        figure = column_charts.number_distribution(
            reference, month, feature.unit or feature.name, colours
        )
    else:
        figure = column_charts.category_distribution(reference, month, colours)
    st.plotly_chart(figure, config=charts.CONFIG, key="columns-distribution")


def show_columns(connection: Connection, card: Card, settings: Settings) -> None:
    """Show the page's content from one connection."""
    versions = read_versions(connection, card)
    if not versions:
        st.info(
            "No month has been measured by columns yet. The pipeline *monitor* does it, of every"
            " month that a version has answered.",
            icon=":material/view_column:",
        )
        return
    row = st.container(horizontal=True, key="choices-columns")
    with row.container():
        version = st.selectbox(
            "Version", versions, format_func=lambda each: f"v{each}", key="columns-version"
        )
    with row.container():
        measure = st.segmented_control(
            "Measure", [DRIFT, MISSING], default=DRIFT, required=True, key="columns-measure"
        )
    columns = read_columns(connection, str(version))
    colours = charts.palette(st.context.theme.type)
    if measure == MISSING:
        figure = column_charts.missing_map(columns, colours)
        said = (
            "In colour: more is missing than in the reference, by more than"
            f" {settings.missing_margin:.0%} and than chance explains. The number is the share."
        )
    else:
        figure = column_charts.drift_map(columns, colours)
        said = (
            "In colour: further from the reference than"
            f" {settings.column_drift_threshold:g} and than chance explains in a month of that"
            " size. The number is the distance."
        )
    st.caption(said)
    st.plotly_chart(figure, config=charts.CONFIG, key="columns-map")
    show_table(columns)
    show_distribution(connection, card, columns, str(version), settings)


@st.fragment(run_every=REFRESH_S)
def show_page() -> None:
    """Read and show everything; again every `REFRESH_S` seconds."""
    settings = get_settings()
    try:
        card = load_card(settings.card)
        with connect(role="grafana", settings=settings) as connection:
            show_columns(connection, card, settings)
    except CardError as error:
        st.error(str(error))
    except MissingSecretError as error:
        st.warning(str(error), icon=":material/settings_alert:")
    except psycopg2.errors.UndefinedTable:
        st.warning(
            f"The tables are not there yet. `{settings.start_command}` makes them.",
            icon=":material/table:",
        )
    except (psycopg2.OperationalError, psycopg2.InterfaceError):
        st.warning(
            f"Postgres does not answer at {settings.postgres_host}:{settings.postgres_port}."
            f" Start the stack with `{settings.start_command}`; this page comes back by itself.",
            icon=":material/cloud_off:",
        )


st.title("Columns")
show_page()
