"""What the page *Shadow* shows, read from Postgres: stays in shadow, comparisons, pairs of scores.

It only reads (role `grafana`) and never draws. Rows of a month are a sample: a page is no archive.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

#: Shadows that can be chosen, the latest first.
LIMIT = 50

#: Rows of a month that are drawn, and searched for decisions that differ.
SAMPLE = 20_000

#: Rows of which the features are shown.
EXAMPLES = 20


def read_shadows(connection: Connection, card: str) -> pd.DataFrame:
    """Return the stays in shadow, the latest first: the columns of `ops.shadows`, and `champion`.

    `champion` is the version that is in production now, the same in each row.
    """
    return _read(
        connection,
        "SELECT s.*, (SELECT model_version FROM ops.deployments AS d"
        "  WHERE d.card = s.card AND d.retired_at IS NULL) AS champion"
        " FROM ops.shadows AS s WHERE card = %s ORDER BY id DESC LIMIT %s",
        card,
        LIMIT,
    )


def read_months(connection: Connection, version: str) -> pd.DataFrame:
    """Return the comparison by month and by who answered, the oldest first."""
    months = _read(
        connection,
        "SELECT * FROM grafana.shadow_comparison WHERE model_version = %s"
        " ORDER BY period, champion",
        version,
    )
    months["period"] = pd.to_datetime(months["period"])
    return months


def read_pairs(
    connection: Connection, version: str, champion: str, period: pd.Timestamp
) -> pd.DataFrame:
    """Return up to SAMPLE rows of a month: request_id, row, champion, shadow (scores), label.

    In the order of their ids, which are random: a larger month is sampled evenly.
    """
    return _read(
        connection,
        "SELECT request_id, row, made.probability AS champion, scored.probability AS shadow, label"
        " FROM serving.shadow_predictions AS scored"
        " JOIN serving.predictions AS made USING (request_id, row)"
        " WHERE scored.model_version = %s AND made.model_version = %s AND made.period = %s"
        " AND scored.probability IS NOT NULL ORDER BY request_id, row LIMIT %s",
        version,
        champion,
        period.date(),
        SAMPLE,
    )


def learnt_by(months: pd.DataFrame) -> pd.Series:
    """Return which of the two versions were fitted on each month, as a text; empty if neither."""
    return pd.Series(
        [
            " and ".join(
                f"version {version}" for version, knows in ((ours, mine), (theirs, its)) if knows
            )
            for ours, mine, theirs, its in zip(
                months["model_version"],
                months["known_to_shadow"],
                months["champion"],
                months["known_to_champion"],
                strict=True,
            )
        ],
        index=months.index,
        dtype=object,
    )


def decided_otherwise(
    pairs: pd.DataFrame, threshold: float, champion_threshold: float
) -> pd.DataFrame:
    """Return the pairs that the two decide otherwise, those furthest apart first."""
    changed = (pairs["shadow"] >= threshold) != (pairs["champion"] >= champion_threshold)
    apart = (pairs["shadow"] - pairs["champion"]).abs()
    return pairs[changed].loc[apart[changed].sort_values(ascending=False, kind="stable").index]


def read_features(connection: Connection, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the features of rows, one column a field, in the order of `pairs`."""
    keys = pairs[["request_id", "row"]]
    found = _read(
        connection,
        "SELECT request_id, row, features FROM serving.predictions"
        " JOIN unnest(%s::text[], %s::integer[]) AS key (request_id, row) USING (request_id, row)",
        keys["request_id"].tolist(),
        keys["row"].tolist(),
    )
    features = pd.json_normalize(found["features"].tolist(), max_level=0)
    features = features.set_index(pd.MultiIndex.from_frame(found[["request_id", "row"]]))
    return features.reindex(pd.MultiIndex.from_frame(keys)).reset_index(drop=True)


def _read(connection: Connection, sql: str, *values: Any) -> pd.DataFrame:
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(sql, values)
        names = [column.name for column in cursor.description or []]
        return pd.DataFrame([dict(row) for row in cursor.fetchall()], columns=names)
