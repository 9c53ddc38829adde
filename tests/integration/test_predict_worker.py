"""What the API's own gunicorn worker adds: quick answers on the spot, and patience for nobody."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import pytest
import requests

from tests.fixtures.postgres import make_settings
from tests.fixtures.predict import PredictServer, make_payload
from tests.fixtures.waiting import await_

TIMEOUT_S = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictServer]:
    """One worker, so that whatever holds it up is seen; requests must be there within 2 s."""
    settings = make_settings(tmp_path_factory.mktemp("worker"), predict_workers=1)
    make_payload(settings.payloads_dir, "1")
    server = PredictServer(
        settings,
        logged=False,
        payload="1",
        extra={"MLOPS_PREDICT_BODY_TIMEOUT_S": str(TIMEOUT_S)},
    )
    try:
        yield server.start()
    finally:
        server.stop()


def connection(server: PredictServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.settings.predict_port), timeout=20)


def raw_request(server: PredictServer, path: str = "/predict", headers: str = "") -> bytes:
    body = json.dumps(server.reference()).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


def read_answers(client: socket.socket, count: int) -> list[tuple[int, dict[str, Any]]]:
    """Return status and JSON of so many answers on one connection."""
    answers = []
    with client.makefile("rb") as stream:
        for _ in range(count):
            status = int(stream.readline().split()[1])
            length = 0
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            answers.append((status, json.loads(stream.read(length))))
    return answers


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /predict HTT", b"POST /predict HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"],
    ids=["nothing", "half a line", "half a body"],
)
def test_slow_clients_in_any_number_hold_up_nobody(server: PredictServer, sent: bytes) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connection(server)) for _ in range(60)]
        for client in slow:
            client.sendall(sent)
        assert server.post(server.reference()).ok
        assert requests.get(f"{server.url}/model", timeout=TIMEOUT_S / 2).ok
        answered = slow[0].recv(65536)
        # Who has sent something is told what was wrong, who has not is let go.
        assert answered.startswith(b"HTTP/1.1 408 ") if sent else answered == b""
        if sent:
            assert json.loads(answered.split(b"\r\n\r\n")[1])["error"]["code"] == "too_slow"


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 0000000000000000000000000100\r\n\r\n",
        HEAD + b"Content-Length: 20000\r\n\r\n{",
        HEAD + b"Content-Length: 9000000\r\n\r\n" + b"[" * 200_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        HEAD.replace(b"/predict", b"/predict/batch") + b"Content-Length: 900\r\n\r\na,b",
    ],
    ids=["long number", "no quick one", "large", "in chunks", "file"],
)
def test_bodies_that_do_not_come_hold_up_nobody(server: PredictServer, sent: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(connection(server)).sendall(sent)
        assert server.post(server.reference()).ok
        # Answered by a thread, while the bodies' time is not over.
        assert requests.get(f"{server.url}/metrics", timeout=TIMEOUT_S / 2).ok


def test_client_that_asks_and_never_reads_holds_up_nobody(server: PredictServer) -> None:
    body = json.dumps([server.reference() | {"job": "x" * 60}] * 50).encode()
    length = f"Content-Length: {len(body)}\r\n\r\n".encode()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.settings.predict_port))
        deaf.settimeout(0.5)
        with suppress(TimeoutError):  # until nothing more is taken from it
            deaf.sendall((HEAD + length + body) * 2000)
        assert requests.get(f"{server.url}/health", timeout=TIMEOUT_S / 2).ok
        assert server.post(server.reference()).ok


def test_client_that_reads_slowly_gets_all_of_its_answers(server: PredictServer) -> None:
    count = 400
    body = json.dumps([server.reference() | {"job": "x" * 60}] * 40).encode()
    length = f"Content-Length: {len(body)}\r\n\r\n".encode()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.settings.predict_port))
        slow.settimeout(30)
        sender = threading.Thread(target=slow.sendall, args=((HEAD + length + body) * count,))
        sender.start()
        answers = read_answers(slow, count)
        sender.join()
    assert {status for status, _ in answers} == {200}
    assert all(len(answer["predictions"]) == 40 for _, answer in answers)


def test_request_that_trickles_in_is_answered_once_it_is_there(server: PredictServer) -> None:
    request = raw_request(server)
    cuts = [0, 1, 17, request.index(b"\r\n\r\n") + 2, request.index(b"\r\n\r\n") + 4, 200]
    with connection(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin, end in zip(cuts, [*cuts[1:], len(request)], strict=True):
            client.sendall(request[begin:end])
            time.sleep(0.02)  # so that the pieces come apart
        ((status, answer),) = read_answers(client, 1)
    assert status == 200
    assert answer["version"] == "1"


def test_requests_sent_together_are_answered_in_order(server: PredictServer) -> None:
    quick = [raw_request(server, headers=f"X-Request-Id: {number}\r\n") for number in range(40)]
    by_thread = b"GET /model HTTP/1.1\r\nHost: x\r\n\r\n"
    with connection(server) as client:
        client.sendall(b"".join(quick[:20]) + by_thread + b"".join(quick[20:]))
        answers = read_answers(client, 41)
    assert {status for status, _ in answers} == {200}
    assert answers.pop(20)[1]["model"] == "bank_marketing"
    assert [answer["request_id"] for _, answer in answers] == [str(number) for number in range(40)]


def test_connection_is_kept_whoever_answered(server: PredictServer) -> None:
    with connection(server) as client:
        for sent in (raw_request(server), b"GET /model HTTP/1.1\r\nHost: x\r\n\r\n") * 3:
            client.sendall(sent)
            ((status, _),) = read_answers(client, 1)
            assert status == 200


def test_old_and_chunked_clients_are_answered(server: PredictServer) -> None:
    body = json.dumps(server.reference()).encode()
    old = raw_request(server).replace(b"HTTP/1.1", b"HTTP/1.0")
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    chunked = (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    )
    for sent in (old, chunked):
        with connection(server) as client:
            client.sendall(sent)
            ((status, answer),) = read_answers(client, 1)
        assert (status, answer["version"]) == (200, "1")


def test_clients_that_go_away_leave_nothing_behind(server: PredictServer) -> None:
    worker = psutil.Process(server.workers()[0])
    before = worker.num_fds()
    for sent in (b"", b"POST /predict HTTP/1.1\r\n", raw_request(server)[:-5]):
        for _ in range(100):
            with connection(server) as client:
                client.sendall(sent)
    assert server.post(server.reference()).ok
    await_(lambda: worker.num_fds() <= before, what="closed connections")
    assert server.workers() == [worker.pid]


def test_worker_that_leaves_answers_what_has_begun_and_waits_for_no_idle_connection(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = make_settings(tmp_path_factory.mktemp("leaving"), predict_workers=1)
    make_payload(settings.payloads_dir, "1")
    server = PredictServer(settings, logged=False, payload="1").start()
    try:
        request = raw_request(server)
        with connection(server) as idle, connection(server) as begun:
            idle.sendall(request)
            assert read_answers(idle, 1)[0][0] == 200
            begun.sendall(request[:-3])
            assert server.post(server.reference()).ok  # by now the worker has seen the half request
            assert server.process is not None
            server.process.terminate()
            await_(lambda: "Handling signal: term" in server.output)
            begun.sendall(request[-3:])
            assert read_answers(begun, 1)[0][0] == 200
            # gunicorn would wait for `idle` until its graceful_timeout, 30 s.
            assert server.process.wait(timeout=15) == 0
    finally:
        server.stop()


def test_worker_that_leaves_finishes_a_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = make_settings(tmp_path_factory.mktemp("file"), predict_workers=1)
    make_payload(settings.payloads_dir, "1")
    server = PredictServer(settings, logged=False, payload="1").start()
    try:
        record = json.dumps(server.reference()).encode() + b"\n"
        answer = requests.post(
            f"{server.url}/predict/batch",
            data=record * 60_000,
            headers={"Content-Type": "application/x-ndjson"},
            stream=True,
            timeout=60,
        )
        chunks = answer.iter_content(1024)
        next(chunks)  # the rest is more than sockets hold
        assert server.process is not None
        server.process.terminate()
        await_(lambda: "Handling signal: term" in server.output)
        assert b'"scored":60000' in b"".join(chunks)[-1000:]
        assert server.process.wait(timeout=40) == 0
    finally:
        server.stop()
