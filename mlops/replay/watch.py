"""Watch the months of a replay as the stack does: the rules' own SQL, the evaluator's own code.

It needs a migrated Postgres of the replay's own, whose tables it empties. What the evaluator posts
is stored and decided by the listener's own functions; only the clock is given, and the retrain that
they start is handed to the caller instead of to Mage. It measures nothing and trains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import requests
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from mlops.alerting.alerts import decide_waiting, parse_notification, store_alerts
from mlops.alerting.evaluator import Evaluator
from mlops.alerting.retrains import Outcome, close_retrain
from mlops.alerting.rules import Provisioning, load_provisioning, provisioning_environment
from mlops.database import connect
from mlops.dataset.card import Card
from mlops.dataset.timeline import add_months, month_start
from mlops.monitoring.drift import Drift
from mlops.monitoring.monitor import MonthMetrics, store_columns, store_metrics
from mlops.registry.models import record_deployment
from mlops.settings import Settings

Measured = tuple[MonthMetrics, Drift | None]
"""A month as `measure_month` returns it."""

_SCHEMAS = ("serving", "grafana", "ops")


class UnknownRuleError(ValueError):
    """A threshold is given for a rule that no file has."""


@dataclass(frozen=True)
class Wanted:
    """A retrain that the alerts have started."""

    id: str
    cause: str


class Watch:
    """Evaluator and listener of one replay, on the Postgres that `settings` name.

    `thresholds` (title of a rule → number) replace those of the rule files. The tables are emptied
    first: the server must be the replay's own.
    """

    def __init__(
        self, card: Card, settings: Settings, thresholds: Mapping[str, float] | None = None
    ) -> None:
        self.card = card
        # Months pass in no time, and each is to have its retrain.
        self.settings = settings.model_copy(update={"retrain_cool_down_s": 0})
        environment = provisioning_environment(self.settings)
        provisioning = _with_thresholds(load_provisioning(environment), thresholds or {})
        self.rules = {rule.title for rule in provisioning.rules}
        self._ticks = 1 + max(
            -(-(rule.lasting + rule.group_wait + rule.interval) // rule.interval)
            for rule in provisioning.rules
        )
        self._interval = max(rule.interval for rule in provisioning.rules)
        self._evaluator = Evaluator(provisioning, self.settings, post=self._catch)
        self._told: list[str] = []
        with connect(settings=self.settings) as connection:
            _empty(connection)

    def deployed(self, version: str, cause: str) -> None:
        """Note that `version` is in production now."""
        with connect(settings=self.settings) as connection:
            record_deployment(connection, self.card, version, cause=cause)

    def month_over(
        self, period: str, measured: Iterable[Measured]
    ) -> tuple[list[str], Wanted | None]:
        """Store what was measured at the end of `period` and let the rules judge.

        Returns the titles of the rules that fired anew, and the retrain that came of it, if any.
        """
        with connect(settings=self.settings) as connection:
            for metrics, drift in measured:
                store_metrics(connection, metrics)
                store_columns(
                    connection,
                    metrics.model_version,
                    metrics.period,
                    () if drift is None else drift.by_column,
                )
        before = {state.fingerprint for state in self._firing()}
        self._told = []
        now = _end_of(period)
        for tick in range(self._ticks):
            self._evaluator.tick(now + tick * self._interval)
        if self._evaluator.away:
            raise RuntimeError(
                f"the alert rules were not judged: {', '.join(self._evaluator.away)}"
            )
        fired = [
            state.labels["alertname"] for state in self._firing() if state.fingerprint not in before
        ]
        return sorted(set(fired)), self._decide()

    def closed(self, retrain: Wanted, outcome: Outcome, reason: str) -> None:
        """Note what a retrain came to."""
        with connect(settings=self.settings) as connection:
            close_retrain(connection, retrain.id, outcome, reason)

    def _firing(self) -> list[Any]:
        return [state for state in self._evaluator.states if state.state == "firing"]

    def _decide(self) -> Wanted | None:
        started: list[Wanted] = []

        def trigger(pipeline: str, variables: dict[str, Any]) -> None:
            started.append(Wanted(variables["retrain_id"], variables["cause"]))

        with connect(settings=self.settings) as connection:
            for body in self._told:
                # One transaction each, as they arrive: the oldest alert names the cause.
                store_alerts(connection, parse_notification(body))
                connection.commit()
            decide_waiting(connection, self.card, trigger, self.rules, self.settings)
        return started[0] if started else None

    def _catch(self, url: str, **request: Any) -> requests.Response:
        """Take a notification in the listener's place."""
        self._told.append(json.dumps(request["json"]))
        answer = requests.Response()
        answer.status_code = 202
        return answer


def _with_thresholds(provisioning: Provisioning, thresholds: Mapping[str, float]) -> Provisioning:
    titles = [rule.title for rule in provisioning.rules]
    for title in thresholds:
        if title not in titles:
            raise UnknownRuleError(f"no rule {title!r}: there are {', '.join(titles)}")
    rules = [
        replace(rule, threshold=thresholds.get(rule.title, rule.threshold))
        for rule in provisioning.rules
    ]
    return Provisioning(rules, provisioning.webhooks)


def _end_of(period: str) -> datetime:
    first = month_start(add_months(period, 1))
    return datetime(first.year, first.month, first.day, tzinfo=timezone.utc) + timedelta(hours=1)


def _empty(connection: Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN %s", (_SCHEMAS,)
        )
        tables = [sql.Identifier(*row) for row in cursor.fetchall()]
        cursor.execute(sql.SQL("TRUNCATE {} CASCADE").format(sql.SQL(", ").join(tables)))
