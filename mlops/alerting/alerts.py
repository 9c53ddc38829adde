"""What becomes of an alert: read from a notification, stored, and answered by a retrain or not.

Storing and deciding are apart: `store_alerts` is quick and happens before the sender is answered,
`decide_waiting` runs afterwards and as often as wanted. Neither knows how alerts arrive.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json
from pydantic import AwareDatetime, BaseModel, Field, ValidationError, field_validator

from mlops.alerting.retrains import (
    Ages,
    RetrainRunningError,
    Trigger,
    TriggerError,
    fail_stale_retrains,
    has_begun,
    new_retrain_id,
    request_retrain,
    unfinished_retrain,
)
from mlops.dataset.card import Card
from mlops.settings import Settings, get_settings

_LOCK = 0x6D6C6F70  # "mlop": of the one who decides, whichever process it is

Decided = Literal["retrain", "joined", "resolved", "superseded", "noted", "ignored", "waits"]

RETRAINING_RULES = frozenset({"Prediction drift", "Performance loss"})
"""Titles of the rules that start a retrain. What others tell is kept, and starts nothing: a broken
source is not to be learnt, and that customers are other people says nothing of their answers."""


class AlertBodyError(ValueError):
    """A notification is not of Grafana's form; `field` names the place."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Alert(BaseModel):
    """One alert of a notification; further keys of Grafana's are kept in `ops.alerts.body`."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    startsAt: AwareDatetime
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{1,64}$")]
    values: dict[str, float | None] | None = None

    @field_validator("labels")
    @classmethod
    def _named(cls, labels: dict[str, str]) -> dict[str, str]:
        if not labels.get("alertname"):
            raise ValueError("lacks alertname, the title of the rule")
        return labels

    @field_validator("startsAt")
    @classmethod
    def _a_real_time(cls, starts_at: datetime) -> datetime:
        if not 1970 <= starts_at.year < 9999:
            raise ValueError(f"found the year {starts_at.year}, expected when the alert began")
        return starts_at.astimezone(timezone.utc)


class _Notification(BaseModel):
    status: Literal["firing", "resolved"]
    alerts: Annotated[list[Alert], Field(min_length=1)]


@dataclass(frozen=True)
class ReceivedAlert:
    """An alert as parsed, beside the JSON that it came as."""

    alert: Alert
    body: dict[str, Any]

    @property
    def key(self) -> str:
        """`<fingerprint>/<startsAt>`: what makes two deliveries the same alert."""
        return alert_key(self.alert.fingerprint, self.alert.startsAt)


@dataclass(frozen=True)
class Stored:
    """What storing a notification has changed."""

    received: int
    new: int
    repeated: int


@dataclass(frozen=True)
class Decision:
    """What was decided about an alert, and why; `retrain` is the id of the one that answers it."""

    alert: str
    rule: str
    decision: Decided
    reason: str
    retrain: str | None = None


class AlertLog:
    """`logs/alerts.log`: one JSON line for every alert received and every decision; it rotates."""

    def __init__(self, settings: Settings) -> None:
        self.path: Path = settings.state_dir / "logs" / "alerts.log"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = logging.handlers.RotatingFileHandler(
            self.path, maxBytes=5_000_000, backupCount=3, encoding="utf-8", delay=True
        )

    def write(self, event: str, **facts: Any) -> None:
        """Append a line with the time, `event` and `facts`; a full disk stops nothing."""
        line = {"time": datetime.now(timezone.utc).isoformat(), "event": event, **facts}
        text = json.dumps(line, ensure_ascii=False, default=str)
        self._handler.handle(logging.makeLogRecord({"msg": text}))

    def close(self) -> None:
        self._handler.close()


def alert_key(fingerprint: str, starts_at: datetime) -> str:
    """Return `<fingerprint>/<startsAt in UTC>`."""
    return f"{fingerprint}/{starts_at.astimezone(timezone.utc).isoformat()}"


def parse_notification(text: str | bytes) -> list[ReceivedAlert]:
    """Return the alerts of a webhook body. Raises AlertBodyError, naming the field."""
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise AlertBodyError("body", f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise AlertBodyError("body", f"found {type(content).__name__}, expected an object")
    try:
        notification = _Notification.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise AlertBodyError(
            _place(first["loc"]), first["msg"].removeprefix("Value error, ")
        ) from None
    received = []
    for i, (alert, body) in enumerate(zip(notification.alerts, content["alerts"], strict=True)):
        _check_storable(body, f"alerts[{i}]")
        received.append(ReceivedAlert(alert, body))
    return received


def store_alerts(connection: Connection, received: list[ReceivedAlert]) -> Stored:
    """Store each alert once: a repeat (same fingerprint and startsAt) counts, and may resolve it.

    The caller commits, so either all of a notification is stored or nothing. An earlier episode of
    the same alert that is still firing has ended without our hearing of it: it is resolved.
    """
    new = 0
    with connection.cursor() as cursor:
        # Always in one order: two notifications with the same alerts must not lock each other.
        for each in sorted(received, key=lambda r: r.key):
            alert = each.alert
            cursor.execute(
                "INSERT INTO ops.alerts (fingerprint, starts_at, status, rule, body)"
                " VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT (fingerprint, starts_at) DO UPDATE SET"
                " repeats = alerts.repeats + 1, body = excluded.body,"
                # A late repeat does not wake what is over: it would have a new startsAt.
                " status = CASE alerts.status WHEN 'resolved' THEN 'resolved'"
                "          ELSE excluded.status END"
                " RETURNING repeats = 0",
                (
                    alert.fingerprint,
                    alert.startsAt,
                    alert.status,
                    alert.labels["alertname"],
                    Json(each.body),
                ),
            )
            row = cursor.fetchone()
            new += bool(row and row[0])
            cursor.execute(
                "UPDATE ops.alerts SET status = 'resolved'"
                " WHERE fingerprint = %s AND starts_at < %s AND status = 'firing'",
                (alert.fingerprint, alert.startsAt),
            )
    return Stored(len(received), new, len(received) - new)


def waiting_count(connection: Connection) -> int:
    """Return the number of alerts about which nothing has been decided yet."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ops.alerts WHERE handled_at IS NULL")
        row = cursor.fetchone()
    return int(row[0]) if row else 0


