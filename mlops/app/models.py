"""Page *Models*: what is in production and how it came there.

It reads Postgres, and from the predict API what the threshold earns. What it reads is put together
in `history`; what a person may change, `versions` asks Mage for.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import pandas as pd
import psycopg2
import streamlit as st

from mlops.app import charts, form, versions
from mlops.app.data_checks import read_checks, show_checks
from mlops.app.history import History, labels_in_words, read_history
from mlops.database import connect
from mlops.dataset.card import CardError, load_card
from mlops.serving.client import ApiError, ApiUnavailable, PredictClient
from mlops.settings import MissingSecretError, Settings, get_settings

#: Metrics of the leaderboard's table, where a training has them: key, heading, how to show it.
METRICS = [
    ("validation_roc_auc", "ROC AUC", "%.3f"),
    ("validation_average_precision", "Avg. precision", "%.3f"),
    ("validation_brier", "Brier", "%.4f"),
    ("validation_lift_at_10", "Lift, top 10 %", "%.2f"),
]
MINUTES = "YYYY-MM-DD HH:mm"
REFRESH_S = 20
#: Seconds that the page waits for the prediction service, which it can do without.
PATIENCE_S = 2


def when(time: Any) -> str:
    """Return a time (UTC) for a person, a dash where there is none."""
    return "-" if time is None or pd.isna(time) else f"{time:%Y-%m-%d %H:%M}"


def show_summary(history: History) -> None:
    """Show what is in production, its latest month, and whether anything needs a look."""
    champion = history.champion
    row = st.container(horizontal=True, key="summary")
    cells = [row.container() for _ in range(4)]
    if champion is None:
        cells[0].metric("In production", "none yet")
    else:
        cells[0].metric(
            "In production",
            f"Version {champion['model_version']}",
            delta=f"{champion['candidate'] or 'model'}, since {when(champion['deployed_at'])}",
            delta_color="off",
            delta_arrow="off",
        )
    live = history.months
    if champion is not None:
        live = live[live["model_version"] == champion["model_version"]]
    for cell, column, label in (
        (cells[1], "prediction_drift", "Prediction drift"),
        (cells[2], "roc_auc", "ROC AUC on live traffic"),
    ):
        known = live.dropna(subset=[column])
        if champion is None or known.empty:
            cell.metric(label, "not measured")
        else:
            latest = known.iloc[-1]
            cell.metric(
                label,
                f"{latest[column]:.3f}",
                delta=f"{latest['period']:%Y-%m}, {latest['row_count']:,} rows",
                delta_color="off",
                delta_arrow="off",
            )
    # As told to the listener, so by whoever watches; a contact point's test says nothing.
    told = history.alerts[history.alerts["status"].eq("firing")]
    firing = told["decision"].ne("ignored").sum()
    waiting = told["handled_at"].isna().sum()
    running = history.retrains["finished_at"].isna().sum()
    notes = [f"{waiting} waiting"] if waiting else []
    noted = told["decision"].eq("noted").sum()
    notes += [f"{noted} only noted"] if noted else []
    notes += ["a retrain is running"] if running else []
    cells[3].metric(
        "Alerts firing",
        str(firing),
        delta=", ".join(notes) or "nothing waiting",
        delta_color="off",
        delta_arrow="off",
    )


def show_leaderboard(history: History, colours: charts.Palette) -> None:
    """Show the candidates of the latest training, best first."""
    st.subheader("Latest training")
    if history.under_way:
        st.info("A training is under way.", icon=":material/hourglass_top:")
    board = history.leaderboard()
    training = history.training
    if training is None or board.empty:
        if not history.under_way:
            empty("No training yet: run `make demo`, or the pipeline *train* in Mage.")
        return
    st.caption(
        f"{when(training['finished_at'])} UTC · cause: {training['cause']} · learnt from"
        f" {training['window_start']:%Y-%m} to {training['window_end']:%Y-%m}"
    )
    champion = history.champion
    version = champion["model_version"] if champion else None
    here = [(key, label, form) for key, label, form in METRICS if key in board]
    failed = board["reason"].notna()
    in_production = board["version"].map(lambda its: version is not None and its == version)
    stage = failed.map({True: "failed", False: ""}).mask(in_production, "production")
    table = board.assign(stage=stage)
    row = st.container(horizontal=True, key="training")
    left, right = row.container(), row.container()
    left.dataframe(
        table,
        hide_index=True,
        placeholder="-",
        column_order=["candidate", "version", "stage", *(key for key, _, _ in here)],
        column_config={
            "candidate": "Candidate",
            "version": st.column_config.TextColumn("Version", width="small"),
            "stage": st.column_config.TextColumn("Stage", width="small"),
            **{key: st.column_config.NumberColumn(label, format=form) for key, label, form in here},
        },
        key="leaderboard",
    )
    metric = METRICS[0][0]
    if metric in board and board[metric].notna().any():
        right.plotly_chart(
            charts.leaderboard_bars(board, version, metric, colours),
            config=charts.CONFIG,
            key="leaderboard_bars",
        )
    for candidate, reason in board.loc[failed, ["candidate", "reason"]].itertuples(index=False):
        left.caption(f"{candidate} could not be fitted: {first_line(reason)}")
    if version is not None and not in_production.any():
        left.caption(f"Version {version}, in production, is of an earlier training.")


def show_threshold(settings: Settings, colours: charts.Palette) -> None:
    """Show what the decision threshold of the version that answers is expected to earn."""
    st.subheader("Decision threshold")
    try:
        with PredictClient.of(settings, timeout=PATIENCE_S) as client:
            model = client.model()
    except (ApiError, ApiUnavailable):
        empty("Shown once the prediction service answers: the model itself has it.")
        return
    if not model.get("profit") or not model.get("costs"):
        empty(
            f"{form.percent(model['threshold'])}, the best F1 of validation. With `costs` in the"
            " card, the next training chooses it by profit."
        )
        return
    sentence = form.profit_sentence(model)
    st.caption(f"Version {model['version']}. {sentence}")
    st.plotly_chart(
        charts.profit_chart(
            model["profit"], str(model["costs"]["unit"]), float(model["threshold"]), colours
        ),
        config=charts.CONFIG,
        key="profit",
        alt=sentence,
    )


def show_months(history: History, colours: charts.Palette, settings: Settings) -> None:
    """Show drift and performance by month and version."""
    st.subheader("Months on live traffic")
    months = history.months
    if months.empty:
        empty(
            "No month measured yet: `make simulate MONTH=…`, then the pipeline *monitor* in Mage."
        )
        return
    champion = history.champion
    version = champion["model_version"] if champion else None
    row = st.container(horizontal=True, key="months")
    drift, auc, rate = (row.container() for _ in range(3))
    with drift:
        st.markdown("**Prediction drift**")
        st.plotly_chart(
            charts.months_chart(
                months,
                "prediction_drift",
                version,
                colours,
                limit=settings.prediction_drift_threshold,
                minimum_rows=settings.drift_min_rows,
            ),
            config=charts.CONFIG,
            key="drift_by_month",
        )
    labelled: tuple[tuple[Any, str, str, charts.Unit], ...] = (
        (auc, "roc_auc", "ROC AUC", "score"),
        (rate, "positive_rate", "Share of positives", "share"),
    )
    for cell, column, title, unit in labelled:
        with cell:
            st.markdown(f"**{title}**")
            if months[column].notna().any():
                st.plotly_chart(
                    charts.months_chart(months, column, version, colours, unit=unit),
                    config=charts.CONFIG,
                    key=f"{column}_by_month",
                )
            else:
                empty("No labels have come yet.")
    st.caption(
        f"Dashed: the alert's threshold, {settings.prediction_drift_threshold:g}. Hollow: fewer"
        f" than {settings.drift_min_rows} rows, measured but never alarmed on."
    )


def show_versions(history: History, colours: charts.Palette) -> None:
    """Show every stay in production on a time line."""
    st.subheader("Versions' lives")
    if history.deployments.empty:
        empty("Nothing was deployed yet: run `make demo`, or the pipeline *deploy* in Mage.")
        return
    st.plotly_chart(
        charts.version_timeline(history.deployments, datetime.now(timezone.utc), colours),
        config=charts.CONFIG,
        key="timeline",
    )
    versions.show_lives(history)


def show_retrains(history: History) -> None:
    """Show every retrain with its cause, outcome, scores and the gate's reason."""
    st.subheader("Retrains")
    retrains = history.retrains
    if retrains.empty:
        empty(
            "No retrain yet: one starts when the drift alert fires, or by the pipeline *retrain*."
        )
        return
    outcomes = {"promoted": "promoted", "kept_champion": "kept the champion", "failed": "failed"}
    table = retrains.assign(
        outcome=[outcomes.get(outcome, "running") for outcome in retrains["outcome"]],
        versions=[
            f"{one or '-'} → {other or '-'}"
            for one, other in zip(retrains["champion"], retrains["challenger"], strict=True)
        ],
        reason=retrains["reason"].fillna(retrains["gate_reason"]).fillna(""),
        seconds=(
            pd.to_datetime(retrains["finished_at"], utc=True)
            - pd.to_datetime(retrains["started_at"], utc=True)
        ).dt.total_seconds(),
    )
    told = table[table["reason"] != ""]
    if not told.empty:
        latest = told.iloc[0]
        st.caption(f"Latest: {latest['outcome']} ({latest['versions']}). {latest['reason']}")
    st.dataframe(
        table,
        hide_index=True,
        placeholder="-",
        column_order=[
            "started_at",
            "cause",
            "outcome",
            "versions",
            "champion_score",
            "challenger_score",
            "seconds",
            "reason",
        ],
        column_config={
            "started_at": st.column_config.DatetimeColumn("Started (UTC)", format=MINUTES),
            "cause": "Cause",
            "outcome": "Outcome",
            "versions": st.column_config.TextColumn("Champion → challenger"),
            "champion_score": st.column_config.NumberColumn("Champion AUC", format="%.3f"),
            "challenger_score": st.column_config.NumberColumn("Challenger AUC", format="%.3f"),
            "reason": st.column_config.TextColumn("Reason"),
            "seconds": st.column_config.NumberColumn("Seconds", format="%.0f"),
        },
        key="retrains",
    )


