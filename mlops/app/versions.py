"""Of page *Models*: the versions' lives, the gate's decisions, and what a person may do about them.

It draws what `history` has read, and changes nothing itself: the buttons start pipelines of Mage,
by the token of their triggers, and wait for the outcome.
"""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import psycopg2
import streamlit as st

from mlops.app import charts
from mlops.app.history import History
from mlops.database import connect
from mlops.dataset.card import Card
from mlops.orchestration.mage import MageError, run_status, trigger_pipeline
from mlops.registry.stays import former_stays
from mlops.settings import MissingSecretError, Settings

MINUTES = "YYYY-MM-DD HH:mm"
#: Seconds that a dialog waits for a pipeline; it goes on in Mage all the same.
LIMIT_S = 180
ROLE = "grafana"
TOLD = "what_an_action_came_to"

TITLES = {"roc_auc": "ROC AUC", "brier": "Brier score, better to the right"}
RULES = {
    "first": "the first one",
    "better": "better",
    "equal and better calibrated": "better calibrated",
    "not better": "not better",
    "no better than a guess": "as good as a guess",
    "held": "loses on a slice",
    "hold": "held by a person",
    "no comparison": "no comparison",
    "not measured": "not measured",
}


def show_hold(history: History, settings: Settings) -> None:
    """Say that the loop is held, if it is, and how that ends."""
    hold = history.hold
    if hold is None:
        return
    state = "" if hold.done_at else " It is under way, or was interrupted: roll back again."
    st.warning(
        f"**The loop promotes nothing** since {hold.held_at:%Y-%m-%d %H:%M} UTC: {hold.reason}."
        f"{state} It trains and tests all the same. *Release…* above, {way('release', settings)},"
        " or a promotion by hand ends this.",
        icon=":material/pause_circle:",
    )


def show_lives(history: History) -> None:
    """Show every version's life as a table, one row a stay in production."""
    lives = history.lives
    if lives.empty:
        return
    here = lives["production_from"].notna()
    everything = st.toggle("Also versions that were never in production", key="all_versions")
    table = lives if everything else lives[here]
    table = table.assign(
        learnt=[
            "" if pd.isna(start) else f"{start:%Y-%m} to {end:%Y-%m}"
            for start, end in zip(table["window_start"], table["window_end"], strict=True)
        ],
        why=table["retrain_cause"].fillna(table["training_cause"]),
        gate=[RULES.get(rule, rule) for rule in table["gate_rule"].fillna("")],
        came=[
            ": ".join(str(each) for each in pair if pair[0] and not pd.isna(pair[0]) and each)
            for pair in zip(table["began"], table["began_because"], strict=True)
        ],
    )
    st.dataframe(
        table,
        hide_index=True,
        placeholder="-",
        column_order=[
            *("model_version", "candidate", "learnt", "fitted_rows", "why", "gate"),
            *("roc_auc_difference", "came", "production_from", "production_until", "retired_by"),
        ],
        column_config={
            "model_version": st.column_config.TextColumn("Version", width="small"),
            "candidate": "Candidate",
            "learnt": "Learnt from",
            "fitted_rows": st.column_config.NumberColumn("Rows", format="%d"),
            "why": "Trained because",
            "gate": "Gate",
            "roc_auc_difference": st.column_config.NumberColumn("AUC, to champion", format="%+.3f"),
            "came": "Came by",
            "production_from": st.column_config.DatetimeColumn("From (UTC)", format=MINUTES),
            "production_until": st.column_config.DatetimeColumn("Until (UTC)", format=MINUTES),
            "retired_by": st.column_config.TextColumn("Retired by", width="small"),
        },
        key="lives",
    )


def show_gate(history: History, colours: charts.Palette) -> None:
    """Show what the gate decided, with intervals, and the slices of one decision."""
    st.subheader("Gate")
    compared = [
        row for row in history.decisions.to_dict("records") if row["numbers"].get("roc_auc")
    ]
    if not history.decisions.empty and not (newest := history.decisions.iloc[0])["numbers"].get(
        "roc_auc"
    ):
        st.caption(
            f"Latest, without a comparison: version {newest['challenger']}."
            f" {_plain(newest['reason'])}"
        )
    if not compared:
        st.caption(
            "No comparison yet: it takes a champion, and rows that it was not fitted on. The next"
            " retrain, or the pipelines *train* and *deploy*, bring one."
        )
        return
    latest = compared[0]["numbers"]
    level = 2 * latest["confidence"] - 1
    st.caption(
        f"Challenger less champion on the same rows, with the central {level:.0%} of"
        f" {latest['resamples']:,} bootstrap resamples. Blue was promoted; orange loses on a slice."
    )
    lines = [_line(row) for row in compared]
    row = st.container(horizontal=True, key="gate")
    for measure, title in TITLES.items():
        margin = latest["margin"] if measure == "roc_auc" else None
        with row.container():
            st.markdown(f"**{title}**")
            st.plotly_chart(
                charts.gate_forest(lines, measure, margin, colours),
                config=charts.CONFIG,
                key=f"gate_{measure}",
            )
    chosen = st.selectbox(
        "Decision",
        range(len(compared)),
        format_func=lambda place: lines[place]["title"],
        key="decision",
    )
    decision = compared[chosen]
    st.markdown(_plain(decision["reason"]))
    _show_slices(decision, colours)


