"""Watch the months of a replay as the stack does: the rules' own SQL, the evaluator's own code.

It needs a migrated Postgres of the replay's own, whose tables it empties. What the evaluator posts
is stored and decided by the listener's own functions; only the clock is given, and the retrain that
they start is handed to the caller instead of to Mage. It measures nothing and trains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import requests
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from mlops.alerting.alerts import decide_waiting, parse_notification, store_alerts
from mlops.alerting.evaluator import Evaluator, Post
from mlops.alerting.retrains import Outcome, close_retrain
from mlops.alerting.rules import Provisioning, load_provisioning, provisioning_environment
from mlops.alerting.states import AlertState
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


class Judge:
    """The evaluator with a clock that is given: at the end of a month it looks as often as needed.

    `thresholds` (title of a rule → number) replace those of the rule files; `post` takes what it
    tells, in the place of `requests.post`.
    """

    def __init__(self, settings: Settings, thresholds: Mapping[str, float], post: Post) -> None:
        provisioning = _with_thresholds(
            load_provisioning(provisioning_environment(settings)), thresholds
        )
        self.titles = {rule.title for rule in provisioning.rules}
        self._looks = 1 + max(
            -(-(rule.lasting + rule.group_wait + rule.interval) // rule.interval)
            for rule in provisioning.rules
        )
        self._interval = max(rule.interval for rule in provisioning.rules)
        self._evaluator = Evaluator(provisioning, settings, post=post)

    def month_over(self, period: str) -> list[str]:
        """Have the rules judge what is known at the end of `period`; return who fired anew.

        Raises RuntimeError if a rule could not be judged, or its alert not be told.
        """
        before = {state.fingerprint for state in self._firing()}
        first = month_start(add_months(period, 1))
        now = datetime(first.year, first.month, first.day, tzinfo=timezone.utc)
        for look in range(self._looks):
            self._evaluator.tick(now + look * self._interval)
        if self._evaluator.away:
            away = ", ".join(sorted(self._evaluator.away))
            raise RuntimeError(f"the alert rules were not judged, away: {away}")
        fired = [state for state in self._firing() if state.fingerprint not in before]
        return sorted({state.labels["alertname"] for state in fired})

    def _firing(self) -> list[AlertState]:
        return [state for state in self._evaluator.states if state.state == "firing"]


class Watch:
    """Evaluator and listener of one replay in memory, on the Postgres that `settings` name.

    The tables are emptied first: the server must be the replay's own. `thresholds` are the judge's.
    """

    def __init__(
        self, card: Card, settings: Settings, thresholds: Mapping[str, float] | None = None
    ) -> None:
        self.card = card
        # Months pass in no time, and each is to have its retrain.
        self.settings = settings.model_copy(update={"retrain_cool_down_s": 0})
        self._told: list[str] = []
        self._judge = Judge(self.settings, thresholds or {}, self._catch)
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
        self._told = []
        fired = self._judge.month_over(period)
        return fired, self._decide()

    def closed(self, retrain: Wanted, outcome: Outcome, reason: str) -> None:
        """Note what a retrain came to. One that failed is not tried again in a later month.

        Live, rows that were refused start no other retrain, and all tries of another fault fall
        into the same month; here the same rows would fail in the same way.
        """
        with connect(settings=self.settings) as connection:
            close_retrain(connection, retrain.id, outcome, reason, cancelled=outcome == "failed")

    def _decide(self) -> Wanted | None:
        started: list[Wanted] = []

        def trigger(pipeline: str, variables: dict[str, Any]) -> None:
            started.append(Wanted(variables["retrain_id"], variables["cause"]))

        with connect(settings=self.settings) as connection:
            for body in self._told:
                # One transaction each, as they arrive: the oldest alert names the cause.
                store_alerts(connection, parse_notification(body))
                connection.commit()
            decide_waiting(connection, self.card, trigger, self._judge.titles, self.settings)
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


def _empty(connection: Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN %s", (_SCHEMAS,)
        )
        tables = [sql.Identifier(*row) for row in cursor.fetchall()]
        cursor.execute(sql.SQL("TRUNCATE {} CASCADE").format(sql.SQL(", ").join(tables)))
