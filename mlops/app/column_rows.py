"""What the page *Columns* shows, read from Postgres: each column by month, and its values.

It only reads (role `grafana`) and never draws. Nothing is measured here: `monitor` has done that.
"""

from __future__ import annotations

import pandas as pd
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor

from mlops.dataset.card import Card, Feature
from mlops.dataset.errors import DataError
from mlops.dataset.rows import from_features, load_window
from mlops.dataset.timeline import month_start, period_of
from mlops.dataset.windows import split_window
from mlops.settings import Settings

#: Rows of a month that a distribution is drawn from, at most.
SAMPLE = 20_000


def read_versions(connection: Connection, card: Card) -> list[str]:
    """Return the measured versions: the one in production first, then the latest measured."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT model_version FROM grafana.column_drift AS measured"
            " GROUP BY model_version"
            " ORDER BY bool_or(EXISTS (SELECT FROM ops.deployments"
            "   WHERE deployments.model_version = measured.model_version"
            "   AND card = %s AND retired_at IS NULL)) DESC, max(update_time) DESC",
            (card.name,),
        )
        return [row[0] for row in cursor.fetchall()]


def read_columns(connection: Connection, version: str) -> pd.DataFrame:
    """Return the rows of `grafana.column_history` of a version, oldest month first.

    `period`, `drifted_since` and `missing_since` are texts as in 2009-03; None where it is not so.
    """
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(
            "SELECT * FROM grafana.column_history WHERE model_version = %s"
            " ORDER BY period, column_name",
            (version,),
        )
        names = [column.name for column in cursor.description or []]
        frame = pd.DataFrame([dict(row) for row in cursor.fetchall()], columns=names)
    for name in ("period", "drifted_since", "missing_since"):
        frame[name] = [None if day is None else period_of(day) for day in frame[name]]
    return frame


def read_month(
    connection: Connection, card: Card, feature: Feature, version: str, period: str
) -> pd.Series:
    """Return what `version` was told of one column in a month: float32 with NaN, or str with "".

    Of live and simulated traffic, as `monitor` counts it; `SAMPLE` rows at most.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "SELECT features -> {} FROM serving.predictions"
                " WHERE model_version = %s AND period = %s AND purpose IN ('live', 'simulation')"
                " ORDER BY request_id, row LIMIT %s"
            ).format(sql.Literal(feature.name)),
            (version, month_start(period), SAMPLE),
        )
        records = [{feature.name: row[0]} for row in cursor.fetchall()]
    return from_features(card, records)[feature.name]


def read_reference(
    connection: Connection, card: Card, feature: Feature, version: str, settings: Settings
) -> tuple[pd.Series, str] | None:
    """Return a column of the rows that a version was judged on, and their months in words.

    They are read where the training read them, and cut as it cut them. None if the version's
    training is not known or its rows are gone.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_char(window_start, 'YYYY-MM'), to_char(window_end, 'YYYY-MM')"
            " FROM ops.trainings JOIN ops.deployments"
            " ON deployments.training_id = trainings.id AND deployments.card = trainings.card"
            " WHERE deployments.card = %s AND model_version = %s"
            " ORDER BY deployed_at DESC LIMIT 1",
            (card.name, version),
        )
        window = cursor.fetchone()
    if window is None:
        return None
    try:
        rows = load_window(connection, card, *window)
        cut = split_window(rows, card.time.validation_months, settings.validation_min_rows)
    except DataError:
        return None
    first = str(cut.validation["period"].min())
    months = cut.end if first == cut.end else f"{first} to {cut.end}"
    return cut.validation[feature.name], months
