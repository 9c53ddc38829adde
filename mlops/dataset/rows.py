"""The stored rows of a data set: written once per file, read by window; never cut at random.

`data.<card>` holds what files said; `serving.predictions` holds what the API was asked and, later,
the answers. What may be learnt from is decided here and nowhere else: see `load_window`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from mlops.dataset.card import PERIOD, TARGET, Card
from mlops.dataset.errors import DataError
from mlops.dataset.parsing import missing_shares
from mlops.dataset.sources import RawData
from mlops.dataset.timeline import month_start, period_of

logger = logging.getLogger(__name__)

FEWEST_ROWS = 50
"""A month with fewer labelled rows does not end a window: a stray request is no month."""

Period = TypeVar("Period", date, str)

_SOURCES_OF_LABELS = ("live", "simulation")


@dataclass(frozen=True)
class Ingestion:
    """What storing a file did. Shares and rates are 0..1."""

    new: bool
    rows: int
    periods: list[str]
    sha256: str
    origin: str
    source: str
    bytes: int
    positive_rate: float
    missing_shares: dict[str, float]
    rebuilt: bool = False
    notice: str | None = None


def store(connection: Connection, card: Card, raw: RawData) -> Ingestion:
    """Store the rows of a file and record the file, in one transaction.

    Months that the file covers are replaced, other months stay. A file whose rows are all there
    already changes nothing (`new` is false); the same file read by other rules of the card is new.
    If the card's columns have changed since the table was made, the table is made anew and holds
    this file only (`rebuilt`).

    The transaction is the caller's to commit, as `mlops.database.connect` does.
    """
    periods = sorted(raw.frame[PERIOD].unique())
    table = _table(card)
    digest = data_digest(raw.frame)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"data.{card.name}"])
        rebuilt = _make_table(cursor, card)
        cursor.execute(
            sql.SQL(
                "SELECT (SELECT count(*) FROM {} WHERE sha256 = %(sha256)s), (SELECT data_digest"
                " FROM ops.ingested_files WHERE card = %(card)s AND sha256 = %(sha256)s)"
            ).format(table),
            {"card": card.name, "sha256": raw.sha256},
        )
        new = cursor.fetchone() != (raw.rows, digest)
        if new:
            cursor.execute(
                sql.SQL("DELETE FROM {} WHERE period = ANY(%s::date[]) OR sha256 = %s").format(
                    table
                ),
                [[month_start(period) for period in periods], raw.sha256],
            )
            _copy_in(cursor, card, raw)
            cursor.execute(sql.SQL("ANALYZE {}").format(table))
            cursor.execute(
                """
                INSERT INTO ops.ingested_files
                    (sha256, card, source, origin, rows, bytes, data_digest)
                VALUES (%s, %s, %s, %s, %s, %s, %s)
                ON CONFLICT (card, sha256) DO UPDATE SET source = excluded.source,
                    origin = excluded.origin, data_digest = excluded.data_digest,
                    ingested_at = now()
                """,
                [raw.sha256, card.name, raw.source, raw.origin, raw.rows, raw.bytes, digest],
            )
    return Ingestion(
        new=new,
        rows=raw.rows,
        periods=periods,
        sha256=raw.sha256,
        origin=raw.origin,
        source=raw.source,
        bytes=raw.bytes,
        positive_rate=float(raw.frame[TARGET].mean()),
        missing_shares=missing_shares(raw.frame, card),
        rebuilt=rebuilt,
        notice=raw.notice,
    )


def load_window(
    connection: Connection, card: Card, start: str | None = None, end: str | None = None
) -> pd.DataFrame:
    """Return the rows that may be learnt from, of the periods `start` to `end`, both included.

    These are the file's rows up to the card's `history_until`, and for later periods the labelled
    predictions of live or simulated traffic. The file's later rows have not happened yet: they
    are never returned. Without `history_until`, history is all that the files hold, up to their
    latest period, and labelled predictions of later periods are learnt.

    Columns: features in the card's order (float32 with NaN, str with ""), `target` (int8),
    `period` (str); ordered by time. An empty frame of these columns if there is no such row.
    """
    table = _table(card)
    clauses, values = _between(start, end)
    with connection.cursor() as cursor:
        _require_table(cursor, card)
        history = sql.SQL("period <= %s") if card.time.history_until else sql.SQL("true")
        until = [month_start(card.time.history_until)] if card.time.history_until else []
        cursor.execute(
            sql.SQL(
                "SELECT {}, target, period FROM {} WHERE {} ORDER BY period, sha256, row"
            ).format(_columns(card), table, sql.SQL(" AND ").join([history, *clauses])),
            [*until, *values],
        )
        frame = _frame(card, cursor.fetchall())
        labelled = _labelled_predictions(cursor, card, clauses, values)
    if labelled.empty:
        return frame
    # File rows end where labelled predictions begin, so this keeps the order of time.
    return pd.concat([frame, labelled], ignore_index=True) if len(frame) else labelled


def load_future(connection: Connection, card: Card, start: str, end: str) -> pd.DataFrame:
    """Return the file's rows of `start` to `end` that lie after the card's `history_until`.

    Only for playing these months and for scoring a finished model on them. Columns as in
    `load_window`; the index is the row's number in its file, from 1. Without `history_until` all
    rows are history: the frame is empty.
    """
    clauses, values = _between(start, end)
    with connection.cursor() as cursor:
        _require_table(cursor, card)
        cursor.execute(
            sql.SQL("SELECT row, {}, target, period FROM {} WHERE {} ORDER BY period, row").format(
                _columns(card),
                _table(card),
                sql.SQL(" AND ").join([_after_history(card), *clauses]),
            ),
            values,
        )
        rows = cursor.fetchall()
    frame = _frame(card, [row[1:] for row in rows])
    frame.index = pd.Index([row[0] for row in rows], dtype=np.int64, name="row")
    return frame


def label_arrivals(connection: Connection, card: Card, start: str, end: str) -> pd.DataFrame:
    """Return how far labels have come for the predictions of `start` to `end` that may be learnt.

    One row a period (index) with rows `answered` and `labelled`, the mean scores of rows with and
    without a label (`labelled_score`, `unlabelled_score`, NaN where there is none) and the scores'
    standard deviation (`score_std`). Of a month that was simulated for several versions, which
    brings the same customers again, the best labelled one counts.
    """
    clauses, values = _between(start, end)
    with connection.cursor() as cursor:
        text = cursor.mogrify(sql.SQL(" AND ").join(clauses), values).decode()
        cursor.execute(
            sql.SQL(
                """
                SELECT period, sum(answered)::integer, sum(labelled)::integer,
                    sum(with_label) / nullif(sum(labelled), 0),
                    sum(without) / nullif(sum(answered - labelled), 0),
                    sqrt(greatest(0, sum(squares) / sum(answered)
                        - ((sum(with_label) + sum(without)) / sum(answered)) ^ 2))
                FROM (
                    SELECT DISTINCT ON (period, purpose) * FROM (
                        SELECT period, purpose, count(*) AS answered, count(label) AS labelled,
                            coalesce(sum(probability) FILTER (WHERE label IS NOT NULL), 0)
                                AS with_label,
                            coalesce(sum(probability) FILTER (WHERE label IS NULL), 0) AS without,
                            sum(probability ^ 2) AS squares
                        FROM serving.predictions WHERE {} AND {}
                        GROUP BY period, purpose,
                            CASE purpose WHEN 'simulation' THEN model_version END
                    ) AS played ORDER BY period, purpose, labelled DESC, answered DESC
                ) AS months GROUP BY period ORDER BY period
                """
            ).format(_learnable(card), sql.SQL(text.replace("%", "%%"))),
            {"names": card.feature_names},
        )
        rows = cursor.fetchall()
    columns = ["answered", "labelled", "labelled_score", "unlabelled_score", "score_std"]
    index = pd.Index([period_of(row[0]) for row in rows], dtype=object, name=PERIOD)
    return pd.DataFrame([row[1:] for row in rows], index=index, columns=columns).astype(
        {"answered": int, "labelled": int, **dict.fromkeys(columns[2:], float)}
    )


def history_window(connection: Connection, card: Card) -> tuple[str, str]:
    """Return first and last period of the file's rows that may be learnt from.

    As in `latest_labelled_window`, a trailing month of fewer than `FEWEST_ROWS` rows (a file that
    was cut within a month) does not count, unless what is left would be too short to be split.

    Raises DataError if nothing is stored.
    """
    until = card.time.history_until
    with connection.cursor() as cursor:
        _require_table(cursor, card)
        cursor.execute(
            sql.SQL(
                "SELECT period, count(*) FROM {} WHERE %s::date IS NULL OR period <= %s"
                " GROUP BY period ORDER BY period"
            ).format(_table(card)),
            [until and month_start(until)] * 2,
        )
        counts = cursor.fetchall()
    if not counts:
        raise DataError(
            f"data.{card.name}",
            [
                f"found no row up to {until or 'any period'}, expected some: "
                "run the pipeline prepare"
            ],
        )
    full = without_scant_end(counts, FEWEST_ROWS)
    if len(full) <= card.time.validation_months:
        full = counts
    return period_of(full[0][0]), period_of(full[-1][0])


def latest_labelled_window(
    connection: Connection, card: Card, months: int, fewest_rows: int = FEWEST_ROWS
) -> tuple[str, str]:
    """Return first and last of the latest `months` periods that have labelled rows.

    Labelled are the history and predictions whose answers came (see `load_window`). The window
    ends at the latest period with `fewest_rows` such rows; fewer periods than `months` are
    returned if there are no more. Raises DataError if there is none.
    """
    if months < 1:
        raise ValueError(f"found {months} months, expected 1 or more")
    until = card.time.history_until
    with connection.cursor() as cursor:
        _require_table(cursor, card)
        cursor.execute(
            sql.SQL(
                """
                SELECT period, count(*) FROM (
                    SELECT period FROM {table} WHERE %(until)s::date IS NULL OR period <= %(until)s
                    UNION ALL
                    SELECT period FROM serving.predictions WHERE {labelled}
                ) AS labelled GROUP BY period ORDER BY period
                """
            ).format(table=_table(card), labelled=_labelled(card)),
            {"until": until and month_start(until), "names": card.feature_names},
        )
        counts = without_scant_end(cursor.fetchall(), fewest_rows)
    if not counts:
        raise DataError(
            f"data.{card.name}",
            [f"found no period with {fewest_rows} labelled rows: run the pipeline prepare"],
        )
    return period_of(counts[-months:][0][0]), period_of(counts[-1][0])


def without_scant_end(
    counts: list[tuple[Period, int]], fewest_rows: int
) -> list[tuple[Period, int]]:
    """Return months and their rows without the last ones that have fewer than `fewest_rows`."""
    end = len(counts)
    while end and counts[end - 1][1] < fewest_rows:
        end -= 1
    return counts[:end]


def periods_to_come(connection: Connection, card: Card, after: str | None = None) -> list[str]:
    """Return the periods of the file later than the history, and later than `after` if given."""
    with connection.cursor() as cursor:
        _require_table(cursor, card)
        cursor.execute(
            sql.SQL(
                "SELECT DISTINCT period FROM {} WHERE {} AND (%s::date IS NULL OR period > %s) "
                "ORDER BY period"
            ).format(_table(card), _after_history(card)),
            [after and month_start(after)] * 2,
        )
        return [period_of(period) for (period,) in cursor.fetchall()]


def data_digest(frame: pd.DataFrame) -> str:
    """Return the sha256 of a frame's columns and values, whatever its index is."""
    digest = hashlib.sha256("\x1f".join(f"{n}:{t}" for n, t in frame.dtypes.items()).encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def to_records(frame: pd.DataFrame, card: Card) -> list[dict[str, Any]]:
    """Return the features of each row as JSON has them.

    A missing value is None, a number that the card calls integer is an int. The inverse of
    `from_features`.
    """
    columns = []
    for feature in card.features:
        series = frame[feature.name]
        values: Iterable[Any]
        if feature.kind == "category":
            values = [value or None for value in series]
        else:
            cast = int if feature.integer else float
            values = [None if value != value else cast(value) for value in series.tolist()]
        columns.append(values)
    return [dict(zip(card.feature_names, row, strict=True)) for row in zip(*columns, strict=True)]


def from_features(card: Card, records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return records of features as a frame with the card's columns and types.

    None, an absent key and the card's missing markers become NaN or "". Keys that are no feature
    are left out. Raises DataError if a number is none.
    """
    frame = pd.DataFrame(index=pd.RangeIndex(len(records)))
    problems = []
    for feature in card.features:
        absent = {*card.missing, *feature.missing}
        values = [record.get(feature.name) for record in records]
        if feature.kind == "category":
            texts = ["" if value is None else str(value) for value in values]
            frame[feature.name] = pd.Series(
                ["" if text in absent else text for text in texts], dtype=object
            )
            continue
        numbers = np.full(len(values), np.nan, dtype=np.float32)
        for row, value in enumerate(values):
            if value is None or _as_marker(value) in absent:
                continue
            try:
                numbers[row] = float(value)
            except (TypeError, ValueError):
                problems.append(
                    f"record {row}, {feature.name!r}: found {value!r}, expected a number"
                )
        frame[feature.name] = numbers
    if problems:
        raise DataError("the records", problems)
    return frame


def _as_marker(value: object) -> str:
    """Write -1.0 as "-1", the way that a card's marker is written."""
    return f"{value:.15g}" if isinstance(value, int | float) else str(value)


def _table(card: Card) -> sql.Identifier:
    return sql.Identifier("data", card.name)


def _columns(card: Card) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name in card.feature_names)


def _between(start: str | None, end: str | None) -> tuple[list[sql.Composable], list[Any]]:
    clauses: list[sql.Composable] = [sql.SQL("true")]
    values: list[Any] = []
    if start is not None:
        clauses.append(sql.SQL("period >= %s"))
        values.append(month_start(start))
    if end is not None:
        clauses.append(sql.SQL("period <= %s"))
        values.append(month_start(end))
    return clauses, values


def _after_history(card: Card) -> sql.Composable:
    """Later than what files may teach; without `history_until`, later than all that they hold."""
    until = card.time.history_until
    if until is None:
        return sql.SQL("period > (SELECT coalesce(max(period), '-infinity') FROM {})").format(
            _table(card)
        )
    return sql.SQL("period > {}").format(sql.Literal(month_start(until)))


def _labelled(card: Card) -> sql.Composable:
    """The predictions that may be learnt from; takes `names`, the card's features."""
    return sql.SQL("label IS NOT NULL AND {}").format(_learnable(card))


def _learnable(card: Card) -> sql.Composable:
    """The predictions that may be learnt from once they have a label; takes `names`.

    The log is one for all cards: rows with a feature that this card does not know are another's.
    """
    return sql.SQL(
        "purpose IN ({purposes}) AND {after} "
        "AND features <> '{{}}' AND features - %(names)s::text[] = '{{}}'"
    ).format(
        purposes=sql.SQL(", ").join(map(sql.Literal, _SOURCES_OF_LABELS)),
        after=_after_history(card),
    )


def _labelled_predictions(
    cursor: Any, card: Card, clauses: Sequence[sql.Composable], values: Sequence[Any]
) -> pd.DataFrame:
    """Return the predictions that may be learnt from, each customer once.

    A month that is played again, to another version, brings the same customers again: of rows of
    the simulation that are alike, as many count as one version was asked.
    """
    # Named and positional values do not mix: the periods are written in as literals.
    text = cursor.mogrify(sql.SQL(" AND ").join(clauses), values).decode()
    between = sql.SQL(text.replace("%", "%%"))
    cursor.execute(
        sql.SQL(
            """
            SELECT features, label, period FROM (
                SELECT DISTINCT ON (period, features, label, customer) * FROM (
                    SELECT *, CASE purpose
                        WHEN 'simulation' THEN row_number() OVER (
                            PARTITION BY purpose, period, features, label, model_version
                            ORDER BY made_at, request_id, row)::text
                        ELSE request_id || ' ' || row END AS customer
                    FROM serving.predictions WHERE {} AND {}
                ) AS numbered
                ORDER BY period, features, label, customer, made_at, request_id, row
            ) AS labelled
            ORDER BY period, made_at, request_id, row
            """
        ).format(_labelled(card), between),
        {"names": card.feature_names},
    )
    rows = cursor.fetchall()
    frame = from_features(card, [features for features, _, _ in rows])
    frame[TARGET] = np.array([label for _, label, _ in rows], dtype=np.int8)
    frame[PERIOD] = pd.Series([period_of(period) for _, _, period in rows], dtype=object)
    return frame


def _frame(card: Card, rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Build the frame from rows of features, target, period."""
    columns = list(zip(*rows, strict=True)) or [()] * (len(card.features) + 2)
    frame = pd.DataFrame(index=pd.RangeIndex(len(rows)))
    for feature, values in zip(card.features, columns, strict=False):
        if feature.kind == "number":
            frame[feature.name] = np.array(values, dtype=np.float32)  # None becomes NaN
        else:
            frame[feature.name] = pd.Series(values, dtype=object)
    frame[TARGET] = np.array(columns[-2], dtype=np.int8)
    name_of = {day: period_of(day) for day in set(columns[-1])}
    frame[PERIOD] = pd.Series([name_of[day] for day in columns[-1]], dtype=object)
    return frame


def _wanted_columns(card: Card) -> list[tuple[str, str]]:
    kinds = {"number": "real", "category": "text"}
    return [
        ("sha256", "text"),
        ("row", "integer"),
        (PERIOD, "date"),
        *((feature.name, kinds[feature.kind]) for feature in card.features),
        (TARGET, "smallint"),
    ]


def _stored_columns(cursor: Any, card: Card) -> list[tuple[str, str]]:
    cursor.execute(
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = 'data' AND table_name = %s ORDER BY ordinal_position",
        [card.name],
    )
    return [(name, kind) for name, kind in cursor.fetchall()]


def _make_table(cursor: Any, card: Card) -> bool:
    """Make the card's table where it is not there; return whether an outdated one was replaced."""
    wanted, found = _wanted_columns(card), _stored_columns(cursor, card)
    if found == wanted:
        return False
    if found:
        logger.warning("the card %s has other columns now: data.%s is made anew", *[card.name] * 2)
        cursor.execute(sql.SQL("DROP TABLE {}").format(_table(card)))
        cursor.execute("DELETE FROM ops.ingested_files WHERE card = %s", [card.name])
    definitions = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(name),
            sql.SQL(kind),
            sql.SQL("" if kind == "real" else " NOT NULL"),
        )
        for name, kind in wanted
    ]
    cursor.execute(
        sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY (sha256, row))").format(
            _table(card), sql.SQL(", ").join(definitions)
        )
    )
    cursor.execute(sql.SQL("CREATE INDEX ON {} (period)").format(_table(card)))
    return bool(found)


