"""The life of a retrain in `ops.retrains`: asked for, opened, deployed, closed, or given up.

At most one retrain of a card is unfinished, which a unique index holds. This module trains nothing:
it starts the pipeline through a function that it is given, and keeps the books. Its functions
commit: each of them is a fact that others must be able to see at once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, Literal

from psycopg2.errors import UniqueViolation
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json, RealDictCursor

from mlops.dataset.card import Card
from mlops.settings import Settings, get_settings

PIPELINE = "retrain"

Outcome = Literal["promoted", "kept_champion", "failed"]

Trigger = Callable[[str, dict[str, Any]], Any]
"""Starts a pipeline: name and variables → whatever identifies the run. Raises if it did not.

Asked again with the same `retrain_id` it must not start a second run: an answer may have been lost.
"""


class RetrainRunningError(RuntimeError):
    """Another retrain of the card is unfinished."""


class TriggerError(RuntimeError):
    """The orchestrator did not take the retrain; nothing is left of it in `ops.retrains`."""


def request_retrain(
    connection: Connection,
    card: Card,
    cause: str,
    trigger: Trigger,
    *,
    alert: str | None = None,
    retrain_id: str | None = None,
) -> str:
    """Write a retrain, start its pipeline with `retrain_id` (and `cause`), and return the id.

    Given the id of an unfinished retrain it starts that one's pipeline, if it was not started yet.
    Raises RetrainRunningError if one is unfinished, and TriggerError if the pipeline could not be
    started: then the row is undone, so that the next one may try.
    """
    retrain_id = retrain_id or new_retrain_id()
    _insert(connection, card, retrain_id, cause, alert)
    try:
        trigger(PIPELINE, {"retrain_id": retrain_id, "cause": cause})
    except Exception as error:
        # Whatever it was, the pipeline has not been started, and the row would block all others.
        # One that was started after all (an answer that got lost) makes its row again, in `open`.
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM ops.retrains"
                " WHERE id = %s AND finished_at IS NULL AND training_id IS NULL",
                (retrain_id,),
            )
        connection.commit()
        raise TriggerError(f"{PIPELINE} was not started: {_first_line(error)}") from error
    return retrain_id


def open_retrain(
    connection: Connection, card: Card, retrain_id: str | None = None, cause: str = "by hand"
) -> str:
    """Return the id of the retrain that the pipeline now runs; its row is made if need be.

    Raises RetrainRunningError if another retrain is unfinished, or this one is finished already.
    """
    retrain_id = retrain_id or new_retrain_id()
    _insert(connection, card, retrain_id, cause, None)
    return retrain_id


def note_deployment(
    connection: Connection,
    retrain_id: str,
    deployed: Mapping[str, Any],
    training_id: str | None = None,
) -> None:
    """Write versions, scores and gate of a retrain as soon as its deployment has decided.

    `deployed` is a `mlops.serving.deployment.Deployment` as a dict. The rows that the deployment
    wrote in the same transaction are committed with it: what fails later cannot lose the one of the
    two. Raises LookupError if there is no such retrain.
    """
    gate = deployed["gate"]
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE ops.retrains SET training_id = coalesce(%s, training_id), champion = %s,"
            " challenger = %s, champion_score = %s, challenger_score = %s, gate = %s WHERE id = %s",
            (
                training_id,
                deployed["champion"],
                deployed["version"],
                gate["champion_roc_auc"],
                gate["challenger_roc_auc"],
                Json(gate),
                retrain_id,
            ),
        )
        if cursor.rowcount == 0:
            raise _unknown(retrain_id)
    connection.commit()


def close_retrain(
    connection: Connection,
    retrain_id: str,
    outcome: Outcome,
    reason: str,
    *,
    training_id: str | None = None,
    cancelled: bool = False,
) -> bool:
    """Write the outcome of a retrain; return whether it was written.

    The first outcome stays, but for `failed`: a retrain that was given up and finishes after all
    has the outcome that it really had. One that fails after its challenger went to production says
    so in its reason, and keeps what `note_deployment` wrote. `cancelled` says that a person ended
    it: its alerts are not tried again. Raises LookupError if there is no such retrain.
    """
    with connection.cursor() as cursor:
        if outcome == "failed" and (version := _promoted(cursor, retrain_id)) is not None:
            reason += f"; version {version} is in production all the same"
        cursor.execute(
            "UPDATE ops.retrains SET finished_at = clock_timestamp(), outcome = %(outcome)s,"
            " reason = %(reason)s, training_id = coalesce(%(training_id)s, training_id),"
            " cancelled = %(cancelled)s, notified_at = NULL, notify_tries = 0"
            " WHERE id = %(id)s"
            " AND (outcome IS NULL OR (outcome = 'failed' AND %(outcome)s <> 'failed'))",
            {
                "id": retrain_id,
                "outcome": outcome,
                "reason": reason,
                "training_id": training_id,
                "cancelled": cancelled,
            },
        )
        written = cursor.rowcount == 1
        if not written:
            cursor.execute("SELECT 1 FROM ops.retrains WHERE id = %s", (retrain_id,))
            if cursor.fetchone() is None:
                raise _unknown(retrain_id)
    connection.commit()
    return written


def _promoted(cursor: Any, retrain_id: str) -> str | None:
    """Return the version in production if it is of this retrain's training, else None."""
    cursor.execute(
        "SELECT d.model_version FROM ops.retrains r"
        " JOIN ops.deployments d USING (card, training_id)"
        " WHERE r.id = %s AND d.model_version = r.challenger AND d.retired_at IS NULL",
        (retrain_id,),
    )
    row = cursor.fetchone()
    return None if row is None else str(row[0])


