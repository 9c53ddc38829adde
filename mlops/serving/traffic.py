"""Play a month of the source file as live traffic, and deliver its labels afterwards.

What `simulate_month` sends is the file's own future, one request a row, as customers would. It
never writes a prediction: the API logs what it answered, and labels are delivered to that log.

A row's request id is made of card, period, row, content and the version that answers. The same
month played again for the same version is therefore the same traffic and adds no row; for another
version it is new traffic, which the monitor needs. `forget_simulations` takes all of it back.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import orjson
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values

from mlops.dataset.card import TARGET, Card
from mlops.dataset.rows import load_future, periods_to_come, to_records
from mlops.serving.client import ApiError, PredictClient
from mlops.settings import Settings, get_settings

CALLERS = 4
"""Requests under way at a time; as many as one worker has threads."""

LOG_PATIENCE_S = 60.0
"""How long the log may stand still before its rows are given up for lost."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "mlops/simulation")
_POLL_S = 0.1

Label = tuple[str, int, int]
"""Request id, row of the request from 0, label (0 or 1)."""


class TrafficError(RuntimeError):
    """A month cannot be played, or did not reach the log."""


@dataclass(frozen=True)
class Simulation:
    """A month that was played."""

    period: str
    rows: int
    labelled: int
    warned: int
    """Rows that the API answered with a warning."""
    seconds: float
    versions: tuple[str, ...]
    """Versions that answered; more than one if a deployment fell into the month."""
    labels: tuple[Label, ...] = field(repr=False, default=())
    """The answers of the month's customers, in the file's order, delivered or not."""


def simulate_month(
    period: str,
    card: Card,
    connection: Connection,
    progress: Callable[[int, int], None] | None = None,
    settings: Settings | None = None,
    *,
    deliver: bool = True,
) -> Simulation:
    """Send the file's rows of `period` to the API, wait for the log, deliver the labels, commit.

    Without `deliver` the labels are left to be delivered later (`Simulation.labels`).
    `progress` is called with rows sent and rows in all. Raises TrafficError if there is no such
    month to come (naming those there are), if the API does not log, or refuses a row;
    ApiUnavailable if it does not answer.
    """
    settings = settings or get_settings()
    started = time.monotonic()
    frame = load_future(connection, card, period, period)
    if frame.empty:
        months = periods_to_come(connection, card)
        raise TrafficError(
            f"{card.name} has no month {period} to come: "
            + (f"there are {', '.join(months)}" if months else "its file holds history only")
        )
    version = _logging_version(settings)
    records = to_records(frame, card)
    ids = [
        _request_id(card, period, int(row), record, version)
        for row, record in zip(frame.index, records, strict=True)
    ]
    answers = _send(records, ids, period, settings, progress)
    _wait_for_log(connection, ids, settings)
    labels = [(name, 0, int(label)) for name, label in zip(ids, frame[TARGET], strict=True)]
    labelled = deliver_labels(connection, labels) if deliver else 0
    connection.commit()
    return Simulation(
        period=period,
        rows=len(records),
        labelled=labelled,
        warned=sum(bool(answer["predictions"][0]["warnings"]) for answer in answers),
        seconds=time.monotonic() - started,
        versions=tuple(sorted({answer["version"] for answer in answers}, key=int)),
        labels=tuple(labels),
    )


def deliver_labels(connection: Connection, labels: Iterable[Label]) -> int:
    """Set the labels of logged predictions; return how many were found. The caller commits.

    `labelled_at` is the time at which a label came or changed; one that is there already is left.
    """
    with connection.cursor() as cursor:
        found = execute_values(
            cursor,
            """
            WITH delivered (request_id, row, label) AS (VALUES %s), changed AS (
                UPDATE serving.predictions AS made
                SET label = delivered.label::smallint, labelled_at = clock_timestamp()
                FROM delivered
                WHERE made.request_id = delivered.request_id AND made.row = delivered.row
                    AND made.label IS DISTINCT FROM delivered.label::smallint
            )
            SELECT count(*) FROM serving.predictions JOIN delivered USING (request_id, row)
            """,
            list(labels),
            page_size=1000,
            fetch=True,
        )
    return sum(count for (count,) in found)


def forget_simulations(connection: Connection) -> int:
    """Delete what was simulated, labels included; return the number of rows. The caller commits.

    It loses nothing: the months can be played again.
    """
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM serving.predictions WHERE purpose = 'simulation'")
        return int(cursor.rowcount)


def _logging_version(settings: Settings) -> str:
    with PredictClient.of(settings) as client:
        health = client.health()
    if not health["log"]["enabled"]:
        raise TrafficError(
            f"the API at {settings.predict_url} logs no predictions, so nothing would come of it: "
            "start it with MLOPS_PREDICT_DB_PASSWORD, as `make up` does"
        )
    return str(health["version"])


def _request_id(card: Card, period: str, row: int, record: dict[str, Any], version: str) -> str:
    return str(
        uuid.uuid5(_NAMESPACE, orjson.dumps([card.name, period, row, record, version]).hex())
    )


def _send(
    records: list[dict[str, Any]],
    ids: list[str],
    period: str,
    settings: Settings,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """Return the answers, in the order of the records."""
    kept = threading.local()
    clients: list[PredictClient] = []

    def client() -> PredictClient:
        if not hasattr(kept, "client"):
            kept.client = PredictClient.of(settings)
            clients.append(kept.client)
        found: PredictClient = kept.client
        return found

    def send(number: int) -> dict[str, Any]:
        return client().predict(
            records[number], period=period, purpose="simulation", request_id=ids[number]
        )

    answers: list[dict[str, Any]] = []
    pool = ThreadPoolExecutor(CALLERS)
    try:
        for answer in pool.map(send, range(len(records))):
            answers.append(answer)
            if progress is not None and (len(answers) % 100 == 0 or len(answers) == len(records)):
                progress(len(answers), len(records))
    except ApiError as fault:
        raise TrafficError(
            f"{period}, row {len(answers)} of the month: the API refuses it: {fault}"
        ) from fault
    finally:
        pool.shutdown(cancel_futures=True)
        for each in clients:
            each.close()
    return answers


def _wait_for_log(connection: Connection, ids: list[str], settings: Settings) -> None:
    """Return when every request is in Postgres; raise TrafficError if the log stands still."""
    logged, moved = -1, time.monotonic()
    while True:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM serving.predictions WHERE request_id = ANY(%s) AND row = 0",
                (ids,),
            )
            row = cursor.fetchone()
        count = int(row[0]) if row else 0
        if count == len(ids):
            return
        if count > logged:
            logged, moved = count, time.monotonic()
        elif time.monotonic() - moved > LOG_PATIENCE_S:
            with PredictClient.of(settings) as client:
                log = client.health()["log"]
            raise TrafficError(
                f"{count} of {len(ids)} predictions reached serving.predictions, and no more came "
                f"for {LOG_PATIENCE_S:.0f} s; the API's log says {log}. They are in its spool and "
                "will come: run this again then"
            )
        time.sleep(_POLL_S)
