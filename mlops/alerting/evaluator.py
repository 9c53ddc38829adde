"""Evaluate the alert rules where there is no Grafana: same files, same SQL, same body posted.

    python -m mlops.alerting.evaluator
    python -m mlops.alerting.evaluator --hand-over    # once it is stopped: Grafana watches now

It asks the database as role `grafana` in read-only transactions, keeps its states in
`ops.alert_states`, and posts to the rules' contact points. It never decides what an alert leads to:
that is the listener's part. Postgres or the listener being away costs it time, not alerts: states
are stored before anything is told, and an alert counts as told only after a 2xx answer.
"""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg2
import requests
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json

from mlops.alerting.heartbeat import beat, forget_beat
from mlops.alerting.notification import Group, group_alerts, notification_body
from mlops.alerting.rules import (
    RULES_FOLDER,
    Provisioning,
    Rule,
    UnsupportedRuleError,
    Webhook,
    load_provisioning,
    provisioning_environment,
)
from mlops.alerting.states import AlertState, Sample, advance, settled
from mlops.database import connect
from mlops.settings import MissingSecretError, Settings, get_settings

log = logging.getLogger("mlops.alerting.evaluator")

STATEMENT_TIMEOUT_S = 10
POST_TIMEOUT_S = 10
TICK_S = 1.0

Post = Callable[..., requests.Response]


class QueryError(RuntimeError):
    """A rule's query failed, or returned what is no time series."""