def show_alerts(history: History) -> None:
    """Show the alerts that came and the states of the rules."""
    st.subheader("Alerts")
    if history.alerts.empty and history.states.empty:
        empty(
            "No alert yet, and no rule evaluated. The rules stand in"
            " `grafana/provisioning/alerting`."
        )
        return
    row = st.container(horizontal=True, key="alerts")
    left, right = row.container(), row.container()
    with left:
        st.markdown("**Received by the listener**")
        if history.alerts.empty:
            empty("None.")
        else:
            st.dataframe(
                history.alerts.assign(
                    labels=history.alerts["labels"].map(labels_in_words),
                    decision=history.alerts["decision"].fillna("waiting"),
                ),
                hide_index=True,
                placeholder="-",
                column_order=["received_at", "rule", "labels", "status", "decision"],
                column_config={
                    "received_at": st.column_config.DatetimeColumn(
                        "Received (UTC)", format=MINUTES
                    ),
                    "rule": "Rule",
                    "labels": "For",
                    "status": "Status",
                    "decision": "Decision",
                },
                key="alerts_table",
            )
    with right:
        st.markdown("**States of the rules**")
        if history.states.empty:
            empty("No rule is pending or firing. Where Grafana runs, the states stand there.")
        else:
            st.dataframe(
                history.states.assign(labels=history.states["labels"].map(labels_in_words)),
                hide_index=True,
                placeholder="-",
                column_order=["state", "value", "labels", "rule_uid", "evaluated_at"],
                column_config={
                    "state": "State",
                    "rule_uid": "Rule",
                    "labels": "For",
                    "value": st.column_config.NumberColumn("Value", format="%.3f"),
                    "evaluated_at": st.column_config.DatetimeColumn(
                        "Evaluated (UTC)", format=MINUTES
                    ),
                },
                key="states",
            )