def _require_table(cursor: Any, card: Card) -> None:
    found = _stored_columns(cursor, card)
    if found == _wanted_columns(card):
        return
    state = "columns of an older card" if found else "no such table"
    raise DataError(
        f"data.{card.name}", [f"found {state}, expected stored rows: run the pipeline prepare"]
    )


def _copy_in(cursor: Any, card: Card, raw: RawData) -> None:
    frame = raw.frame
    columns: list[Iterable[Any]] = [
        [raw.sha256] * len(frame),
        range(1, len(frame) + 1),
        [f"{period}-01" for period in frame[PERIOD]],
    ]
    for feature in card.features:
        if feature.kind == "number":
            # Nine digits read back as the same float32.
            columns.append(["" if v != v else f"{v:.9g}" for v in frame[feature.name].tolist()])
        else:
            columns.append(frame[feature.name])
    columns.append(frame[TARGET])
    buffer = io.StringIO()
    # Nothing is NULL in a number; in a category it is the empty text.
    writer = csv.writer(buffer, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerows(zip(*columns, strict=True))
    buffer.seek(0)
    names = sql.SQL(", ").join(sql.Identifier(name) for name, _ in _wanted_columns(card))
    texts = sql.SQL(", ").join(map(sql.Identifier, card.categories))
    force: sql.Composable = sql.SQL("")
    if card.categories:
        force = sql.SQL(", FORCE_NOT_NULL ({})").format(texts)
    cursor.copy_expert(
        sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT csv{})").format(_table(card), names, force),
        buffer,
    )
