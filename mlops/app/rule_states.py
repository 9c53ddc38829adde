"""The defined alert rules and how each stands: what Grafana's alert list shows, without Grafana.

It reads the rules' files and two tables, and never evaluates a rule. The evaluator writes every
state (`ops.alert_states`); Grafana keeps its own, and what it posted stands in `ops.alerts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

from mlops.alerting.rules import (
    RULES_FOLDER,
    UnsupportedRuleError,
    load_provisioning,
    load_titles,
)
from mlops.app.history import labels_in_words

#: Alerts that are named at most, the latest first.
LIMIT = 20


@dataclass(frozen=True)
class Alert:
    """One label set of a rule that is pending or fires; `labels` in words."""

    labels: str
    state: str
    value: float | None
    since: datetime | None


@dataclass(frozen=True)
class RuleState:
    """A defined rule: `state` is firing, pending, or normal; `condition` empty if not known."""

    title: str
    condition: str
    state: str
    alerts: tuple[Alert, ...]


def read_rule_states(
    connection: Connection, evaluator_watches: bool, folder: Path = RULES_FOLDER
) -> list[RuleState]:
    """Return all rules of `folder`, with the states that the evaluator or the listener noted.

    Raises UnsupportedRuleError, naming the file, if the rules cannot be read.
    """
    known: dict[str, tuple[str, str]]
    try:
        # Contact points are not shown, so what they name may be anything.
        names = dict.fromkeys(("MLOPS_LISTENER_URL", "MLOPS_WEBHOOK_TOKEN"), "")
        known = {
            rule.uid: (
                rule.title,
                f"{'above' if rule.comparison == 'gt' else 'below'} {rule.threshold:g}"
                f" for {rule.lasting.total_seconds():g} s",
            )
            for rule in load_provisioning(names, folder).rules
        }
    except UnsupportedRuleError:
        # Rules that only Grafana evaluates: their titles are known all the same.
        known = {title: (title, "") for title in sorted(load_titles(folder))}
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        if evaluator_watches:
            cursor.execute(
                "SELECT rule_uid AS rule, labels, state, value, coalesce(fired_at, active_at) AS at"
                " FROM ops.alert_states WHERE state IN ('pending', 'firing')"
                " ORDER BY 5 DESC LIMIT %s",
                (LIMIT,),
            )
        else:
            cursor.execute(
                "SELECT rule, body -> 'labels' AS labels, status AS state, NULL AS value,"
                " starts_at AS at FROM ops.alerts WHERE status = 'firing'"
                " ORDER BY starts_at DESC LIMIT %s",
                (LIMIT,),
            )
        rows: list[dict[str, Any]] = [dict(row) for row in cursor.fetchall()]
    states = []
    for uid, (title, condition) in known.items():
        alerts = tuple(
            Alert(labels_in_words(row["labels"]), row["state"], row["value"], row["at"])
            for row in rows
            if row["rule"] in (uid, title)
        )
        worst = {alert.state for alert in alerts}
        state = next((each for each in ("firing", "pending") if each in worst), "normal")
        states.append(RuleState(title, condition, state, alerts))
    return states
