"""A proxy of the user's own is for the internet: the stack's servers are asked directly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from mlops.stack.proxies import bypass
from mlops.stack.services import launch_environment, services
from tests.fixtures.postgres import make_settings

DEAD = "http://127.0.0.1:9"
PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine, in an environment whose proxy is dead."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    for name in PROXIES:
        monkeypatch.setenv(name, DEAD)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_server_reaches_the_others_in_spite_of_a_proxy(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path)
    with pytest.raises(requests.RequestException):
        requests.get(address, timeout=5)
    for service in services(settings):
        environment = launch_environment(service, settings)
        assert environment["HTTP_PROXY"] == DEAD, "the internet is still reached by it"
        with monkeypatch.context() as patch:
            for name in ("NO_PROXY", "no_proxy"):
                patch.setenv(name, environment[name])
            assert requests.get(address, timeout=5).ok, service.name


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_hosts_that_the_user_names_stay_named(tmp_path: Path, variable: str) -> None:
    settings = make_settings(tmp_path, host="192.0.2.7")
    found = bypass({variable: "intranet.example, 127.0.0.1"}, settings)
    assert found["NO_PROXY"] == found["no_proxy"]
    names = found["no_proxy"].split(",")
    assert names == ["intranet.example", "127.0.0.1", "localhost", "192.0.2.7"]


def test_no_proxy_at_all_stays_so(tmp_path: Path) -> None:
    assert bypass({"NO_PROXY": "*"}, make_settings(tmp_path))["no_proxy"] == "*"


def test_the_command_line_asks_its_servers_directly(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops.stack import __main__ as command_line

    settings = make_settings(tmp_path)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # undone afterwards
    monkeypatch.setattr(command_line, "ensure_secrets", list)
    command_line._settings()
    assert requests.get(address, timeout=5).ok
