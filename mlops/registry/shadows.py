"""Who is in shadow: the rows of `ops.shadows`; neither scores nor looks at a model.

A version in shadow scores what the champion answers, and answers nobody (`mlops.serving.shadow`).
There is one a card. It ends when another takes its place, when somebody stops it, and when it goes
to production, which `mlops.registry.models.record_deployment` sees to.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

from mlops.dataset.card import Card
from mlops.dataset.timeline import month_start, period_of

PERSON = "a person"
LOOP = "the loop"


@dataclass(frozen=True)
class Shadow:
    """A version in shadow."""

    id: int
    version: str
    started_at: datetime
    started_by: str
    """`a person`, whose choice the loop leaves alone, or `the loop`."""
    reason: str | None
    candidate: str | None
    threshold: float | None
    """The score at which it would decide positively."""
    since: str | None
    """The first period that it scores whole, though answered before it began; None: none."""


def current_shadow(connection: Connection, card: Card) -> Shadow | None:
    """Return who is in shadow, or None."""
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            "SELECT id, model_version AS version, started_at, started_by, reason, candidate,"
            " threshold, since FROM ops.shadows WHERE card = %s AND ended_at IS NULL",
            (card.name,),
        )
        row = cursor.fetchone()
    if row is None:
        return None
    return Shadow(**{**row, "since": row["since"] and period_of(row["since"])})


def put_in_shadow(
    connection: Connection,
    card: Card,
    version: str,
    *,
    by: str,
    since: str | None = None,
    reason: str | None = None,
    candidate: str | None = None,
    threshold: float | None = None,
) -> Shadow:
    """Write that a version is in shadow, in place of whoever was; return it. The caller commits.

    Of the version that is there already `since` changes, if given, and a person's wish makes it a
    person's.
    """
    first = None if since is None else month_start(since)
    current = current_shadow(connection, card)
    with connection.cursor() as cursor:
        if current is not None and current.version == version:
            cursor.execute(
                "UPDATE ops.shadows SET since = coalesce(%s, since),"
                " started_by = CASE WHEN %s THEN %s ELSE started_by END WHERE id = %s",
                (first, by == PERSON, PERSON, current.id),
            )
        else:
            _end(connection, card, f"replaced by version {version}")
            cursor.execute(
                "INSERT INTO ops.shadows (card, model_version, started_at, started_by, reason,"
                " candidate, threshold, since)"
                " VALUES (%s, %s, clock_timestamp(), %s, %s, %s, %s, %s)",
                (card.name, version, by, reason, candidate, threshold, first),
            )
    written = current_shadow(connection, card)
    assert written is not None
    return written


def stop_shadow(connection: Connection, card: Card, by: str = PERSON) -> Shadow | None:
    """End the shadow; return who was in it, None if nobody was. The caller commits.

    What it has scored stays as long as the log's rows do.
    """
    shadow = current_shadow(connection, card)
    _end(connection, card, f"stopped by {by}")
    return shadow


def stopped_by_person(connection: Connection, card: Card, version: str) -> bool:
    """Return whether the version was in shadow, and a person has stopped it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ended_by FROM ops.shadows WHERE card = %s AND model_version = %s"
            " ORDER BY id DESC LIMIT 1",
            (card.name, version),
        )
        row = cursor.fetchone()
    return row is not None and row[0] == f"stopped by {PERSON}"


def _end(connection: Connection, card: Card, by: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE ops.shadows SET ended_at = clock_timestamp(), ended_by = %s"
            " WHERE card = %s AND ended_at IS NULL",
            (by, card.name),
        )
