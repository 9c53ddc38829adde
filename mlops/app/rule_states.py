"""The defined alert rules and how each stands: what Grafana's alert list shows, without Grafana.

It reads the rules' files and three tables, and never evaluates a rule. The evaluator writes every
state (`ops.alert_states`) and when it evaluated (`ops.evaluations`); Grafana keeps its own, and
what it posted stands in `ops.alerts`.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd
from psycopg2.extensions import connection as Connection

from mlops.alerting.heartbeat import OLDEST_S, heartbeat_path
from mlops.alerting.rules import (
    RULES_FOLDER,
    Rule,
    UnsupportedRuleError,
    load_provisioning,
    load_titles,
)
from mlops.app.history import labels_in_words
from mlops.monitoring.dashboards import read_rows
from mlops.settings import Settings

# The latest twenty: a list is not an archive.
EVALUATED = (
    "SELECT rule_uid AS rule, labels, state, value, coalesce(fired_at, active_at) AS at"
    " FROM ops.alert_states WHERE state IN ('pending', 'firing')"
    " ORDER BY at DESC LIMIT 20"
)
RECEIVED = (
    "SELECT rule, body -> 'labels' AS labels, status AS state, NULL::float8 AS value,"
    " starts_at AS at FROM ops.alerts WHERE status = 'firing'"
    " ORDER BY starts_at DESC LIMIT 20"
)


NOT_EVALUATED = "not evaluated"


@dataclass(frozen=True)
class Alert:
    """One label set of a rule that is pending or fires; `labels` in words."""

    labels: str
    state: str
    value: float | None
    since: datetime | None


@dataclass(frozen=True)
class RuleState:
    """A defined rule; `condition` is empty if it is not known.

    `state` is firing, pending, normal, or NOT_EVALUATED: nobody watches it, or its query fails.
    """

    title: str
    condition: str
    state: str
    alerts: tuple[Alert, ...]


def evaluator_watches(
    connection: Connection, settings: Settings, folder: Path = RULES_FOLDER
) -> bool:
    """Return whether the evaluator has looked at the rules of `folder` lately.

    Its heartbeat says so, and where that lies in another container, the evaluations that it noted.
    """
    with suppress(OSError):
        if time.time() - heartbeat_path(settings).stat().st_mtime < OLDEST_S:
            return True
    latest = read_rows(
        connection, "SELECT max(evaluated_at) AS at FROM ops.evaluations", "evaluations"
    )["at"].iloc[0]
    if pd.isna(latest):
        return False
    try:
        # It looks every second, but evaluates a rule only once in its interval.
        shortest = min(rule.interval for rule in _rules(folder))
    except UnsupportedRuleError:
        return False  # it does not start with these
    return bool(time.time() - latest.timestamp() < OLDEST_S + shortest.total_seconds())


def read_rule_states(
    connection: Connection,
    evaluator_watches: bool,
    grafana_watches: bool = False,
    folder: Path = RULES_FOLDER,
) -> list[RuleState]:
    """Return all rules of `folder`, with the states that the evaluator or the listener noted.

    Raises UnsupportedRuleError, naming the file, if the rules cannot be read, and PanelQueryError.
    """
    known = _defined(folder)
    watched = set(known) if grafana_watches and not evaluator_watches else set()
    if evaluator_watches:
        watched = _evaluated(connection, folder)
    frame = read_rows(connection, EVALUATED if evaluator_watches else RECEIVED, "alert states")
    rows = frame.to_dict("records")
    states = []
    for uid, (title, condition) in known.items():
        alerts = tuple(
            Alert(
                labels_in_words(json.loads(row["labels"] or "{}")),
                row["state"],
                None if pd.isna(row["value"]) else row["value"],
                None if pd.isna(row["at"]) else row["at"],
            )
            for row in rows
            if row["rule"] in (uid, title)
        )
        worst = {alert.state for alert in alerts}
        calm = "normal" if uid in watched else NOT_EVALUATED
        state = next((each for each in ("firing", "pending") if each in worst), calm)
        states.append(RuleState(title, condition, state, alerts))
    return states


def _evaluated(connection: Connection, folder: Path) -> set[str]:
    """Return the uids of the rules that the evaluator has evaluated within their interval."""
    noted = read_rows(connection, "SELECT rule_uid, evaluated_at FROM ops.evaluations", "states")
    latest = {row["rule_uid"]: row["evaluated_at"] for row in noted.to_dict("records")}
    now = time.time()
    try:
        return {
            rule.uid
            for rule in _rules(folder)
            if rule.uid in latest
            and now - latest[rule.uid].timestamp() < OLDEST_S + rule.interval.total_seconds()
        }
    except UnsupportedRuleError:
        return set()


def _defined(folder: Path) -> dict[str, tuple[str, str]]:
    """Return title and condition of each rule, by its uid."""
    try:
        return {
            rule.uid: (
                rule.title,
                f"{'above' if rule.comparison == 'gt' else 'below'} {rule.threshold:g}"
                f" for {rule.lasting.total_seconds():g} s",
            )
            for rule in _rules(folder)
        }
    except UnsupportedRuleError:
        # Rules that only Grafana evaluates: their titles are known all the same.
        return {title: (title, "") for title in sorted(load_titles(folder))}


def _rules(folder: Path) -> list[Rule]:
    """Return the rules that the evaluator would evaluate. Raises UnsupportedRuleError."""
    # Contact points are not shown, so what they name may be anything.
    names = dict.fromkeys(("MLOPS_LISTENER_URL", "MLOPS_WEBHOOK_TOKEN"), "")
    return load_provisioning(names, folder).rules
