"""Page *Replay*: what retraining is worth, month by month, as the last replay found.

It reads `replay.json` and the page beside it; it plays nothing, and needs no server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from mlops.app import charts, replay_charts
from mlops.replay.words import FIGURES, JSON, NAMES, PAGE, cell, circumstances
from mlops.settings import get_settings


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the last replay's result, None if there is none. Raises ValueError if it is spoilt."""
    try:
        found: dict[str, Any] = json.loads((folder / JSON).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def figures_table(policies: Mapping[str, Any], unit: str | None) -> pd.DataFrame:
    """Return the figures as they are shown: policies by row."""
    shown = [each for each in FIGURES if each[2] != "profit" or unit is not None]
    return pd.DataFrame(
        {
            "": [NAMES[name] for name in policies],
            **{
                head + (f", {unit}" if key == "profit" else ""): [
                    cell(found[key], form) for found in policies.values()
                ]
                for head, _, key, form in shown
            },
        }
    )


def retrains_table(months: list[dict[str, Any]]) -> pd.DataFrame:
    """Return one row a retrain, the first one first."""
    return pd.DataFrame(
        [
            {
                "End of": month["period"],
                "Cause": month["retrain"]["cause"],
                "Learnt from": "{window_start} to {window_end}".format(**month["retrain"]),
                "Candidate": month["retrain"]["candidate"] or "-",
                "Outcome": month["retrain"]["outcome"].replace("_", " ")
                + (f" as {month['retrain']['version']}" if month["retrain"]["version"] else ""),
                "The gate": month["retrain"]["reason"],
            }
            for month in months
            if month["retrain"] is not None
        ]
    )


def show_charts(policies: Mapping[str, Any]) -> None:
    """Show ROC AUC, Brier and drift by month."""
    colours = charts.palette(st.context.theme.type)
    st.subheader("ROC AUC by month")
    st.caption("A dotted line is where another version answers (retrained on alert).")
    st.plotly_chart(
        replay_charts.by_month(policies, "roc_auc", limit=("a guess", 0.5), colours=colours),
        config=charts.CONFIG,
        key="replay-auc",
    )
    st.subheader("Brier score by month")
    st.caption(
        "The mean squared error of the probability: lower is better. It rises with the share of"
        " positives for any model."
    )
    st.plotly_chart(
        replay_charts.by_month(policies, "brier", from_zero=True, colours=colours),
        config=charts.CONFIG,
        key="replay-brier",
    )
    st.subheader("Prediction drift by month")
    st.caption(
        "How far the scores lie from those on the version's own validation rows, in standard"
        " deviations of these. A new version has a new reference."
    )
    st.plotly_chart(
        replay_charts.by_month(
            policies, "prediction_drift", digits=2, from_zero=True, colours=colours
        ),
        config=charts.CONFIG,
        key="replay-drift",
    )


def show_page() -> None:
    """Read and show the last replay."""
    folder = get_settings().reports_dir
    try:
        result = read_result(folder)
    except ValueError as error:
        st.error(f"{folder / JSON} cannot be read: {error}. `make replay FAST=1` writes it anew.")
        return
    if result is None:
        st.info(
            "No replay yet. `make replay FAST=1` plays the months in memory, in about two minutes;"
            " `make replay` plays them on a stack of its own.",
            icon=":material/replay:",
        )
        return
    st.caption(f"{result['title']}, {result['start']} to {result['end']}")
    for line in circumstances(result):
        if "GENERATED" in line:
            st.warning(line, icon=":material/science:")
        else:
            st.caption(line)
    policies = result["policies"]
    st.dataframe(figures_table(policies, result["unit"]), hide_index=True, key="replay-figures")
    show_charts(policies)
    for name, found in policies.items():
        if found["retrains"]:
            st.subheader(f"Retrains, {NAMES[name]}")
            st.dataframe(
                retrains_table(found["months"]), hide_index=True, key=f"replay-retrains-{name}"
            )
    page = folder / PAGE
    if page.exists():
        st.download_button(
            "Download as a page", page.read_bytes(), PAGE, "text/html", icon=":material/download:"
        )


st.title("Replay")
show_page()
