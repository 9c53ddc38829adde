"""What a replay's figures are called, and what is said about how it was played.

For whoever shows a result (`replay.json`): page, app, tables. It needs no library, so that the app
can show a replay without what it takes to play one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

JSON, PAGE = "replay.json", "replay.html"

NAMES = {
    "static": "never retrained",
    "monthly": "retrained every month",
    "alert": "retrained on alert",
}
"""What each policy is called where people read it."""

FIGURES = (
    ("ROC AUC, pooled", "ROC AUC", "roc_auc", "{:.4f}"),
    ("Average precision", "avg prec", "average_precision", "{:.4f}"),
    ("Brier", "Brier", "brier", "{:.4f}"),
    ("ROC AUC, mean of months", "monthly AUC", "mean_monthly_auc", "{:.4f}"),
    ("Lift, top 10 %", "lift 10 %", "lift_at_10", "{:.2f}"),
    ("Profit per 1,000", "profit", "profit", "{:,.0f}"),
    ("Retrains", "retrains", "retrains", "{}"),
    ("Versions", "versions", "versions", "{}"),
    ("Seconds", "seconds", "seconds", "{:.0f}"),
)
"""Heading, short heading, key and form of each figure of a policy, in the order they are shown."""


def circumstances(result: Mapping[str, Any]) -> list[str]:
    """Return in sentences what was played and how, for whoever reads the figures."""
    delay = result["label_delay"]
    known = "at the end of its month" if delay == 0 else f"{delay} month(s) after its month"
    rows = next(iter(result["policies"].values()))["rows"]
    lines = [
        f"{rows:,} customers, scored month by month by the version that was in production then. "
        f"A label is known {known}; nothing later is ever looked at. The first version is learnt "
        "from all months before and compared with none."
    ]
    if result["source"] == "generated":
        lines.append("The data is GENERATED: no figure here is of real customers.")
    if result["mode"] == "fast":
        lines.append("Played in memory, with the loop's own code (--fast).")
    else:
        lines.append(
            "Played live: traffic through the API, alerts, retrains in Mage; the other policies "
            "beside it in memory."
        )
    if result["changed"]:
        changed = ", ".join(f"{name} = {value}" for name, value in result["changed"].items())
        lines.append(f"Other than usual: {changed}.")
    return lines


def version_changes(months: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Return the places of the months that a new version answers, and these versions."""
    return [
        (place, str(month["version"]))
        for place, month in enumerate(months)
        if place and month["version"] != months[place - 1]["version"]
    ]


def cell(value: float | None, form: str) -> str:
    """Return a figure as it is shown: a dash where there is none."""
    return "-" if value is None else form.format(value)
