"""Which stays in production a rollback can return to; only reads `ops.deployments`.

It needs neither MLflow nor sklearn, so that the app can tell what a rollback would do.
"""

from __future__ import annotations

from typing import Any

from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

from mlops.dataset.card import Card


def former_stays(connection: Connection, card: Card) -> list[dict[str, Any]]:
    """Return the stays that a rollback can return to, the oldest first; the champion's is not one.

    Each has the columns of `ops.deployments`. What was rolled back or withdrawn is none any more,
    so that going back twice goes one further back, and never forth: a stay that begins by going
    back takes all those after the one that it returns to off the list.
    """
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute("SELECT * FROM ops.deployments WHERE card = %s ORDER BY id", (card.name,))
        rows = [dict(row) for row in cursor.fetchall()]
    stays: list[dict[str, Any]] = []
    for row in rows:
        back = row["began"] in ("rollback", "withdrawn", "healed")
        known = [place for place, stay in enumerate(stays) if _same_version(stay, row)]
        if back and known:
            del stays[known[-1] :]
        stays.append(row)
        if row["retired_at"] is not None and row["retired_by"] is None:
            stays.pop()  # taken out of production, with none to follow
    return [stay for stay in stays if stay["retired_at"] is not None]


def _same_version(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["model_version"] == other["model_version"])
