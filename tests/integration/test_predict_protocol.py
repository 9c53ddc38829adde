"""Clients that break HTTP, dawdle or send what is no JSON: a 4xx that says so, and nobody waits."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests

from tests.fixtures.postgres import make_settings
from tests.fixtures.predict import PredictServer, make_payload

TIMEOUT_S = 1.0
MANY = 30
"""Clients of which each would hold the worker up for two seconds, if it waited for them."""
PATIENCE_S = 20.0
"""For an answer on a machine that is busy; a third of what all of them would take."""
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictServer]:
    """One worker, so that whatever holds it up or kills it is seen; a request has one second."""
    settings = make_settings(tmp_path_factory.mktemp("protocol"), predict_workers=1)
    make_payload(settings.payloads_dir, "1")
    extra = {"MLOPS_PREDICT_BODY_TIMEOUT_S": str(TIMEOUT_S), "MLOPS_PREDICT_MAX_BODY_MB": "1"}
    server = PredictServer(settings, logged=False, payload="1", extra=extra)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def nobody_is_lost(server: PredictServer) -> Iterator[None]:
    before = server.workers()
    yield
    assert server.workers() == before
    assert server.post(server.reference()).ok
    assert "Traceback" not in server.output


def connect(server: PredictServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.settings.predict_port), timeout=20)


def ask(server: PredictServer, raw: bytes, *, half_close: bool = False) -> tuple[int, Any]:
    """Send bytes, and return status and JSON of the first answer; (0, None) if there is none."""
    with connect(server) as client:
        client.sendall(raw)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        return first_answer(client)


def first_answer(client: socket.socket) -> tuple[int, Any]:
    with client.makefile("rb") as stream:
        line = stream.readline()
        if not line:
            return 0, None
        headers = {}
        while (header := stream.readline().strip()) != b"":
            name, _, value = header.partition(b":")
            headers[name.lower()] = value.strip()
        assert headers[b"content-type"] == b"application/json", line
        return int(line.split()[1]), json.loads(stream.read(int(headers[b"content-length"])))


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /predict HTTP/1.1\r\nHost: a\r\n" + JSON + headers + b"\r\n" + body


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "wrong_http"),  # TLS
        (b"GET\r\n\r\n", 400, "wrong_http"),
        (b"get / HTTP/1.1\r\n\r\n", 400, "wrong_http"),
        (b"GET /health HTTP/9.9\r\n\r\n", 400, "wrong_http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "wrong_http"),
        (b"GET /health HTTP/1.1\r\nno colon\r\n\r\n", 400, "wrong_http"),
        (b"GET /health HTTP/1.1\r\nA b: c\r\n\r\n", 400, "wrong_http"),
        (b"GET /health HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400, "wrong_http"),
        (b"GET /health HTTP/1.1\r\nA: \x00\r\n\r\n", 400, "wrong_http"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414, "address_too_long"),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 20_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000, 431, "headers_too_large"),
        (post(b"Content-Length: abc\r\n"), 400, "wrong_http"),
        (post(b"Content-Length: -1\r\n"), 400, "wrong_http"),
        (post(b"Content-Length: 1\r\nContent-Length: 2\r\n", b"{}"), 400, "wrong_http"),
        (post(b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"{}"), 400, "wrong_http"),
        (post(b"Transfer-Encoding: gzip\r\n", b"{}"), 415, "wrong_encoding"),
        (post(b"Transfer-Encoding: tea\r\n", b"{}"), 400, "wrong_http"),
        (post(b"Transfer-Encoding: chunked, chunked\r\n", b"{}"), 400, "wrong_http"),
        (post(b"Expect: tea\r\nContent-Length: 2\r\n", b"{}"), 417, "wrong_http"),
        (post(b"Transfer-Encoding: chunked\r\n", b"ZZ\r\n{}\r\n0\r\n\r\n"), 400, "unreadable_body"),
        (post(b"Transfer-Encoding: chunked\r\n", b"-2\r\n{}\r\n0\r\n\r\n"), 400, "unreadable_body"),
        (post(b"Transfer-Encoding: chunked\r\n", b"2\r\n{}XX0\r\n\r\n"), 400, "unreadable_body"),
        (post(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400, "wrong_json"),
        (post(b""), 400, "wrong_json"),
        (b"OPTIONS /predict HTTP/1.0\r\n\r\n", 200, None),
        (b"TRACE /predict HTTP/1.0\r\n\r\n", 405, "method_not_allowed"),
        (b"BREW /predict HTTP/1.0\r\n\r\n", 405, "method_not_allowed"),
        (b"GET //evil/..%2f..%00 HTTP/1.0\r\n\r\n", 404, "not_found"),
        ("GET /\u202eevil HTTP/1.0\r\n\r\n".encode(), 404, "not_found"),
        (b"GET /%ff%fe HTTP/1.0\r\n\r\n", 404, "not_found"),
        (b"GET http://elsewhere/health HTTP/1.0\r\n\r\n", 200, None),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else str(value),
)  # fmt: skip
def test_broken_http_is_refused_in_json(
    server: PredictServer, raw: bytes, status: int, code: str | None
) -> None:
    if code is None:
        with connect(server) as client:
            client.sendall(raw)
            assert client.recv(65536).split()[1] == str(status).encode()
        return
    found, body = ask(server, raw)
    assert (found, body["error"]["code"]) == (status, code)
    assert body["error"]["message"]


def test_head_has_no_body(server: PredictServer) -> None:
    for path in ("/health", "/model", "/docs"):
        answer = requests.head(server.url + path, timeout=10)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"POST /pre", "wrong_http"),
        (post(b"Content-Length: 100\r\n", b'{"age": 1'), "wrong_http"),
        (post(b"Content-Length: 100000\r\n", b'{"age": 1'), "wrong_http"),
        (post(b"Transfer-Encoding: chunked\r\n", b"64\r\n{"), "unreadable_body"),
    ],
    ids=["half a line", "small body", "large body", "chunk"],
)
def test_client_that_stops_sending_is_told(server: PredictServer, raw: bytes, code: str) -> None:
    status, body = ask(server, raw, half_close=True)
    assert (status, body["error"]["code"]) == (400, code)


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /predict HTTP/1.1\r\nHost: a\r\n",
        post(b"Content-Length: 100\r\n", b"{"),
        post(b"Content-Length: 100000\r\n", b"{"),
        post(b"Transfer-Encoding: chunked\r\n", b"64\r\n{"),
    ],
    ids=["headers", "small body", "large body", "chunk"],
)
def test_client_that_sends_byte_by_byte_is_cut_off(server: PredictServer, raw: bytes) -> None:
    """More of them than there are threads; each byte comes in time, all of them never do."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(8)]
        for client in clients:
            client.sendall(raw)
            client.setblocking(False)
        began, cut = time.monotonic(), 0
        while cut < len(clients) and time.monotonic() - began < 20:
            assert server.post(server.reference()).ok
            cut = 0
            for client in clients:
                try:
                    client.send(b" ")
                    cut += client.recv(1, socket.MSG_PEEK) == b"H"
                except BlockingIOError:
                    pass
                except OSError:
                    cut += 1  # answered, and closed since
            time.sleep(0.1)  # the pace of these clients
        assert cut == len(clients)
        client.setblocking(True)
        status, body = first_answer(clients[0])
        assert (status, body["error"]["code"]) == (408, "too_slow")


