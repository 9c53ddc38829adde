"""Whether the loop may promote: a hold stops it until a person says otherwise; promotes nothing.

One hold stands at most (a unique index). A rollback writes it before it does anything, so that the
loop cannot undo the rollback, and one that was killed half-way is known for what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

from mlops.dataset.card import Card


@dataclass(frozen=True)
class Hold:
    """A hold that stands: why, since when, and which rollback it came with (None: with none)."""

    id: int
    reason: str
    held_at: datetime
    rolled_from: str | None
    rolled_to: str | None
    done_at: datetime | None
    """When the rollback had got there; None: it is under way, or was interrupted."""

    def in_words(self) -> str:
        """Return it as a sentence that says how it ends."""
        words = (
            f"a hold stands since {self.held_at:%Y-%m-%d %H:%M} ({self.reason}): nothing is "
            "promoted until `make release`, or a promotion by hand"
        )
        if self.done_at is None:
            words += "; its rollback was interrupted: roll back again to finish it"
        return words


def active_hold(connection: Connection, card: Card | str) -> Hold | None:
    """Return the hold that stands of a card (or the card of that name), None if there is none."""
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            "SELECT id, reason, held_at, rolled_from, rolled_to, done_at FROM ops.holds"
            " WHERE card = %s AND released_at IS NULL",
            (card if isinstance(card, str) else card.name,),
        )
        row = cursor.fetchone()
    return None if row is None else Hold(**row)


def place_hold(
    connection: Connection,
    card: Card,
    reason: str,
    rolled_from: str,
    rolled_to: str,
    request: str | None = None,
) -> Hold:
    """Write the hold of a rollback that now begins; one that stands is released by it.

    `request` names who asked, for `rolled_back_for`.
    """
    release_hold(connection, card, f"the rollback to version {rolled_to}")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.holds (card, reason, rolled_from, rolled_to, request, held_at)"
            " VALUES (%s, %s, %s, %s, %s, clock_timestamp())",
            (card.name, reason, rolled_from, rolled_to, request),
        )
    hold = active_hold(connection, card)
    assert hold is not None
    return hold


def finish_hold(connection: Connection, hold: Hold) -> None:
    """Note that the rollback of a hold got where it was to go; the hold stands."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE ops.holds SET done_at = clock_timestamp() WHERE id = %s AND done_at IS NULL",
            (hold.id,),
        )


def rolled_back_for(connection: Connection, request: str) -> bool:
    """Return whether a rollback that was asked for by `request` got where it was to go."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM ops.holds WHERE request = %s AND done_at IS NOT NULL LIMIT 1", (request,)
        )
        return cursor.fetchone() is not None


def undo_hold(connection: Connection, hold: Hold, former: Hold | None) -> None:
    """Take back the hold of a rollback that came to nothing; the one before it stands again."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM ops.holds WHERE id = %s", (hold.id,))
        if former is not None:
            cursor.execute(
                "UPDATE ops.holds SET released_at = NULL, released_by = NULL WHERE id = %s",
                (former.id,),
            )


def release_hold(connection: Connection, card: Card, by: str) -> Hold | None:
    """End the hold that stands; return it, None if there was none. `by` says who or what did."""
    hold = active_hold(connection, card)
    if hold is not None:
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE ops.holds SET released_at = clock_timestamp(), released_by = %s"
                " WHERE id = %s AND released_at IS NULL",
                (by, hold.id),
            )
    return hold