def _unknown(retrain_id: str) -> LookupError:
    return LookupError(f"there is no retrain {retrain_id!r} in ops.retrains")


class Ages:
    """How old things are, by a clock that cannot be set: a jump of the other one fails no retrain.

    The age that something has when it is first seen is taken as told (it may be of before a
    restart, or a night); from then on it is counted here. `clock` returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, float]] = {}

    def of(self, told: Mapping[str, float]) -> dict[str, float]:
        """Return the age of each by name, given what is told of it; others are forgotten. In s."""
        now = self._clock()
        self._seen = {
            name: self._seen.get(name, (max(age, 0.0), now)) for name, age in told.items()
        }
        return {name: age + now - seen for name, (age, seen) in self._seen.items()}


def fail_stale_retrains(
    connection: Connection,
    card: Card,
    settings: Settings | None = None,
    ages: Ages | None = None,
) -> list[str]:
    """Give up the retrains of `card` older than `retrain_limit_s`; return their ids.

    `ages` are those of whoever looks again and again. Without them the database's clock counts.
    """
    settings = settings or get_settings()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, extract(epoch FROM clock_timestamp() - started_at)::float8"
            " FROM ops.retrains WHERE card = %s AND finished_at IS NULL",
            (card.name,),
        )
        told = {str(name): float(age) for name, age in cursor.fetchall()}
    connection.commit()
    found = (ages or Ages()).of(told)
    stale = [each for each, age in found.items() if age > settings.retrain_limit_s]
    reason = f"not finished after {settings.retrain_limit_s} s: see pipeline {PIPELINE} in Mage"
    return [each for each in stale if close_retrain(connection, each, "failed", reason)]


def unfinished_retrain(connection: Connection, card: Card) -> str | None:
    """Return the id of the retrain that is under way, or None."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM ops.retrains WHERE card = %s AND finished_at IS NULL", (card.name,)
        )
        row = cursor.fetchone()
    return None if row is None else str(row[0])


def has_begun(connection: Connection, retrain_id: str) -> bool:
    """Return whether the retrain has chosen its rows: its training goes by the same id."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM ops.trainings WHERE id = %(id)s) OR EXISTS"
            " (SELECT FROM ops.retrains WHERE id = %(id)s"
            "  AND (training_id IS NOT NULL OR finished_at IS NOT NULL))",
            {"id": retrain_id},
        )
        row = cursor.fetchone()
    return bool(row and row[0])


def latest_retrains(connection: Connection, card: Card, limit: int = 20) -> list[dict[str, Any]]:
    """Return the latest retrains, newest first, each with the columns of `ops.retrains`."""
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            "SELECT * FROM ops.retrains WHERE card = %s ORDER BY started_at DESC LIMIT %s",
            (card.name, limit),
        )
        return [dict(row) for row in cursor.fetchall()]


def new_retrain_id() -> str:
    """Return an id that tells when it was made: 20260101T000000Z-1a2b3c."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def _insert(
    connection: Connection, card: Card, retrain_id: str, cause: str, alert: str | None
) -> None:
    """Make the row of a retrain, unless it is there and unfinished; raise RetrainRunningError."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO ops.retrains (id, card, cause, alert) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (id) DO NOTHING",
                (retrain_id, card.name, cause, alert),
            )
            cursor.execute("SELECT outcome FROM ops.retrains WHERE id = %s", (retrain_id,))
            row = cursor.fetchone()
        connection.commit()
        if row is not None and row[0] is not None:
            raise RetrainRunningError(f"retrain {retrain_id} is finished already ({row[0]})")
    except UniqueViolation:
        connection.rollback()
        running = unfinished_retrain(connection, card)
        raise RetrainRunningError(
            f"retrain {running or retrain_id} of {card.name} is not finished: one at a time"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