def decide_waiting(
    connection: Connection,
    card: Card,
    trigger: Trigger,
    rules: Collection[str],
    settings: Settings | None = None,
    report: Callable[[Decision], None] = lambda decision: None,
    ages: Ages | None = None,
) -> list[Decision]:
    """Decide about every waiting alert, oldest first; return what is new since the last time.

    `rules` are the titles of the rules at work; of these, RETRAINING_RULES start retrains and the
    others are noted. One retrain answers all alerts that come before its training
    has begun: it learns from the latest labelled months, whichever of these drifted. If it fails,
    those that are not over wait again, until each has had `retrain_tries` of them. Commits.
    `report` hears of each decision right after it is stored. Returns nothing if another process is
    deciding at this moment. `ages` are kept from pass to pass, so that a clock that jumps makes no
    retrain look old.
    """
    settings = settings or get_settings()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,))
        row = cursor.fetchone()
    connection.commit()
    if row is None or not row[0]:
        return []
    try:
        decisions = []
        for decision in _Deciding(connection, card, trigger, rules, settings, ages).decide():
            report(decision)
            decisions.append(decision)
        return decisions
    finally:
        if not connection.closed:
            connection.rollback()
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))
            connection.commit()


_TRIED_AGAIN = sql.SQL("""
    alert.handled_at IS NOT NULL AND alert.status = 'firing'
    AND alert.rule = ANY(%(rules)s) AND alert.tries < %(tries)s
    AND (alert.body->'labels'->>'model_version' IS NULL
         OR alert.body->'labels'->>'model_version' = %(production)s)
    AND failed.id = alert.retrain AND failed.card = %(card)s
    AND failed.outcome = 'failed' AND NOT failed.cancelled
    AND NOT EXISTS (
        SELECT FROM ops.data_checks AS checked
        CROSS JOIN LATERAL jsonb_array_elements(checked.findings) AS finding
        WHERE checked.training_id = failed.id AND NOT checked.passed
        AND finding->>'severity' = 'refuse' AND NOT (
            finding->>'check' = 'label_delay'
            -- The labels have come meanwhile. By version, which there is an index for.
            AND (SELECT count(label) >= (1 - (finding#>>'{numbers,limit}')::float8) * count(*)
                 FROM serving.predictions
                 WHERE model_version IN (SELECT model_version FROM ops.deployments
                                         WHERE card = failed.card)
                 AND period = to_date(finding#>>'{numbers,period}', 'YYYY-MM')
                 AND purpose <> 'test')))
    AND NOT EXISTS (SELECT 1 FROM ops.retrains AS later
                    WHERE later.card = failed.card
                    AND later.started_at > failed.started_at
                    AND later.outcome IS DISTINCT FROM 'failed')
""")
"""Which alerts wait again, of `ops.alerts AS alert` and `ops.retrains AS failed`."""


