"""What the running API tells Prometheus and its log, over workers that come, go and are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from mlops.serving.payload import switch_current
from mlops.settings import Settings
from tests.fixtures.postgres import make_settings
from tests.fixtures.predict import PredictServer, make_payload
from tests.fixtures.waiting import await_

PREDICTED = 'predict_requests_total{route="/predict",status="200"}'


def series(server: PredictServer) -> dict[str, float]:
    """Return the value of each series that the API tells."""
    response = requests.get(f"{server.url}/metrics", timeout=10)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in response.text.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def lines(server: PredictServer) -> list[dict[str, Any]]:
    """Return the lines of the log; fails where one is no JSON object."""
    found = [json.loads(line) for line in server.output.splitlines()]
    assert all(isinstance(line, dict) for line in found)
    return found


def send(server: PredictServer, count: int) -> None:
    """Send requests on connections of their own, so that all workers get some."""
    record = server.reference()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: server.post(record).ok, range(count)))


def pids(server: PredictServer) -> set[int]:
    """Return the workers that have counted a request, by the files that they count into."""
    folder = server.settings.state_dir / "metrics"
    return {
        int(found[1])
        for path in folder.iterdir()
        if (found := re.match(r"histogram_(\d+)", path.name))
    }


def test_counts_are_those_of_all_workers_whatever_becomes_of_them(
    predict_server: PredictServer,
) -> None:
    send(predict_server, 60)
    assert len(pids(predict_server)) == 2, "one worker had them all"
    assert series(predict_server)[PREDICTED] == 60

    victim = predict_server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    await_(lambda: victim not in predict_server.workers() and len(predict_server.workers()) == 2)
    send(predict_server, 20)
    found = series(predict_server)
    assert found[PREDICTED] == 80
    assert found['predict_rows_total{route="/predict",version="1"}'] == 80
    assert found['predict_request_duration_seconds_count{route="/predict"}'] == 80
    await_(lambda: series(predict_server)['predict_workers{version="1"}'] == 2)

    assert predict_server.process is not None
    before = set(predict_server.workers())
    predict_server.process.send_signal(signal.SIGHUP)
    await_(
        lambda: len(predict_server.workers()) == 2 and not before & set(predict_server.workers())
    )
    send(predict_server, 10)
    assert series(predict_server)[PREDICTED] == 90
    # Those that have left are folded into one file, whose name holds no number.
    await_(lambda: pids(predict_server) <= set(predict_server.workers()))
    assert series(predict_server)[PREDICTED] == 90


def test_only_the_version_that_answers_is_told(predict_server: PredictServer) -> None:
    assert series(predict_server)['predict_workers{version="1"}'] == 2
    make_payload(predict_server.settings.payloads_dir, "2", seed=1)
    switch_current(predict_server.settings.payloads_dir, "2")
    await_(lambda: series(predict_server).get('predict_workers{version="2"}') == 2)
    found = series(predict_server)
    assert [name for name in found if name.startswith("predict_model_info")] == [
        'predict_model_info{candidate="LogisticRegression",model="bank_marketing",version="2"}'
    ]
    assert found['predict_model_loads_total{outcome="loaded"}'] == 4

    (make_payload(predict_server.settings.payloads_dir, "3") / "model.onnx").write_bytes(
        b"no model"
    )
    switch_current(predict_server.settings.payloads_dir, "3")
    failed = 'predict_model_loads_total{outcome="failed"}'
    await_(lambda: series(predict_server).get(failed, 0) >= 2)
    assert series(predict_server)['predict_workers{version="2"}'] == 2


def test_counts_outlive_workers_with_new_code_and_begin_anew_with_a_new_server(
    predict_server: PredictServer,
) -> None:
    send(predict_server, 10)
    before = set(predict_server.workers())
    folder = make_payload(predict_server.settings.payloads_dir, "2", seed=1)
    with (folder / "predictor" / "metrics.py").open("a") as code:
        code.write("\n# another version\n")
    switch_current(predict_server.settings.payloads_dir, "2")
    await_(
        lambda: len(predict_server.workers()) == 2 and not before & set(predict_server.workers())
    )
    await_(lambda: series(predict_server).get('predict_workers{version="2"}') == 2)
    send(predict_server, 5)
    found = series(predict_server)
    assert found[PREDICTED] == 15, "the check of the new code must not count"
    assert found['predict_rows_total{route="/predict",version="1"}'] == 10
    assert found['predict_rows_total{route="/predict",version="2"}'] == 5
    assert 'predict_workers{version="1"}' not in found

    assert predict_server.process is not None
    os.killpg(predict_server.process.pid, signal.SIGKILL)
    predict_server.process.wait()
    predict_server.start()
    found = series(predict_server)
    assert PREDICTED not in found
    assert found['predict_workers{version="2"}'] == 2
    assert (predict_server.settings.state_dir / "metrics").is_dir()


def test_no_volume_is_needed(tmp_path: Path) -> None:
    """As the payload's image with a read-only root: only the temporary folder can be written."""
    settings = make_settings(tmp_path)
    make_payload(settings.payloads_dir, "1")
    (tmp_path / "a file").write_text("")
    extra = {"MLOPS_STATE_DIR": str(tmp_path / "a file"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    server = PredictServer(settings, logged=False, payload="1", extra=extra)
    try:
        server.start()
        send(server, 10)
        found = series(server)
        assert found[PREDICTED] == 10
        assert "predict_log_pending_rows" not in found
        assert len(list((tmp_path / "tmp").glob("predict-metrics-*"))) == 1
    finally:
        server.stop()
    assert list((tmp_path / "tmp").glob("predict-metrics-*")) == []


def test_a_client_that_is_too_slow_is_counted(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, predict_workers=1)
    make_payload(settings.payloads_dir, "1")
    extra = {"MLOPS_PREDICT_BODY_TIMEOUT_S": "0.2"}
    server = PredictServer(settings, logged=False, payload="1", extra=extra)
    try:
        server.start()
        with socket.create_connection(("127.0.0.1", settings.predict_port)) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\n")
            await_(lambda: series(server).get('predict_errors_total{code="too_slow"}') == 1)
        assert series(server)['predict_requests_total{route="other",status="408"}'] == 1
    finally:
        server.stop()


def test_refusals_rows_and_unusual_values_are_counted(predict_server: PredictServer) -> None:
    record = predict_server.reference()
    predict_server.post([record, {**record, "job": "astronaut", "age": 1e6}])
    predict_server.post({**record, "age": None})
    predict_server.post({**record, "age": "old"})
    predict_server.post(b"{")
    for path in ("/nothing", "/nothing/else", "/health?x=1"):
        requests.get(f"{predict_server.url}{path}", timeout=10)
    requests.get(f"{predict_server.url}/predict", timeout=10)
    found = series(predict_server)
    assert found['predict_rows_total{route="/predict",version="1"}'] == 3
    assert found['predict_requests_total{route="/predict",status="422"}'] == 1
    assert found['predict_requests_total{route="/predict",status="405"}'] == 1
    assert found['predict_requests_total{route="other",status="404"}'] == 2
    errors = {name: value for name, value in found.items() if "predict_errors" in name}
    assert errors == {
        'predict_errors_total{code="wrong_type"}': 1,
        'predict_errors_total{code="wrong_json"}': 1,
        'predict_errors_total{code="not_found"}': 2,
        'predict_errors_total{code="method_not_allowed"}': 1,
    }
    unusual = 'predict_input_unusual_total{field="%s",kind="%s"}'
    assert found[unusual % ("job", "unseen")] == 1
    assert found[unusual % ("age", "out_of_range")] == 1
    assert found[unusual % ("age", "missing")] == 1
    shipped = 'predict_log_rows_total{outcome="shipped"}'
    await_(lambda: series(predict_server).get(shipped) == 3)
    await_(lambda: series(predict_server)["predict_log_pending_rows"] == 0)


@pytest.fixture
def unreachable_database(database: Settings) -> Iterator[PredictServer]:
    """An API whose database does not answer, and which has little room to wait."""
    make_payload(database.payloads_dir, "1")
    switch_current(database.payloads_dir, "1")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        settings = database.model_copy(update={"postgres_port": nobody.getsockname()[1]})
        server = PredictServer(settings, extra={"MLOPS_SPOOL_MAX_MB": "0.05"})
        try:
            yield server.start()
        finally:
            server.stop()


def test_a_full_log_makes_the_api_unready_and_alive(unreachable_database: PredictServer) -> None:
    server = unreachable_database

    def ready() -> list[requests.Response]:
        return [requests.get(f"{server.url}/ready", timeout=10) for _ in range(12)]

    assert {response.status_code for response in ready()} == {200}
    assert ready()[0].json() == {"ready": True, "version": "1"}
    records = [server.reference()] * 5
    await_(lambda: server.post(records).status_code == 503)

    def unready() -> bool:
        server.post(records)
        return {response.status_code for response in ready()} == {503}

    await_(unready)
    said = ready()[0].json()
    assert (said["ready"], said["version"]) == (False, "1")
    assert said["reason"].startswith("the spool is full: 0.0")
    assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
    found = series(server)
    assert found["predict_log_spool_limit_bytes"] == int(0.05 * 2**20)
    # A worker sees what the others have spooled at its next look, 0.2 s later: so much may come on
    # top of the limit.
    assert 0.8 < found["predict_log_spool_bytes"] / found["predict_log_spool_limit_bytes"] < 1.5
    assert found["predict_log_pending_rows"] > 50
    assert found['predict_errors_total{code="log_unavailable"}'] > 0


def test_an_answer_has_an_id_by_which_the_log_finds_it(predict_server: PredictServer) -> None:
    record = {**predict_server.reference(), "job": "Ada Lovelace, 12 St James's Square"}
    good = predict_server.post(record, X_Request_Id="order-7")
    assert good.headers["X-Request-Id"] == good.json()["request_id"] == "order-7"
    given = predict_server.post(record)
    assert given.headers["X-Request-Id"] == given.json()["request_id"]
    refused = predict_server.post(
        {**record, "age": "forty-two-point-seven"}, X_Request_Id="order-8"
    )
    assert refused.headers["X-Request-Id"] == "order-8"
    wrong = predict_server.post(record, X_Request_Id="no spaces, please")
    assert wrong.status_code == 400
    assert re.fullmatch("[0-9a-f]{32}", wrong.headers["X-Request-Id"])
    lost = requests.get(f"{predict_server.url}/nothing", params={"q": "secret"}, timeout=10)
    by_id = {line["request_id"]: line for line in lines(predict_server) if "request_id" in line}
    # Answers that are well have no line (MLOPS_PREDICT_ACCESS_LOG=errors).
    ids = [answer.headers["X-Request-Id"] for answer in (refused, wrong, lost)]
    assert list(by_id) == ids
    line = by_id["order-8"]
    assert line.pop("time").endswith("Z")
    assert line.pop("duration_ms") > 0
    assert line.pop("pid") in predict_server.workers()
    assert line == {
        **{"level": "info", "logger": "predict.access", "message": "POST /predict 422"},
        **{"request_id": "order-8", "method": "POST", "path": "/predict", "route": "/predict"},
        **{"status": 422, "code": "wrong_type", "client": "127.0.0.1"},
    }
    for private in ("Lovelace", "forty-two", "spaces", "secret"):
        assert private not in predict_server.output


def test_every_request_has_a_line_if_that_is_asked_for(database: Settings) -> None:
    make_payload(database.payloads_dir, "1")
    switch_current(database.payloads_dir, "1")
    server = PredictServer(database, extra={"MLOPS_PREDICT_ACCESS_LOG": "all"})
    try:
        server.start().post([server.reference()] * 3, X_Request_Id="mine")
        (line,) = [line for line in lines(server) if line.get("request_id") == "mine"]
        assert (line["status"], line["rows"], line["version"]) == (200, 3, "1")
    finally:
        server.stop()
    messages = [line["message"] for line in lines(server)]
    assert any(message.startswith("Booting worker") for message in messages)
    assert messages[-1] == "Shutting down: Master"


def raw(server: PredictServer, request: bytes) -> bytes:
    """Send bytes as they are; return what comes back."""
    with socket.create_connection(
        ("127.0.0.1", server.settings.predict_port), timeout=10
    ) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_no_request_can_write_lines_of_its_own(predict_server: PredictServer) -> None:
    body = json.dumps(predict_server.reference()).encode()
    for path in (b"/x%0A%7B%22level%22:%22fatal%22%7D", b"/%E2%80%A8%1b%5B31m", b"/\xff%ff%00"):
        raw(predict_server, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    # A body longer than its length: the rest of it is taken for the next request.
    raw(
        predict_server,
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b%b\r\n\r\n" % (len(body), body, b'{"name": "Ada Lovelace"}'),
    )
    await_(lambda: "no HTTP from 127.0.0.1" in predict_server.output)
    found = lines(predict_server)
    assert predict_server.output.isascii()
    assert {line["level"] for line in found} <= {"info", "warning"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", predict_server.output)
    assert "Lovelace" not in predict_server.output


def test_a_payload_that_cannot_be_loaded_is_named_in_one_line(
    predict_server: PredictServer,
) -> None:
    payload = predict_server.settings.payloads_dir
    (make_payload(payload, "2", seed=1) / "model.json").write_text("{}")
    switch_current(payload, "2")
    await_(lambda: "cannot be loaded" in predict_server.output)
    (line,) = {line["message"] for line in lines(predict_server) if line["level"] == "error"}
    assert line.startswith("payload 2: KeyError")
