"""A short run of the fuzz: no 5xx, no hang, no worker lost, every refusal says what is wrong."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures.postgres import make_settings
from tests.fixtures.predict import PredictServer, make_payload
from tests.fuzz import fuzz, judge


def test_whatever_is_sent_is_answered_or_refused(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, predict_workers=2)
    make_payload(settings.payloads_dir, "1")
    dsn = "host=127.0.0.1 port=1 user=nobody dbname=none"  # logged to the spool alone
    extra = {"PREDICT_LOG_DSN": dsn, "MLOPS_PREDICT_BATCH_MAX_MB": "16"}
    server = PredictServer(settings, logged=False, payload="1", extra=extra)
    try:
        server.start()
        found = fuzz(server, requests=2000, seed=3, connections=4)
        # pyarrow would import it in the middle of a request, and hold everybody up.
        maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in server.workers())
    finally:
        server.stop()
    assert found["faults"] == []
    assert found["server_errors"] == found["workers_lost"] == found["tracebacks"] == 0
    assert found["requests"] == 2000
    assert {"200", "400", "404", "405", "413", "415", "422"} <= set(found["statuses"])
    assert "onnxruntime" in maps
    assert "/pandas/" not in maps


def test_fuzz_sees_what_is_wrong() -> None:
    good = b'{"error":{"code":"c","field":null,"row":null,"message":"m"}}'
    for head, body, fault in (
        (b"HTTP/1.1 400 Bad Request", good, None),
        (b"HTTP/1.1 500 Oh", good, "500"),
        (b"HTTP/1.1 400 Bad Request", b"<html>", "does not say"),
        (b"HTTP/1.1 400 Bad Request", good.replace(b'"m"', b'""'), "does not say"),
        (b"garbage", good, "no answer"),
    ):
        raw = head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        found = judge(b"POST /", raw)[1]
        assert (fault in found) if fault and found else found is fault
    assert judge(b"POST /", b"")[1] == "closed without an answer"