def is_tried_again(
    connection: Connection, card: Card, rules: Collection[str], settings: Settings
) -> bool:
    """Return whether an alert whose retrain failed is about to wait for another, as it is known."""
    production = _production(connection, card)
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "SELECT EXISTS (SELECT FROM ops.alerts AS alert, ops.retrains AS failed WHERE {})"
            ).format(_TRIED_AGAIN),
            _asked_of_tries(card, rules, production, settings),
        )
        row = cursor.fetchone()
    return bool(row and row[0])


def _asked_of_tries(
    card: Card, rules: Collection[str], production: str | None, settings: Settings
) -> dict[str, Any]:
    return {
        "rules": list(rules),
        "tries": settings.retrain_tries,
        "production": production,
        "card": card.name,
    }


@dataclass(frozen=True)
class _Waiting:
    fingerprint: str
    starts_at: datetime
    status: str
    rule: str
    version: str | None
    period: str | None
    said: str | None
    retrain: str | None
    tries: int

    @property
    def key(self) -> str:
        return alert_key(self.fingerprint, self.starts_at)

    @property
    def cause(self) -> str:
        about = [f"version {self.version}" if self.version else "", self.period or ""]
        detail = ", ".join(part for part in about if part)
        return f"alert: {self.rule}" + (f" ({detail})" if detail else "")


