"""The key and the rate over a real gunicorn: for all workers together, and for the stack's own."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from pydantic import SecretStr

from mlops.serving.client import ApiError, PredictClient
from tests.fixtures.postgres import make_settings
from tests.fixtures.predict import PredictServer, make_payload

KEY = "open sesame, caf\u00e9"
BURST = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictServer]:
    """Two workers, a key, and a rate so low that only the burst is ever admitted."""
    settings = make_settings(
        tmp_path_factory.mktemp("limits"),
        predict_workers=2,
        predict_api_key=SecretStr(KEY),
        predict_rate_limit=0.001,
        predict_rate_burst=BURST,
        predict_max_records=3,
    )
    make_payload(settings.payloads_dir, "1")
    wanted = ("API_KEY", "RATE_LIMIT", "RATE_BURST", "MAX_RECORDS")
    names = [f"MLOPS_PREDICT_{name}" for name in wanted]
    extra = {name: settings.environment()[name] for name in names}
    server = PredictServer(settings, logged=False, payload="1", extra=extra)
    try:
        yield server.start()  # which waits for every worker by /health, without a key
    finally:
        server.stop()


def ask(server: PredictServer, path: str = "/model", key: str | None = KEY) -> requests.Response:
    headers = {"Authorization": f"Bearer {key}".encode()} if key is not None else {}
    return requests.get(server.url + path, headers=headers, timeout=10)


def test_a_stranger_who_sends_nothing_holds_no_thread(server: PredictServer) -> None:
    address = (server.settings.host, server.settings.predict_port)
    head = b"POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n"
    with socket.create_connection(address, timeout=8) as client:
        client.sendall(head)
        assert re.match(rb"HTTP/1.1 (401|429) ", client.recv(4096))


def test_the_stacks_own_client_has_the_key_and_waits_for_versions(server: PredictServer) -> None:
    with PredictClient.of(server.settings) as client:
        reference = client.model()["reference"]
        assert len(client.predict([reference] * 3)["predictions"]) == 3
        with pytest.raises(ApiError, match="expected 1 to 3") as caught:
            client.predict([reference] * 4)
        assert caught.value.status == 413
        client.wait_for_version("1", workers=2, timeout=10)
    with PredictClient(server.url) as stranger:
        with pytest.raises(ApiError, match="no API key") as caught:
            stranger.model()
        assert (caught.value.status, caught.value.code) == (401, "unauthorized")
        stranger.wait_for_version("1", workers=2, timeout=10)


def test_all_workers_count_together_and_say_when_to_come_again(server: PredictServer) -> None:
    wrong = ask(server, key="wrong")
    assert wrong.status_code == 401
    assert wrong.headers["WWW-Authenticate"].startswith("Bearer")
    answers = [ask(server) for _ in range(2 * BURST)]
    admitted = [answer for answer in answers if answer.ok]
    assert 0 < len(admitted) < BURST, "others have asked before, and each worker counted alone"
    refused = answers[-1]
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.headers["X-Request-Id"]
    pids = set()
    for _ in range(40):
        for path in ("/health", "/ready", "/metrics"):
            assert ask(server, path, key=None).ok
        pids.add(ask(server, "/health").json()["pid"])
    assert len(pids) == 2, "one worker has answered all"


def test_refusals_are_counted(server: PredictServer) -> None:
    ask(server, key="wrong")
    text = ask(server, "/metrics").text
    assert 'code="rate_limited"' in text
    assert 'code="unauthorized"' in text


def test_the_stacks_own_client_waits_when_it_is_told_to(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, predict_workers=1)
    make_payload(settings.payloads_dir, "1")
    extra = {"MLOPS_PREDICT_RATE_LIMIT": "2", "MLOPS_PREDICT_RATE_BURST": "1"}
    server = PredictServer(settings, logged=False, payload="1", extra=extra)
    try:
        server.start()
        with PredictClient.of(settings) as client, PredictClient(server.url, 0.5) as hasty:
            began = time.monotonic()
            for _ in range(3):
                assert client.model()["version"] == "1"
            assert time.monotonic() - began >= 1
            with pytest.raises(ApiError, match="2 requests a second") as caught:
                hasty.model()
            assert caught.value.status == 429
    finally:
        server.stop()
