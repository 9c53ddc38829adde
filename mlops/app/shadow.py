"""Page *Shadow*: what the version in shadow would have answered, beside what was answered.

It reads Postgres and changes nothing: to promote the version or to end the shadow is a person's
part, and the page names the commands. What it reads is put together in `shadow_rows`.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import psycopg2
import streamlit as st
from psycopg2.extensions import connection as Connection

from mlops.app import charts
from mlops.app.shadow_rows import (
    EXAMPLES,
    SAMPLE,
    decided_otherwise,
    learnt_by,
    read_features,
    read_months,
    read_pairs,
    read_shadows,
)
from mlops.database import connect
from mlops.dataset.card import Card, CardError, load_card
from mlops.settings import MissingSecretError, get_settings

REFRESH_S = 30

#: What can be drawn by month: column, what a person calls it, how its axis is titled.
MEASURES = [
    ("roc_auc", "ROC AUC", "ROC AUC"),
    ("brier", "Brier", "Brier (less is better)"),
    ("profit", "Profit", "Profit per 1,000 rows"),
]


def show_nobody() -> None:
    """Say how somebody comes into shadow."""
    st.info(
        "Nobody is in shadow. A version in shadow scores what the production version answers, and"
        " answers nobody: its scores are compared here. Put one there with"
        " `make shadow VERSION=7`. The loop does so with a challenger that the gate has held.",
        icon=":material/visibility:",
    )


def show_summary(stay: pd.Series, months: pd.DataFrame) -> None:
    """Show who is in shadow since when, beside whom, and what it comes to."""
    row = st.container(horizontal=True, key="summary")
    cells = [row.container() for _ in range(4)]
    over = pd.notna(stay["ended_at"])
    until = f" to {stay['ended_at']:%Y-%m-%d %H:%M}" if over else ""
    cells[0].metric(
        "Was in shadow" if over else "In shadow",
        f"Version {stay['model_version']}",
        delta=f"{stay['candidate'] or 'model'}, since {stay['started_at']:%Y-%m-%d %H:%M}{until}",
        **PLAIN,
    )
    rows, refused = int(months["row_count"].sum()), int(months["refused_count"].sum())
    cells[1].metric(
        "Rows scored",
        f"{rows:,}",
        delta=f"{refused:,} refused" if refused else "none refused",
        **PLAIN,
    )
    decided = months.dropna(subset=["changed_share"])
    if decided.empty or not rows:
        cells[2].metric("Decided otherwise", "not known yet")
    else:
        share = (decided["changed_share"] * decided["row_count"]).sum() / decided["row_count"].sum()
        cells[2].metric(
            "Decided otherwise",
            f"{share:.1%}",
            delta=f"of {int(decided['row_count'].sum()):,} rows",
            **PLAIN,
        )
    judged = months.dropna(subset=["roc_auc_low"])
    if judged.empty:
        none = "not judged" if learnt_by(months).ne("").any() else "no labels yet"
        cells[3].metric("ROC AUC, difference", none)
        return
    latest = judged.iloc[-1]
    cells[3].metric(
        f"ROC AUC, difference in {latest['period']:%Y-%m}",
        signed(latest["roc_auc"] - latest["champion_roc_auc"]),
        delta=f"{signed(latest['roc_auc_low'])} to {signed(latest['roc_auc_high'])},"
        f" {latest['labelled_count']:,} labelled rows",
        **PLAIN,
    )


#: A metric's second line says a fact: it is no change for the better or worse.
PLAIN: dict[str, Any] = {"delta_color": "off", "delta_arrow": "off"}


def signed(number: float) -> str:
    """Return a difference with its sign."""
    return f"{number:+.3f}".replace("-", "\u2212")


def show_verdict(stay: pd.Series, months: pd.DataFrame) -> None:
    """Say in a sentence what the labels say, and what to run."""
    judged = months.dropna(subset=["roc_auc_low"])
    better = int((judged["roc_auc_low"] > 0).sum())
    worse = int((judged["roc_auc_high"] < 0).sum())
    of = f"{len(judged)} month{'s' if len(judged) != 1 else ''}"
    if pd.notna(stay["ended_at"]):
        st.caption(f"Its shadow is over: {stay['ended_by']}.")
        return
    if stay["reason"]:
        st.caption(f"Put there by {stay['started_by']}. The gate: {stay['reason']}")
    learnt = months[learnt_by(months).ne("")]
    said = (
        "No label has come of months that are new to both: nobody can say yet who is right."
        if judged.empty and len(learnt)
        else "No label has come of what it has scored: nobody can say yet who is right."
        if judged.empty
        else f"Of {of} with labels it ranks better in {better} and worse in {worse}, beyond what"
        " chance explains; of the others nobody can tell."
    )
    if len(learnt):
        named = ", ".join(f"{each:%Y-%m}" for each in learnt["period"].drop_duplicates())
        said += (
            f" Not judged: {named}. One of the two was fitted on these labels, and to know them by"
            " heart is no merit."
        )
    version = stay["model_version"]
    st.markdown(
        f"{said}\n"
        f"- To put it in production: `make promote VERSION={version}`, or the page *Models*.\n"
        "- To end its shadow: `make shadow STOP=1`."
    )


def show_months(months: pd.DataFrame, card: Card, colours: charts.Palette) -> None:
    """Show both by month: on the left their values, on the right the difference."""
    st.subheader("By month, on the same labelled rows")
    here = [each for each in MEASURES if months[each[0]].notna().any()]
    if not here:
        st.caption("Shown once labels have come of rows that it has scored.")
    else:
        named = {label: (column, title) for column, label, title in here}
        label = st.segmented_control(
            "Measure", list(named), default=here[0][1], required=True, label_visibility="collapsed"
        )
        column, title = named[label]
        if column == "profit" and card.costs is not None:
            title = f"{card.costs.unit.capitalize()} per 1,000 rows"
        row = st.container(horizontal=True, key="months")
        left, right = row.container(), row.container()
        left.plotly_chart(
            charts.shadow_months(months, column, title, colours),
            config=charts.CONFIG,
            key=f"both_{column}",
        )
        right.plotly_chart(
            charts.shadow_differences(months, column, "In shadow less who answered", colours),
            config=charts.CONFIG,
            key=f"difference_{column}",
        )
    table = months.assign(
        difference=months["roc_auc"] - months["champion_roc_auc"],
        interval=[
            None if pd.isna(low) else f"{signed(low)} to {signed(high)}"
            for low, high in zip(months["roc_auc_low"], months["roc_auc_high"], strict=True)
        ],
        changed=100 * months["changed_share"],
        learnt=learnt_by(months).replace("", None),
    ).iloc[::-1]
    number = st.column_config.NumberColumn
    st.dataframe(
        table,
        hide_index=True,
        placeholder="-",
        column_order=[
            *("period", "champion", "row_count", "changed", "correlation", "score_distance"),
            *("mean_score", "champion_mean_score", "labelled_count", "learnt"),
            *("interval", "roc_auc"),
            *("champion_roc_auc", "brier", "champion_brier", "profit", "champion_profit"),
        ],
        column_config={
            "period": st.column_config.DateColumn("Month", format="YYYY-MM"),
            "champion": "Answered by",
            "row_count": number("Rows", format="localized"),
            "changed": number("Decided otherwise", format="%.1f %%"),
            "correlation": number("Correlation", format="%.3f"),
            "score_distance": number("Distance", format="%.3f"),
            "mean_score": number("Mean score", format="%.3f"),
            "champion_mean_score": number("… answered", format="%.3f"),
            "labelled_count": number("Labelled", format="localized"),
            "learnt": "Fitted on by",
            "roc_auc": number("ROC AUC", format="%.3f"),
            "champion_roc_auc": number("… answered ", format="%.3f"),
            "interval": "ROC AUC, difference",
            "brier": number("Brier", format="%.4f"),
            "champion_brier": number("… answered  ", format="%.4f"),
            "profit": number("Profit", format="%.0f"),
            "champion_profit": number("… answered   ", format="%.0f"),
        },
        key="comparison",
    )
    st.caption(
        "Intervals are of the difference, by paired bootstrap: the same resampled rows for both,"
        " at the gate's confidence. A month that a version was fitted on is not judged."
        " Distance: of the two scores' distributions (Wasserstein), in"
        " standard deviations of who answered."
    )


def show_pairs(
    connection: Connection,
    months: pd.DataFrame,
    version: str,
    card: Card,
    colours: charts.Palette,
) -> None:
    """Show the scores of both for a month that is chosen, and rows that are decided otherwise."""
    st.subheader("Both scores, row by row")
    options = list(range(len(months)))[::-1]
    chosen = st.container(horizontal=True, key="choices").selectbox(
        "Month",
        options,
        format_func=lambda n: (
            f"{months['period'].iloc[n]:%Y-%m}, answered by version {months['champion'].iloc[n]}"
        ),
    )
    month = months.iloc[chosen]
    champion = str(month["champion"])
    pairs = read_pairs(connection, version, champion, month["period"])
    if pairs.empty:
        st.caption("No row of that month has a score of both.")
        return
    thresholds = tuple(
        None if pd.isna(month[name]) else float(month[name])
        for name in ("champion_threshold", "threshold")
    )
    names = (f"Version {champion}, which answered", f"Version {version}, in shadow")
    row = st.container(horizontal=True, key="training")
    left, right = row.container(), row.container()
    left.plotly_chart(
        charts.score_pairs(pairs, names, (thresholds[0], thresholds[1]), colours),
        config=charts.CONFIG,
        key="pairs",
    )
    changed = None
    with right:
        st.markdown("**Decided otherwise**")
        if thresholds[0] is None or thresholds[1] is None:
            st.caption("Not known: the payload of one of them, which has its threshold, is gone.")
        else:
            changed = decided_otherwise(pairs, thresholds[1], thresholds[0])
            show_changed(pairs, changed, thresholds[1], thresholds[0])
            if learnt := learnt_by(months).iloc[chosen]:
                st.caption(f"Who is right on these rows says nothing: {learnt} was fitted on them.")
        if len(pairs) == SAMPLE:
            st.caption(f"{SAMPLE:,} of the month's {month['row_count']:,} rows, by chance.")
    if changed is not None and not changed.empty:
        show_examples(connection, changed.head(EXAMPLES), card)


def show_changed(
    pairs: pd.DataFrame, changed: pd.DataFrame, threshold: float, champion_threshold: float
) -> None:
    """Say how many rows are decided otherwise, which way, and who is right as far as is known."""
    to_yes = int((changed["shadow"] >= threshold).sum())
    st.markdown(
        f"{len(changed):,} of {len(pairs):,} rows: {to_yes:,} would become a yes,"
        f" {len(changed) - to_yes:,} a no. Thresholds (dashed): {champion_threshold:.1%} of who"
        f" answered, {threshold:.1%} of the shadow."
    )
    labelled = changed.dropna(subset=["label"])
    if len(labelled):
        right = ((labelled["shadow"] >= threshold) == (labelled["label"] == 1)).sum()
        st.markdown(f"Labels have come of {len(labelled):,}: the shadow is right on {right:,}.")


def show_examples(connection: Connection, shown: pd.DataFrame, card: Card) -> None:
    """Show rows that are decided otherwise, with what was asked."""
    st.markdown("**Furthest apart, and decided otherwise**")
    features = read_features(connection, shown)
    names = [name for name in card.feature_names if name in features]
    table = pd.concat([shown.reset_index(drop=True), features.add_prefix("feature ")], axis=1)
    answers = {0: card.target.negative, 1: card.target.positive}
    percent = st.column_config.NumberColumn
    st.dataframe(
        table.assign(
            champion=100 * table["champion"],
            shadow=100 * table["shadow"],
            label=table["label"].map(answers),
        ),
        hide_index=True,
        placeholder="-",
        height=250,
        column_order=["champion", "shadow", "label", *(f"feature {name}" for name in names)],
        column_config={
            "champion": percent("Answered", format="%.1f %%", width="small"),
            "shadow": percent("In shadow", format="%.1f %%", width="small"),
            "label": st.column_config.TextColumn("Came true", width="small"),
            **{f"feature {name}": name for name in names},
        },
        key="examples",
    )


def choose_stay(stays: pd.DataFrame) -> pd.Series:
    """Return the stay in shadow that is chosen, the latest unless a person wants another."""
    if len(stays) == 1:
        return stays.iloc[0]

    def named(place: int) -> str:
        stay = stays.iloc[place]
        over = "" if pd.isna(stay["ended_at"]) else f" to {stay['ended_at']:%Y-%m-%d}"
        return f"Version {stay['model_version']}, {stay['started_at']:%Y-%m-%d}{over}"

    chosen = st.container(horizontal=True, key="choices_stay").selectbox(
        "In shadow", list(range(len(stays))), format_func=named
    )
    return stays.iloc[chosen]


@st.fragment(run_every=REFRESH_S)
def show_page() -> None:
    """Read and show everything; again every `REFRESH_S` seconds."""
    settings = get_settings()
    try:
        card = load_card(settings.card)
        with connect(role="grafana", settings=settings) as connection:
            show(connection, card)
    except (MissingSecretError, CardError) as error:
        st.warning(str(error), icon=":material/settings_alert:")
    except psycopg2.OperationalError:
        st.warning(
            f"Postgres does not answer at {settings.postgres_host}:{settings.postgres_port}."
            f" Start the stack with `{settings.start_command}`; this page comes back by itself.",
            icon=":material/cloud_off:",
        )
        st.button("Try again", icon=":material/refresh:")
    except psycopg2.errors.UndefinedTable:
        way_out = f"`{settings.start_command}` makes them."
        st.warning(f"The tables are not there yet: {way_out}", icon=":material/table:")


def show(connection: Connection, card: Card) -> None:
    """Show what Postgres has."""
    colours = charts.palette(st.context.theme.type)
    stays = read_shadows(connection, card.name)
    if stays.empty or stays["ended_at"].notna().all():
        show_nobody()
    if stays.empty:
        return
    stay = choose_stay(stays)
    version = str(stay["model_version"])
    months = read_months(connection, version)
    show_summary(stay, months)
    show_verdict(stay, months)
    if months.empty:
        st.caption(
            "It has scored nothing yet that could be compared: rows are scored within seconds of"
            " their answer, and compared every minute, or by the pipeline *shadow* in Mage."
        )
        return
    show_months(months, card, colours)
    show_pairs(connection, months, version, card, colours)


st.title("Shadow")
show_page()