def test_clients_that_keep_an_answered_connection_open_hold_up_nobody(
    server: PredictServer,
) -> None:
    with ExitStack() as stack:
        for _ in range(MANY):
            client = stack.enter_context(connect(server))
            client.sendall(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert requests.get(f"{server.url}/health", timeout=PATIENCE_S).ok


def test_body_that_nobody_reads_is_no_request(server: PredictServer) -> None:
    """The rest of a refused body must neither be taken for a request nor be waited for."""
    # More than the worker collects, so it is answered before the body is there.
    head = b"POST /model HTTP/1.1\r\nHost: a\r\nContent-Length: 99000000\r\n\r\n"
    smuggled = b"POST /predict HTTP/1.1\r\n\r\n"
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(MANY)]
        for client in clients:
            client.sendall(head + smuggled)
        assert first_answer(clients[0])[0] == 405
        assert requests.get(f"{server.url}/health", timeout=PATIENCE_S).ok
        assert clients[0].recv(65536) == b""


def test_requests_sent_at_once_are_answered_each(server: PredictServer) -> None:
    body = json.dumps(server.reference()).encode()
    good = post(b"Content-Length: %d\r\n" % len(body), body)
    bad = post(b"Content-Length: 1\r\n", b"{")
    with connect(server) as client:
        client.sendall(good + bad + good + b"nonsense\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        found = b""
        while more := client.recv(65536):
            found += more
    assert re.findall(rb"HTTP/1\.1 (\d+) ", found) == [b"200", b"400", b"200", b"400"]


RECORD = '{"age": %s}'


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[" * 10_000 + b"]" * 10_000, "depth"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "depth"),
        ((RECORD % ("1" + "0" * 5000)).encode(), "number"),
        ((RECORD % "1e400").encode(), "number"),
        ((RECORD % "-1e400").encode(), "number"),
        ((RECORD % "NaN").encode(), "no JSON"),
        ((RECORD % "-Infinity").encode(), "no JSON"),
        ((RECORD % "0x10").encode(), "no JSON"),
        ((RECORD % "01").encode(), "no JSON"),
        (b'{"age": "\\ud800"}', "surrogate"),
        (b'{"age": "\xed\xa0\x80"}', "no JSON"),
        (codecs.BOM_UTF8 + b"{}", "byte order mark"),
        ("{}".encode("utf-16"), "UTF-16"),
        ("{}".encode("utf-16-be"), "UTF-16"),
        ("{}".encode("utf-32"), "UTF-16 or UTF-32"),
        ('{"job": "caf\u00e9"}'.encode("latin-1"), "UTF-8"),
        (b'{"a": "\x01"}', "control character"),
        (b"{} {}", "no JSON"),
        (b"", "empty"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_what_is_no_json_is_told_why(server: PredictServer, body: bytes, says: str) -> None:
    answer = server.post(body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "wrong_json"
    assert says in answer.json()["error"]["message"]


def test_of_a_key_given_twice_the_last_counts(server: PredictServer) -> None:
    record = json.dumps(server.reference())
    twice = record.replace("{", '{"age": "nonsense", ', 1).encode()
    assert (
        server.post(twice).json()["predictions"]
        == server.post(record.encode()).json()["predictions"]
    )


def test_packed_body_is_refused_and_told_where_one_is_read(server: PredictServer) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    answer = server.post(bomb, Content_Encoding="gzip")
    assert answer.status_code == 415
    assert "/predict/batch" in answer.json()["error"]["message"]


def test_limits_come_from_the_settings(server: PredictServer) -> None:
    answer = server.post(b" " * (1 << 20) + b"1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert "over 1 MB" in answer.json()["error"]["message"]
