"""What each server of the stack is given."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mlops.alerting.heartbeat import OLDEST_S, beat, forget_beat, heartbeat_path
from mlops.settings import Settings, secret_names
from mlops.stack.services import Service, launch_environment, services
from tests.fixtures.postgres import make_settings


class Answering(HTTPServer):
    """A server whose `/health` answers what the test puts into `report`."""

    report: Any = None


@pytest.fixture
def server() -> Iterator[Answering]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert isinstance(self.server, Answering)
            body = json.dumps(self.server.report).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with Answering(("127.0.0.1", 0), Handler) as answering:
        thread = threading.Thread(target=answering.serve_forever)
        thread.start()
        yield answering
        answering.shutdown()
        thread.join()


API_KEY = SecretStr("of the predict API")
HOOK = "https://hooks.example.com/services/T0/B0/x1y2z3"


def service(name: str, settings: Settings) -> Service:
    return next(each for each in services(settings) if each.name == name)


def complaint(name: str, settings: Settings) -> str | None:
    health = service(name, settings).health
    assert health
    return health()


@pytest.mark.parametrize(
    ("name", "report", "expected"),
    [
        ("predict", {"status": "ok", "load_error": None}, None),
        (
            "predict",
            {"status": "degraded", "load_error": "model.onnx is broken"},
            "degraded: model.onnx is broken",
        ),
        ("predict", ["something else"], "answers without a status"),
        ("listener", {"status": "ok", "database": True, "starter": True}, None),
        (
            "listener",
            {"status": "degraded", "database": False, "starter": True},
            "degraded: its database does not answer",
        ),
        (
            "listener",
            {"status": "degraded", "database": True, "starter": False},
            "degraded: its thread does not run",
        ),
    ],
)
def test_a_server_that_can_do_only_a_part_is_not_well(
    server: Answering, tmp_path: Path, name: str, report: Any, expected: str | None
) -> None:
    settings = make_settings(tmp_path, **{f"{name}_port": server.server_port})
    server.report = report
    assert complaint(name, settings) == expected


def test_the_evaluator_is_well_while_it_looks_and_reaches_what_it_needs(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    settings.state_dir.mkdir()
    assert "not looked" in str(complaint("evaluator", settings))
    beat(settings, set())
    assert complaint("evaluator", settings) is None
    beat(settings, {"Postgres"})
    assert complaint("evaluator", settings) == (
        "degraded: Postgres does not answer, or fails: see its log"
    )
    beat(settings, set())
    long_ago = time.time() - OLDEST_S - 1
    os.utime(heartbeat_path(settings), (long_ago, long_ago))
    assert "not looked at its rules for" in str(complaint("evaluator", settings))
    forget_beat(settings)
    assert "not looked" in str(complaint("evaluator", settings))


def test_no_command_line_holds_a_secret(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, predict_api_key=API_KEY, notify_url=HOOK)
    secrets = [settings.secret(name) for name in secret_names()]
    for service in services(settings):
        line = " ".join(service.command())
        assert not any(secret in line for secret in secrets), service.name


def test_predict_knows_no_secret_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path, predict_api_key=API_KEY, notify_url=HOOK)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)  # as supervisor has them
    predict = next(each for each in services(settings) if each.name == "predict")
    values = " ".join(launch_environment(predict, settings).values())
    assert [name for name in secret_names() if settings.secret(name) in values] == [
        "predict_db_password",
        "predict_api_key",
    ]


def test_the_key_of_the_api_reaches_those_who_ask_it_and_nobody_else(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, predict_api_key=API_KEY)
    told = {
        each.name
        for each in services(settings)
        if "MLOPS_PREDICT_API_KEY" in launch_environment(each, settings)
    }
    assert told == {"predict", "mage", "streamlit"}


def test_the_webhook_of_notices_reaches_the_listener_alone(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, notify_url=HOOK)
    told = {
        each.name
        for each in services(settings)
        if "MLOPS_NOTIFY_URL" in launch_environment(each, settings)
    }
    assert told == {"listener"}


def test_listener_cannot_log_in_to_mage(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    values = " ".join(launch_environment(service("listener", settings), settings).values())
    assert settings.secret("mage_trigger_token") in values
    assert settings.secret("mage_owner_password") not in values


def test_a_launched_server_reads_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path, predict_workers=5)
    mage = next(each for each in services(settings) if each.name == "mage")
    for name, value in launch_environment(mage, settings).items():
        if name.startswith("MLOPS_"):
            monkeypatch.setenv(name, value)
    assert type(settings)(_env_file=None).model_dump(
        exclude=set(secret_names())
    ) == settings.model_dump(exclude=set(secret_names()))


def test_every_server_listens_on_loopback_and_says_which_setting_moves_it(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    for service in services(settings):
        if service.port is None:
            continue
        assert service.port_setting
        assert service.port_setting.removeprefix("MLOPS_").lower() in type(settings).model_fields
        assert "0.0.0.0" not in " ".join(service.command())
