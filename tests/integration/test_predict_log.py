"""Every answered row reaches Postgres once, whatever dies in between."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests

from mlops.database import connect
from mlops.serving.client import ApiUnavailable, PredictClient
from mlops.settings import Settings
from predictor.prediction_log import format_lines
from tests.fixtures.postgres import free_ports
from tests.fixtures.predict import PredictServer, make_payload
from tests.fixtures.waiting import await_


def logged(settings: Settings, columns: str = "request_id") -> list[tuple[Any, ...]]:
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM serving.predictions ORDER BY request_id, row")
        return list(cursor.fetchall())


def spooled(server: PredictServer) -> int:
    """Return the number of rows on disk."""
    return sum(path.read_bytes().count(b"\n") for path in server.spool.glob("*.*"))


@pytest.fixture
def without_postgres(database: Settings) -> PredictServer:
    """A server, not started, whose Postgres is away: nobody listens on the port it knows."""
    make_payload(database.payloads_dir, "1")
    away = database.model_copy(update={"postgres_port": free_ports(1)[0]})
    return PredictServer(away, payload="1")


def test_logs_each_row_with_what_was_asked_and_answered(predict_server: PredictServer) -> None:
    record = {**predict_server.reference(), "job": "unknown", "age": 4000}
    typical = predict_server.reference()
    answer = predict_server.post(
        [record, typical], X_Request_Id="r-1", X_Period="2009-03", X_Purpose="simulation"
    ).json()
    await_(lambda: len(logged(predict_server.settings)) == 2)
    rows = logged(
        predict_server.settings,
        "request_id, row, period::text, purpose, model_version, features, probability, warnings,"
        " label, labelled_at, made_at > now() - interval '1 minute'",
    )
    first, second = answer["predictions"]
    common = ("2009-03-01", "simulation", "1")
    assert rows == [
        ("r-1", 0, *common, {**record, "job": None}, first["probability"], 1, None, None, True),
        ("r-1", 1, *common, typical, second["probability"], 0, None, None, True),
    ]
    await_(lambda: spooled(predict_server) == 0, what="an empty spool")
    health = requests.get(f"{predict_server.url}/health", timeout=10).json()
    assert health["log"] == {"enabled": True, "pending": 0, "rejected": 0, "error": None}


def test_defaults_are_live_and_this_month(predict_server: PredictServer) -> None:
    answer = predict_server.post(predict_server.reference()).json()
    await_(lambda: logged(predict_server.settings))
    assert logged(
        predict_server.settings,
        "request_id, purpose, period = date_trunc('month', now() AT TIME ZONE 'UTC')",
    ) == [(answer["request_id"], "live", True)]


def test_repeat_of_a_request_is_answered_and_logged_once(predict_server: PredictServer) -> None:
    record = predict_server.reference()
    answers = [predict_server.post(record, X_Request_Id="again").json() for _ in range(5)]
    assert answers == answers[:1] * 5
    predict_server.post(record, X_Request_Id="last")
    await_(lambda: ("last",) in logged(predict_server.settings))
    await_(lambda: spooled(predict_server) == 0)
    assert logged(predict_server.settings) == [("again",), ("last",)]


def test_refused_request_is_not_logged(predict_server: PredictServer) -> None:
    record = predict_server.reference()
    assert predict_server.post([record, {**record, "age": "x"}]).status_code == 422
    predict_server.post(record, X_Request_Id="good")
    await_(lambda: logged(predict_server.settings))
    assert logged(predict_server.settings) == [("good",)]


def test_killed_workers_lose_no_answered_row(predict_server: PredictServer) -> None:
    record = predict_server.reference()
    answered: list[str] = []
    stop = threading.Event()

    def call(caller: int) -> None:
        number = 0
        with PredictClient(predict_server.url) as client:
            while not stop.is_set():
                number += 1
                try:
                    answer = client.predict(record, request_id=f"{caller}-{number}")
                except ApiUnavailable:
                    continue  # a request that was cut off was not answered
                answered.append(answer["request_id"])

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            enough = len(answered) + 100
            await_(lambda enough=enough: len(answered) > enough)
            for worker in predict_server.workers():
                os.kill(worker, signal.SIGKILL)
        enough = len(answered)
        await_(lambda: len(answered) > enough)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    await_(lambda: set(answered) <= {name for (name,) in logged(predict_server.settings)})
    assert len(answered) == len(set(answered)) > 300


def test_kill_of_everything_loses_no_answered_row(predict_server: PredictServer) -> None:
    record = predict_server.reference()
    for number in range(20):
        predict_server.post(record, X_Request_Id=f"before-{number:02}")
    assert predict_server.process is not None
    os.killpg(predict_server.process.pid, signal.SIGKILL)
    predict_server.process.wait()
    predict_server.start()
    await_(lambda: len(logged(predict_server.settings)) == 20)
    await_(lambda: spooled(predict_server) == 0)


def test_half_a_line_of_a_killed_worker_is_no_row(predict_server: PredictServer) -> None:
    predict_server.post(predict_server.reference(), X_Request_Id="whole")
    await_(lambda: logged(predict_server.settings))
    (predict_server.spool / "1-abc.open").write_bytes(b'{"request_id": "half", "rows": [[')
    await_(lambda: spooled(predict_server) == 0 and not list(predict_server.spool.glob("1-*")))
    assert logged(predict_server.settings) == [("whole",)]


def test_answers_without_postgres_and_ships_when_it_is_back(
    without_postgres: PredictServer, database: Settings
) -> None:
    server = without_postgres
    try:
        server.start()
        record = server.reference()
        for number in range(30):
            assert server.post([record] * 2, X_Request_Id=f"r-{number:02}").ok
        health = await_(
            lambda: (
                (found := requests.get(f"{server.url}/health", timeout=10).json()["log"])["error"]
                and found["pending"] == 60
                and found
            )
        )
        assert "refused" in health["error"]
    finally:
        server.stop()
    assert spooled(server) == 60

    server.settings = database
    try:
        server.start()
        await_(lambda: len(logged(database)) == 60)
        await_(
            lambda: requests.get(f"{server.url}/health", timeout=10).json()["log"]["pending"] == 0
        )
    finally:
        server.stop()


def test_ships_by_itself_once_the_table_is_there(predict_server: PredictServer) -> None:
    """Also what Postgres answers in the middle of its own start, or before it is migrated."""
    settings = predict_server.settings
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute("ALTER TABLE serving.predictions RENAME TO hidden")
    try:
        predict_server.post(predict_server.reference(), X_Request_Id="early")
        log = await_(
            lambda: (
                (f := requests.get(f"{predict_server.url}/health", timeout=10).json()["log"])[
                    "error"
                ]
                and f
            )
        )
        assert "serving.predictions" in log["error"]
    finally:
        with connect(settings=settings) as connection, connection.cursor() as cursor:
            cursor.execute("ALTER TABLE serving.hidden RENAME TO predictions")
    await_(lambda: logged(settings) == [("early",)])


def test_connection_cut_by_the_server_is_made_again(predict_server: PredictServer) -> None:
    predict_server.post(predict_server.reference(), X_Request_Id="one")
    await_(lambda: len(logged(predict_server.settings)) == 1)
    with connect(settings=predict_server.settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'predict'"
        )
        assert cursor.rowcount > 0
    predict_server.post(predict_server.reference(), X_Request_Id="two")
    await_(lambda: logged(predict_server.settings) == [("one",), ("two",)])


def test_graceful_stop_leaves_nothing_behind(predict_server: PredictServer) -> None:
    for number in range(50):
        predict_server.post(predict_server.reference(), X_Request_Id=f"{number}")
    predict_server.stop()
    assert spooled(predict_server) == 0
    assert len(logged(predict_server.settings)) == 50


def test_full_spool_refuses_rather_than_answer_unlogged(without_postgres: PredictServer) -> None:
    without_postgres.extra = {"MLOPS_SPOOL_MAX_MB": "0.05"}
    try:
        without_postgres.start()
        record = without_postgres.reference()
        accepted = 0
        while (response := without_postgres.post([record] * 10)).ok:
            accepted += 1
            assert accepted < 100
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "log_unavailable"
        assert int(response.headers["Retry-After"]) > 0
        # Each worker counts for itself what it has just written, so one may still have room.

        def send_more() -> None:  # each worker counts for itself, so one may still have room
            nonlocal accepted
            with PredictClient(without_postgres.url) as client:
                for _ in range(100):
                    client.predict([record] * 10)
                    accepted += 1

        with pytest.raises(ApiUnavailable, match="the spool holds"):
            send_more()
    finally:
        without_postgres.stop()
    assert accepted > 0
    assert spooled(without_postgres) == accepted * 10


def test_row_that_postgres_refuses_is_kept_aside_and_blocks_nothing(
    predict_server: PredictServer,
) -> None:
    at = "2026-01-01T00:00:00+00:00"
    poison = format_lines("poison", at, "2009-03-01", "no such purpose", "1", [({}, 0.5, 0)])
    (predict_server.spool / "1-abc-1.ready").write_bytes(poison)
    predict_server.post(predict_server.reference(), X_Request_Id="good")
    await_(lambda: logged(predict_server.settings) == [("good",)])
    await_(lambda: not list(predict_server.spool.glob("*.ready")))
    aside = Path(predict_server.spool / "rejected" / "rows.tsv").read_bytes()
    assert aside == poison
    health = requests.get(f"{predict_server.url}/health", timeout=10).json()
    assert health["log"]["rejected"] == 1


def test_logs_text_that_the_spool_would_read_otherwise_as_it_came(
    predict_server: PredictServer,
) -> None:
    hostile = ["a\tb", "back\\slash", "line\nbreak\r", "\\N", "\\.", 'quo"te', "\u2028é\x7f"]
    record = predict_server.reference()
    sent = [{**record, "job": text} for text in hostile]
    assert predict_server.post(sent, X_Request_Id="hostile").ok
    await_(lambda: len(logged(predict_server.settings)) == len(sent))
    assert [row[0] for row in logged(predict_server.settings, "features")] == sent


def test_api_may_add_predictions_and_nothing_else(database: Settings) -> None:
    with (
        pytest.raises(psycopg2.errors.InsufficientPrivilege),
        connect(role="predict", settings=database) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT * FROM serving.predictions")