class Evaluator:
    """Evaluates rules and tells contact points; `tick` is one look at the clock.

    `post` is `requests.post`, or what a test puts in its place.
    """

    def __init__(
        self,
        provisioning: Provisioning,
        settings: Settings | None = None,
        post: Post = requests.post,
    ) -> None:
        self.settings = settings or get_settings()
        self.rules = {rule.uid: rule for rule in provisioning.rules}
        self.webhooks = provisioning.webhooks
        self._post = post
        self._states: dict[str, list[AlertState]] | None = None  # by rule; None: not read yet
        self._due: dict[str, datetime] = {}
        self._quiet_until: dict[str, datetime] = {}
        self._last: datetime | None = None
        self._down: set[str] = set()

    @property
    def away(self) -> set[str]:
        """What the last look could not reach: Postgres, a contact point, a rule's query."""
        return set(self._down)

    @property
    def states(self) -> list[AlertState]:
        """All states as they are in the database."""
        return [state for states in (self._states or {}).values() for state in states]

    def tick(self, now: datetime) -> None:
        """Evaluate the rules whose turn it is, and tell the groups that are due.

        `now` may be earlier than the last time: then the clock was put back, and all is due.
        """
        try:
            if self._states is None:
                self._states = self._read_states()
            if self._last is not None and now < self._last:
                log.warning("the clock was put back by %s", self._last - now)
                self._due, self._quiet_until = {}, {}
            self._last = now
            self._states = {
                uid: [settled(state, now) for state in states]
                for uid, states in self._states.items()
            }
            for rule in self.rules.values():
                if now >= self._due.get(rule.uid, now):
                    self._evaluate(rule, now)
                    self._due[rule.uid] = now + rule.interval
            groups = group_alerts(self.rules, self.states, self.webhooks)
            for group in groups:
                if group.is_due(now) and now >= self._quiet_until.get(group.rule.uid, now):
                    self._tell(group, now)
            self._forget_needless({group.rule.receiver for group in groups})
            self._say_up("Postgres")
        except psycopg2.Error as error:
            # Memory is never behind the database, and the next evaluation stores all of it.
            self._say_down("Postgres", error)

    def _evaluate(self, rule: Rule, now: datetime) -> None:
        assert self._states is not None
        before = self._states.get(rule.uid, [])
        samples: list[Sample] | None
        try:
            samples = self._query(rule)
            self._say_up(f"query of {rule.title!r}")
        except QueryError as error:
            samples = None
            self._say_down(f"query of {rule.title!r}", error)
        after = advance(rule, before, samples, now)
        # A query that failed was no evaluation: the page says then that nobody judges the rule.
        self._store(rule, after, evaluated_at=None if samples is None else now)
        self._states[rule.uid] = after
        _log_changes(before, after)

    def _query(self, rule: Rule) -> list[Sample]:
        with connect(role="grafana", settings=self.settings) as connection:
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SET TRANSACTION READ ONLY")
                    cursor.execute("SET LOCAL statement_timeout = %s", (f"{STATEMENT_TIMEOUT_S}s",))
                    cursor.execute(rule.sql)
                    names = [column.name for column in cursor.description or []]
                    rows = cursor.fetchall() if cursor.description else []
            except psycopg2.Error as error:
                if connection.closed or isinstance(error, psycopg2.errors.AdminShutdown):
                    raise psycopg2.OperationalError(str(error)) from error
                raise QueryError(str(error).strip()) from error
        return to_samples(rule, names, rows)

    def _tell(self, group: Group, now: datetime) -> None:
        assert self._states is not None
        webhook = self.webhooks[group.rule.receiver]
        body = notification_body(group, f"{self.settings.grafana_url}/")
        try:
            response = self._post(
                webhook.url,
                json=body,
                headers={"Authorization": f"Bearer {webhook.token}"},
                timeout=POST_TIMEOUT_S,
                allow_redirects=False,
            )
            if not 200 <= response.status_code < 300:
                raise requests.HTTPError(f"answered {response.status_code}: {response.text[:200]}")
        except requests.RequestException as error:
            self._say_down(_contact_point(webhook), error)
            self._quiet_until[group.rule.uid] = now + group.rule.group_interval
            return
        self._say_up(_contact_point(webhook))
        log.info("told %s: %s", webhook.name, body["title"])
        told = {alert.fingerprint for alert in group.alerts}
        after = [
            replace(state, last_sent_at=now) if state.fingerprint in told else state
            for state in self._states[group.rule.uid]
        ]
        # Before it is stored: if that fails, this process at least does not tell it again.
        self._states[group.rule.uid] = after
        self._store(group.rule, after)

    def _read_states(self) -> dict[str, list[AlertState]]:
        names = [field.name for field in fields(AlertState)]
        statement = sql.SQL("SELECT {} FROM ops.alert_states").format(
            sql.SQL(", ").join(map(sql.Identifier, names))
        )
        states: dict[str, list[AlertState]] = {uid: [] for uid in self.rules}
        with connect(settings=self.settings) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            for row in cursor.fetchall():
                state = AlertState(**dict(zip(names, row, strict=True)))
                if state.rule_uid in states:
                    states[state.rule_uid].append(state)
                else:
                    log.warning("forgot the alerts of rule %s: no file has it", state.rule_uid)
                    _forget(connection, state.rule_uid)
            cursor.execute(
                "DELETE FROM ops.evaluations WHERE rule_uid <> ALL (%s)", (list(self.rules),)
            )
        return states

    def _store(
        self, rule: Rule, states: Iterable[AlertState], evaluated_at: datetime | None = None
    ) -> None:
        """Replace the stored states of `rule`, and note its evaluation, in one transaction."""
        names = [field.name for field in fields(AlertState)]
        insert = sql.SQL("INSERT INTO ops.alert_states ({}) VALUES ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join(map(sql.Placeholder, names)),
        )
        with connect(settings=self.settings) as connection, connection.cursor() as cursor:
            _forget(connection, rule.uid)
            for state in states:
                values: dict[str, Any] = {name: getattr(state, name) for name in names}
                cursor.execute(insert, {**values, "labels": Json(state.labels)})
            if evaluated_at is not None:
                cursor.execute(
                    "INSERT INTO ops.evaluations (rule_uid, evaluated_at) VALUES (%s, %s)"
                    " ON CONFLICT (rule_uid) DO UPDATE SET evaluated_at = excluded.evaluated_at",
                    (rule.uid, evaluated_at),
                )

    def _forget_needless(self, receivers: set[str]) -> None:
        """Count no contact point as away that nobody is waiting for: no post would clear it."""
        for name, webhook in self.webhooks.items():
            if name not in receivers:
                self._down.discard(_contact_point(webhook))

    def _say_down(self, what: str, error: Exception) -> None:
        """Log a fault once, not every second."""
        if what not in self._down:
            self._down.add(what)
            log.error("%s is away, trying on: %s", what, str(error).strip())

    def _say_up(self, what: str) -> None:
        if what in self._down:
            self._down.discard(what)
            log.info("%s is back", what)


def _contact_point(webhook: Webhook) -> str:
    return f"contact point {webhook.name!r} ({webhook.url})"