class _Deciding:
    """One pass over the waiting alerts."""

    def __init__(
        self,
        connection: Connection,
        card: Card,
        trigger: Trigger,
        rules: Collection[str],
        settings: Settings,
        ages: Ages | None = None,
    ) -> None:
        self.ages = ages
        self.connection = connection
        self.card = card
        self.trigger = trigger
        self.rules = rules
        self.settings = settings

    def decide(self) -> list[Decision]:
        fail_stale_retrains(self.connection, self.card, self.settings, self.ages)
        candidates: list[_Waiting] = []
        production = _production(self.connection, self.card)
        self.connection.commit()
        decisions: list[Decision | None] = [*self._reopen(production)]
        for alert in self._waiting():
            if alert.rule not in self.rules:
                reason = f"{alert.rule!r} is no rule of the alert files"
                decisions.append(self._handle(alert, "ignored", reason))
            elif alert.rule not in RETRAINING_RULES:
                reason = f"{alert.rule!r} is for people to see: it starts no retrain"
                decisions.append(self._handle(alert, "noted", reason))
            elif (earlier := self._earlier_retrain(alert)) is not None:
                decisions.append(self._handle(alert, "retrain", "was started", earlier))
            elif alert.status == "resolved":
                decisions.append(self._handle(alert, "resolved", "the drift is over"))
            elif alert.version is not None and alert.version != production:
                now = f"version {production} is" if production else "no version is"
                reason = f"version {alert.version} is not in production any more, {now}"
                decisions.append(self._handle(alert, "superseded", reason))
            elif (answered := self._answer_to_another_watcher(alert)) is not None:
                reason = "was told before, by another watcher"
                decisions.append(self._handle(alert, "joined", reason, answered))
            elif (answered := self._answer_before_it_came_back(alert)) is not None:
                reason = f"was answered before version {alert.version} came back to production"
                decisions.append(self._handle(alert, "joined", reason, answered))
            else:
                candidates.append(alert)
        decisions += self._start(candidates)
        return [decision for decision in decisions if decision is not None]

    def _reopen(self, production: str | None) -> list[Decision]:
        """Have the alerts wait again whose retrain failed, unless they are over or answered since.

        A retrain that a person cancelled is not started again: that was an answer, too.
        Nor is one whose rows were refused (`ops.data_checks`): a fault of data does not heal by
        trying, and the next month in drift, or a person, starts another. Only labels that had yet
        to come do: once they have, it is tried again.
        Their `retrain` is forgotten, so that the next try gets an id of its own; `ops.retrains`
        keeps the alert that started each.
        """
        with self.connection.cursor() as cursor:
            cursor.execute(
                sql.SQL(
                    "UPDATE ops.alerts AS alert SET handled_at = NULL, retrain = NULL,"
                    " decision = 'waits: retrain ' || failed.id || ' failed'"
                    " FROM ops.retrains AS failed WHERE {}"
                    " RETURNING alert.received_at, alert.fingerprint, alert.starts_at, alert.rule,"
                    " alert.tries, failed.id"
                ).format(_TRIED_AGAIN),
                _asked_of_tries(self.card, self.rules, production, self.settings),
            )
            rows = sorted(cursor.fetchall())
        self.connection.commit()
        return [
            Decision(
                alert_key(fingerprint, starts_at),
                rule,
                "waits",
                f"retrain {failed} failed: {self._try(tries)} follows",
                failed,
            )
            for _, fingerprint, starts_at, rule, tries, failed in rows
        ]

    def _try(self, tries: int) -> str:
        return f"try {tries + 1} of {self.settings.retrain_tries}"

    def _start(self, candidates: list[_Waiting]) -> list[Decision | None]:
        if not candidates:
            return []
        running = unfinished_retrain(self.connection, self.card)
        begun = [a for a in candidates if a.retrain is not None and a.retrain == running]
        if running is not None and not begun and not has_begun(self.connection, running):
            # It will learn from what is labelled then, which is all that these alerts are about.
            reason = "came before it had taken its rows"
            return [self._handle(alert, "joined", reason, running) for alert in candidates]
        obstacle = None if begun else self._obstacle(running)
        if obstacle is not None:
            return [self._wait(alert, obstacle) for alert in candidates]
        oldest = begun[0] if begun else candidates[0]
        others = [alert for alert in candidates if alert is not oldest]
        # Known before it is used: after a crash from here on, it is begun again and not anew.
        retrain_id = self._reserve(oldest)
        cause = oldest.cause + (f", {self._try(oldest.tries)}" if oldest.tries else "")
        try:
            request_retrain(
                self.connection,
                self.card,
                cause,
                self.trigger,
                alert=oldest.key,
                retrain_id=retrain_id,
            )
        except (TriggerError, RetrainRunningError) as error:
            return [self._wait(alert, str(error)) for alert in candidates]
        return [
            self._handle(oldest, "retrain", cause, retrain_id),
            *(
                self._handle(alert, "joined", "waited when it started", retrain_id)
                for alert in others
            ),
        ]

    def _obstacle(self, running: str | None) -> str | None:
        """Return why no retrain may start now, or None."""
        if running is not None:
            return f"retrain {running} is under way"
        with self.connection.cursor() as cursor:
            cursor.execute(
                # One that ended in the future did so before the clock was put back, and its
                # cool-down must not last for as long as the clock jumped.
                "SELECT max(finished_at) FROM ops.retrains WHERE card = %s"
                " AND finished_at > clock_timestamp() - make_interval(secs => %s)"
                " AND finished_at <= clock_timestamp()",
                (self.card.name, self.settings.retrain_cool_down_s),
            )
            row = cursor.fetchone()
        self.connection.commit()
        if row is None or row[0] is None:
            return None
        until = row[0] + timedelta(seconds=self.settings.retrain_cool_down_s)
        return f"cool-down after the last retrain, until {until:%Y-%m-%d %H:%M:%S} UTC"

    def _earlier_retrain(self, alert: _Waiting) -> str | None:
        """Return the retrain that this alert started before a crash (or a lost answer), if any.

        It counts once it has been seen at work. One that was asked for and perhaps never started
        is begun again, under its id.
        """
        if alert.retrain is None:
            return None
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT outcome, training_id FROM ops.retrains WHERE id = %s", (alert.retrain,)
            )
            row = cursor.fetchone()
        self.connection.commit()
        at_work = row is not None and (row[1] is not None or row[0] not in (None, "failed"))
        return alert.retrain if at_work else None

    def _answer_before_it_came_back(self, alert: _Waiting) -> str | None:
        """Return the retrain that has answered this month of a version that was rolled back to.

        While another version was in production its alerts were over; now they fire anew, and tell
        nothing that a retrain has not answered.
        """
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT told.retrain FROM ops.alerts AS told"
                " JOIN ops.retrains AS answer ON answer.id = told.retrain"
                " AND answer.card = %(card)s AND answer.outcome IN ('promoted', 'kept_champion')"
                " JOIN ops.deployments AS stay ON stay.card = answer.card"
                " AND stay.model_version = %(version)s AND stay.retired_at IS NULL"
                " AND stay.deployed_at > told.handled_at"
                " WHERE told.fingerprint = %(fingerprint)s AND told.starts_at < %(starts_at)s"
                " AND told.body->'labels' ? 'period'"
                " ORDER BY answer.started_at DESC LIMIT 1",
                {
                    "card": self.card.name,
                    "version": alert.version,
                    "fingerprint": alert.fingerprint,
                    "starts_at": alert.starts_at,
                },
            )
            row = cursor.fetchone()
        self.connection.commit()
        return str(row[0]) if row else None

    def _answer_to_another_watcher(self, alert: _Waiting) -> str | None:
        """Return the retrain that has answered this very drift already, if any.

        Grafana and the evaluator make a fingerprint of the same labels in different ways, so where
        one takes over from the other, an alert that goes on comes again under another fingerprint.
        Only its first episode there is the one that was going on, and only a month's drift is known
        to be the same.
        """
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT told.retrain FROM ops.alerts AS again"
                " JOIN ops.alerts AS told ON told.rule = again.rule"
                " AND told.fingerprint <> again.fingerprint"
                " AND told.body->'labels' = again.body->'labels'"
                " JOIN ops.retrains AS answer ON answer.id = told.retrain"
                " AND answer.card = %s AND answer.outcome IS DISTINCT FROM 'failed'"
                " WHERE again.fingerprint = %s AND again.starts_at = %s"
                " AND again.body->'labels' ? 'period'"
                " AND again.received_at > told.handled_at"
                " AND NOT EXISTS (SELECT 1 FROM ops.alerts AS before"
                "                 WHERE before.fingerprint = again.fingerprint"
                "                 AND before.starts_at < again.starts_at)"
                " ORDER BY answer.started_at DESC LIMIT 1",
                (self.card.name, alert.fingerprint, alert.starts_at),
            )
            row = cursor.fetchone()
        self.connection.commit()
        return str(row[0]) if row else None

    def _reserve(self, alert: _Waiting) -> str:
        """Return the id for the alert's retrain, noted on the alert before it is used.

        A further attempt has the same id, so a pipeline that was started unnoticed is recognised.
        """
        retrain_id = alert.retrain
        with self.connection.cursor() as cursor:
            if retrain_id is not None:
                cursor.execute(
                    "SELECT 1 FROM ops.retrains WHERE id = %s AND finished_at IS NOT NULL",
                    (retrain_id,),
                )
                if cursor.fetchone() is not None:
                    retrain_id = None
            if retrain_id is None:
                retrain_id = new_retrain_id()
                cursor.execute(
                    "UPDATE ops.alerts SET retrain = %s WHERE fingerprint = %s AND starts_at = %s",
                    (retrain_id, alert.fingerprint, alert.starts_at),
                )
        self.connection.commit()
        return retrain_id

    def _handle(
        self, alert: _Waiting, decision: Decided, reason: str, retrain: str | None = None
    ) -> Decision:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "UPDATE ops.alerts SET handled_at = clock_timestamp(), decision = %s, retrain = %s,"
                " tries = tries + %s WHERE fingerprint = %s AND starts_at = %s",
                (
                    *(decision, retrain, int(retrain is not None)),
                    *(alert.fingerprint, alert.starts_at),
                ),
            )
        self.connection.commit()
        return Decision(alert.key, alert.rule, decision, reason, retrain)

    def _wait(self, alert: _Waiting, reason: str) -> Decision | None:
        """Note why the alert waits; None if that has been said before."""
        said = f"waits: {reason}"
        if alert.said == said:
            return None
        with self.connection.cursor() as cursor:
            cursor.execute(
                "UPDATE ops.alerts SET decision = %s WHERE fingerprint = %s AND starts_at = %s",
                (said, alert.fingerprint, alert.starts_at),
            )
        self.connection.commit()
        return Decision(alert.key, alert.rule, "waits", reason)

    def _waiting(self) -> list[_Waiting]:
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT fingerprint, starts_at, status, rule, body->'labels'->>'model_version',"
                " body->'labels'->>'period', decision, retrain, tries"
                " FROM ops.alerts WHERE handled_at IS NULL ORDER BY received_at, starts_at"
            )
            rows = [_Waiting(*row) for row in cursor.fetchall()]
        self.connection.commit()
        return rows


def _production(connection: Connection, card: Card) -> str | None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT model_version FROM ops.deployments WHERE card = %s AND retired_at IS NULL",
            (card.name,),
        )
        row = cursor.fetchone()
    return None if row is None else str(row[0])


def log_decision(log: AlertLog, decision: Decision) -> None:
    """Write a decision as a line of the alert log."""
    log.write("decided", **asdict(decision))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _check_storable(body: dict[str, Any], place: str) -> None:
    """Refuse what Postgres' jsonb cannot hold, before it becomes an error of the database."""
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError) as error:
        raise AlertBodyError(place, f"cannot be stored: {error}") from None
    if "\\u0000" in text:
        raise AlertBodyError(place, "holds a NUL character")


def _place(location: tuple[int | str, ...]) -> str:
    words = ""
    for step in location:
        words += f"[{step}]" if isinstance(step, int) else (f".{step}" if words else step)
    return words or "body"