def _show_slices(decision: dict[str, Any], colours: charts.Palette) -> None:
    slices = decision["numbers"].get("slices") or []
    if not slices:
        st.caption("No slice of that window was large enough to be judged by itself.")
        return
    lines = [
        {
            "label": f"{each['name']} ({each['rows']:,})",
            "passed": False,
            "lost": bool(each["worse_by"]),
            "words": _words(each),
            "roc_auc": each["roc_auc"],
            "brier": each["brier"],
        }
        for each in slices
    ]
    level = 2 * slices[0]["confidence"] - 1
    st.caption(
        f"By slice, with the central {level:.1%}: wider, as {len(slices)} are looked at. One that"
        f" is surely worse by {decision['numbers']['slice_margin']:g} holds the challenger"
        " (orange)."
    )
    row = st.container(horizontal=True, key="slices")
    for measure, title in TITLES.items():
        with row.container():
            st.markdown(f"**{title}, by slice**")
            st.plotly_chart(
                charts.gate_forest(lines, measure, None, colours),
                config=charts.CONFIG,
                key=f"slices_{measure}",
            )


def _line(row: Any) -> dict[str, Any]:
    numbers = row["numbers"]
    pair = f"{row['challenger']} against {row['champion']}"
    rule = RULES.get(numbers["rule"], numbers["rule"])
    return {
        "label": f"{pair}: {rule}",
        "title": f"{row['decided_at']:%Y-%m-%d %H:%M}, version {pair}: {rule}",
        "passed": row["promote"],
        "lost": bool(numbers.get("held_slices")),
        "words": f"{row['decided_at']:%Y-%m-%d %H:%M}\n{_words(numbers)}",
        "roc_auc": numbers["roc_auc"],
        "brier": numbers["brier"],
    }


def _words(found: dict[str, Any]) -> str:
    """Return both measures of both models on lines."""
    return "\n".join(
        f"{title} {found[f'challenger_{key}']:.4f} against {found[f'champion_{key}']:.4f}"
        f" ({found[key]['difference']:+.4f}, {found[key]['low']:+.4f} to {found[key]['high']:+.4f})"
        for key, title in (("roc_auc", "ROC AUC"), ("brier", "Brier"))
    )


def _plain(text: str) -> str:
    """Return words as they are for Markdown."""
    return "".join(f"\\{each}" if each in "\\`*_{}[]<>$#|~:" else each for each in text)


def show_actions(card: Card, settings: Settings) -> None:
    """Show the buttons by which a person rolls back, promotes and releases."""
    reason = _why_not(settings)
    row = st.container(horizontal=True, key="actions")
    for label, icon, dialog in (
        ("Roll back…", ":material/undo:", ask_rollback),
        ("Promote…", ":material/publish:", ask_promotion),
        ("Release…", ":material/play_circle:", ask_release),
    ):
        if row.button(label, icon=icon, disabled=reason is not None, help=reason):
            dialog(card, settings)
    if reason is not None:
        row.caption(reason)
    well, said = st.session_state.pop(TOLD, (True, ""))
    if said:
        (st.success if well else st.error)(said)


def _why_not(settings: Settings) -> str | None:
    """Return what to run in the buttons' place, None if they can be pressed."""
    ways = (
        f"Use {way('rollback', settings)}, {way('promote', settings)} and"
        f" {way('release', settings)}."
    )
    if settings.app_actions == "off":
        return f"Switched off (MLOPS_APP_ACTIONS). {ways}"
    try:
        settings.secret("mage_trigger_token")
    except MissingSecretError:
        return f"This page has no token for Mage's triggers (MLOPS_MAGE_TRIGGER_TOKEN). {ways}"
    return None


def way(pipeline: str, settings: Settings) -> str:
    """Return what does the same without this page."""
    if settings.in_containers:
        return f"pipeline *{pipeline}* in Mage"
    return f"`make {pipeline}{' VERSION=…' if pipeline == 'promote' else ''}`"


