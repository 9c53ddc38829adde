"""Files of rows over HTTP: what comes back, what is logged, and what a caller may break."""

from __future__ import annotations

import csv
import gzip
import io
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from mlops.database import database_url
from mlops.serving import score
from mlops.serving.client import ApiError, ApiUnavailable, PredictClient
from mlops.serving.labels import read_labels
from mlops.serving.payload import switch_current
from mlops.serving.traffic import deliver_labels
from mlops.settings import Settings
from tests.fixtures.predict import PredictServer, exported, make_payload
from tests.fixtures.waiting import await_

CSV, NDJSON, PARQUET = "text/csv", "application/x-ndjson", "application/vnd.apache.parquet"


@pytest.fixture
def record(lone_api: PredictServer) -> dict[str, Any]:
    return lone_api.reference() | {"pdays": None}


def rows_of(record: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Return rows of which the third cannot be scored and the fourth is unusual."""
    rows = [record | {"age": 20 + n % 60, "id": f"k{n}"} for n in range(number)]
    rows[2] |= {"age": -1e39}
    rows[3] |= {"job": "astro,naut"}
    return rows


def written(rows: list[dict[str, Any]], kind: str) -> bytes:
    if kind == NDJSON:
        return b"".join(orjson.dumps(row, default=float) + b"\n" for row in rows)
    if kind == CSV:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue().encode()
    sink = io.BytesIO()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["age"] = [float(age) for age in columns["age"]]
    pq.write_table(pa.table(columns), sink, row_group_size=100)
    return sink.getvalue()


def read(content: bytes, kind: str) -> list[dict[str, Any]]:
    if kind == NDJSON:
        return [orjson.loads(line) for line in content.splitlines()]
    if kind == CSV:
        return list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    return list(pq.read_table(io.BytesIO(content)).to_pylist())


def send(server: PredictServer, body: Any, kind: str, **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(
        f"{server.url}/predict/batch", data=body, headers={"Content-Type": kind} | named, timeout=60
    )


def parts_of(response: requests.Response) -> dict[str, bytes]:
    mark = b"\r\n--" + response.headers["Content-Type"].partition("boundary=")[2].encode()
    first, *parts, last = response.content.split(mark)
    assert (first, last) == (b"", b"--\r\n")
    split = [part.partition(b"\r\n\r\n") for part in parts]
    return {head.split(b'name="')[1].split(b'"')[0].decode(): body for head, _, body in split}


def refused(response: requests.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize(
    ("kind", "packed"),
    [(CSV, False), (CSV, True), (NDJSON, False), (NDJSON, True), (PARQUET, False)],
)
def test_scores_what_predict_scores_in_each_format(
    lone_api: PredictServer, record: dict[str, Any], kind: str, packed: bool, tmp_path: Path
) -> None:
    rows = rows_of(record, 9000)  # more than two blocks
    ending = {CSV: ".csv", NDJSON: ".ndjson", PARQUET: ".parquet"}[kind] + ".gz" * packed
    source, out, bad = (tmp_path / name for name in (f"in{ending}", f"out{ending}", "bad.ndjson"))
    content = written(rows, kind)
    source.write_bytes(gzip.compress(content, 1) if packed else content)
    told: list[tuple[str, int, int]] = []
    with PredictClient(lone_api.url) as client:
        summary = client.score_file(source, out, bad, "asked", progress=lambda *x: told.append(x))
        plain = [{k: v for k, v in row.items() if k != "id"} for row in rows]
        single = client.predict([row for n, row in enumerate(plain) if n != 2])["predictions"]
    assert summary == {
        "request_id": "asked", "version": "1", "rows": 9000, "scored": 8999, "rejected": 1
    }  # fmt: skip
    head = 2 if kind == CSV else 1
    (fault,) = map(orjson.loads, bad.read_bytes().splitlines())
    assert (fault["line"], fault["field"], fault["code"]) == (head + 2, "age", "out_of_range")
    found = read(gzip.decompress(out.read_bytes()) if packed else out.read_bytes(), kind)
    assert [row["id"] for row in found] == [row["id"] for n, row in enumerate(rows) if n != 2]
    assert [int(row["row"]) for row in found] == [n + head for n in range(9000) if n != 2]
    for row, answer in zip(found, single, strict=True):
        # A linear model: the last bit depends on how many rows are multiplied at once.
        assert float(row["probability"]) == pytest.approx(answer["probability"], abs=2e-7)
        assert row["decision"] == answer["decision"]
        assert int(row["warnings"]) == len(answer["warnings"])
    assert found[2]["job"] == "astro,naut"
    size = source.stat().st_size
    assert ("sending", size, size) in told
    assert told[-1] == ("scoring", 9000, 9000)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [source.name, out.name, bad.name]
    )


def test_gives_the_predictions_alone_if_asked(
    lone_api: PredictServer, record: dict[str, Any]
) -> None:
    content = written(rows_of(record, 5), CSV)
    response = send(lone_api, content, CSV, Accept="text/csv")
    assert response.headers["Content-Type"] == CSV
    assert [int(row["row"]) for row in read(response.content, CSV)] == [2, 3, 5, 6]
    both = parts_of(send(lone_api, content, CSV, Accept="*/*"))
    assert list(both) == ["predictions", "rejected", "summary"]
    assert both["predictions"] == response.content


@pytest.mark.parametrize(
    ("body", "kind", "headers", "expected"),
    [
        (b"", CSV, {}, (422, "empty")),
        (b"age;job\n1;2\n", CSV, {}, (422, "missing_field")),
        (b"{}", "application/json", {}, (415, "wrong_content_type")),
        (b"a", "text/csv; charset=latin-1", {}, (415, "wrong_encoding")),
        (b"a", CSV, {"Content-Encoding": "br"}, (415, "wrong_encoding")),
        (b"a", PARQUET, {"Content-Encoding": "gzip"}, (415, "wrong_encoding")),
        (b"a", CSV, {"Content-Encoding": "gzip"}, (400, "wrong_gzip")),
        (gzip.compress(b"age\n" * 99)[:-9], CSV, {"Content-Encoding": "gzip"}, (400, "wrong_gzip")),
        ("âge\n".encode("utf-16"), CSV, {}, (422, "wrong_encoding")),
        (b"age\n" * 7 + b"\xe9\n", CSV, {}, (422, "wrong_encoding")),
        (b"age\n\xc3", CSV, {}, (422, "wrong_encoding")),
        (b"PAR1 no", PARQUET, {}, (422, "wrong_parquet")),
        (b"age\n", CSV, {"X-Period": "2009"}, (400, "wrong_header")),
    ],
)
def test_refuses_what_cannot_be_read_before_anything_is_scored(
    lone_api: PredictServer, body: bytes, kind: str, headers: dict[str, str], expected: Any
) -> None:
    response = send(lone_api, body, kind, **headers)
    assert refused(response) == expected
    if body.endswith(b"\xe9\n"):
        assert "line 8 has the byte 0xe9" in response.json()["error"]["message"]


def test_a_broken_end_is_told_by_an_error_instead_of_a_summary(
    lone_api: PredictServer, record: dict[str, Any], tmp_path: Path
) -> None:
    rows = [record | {"id": f"k{n}"} for n in range(9000)]
    content = written(rows, CSV) + b'1,"'
    parts = parts_of(send(lone_api, content, CSV))
    assert list(parts) == ["predictions", "rejected", "error"]
    assert orjson.loads(parts["error"])["error"]["code"] == "wrong_row"
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        send(lone_api, content, CSV, Accept=CSV)
    source, out, bad = (tmp_path / name for name in ("in.csv", "out.csv", "bad.ndjson"))
    source.write_bytes(content)
    with PredictClient(lone_api.url) as client:
        with pytest.raises(ApiError, match=r"line 9002 .*does not end"):
            client.score_file(source, out, bad)
        with pytest.raises(ValueError, match=r"expected \.csv"):
            client.score_file(tmp_path / "in.xlsx", out, bad)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_an_upload_that_breaks_off_scores_nothing(
    predict_server: PredictServer, database: Settings
) -> None:
    host, port = database.host, database.predict_port
    head = (
        f"POST /predict/batch HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/csv\r\n"
        "X-Request-Id: broken-off\r\nContent-Length: 1000000\r\n\r\n"
    )
    content = written([predict_server.reference()] * 100, CSV)
    with socket.create_connection((host, port), timeout=30) as client:
        client.sendall(head.encode() + content)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert b'"unreadable_body"' in answer
    assert logged(database, "broken-off") == []
    assert not list((database.state_dir / "batches").iterdir())


@pytest.mark.parametrize("kind", ["application/json", "text/csv; charset=latin-1"])
def test_a_refused_upload_that_does_not_come_is_answered_soon(
    lone_api: PredictServer, kind: str
) -> None:
    head = (
        f"POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        "Content-Length: 99999999\r\n\r\nage"
    )
    address = (lone_api.settings.host, lone_api.settings.predict_port)
    with socket.create_connection(address, timeout=8) as client:
        client.sendall(head.encode())
        assert b"HTTP/1.1 415 " in client.recv(4096)
    response = send(lone_api, b"a" * (6 << 20), "application/json")
    assert refused(response) == (415, "wrong_content_type")


@pytest.fixture
def small_limits(database: Settings) -> Iterator[PredictServer]:
    make_payload(database.payloads_dir, "1")
    switch_current(database.payloads_dir, "1")
    extra = {"MLOPS_PREDICT_BATCH_MAX_MB": "3", "MLOPS_PREDICT_WORKERS": "1"}
    server = PredictServer(database.model_copy(update={"predict_workers": 1}), False, extra=extra)
    try:
        yield server.start()
    finally:
        server.stop()


def test_a_gzip_bomb_is_cut_off(small_limits: PredictServer) -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    (worker,) = small_limits.workers()
    before = psutil.Process(worker).memory_info().rss
    response = send(small_limits, bomb, NDJSON, Content_Encoding="gzip")
    assert refused(response) == (413, "body_too_large")
    assert psutil.Process(worker).memory_info().rss - before < 50 * 2**20
    assert refused(send(small_limits, b"a" * 2**22, CSV)) == (413, "body_too_large")


def test_a_third_file_at_once_is_asked_to_wait(
    small_limits: PredictServer, database: Settings, record: dict[str, Any], tmp_path: Path
) -> None:
    head = (
        "POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
        "Content-Length: 99999\r\n\r\nage"
    )
    address = (database.host, database.predict_port)
    content = written([record] * 3, CSV)
    held = [socket.create_connection(address, timeout=30) for _ in range(2)]
    try:
        for client in held:
            client.sendall(head.encode())
        await_(lambda: send(small_limits, content, CSV).status_code == 429, 20)
        response = send(small_limits, content, CSV)
        assert refused(response) == (429, "busy")
        assert int(response.headers["Retry-After"]) > 0
        assert small_limits.post(record).status_code == 200
        threading.Timer(0.5, lambda: [client.close() for client in held]).start()
        source = tmp_path / "in.csv"
        source.write_bytes(content)
        with PredictClient(small_limits.url) as client_:
            summary = client_.score_file(source, tmp_path / "out.csv", tmp_path / "bad.ndjson")
        assert summary["scored"] == 3
    finally:
        for client in held:
            client.close()


def test_memory_does_not_grow_with_the_file(
    lone_api: PredictServer, record: dict[str, Any], tmp_path: Path
) -> None:
    (worker,) = map(psutil.Process, lone_api.workers())
    row = written([record | {"note": "x" * 200}], CSV)
    head, line, _ = row.split(b"\r\n")

    def grown(rows: int) -> int:
        source = tmp_path / "in.csv"
        source.write_bytes(head + b"\n" + (line + b"\n") * rows)
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, worker.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with PredictClient(lone_api.url) as client:
                summary = client.score_file(source, tmp_path / "out.csv", tmp_path / "bad.ndjson")
        finally:
            done.set()
            watcher.join()
        assert summary["scored"] == rows
        return peak

    few = grown(40_000)
    assert grown(400_000) - few < 40 * 2**20  # of a file of 100 MB


def logged(database: Settings, request_id: str) -> list[tuple[Any, ...]]:
    with (
        psycopg2.connect(database_url(settings=database)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "SELECT row, period::text, purpose, model_version, features, probability, warnings"
            " FROM serving.predictions WHERE request_id = %s ORDER BY row",
            [request_id],
        )
        return cursor.fetchall()


def test_logs_what_predict_logs_and_takes_labels(
    predict_server: PredictServer, database: Settings, tmp_path: Path
) -> None:
    reference = predict_server.reference()
    rows = rows_of(reference | {"job": 'a"\\\t,\n\u00e9'}, 50)
    source, out, bad = (tmp_path / name for name in ("in.csv", "out.csv", "bad.ndjson"))
    source.write_bytes(written(rows, CSV))
    plain = [{k: v for k, v in row.items() if k != "id"} for row in rows]
    with PredictClient(predict_server.url) as client:
        for _ in range(2):  # a repeat is not logged twice
            client.score_file(source, out, bad, "by-file", "2009-03", "simulation")
        client.predict(
            [row for n, row in enumerate(plain) if n != 2], "2009-03", "simulation", "by-list"
        )
    await_(lambda: len(logged(database, "by-file")) == len(logged(database, "by-list")) == 49, 20)
    by_file, by_list = logged(database, "by-file"), logged(database, "by-list")
    assert [row[0] for row in by_file] == [n for n in range(50) if n != 2]
    for one, other in zip(by_file, by_list, strict=True):
        assert one[1:5] == other[1:5]
        assert one[5] == pytest.approx(other[5], abs=2e-7)
        assert one[6] == other[6]
    card = exported(0)[0]
    answers = tmp_path / "labels.csv"
    answers.write_text("request_id,row,label\nby-file,0,1\nby-file,49,0\n")
    with psycopg2.connect(database_url(settings=database)) as connection:
        assert deliver_labels(connection, read_labels(answers, card)) == 2


def test_a_file_waits_for_room_in_the_log_and_says_so_if_there_is_none(
    database: Settings, tmp_path: Path
) -> None:
    make_payload(database.payloads_dir, "1")
    switch_current(database.payloads_dir, "1")
    # Its Postgres is away, and its spool small: files fill a part of it, requests go on.
    away = database.model_copy(update={"predict_workers": 1, "postgres_port": 1})
    server = PredictServer(away, extra={"MLOPS_SPOOL_MAX_MB": "2"})
    batching = database.payloads_dir / "1" / "predictor" / "batch.py"
    text = batching.read_text()
    batching.write_text(text.replace("PATIENCE_SECONDS = 60.0", "PATIENCE_SECONDS = 0.5"))
    try:
        server.start()
        source = tmp_path / "in.csv"
        source.write_bytes(written([server.reference()] * 20_000, CSV))
        with PredictClient(server.url) as client:
            with pytest.raises(ApiUnavailable, match="the spool holds"):
                client.score_file(source, tmp_path / "out.csv", tmp_path / "bad.ndjson")
            assert client.predict(server.reference())["predictions"]
        assert [path.name for path in tmp_path.iterdir() if path.suffix == ".csv"] == ["in.csv"]
    finally:
        server.stop()


def test_a_file_leaves_the_disk_to_the_log(database: Settings) -> None:
    make_payload(database.payloads_dir, "1")
    switch_current(database.payloads_dir, "1")
    alone = database.model_copy(update={"predict_workers": 1})
    # More than any disk has: so it is for want of room that a file is refused.
    server = PredictServer(alone, extra={"MLOPS_SPOOL_MAX_MB": f"{1 << 40}"})
    try:
        server.start()
        response = send(server, written([server.reference()] * 9, CSV), CSV)
        assert refused(response) == (503, "no_room")
        assert "MLOPS_SPOOL_MAX_MB" in response.json()["error"]["message"]
        assert int(response.headers["Retry-After"]) > 0
        assert server.post(server.reference()).status_code == 200
        assert not list((database.state_dir / "batches").iterdir())
    finally:
        server.stop()


def test_the_command_scores_a_file(
    lone_api: PredictServer,
    record: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(score, "get_settings", lambda: lone_api.settings)
    source = tmp_path / "in.csv.gz"
    source.write_bytes(gzip.compress(written(rows_of(record, 9), CSV)))
    assert score.main([str(source), "--request-id", "r1"]) == 0
    out = tmp_path / "in.scored.csv.gz"
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 8 of 9 rows scored by version 1 (request r1)",
        f"{out}.rejected.ndjson: 1 rows cannot be scored, and why",
    ]
    assert len(read(gzip.decompress(out.read_bytes()), CSV)) == 8
    assert score.main([str(tmp_path / "no.csv")]) == 1
    assert "no.csv" in capsys.readouterr().err
