"""A real Prometheus under the real supervisor, beside a real Postgres."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from mlops.settings import Settings
from mlops.stack import __main__ as command_line
from mlops.stack import processes
from mlops.stack.services import Service, services
from tests.fixtures.postgres import make_settings
from tests.fixtures.prometheus import program
from tests.fixtures.waiting import await_

pytestmark = pytest.mark.timeout(120)


def few(settings: Settings) -> list[Service]:
    names = ("postgres", "prometheus")
    return [each for each in services(settings) if each.name in names]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    home = program().parent
    # Not pytest's own temporary folder: root's Postgres runs as another user, which that keeps out.
    folder = Path(tempfile.mkdtemp(prefix="mlops-prometheus-"))
    found = make_settings(folder, prometheus="auto", prometheus_home=home)
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # the command line sets them: undone afterwards
    monkeypatch.setattr(command_line, "ensure_secrets", list)
    monkeypatch.setattr(command_line, "services", few)
    yield found
    command_line.main(["down"])
    assert processes.leftovers(found) == []
    shutil.rmtree(folder)


def targets(settings: Settings) -> list[dict[str, Any]]:
    answer = requests.get(f"{settings.prometheus_url}/api/v1/targets", timeout=10).json()
    return list(answer["data"]["activeTargets"])


def test_it_runs_with_the_stack_and_asks_the_stacks_api(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["up"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{settings.prometheus_home}/prometheus collects the metrics of predict" in printed
    assert settings.prometheus_url in printed
    (target,) = await_(lambda: targets(settings))
    assert target["scrapeUrl"] == f"{settings.predict_url}/metrics"
    assert command_line.main(["status"]) == 0
    assert "prometheus" in capsys.readouterr().out
    assert command_line.main(["up"]) == 0, "its port is its own, not another program's"
    assert command_line.main(["down"]) == 0

    monkeypatch.setenv("MLOPS_PROMETHEUS", "off")
    assert command_line.main(["up"]) == 0
    assert "MLOPS_PROMETHEUS is off: no metrics are collected" in capsys.readouterr().out
    assert {name for name, each in processes.states(settings).items() if each.pid} == {"postgres"}