def to_samples(rule: Rule, names: list[str], rows: Iterable[tuple[Any, ...]]) -> list[Sample]:
    """Return one sample per label set of a query's result, as Grafana's time series and reduction.

    Columns: `time`, one number, any texts as labels. Nulls and NaN are dropped; a label set that
    has nothing else is left out. Raises QueryError for any other result.
    """
    if "time" not in names:
        raise QueryError(f"expected a column named time, found {', '.join(names) or 'none'}")
    if len(set(names)) < len(names):
        raise QueryError(f"a column stands there twice: {', '.join(names)}")
    series: dict[tuple[tuple[str, str], ...], list[tuple[datetime, float]]] = {}
    value_name: str | None = None
    for row in rows:
        labels, number = {}, None
        for name, cell in zip(names, row, strict=True):
            if name == "time":
                if not isinstance(cell, datetime):
                    raise QueryError(f"column time: found {cell!r}, expected timestamptz")
                time = cell
            elif isinstance(cell, str):
                labels[name] = cell
            elif isinstance(cell, int | float | Decimal) and not isinstance(cell, bool):
                if value_name not in (None, name):
                    raise QueryError(f"two numbers, {value_name} and {name}: expected one")
                value_name, number = name, float(cell)
            elif cell is not None:
                raise QueryError(
                    f"column {name}: found {type(cell).__name__}, expected a number or text"
                )
        if number is not None and not math.isnan(number):
            series.setdefault(tuple(sorted(labels.items())), []).append((time, number))
    return [
        Sample(dict(labels), rule.reduce([value for _, value in sorted(points)]))
        for labels, points in series.items()
    ]


def run(settings: Settings, stop: threading.Event, folder: Path = RULES_FOLDER) -> None:
    """Evaluate until `stop` is set, with a heartbeat after each look.

    Raises UnsupportedRuleError before the first evaluation.
    """
    forget_beat(settings)
    provisioning = load_provisioning(provisioning_environment(settings), folder)
    for rule in provisioning.rules:
        log.info("rule %r of %s, every %s", rule.title, rule.file.name, rule.interval)
    evaluator = Evaluator(provisioning, settings)
    while not stop.is_set():
        evaluator.tick(datetime.now(timezone.utc))
        beat(settings, evaluator.away)
        stop.wait(TICK_S)


def hand_over(connection: Connection) -> int:
    """Forget all states, since another one watches from now on; return how many. Commits.

    The alerts that fire count as over: nobody else would ever tell their end. What still holds, the
    other one tells anew. The evaluator must be stopped: it would store what it has in memory.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE ops.alerts SET status = 'resolved' FROM ops.alert_states AS known"
            " WHERE alerts.fingerprint = known.fingerprint AND alerts.status = 'firing'"
        )
        cursor.execute("DELETE FROM ops.alert_states")
        forgotten = cursor.rowcount
        cursor.execute("DELETE FROM ops.evaluations")
    connection.commit()
    return forgotten


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT, or hand over; return the exit code.

    2 if a file or a secret is not usable, 1 if Postgres refuses a hand-over.
    """
    parser = argparse.ArgumentParser(prog="python -m mlops.alerting.evaluator")
    parser.add_argument(
        "--hand-over",
        action="store_true",
        help="forget all states and end the alerts that fire, since Grafana watches from now on"
        " (the evaluator must be stopped); then end",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout
    )
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    try:
        if options.hand_over:
            return _hand_over(get_settings())
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        run(get_settings(), stop)
    except (UnsupportedRuleError, MissingSecretError) as error:
        log.error("%s", error)
        return 2
    log.info("stopped")
    return 0


def _hand_over(settings: Settings) -> int:
    try:
        with connect(settings=settings) as connection:
            forgotten = hand_over(connection)
    except psycopg2.Error as error:
        print(f"nothing is handed over: {str(error).strip()}", file=sys.stderr)
        return 1
    print(f"handed over to Grafana: the states of {forgotten} alerts are forgotten")
    return 0


def _forget(connection: Connection, rule_uid: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM ops.alert_states WHERE rule_uid = %s", (rule_uid,))


def _log_changes(before: Iterable[AlertState], after: Iterable[AlertState]) -> None:
    was = {state.fingerprint: state.state for state in before}
    for state in after:
        if was.get(state.fingerprint, "normal") != state.state:
            shown = "" if state.value is None else f", value {state.value:g}"
            log.info("%s %s%s", state.state, state.labels, shown)


if __name__ == "__main__":
    sys.exit(main())