def first_line(text: str) -> str:
    """Return the first line of a reason that may come with a trace."""
    return text.partition("\n")[0]


def empty(message: str) -> None:
    """Say that there is nothing to show, and how to get something."""
    st.caption(message)


@st.fragment(run_every=REFRESH_S)
def show_page() -> None:
    """Read once and show everything; again every `REFRESH_S` seconds."""
    settings = get_settings()
    try:
        card = load_card(settings.card)
        with connect(role="grafana", settings=settings) as connection:
            history = read_history(connection, card.name)
            checks = read_checks(connection, card.name)
    except (MissingSecretError, CardError) as error:
        st.warning(str(error), icon=":material/settings_alert:")
        return
    except psycopg2.OperationalError:
        st.warning(
            f"Postgres does not answer at {settings.postgres_host}:{settings.postgres_port}."
            f" Start the stack with `{settings.start_command}`; this page comes back by itself.",
            icon=":material/cloud_off:",
        )
        st.button("Try again", icon=":material/refresh:")
        return
    except psycopg2.errors.UndefinedTable:
        way_out = f"`{settings.start_command}` makes them."
        st.warning(f"The tables are not there yet: {way_out}", icon=":material/table:")
        return
    colours = charts.palette(st.context.theme.type)
    show_summary(history)
    versions.show_hold(history, settings)
    show_leaderboard(history, colours)
    show_checks(checks)
    show_threshold(settings, colours)
    show_months(history, colours, settings)
    show_versions(history, colours)
    versions.show_gate(history, colours)
    show_retrains(history)
    show_alerts(history)


def show_actions() -> None:
    """Show the buttons; apart from the rest, whose refreshing would close their dialogs."""
    settings = get_settings()
    # What is wrong with the card, the page below says.
    with suppress(CardError):
        versions.show_actions(load_card(settings.card), settings)


st.title("Models")
show_actions()
show_page()