@st.dialog("Roll back")
def ask_rollback(card: Card, settings: Settings) -> None:
    """Say what a rollback would do, and do it once that is confirmed."""
    try:
        champion, stays = _production(card, settings)
    except (psycopg2.Error, MissingSecretError) as error:
        _no_database(error)
        return
    if champion is None or not stays:
        st.info(
            "Nothing is in production."
            if champion is None
            else f"Nothing was in production before version {champion} that a rollback could return"
            " to."
        )
        return
    target = stays[-1]
    st.markdown(
        f"Version **{champion}** gives way to version **{target['model_version']}**"
        f" ({target['candidate'] or 'model'}), which was in production until"
        f" {target['retired_at']:%Y-%m-%d %H:%M} UTC. From then on the loop promotes nothing, until"
        " a person releases it."
    )
    why = st.text_input("Who, and why (kept in the history)", key="rollback_why")
    if st.button("Roll back", type="primary", icon=":material/undo:"):
        _run("rollback", {"version": champion, "cause": _cause("rolled back", why)}, settings)


@st.dialog("Promote")
def ask_promotion(card: Card, settings: Settings) -> None:
    """Let a person choose a version, and put it in production once that is confirmed."""
    try:
        champion, _ = _production(card, settings)
        found = _versions(card, settings)
    except (psycopg2.Error, MissingSecretError) as error:
        _no_database(error)
        return
    others = {number: words for number, words in found.items() if number != champion}
    if not others:
        st.info("There is no other version: run the pipeline *train* in Mage.")
        return
    version = st.selectbox("Version", list(others), format_func=others.__getitem__)
    st.markdown(
        f"Version **{version}** takes the place of {champion or 'none'}, whatever the gate says:"
        " its numbers are measured and kept. ONNX must agree with sklearn. A hold ends."
    )
    why = st.text_input("Who, and why (kept in the history)", key="promote_why")
    if st.button("Promote", type="primary", icon=":material/publish:"):
        _run("promote", {"version": version, "cause": _cause("promoted", why)}, settings)


@st.dialog("Release")
def ask_release(card: Card, settings: Settings) -> None:
    """Let the loop promote again once that is confirmed."""
    st.markdown("The hold ends, and the next retrain may promote again.")
    why = st.text_input("Who, and why (kept in the history)", key="release_why")
    if st.button("Release", type="primary", icon=":material/play_circle:"):
        _run("release", {"cause": _cause("released", why)}, settings)


def _no_database(error: Exception) -> None:
    st.warning(f"Postgres cannot be asked: {error}", icon=":material/cloud_off:")


def _cause(done: str, why: str) -> str:
    return f"{done} on page Models" + (f": {why.strip()[:200]}" if why.strip() else "")


def _production(card: Card, settings: Settings) -> tuple[str | None, list[dict[str, Any]]]:
    """Return what is in production now, and the stays that a rollback can return to."""
    with connect(role=ROLE, settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT model_version FROM ops.deployments WHERE card = %s AND retired_at IS NULL",
            (card.name,),
        )
        row = cursor.fetchone()
        return (None if row is None else str(row[0])), former_stays(connection, card)


def _versions(card: Card, settings: Settings) -> dict[str, str]:
    """Return the latest trained versions, each in words, the latest first."""
    with connect(role=ROLE, settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT ON (trained_at, rank, model_version) model_version, candidate,"
            " validation_roc_auc, window_start, window_end FROM ops.version_history"
            " WHERE card = %s AND trained_at IS NOT NULL"
            " ORDER BY trained_at DESC, rank, model_version LIMIT 50",
            (card.name,),
        )
        return {
            str(version): f"{version}: {candidate}, ROC AUC {auc:.3f} on validation, learnt from"
            f" {start:%Y-%m} to {end:%Y-%m}"
            for version, candidate, auc, start, end in cursor.fetchall()
        }


def _run(pipeline: str, variables: dict[str, Any], settings: Settings) -> None:
    """Start a pipeline, wait for its end, and say what it came to."""
    try:
        run = trigger_pipeline(pipeline, variables, settings, ROLE)
        with st.spinner(f"Mage runs *{pipeline}* (run {run}) …"):
            found = run_status(run, settings, ROLE)
            end = time.monotonic() + LIMIT_S
            while not found.ended and time.monotonic() < end:
                time.sleep(0.5)
                found = run_status(run, settings, ROLE)
    except (MageError, MissingSecretError) as error:
        st.error(str(error), icon=":material/error:")
        st.caption(f"The same without this page: {way(pipeline, settings)}.")
        return
    if found.status == "completed":
        said = f"*{pipeline}* is done (run {run} in Mage)."
    elif found.ended:
        said = f"Run {run} of *{pipeline}* ended as {found.status}: its log in Mage says why."
    else:
        said = f"Run {run} of *{pipeline}* goes on in Mage."
    # Told on the page: it is drawn anew, and the dialog closes.
    st.session_state[TOLD] = (found.status == "completed", said)
    st.rerun()
