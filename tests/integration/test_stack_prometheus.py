"""A real Prometheus under the real supervisor, beside a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from mlops.settings import Settings
from mlops.stack import __main__ as command_line
from mlops.stack import processes
from tests.fixtures.prometheus import program
from tests.fixtures.stack import few_services
from tests.fixtures.waiting import await_

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    values = {"prometheus": "auto", "prometheus_home": program().parent}
    with few_services(monkeypatch, ("postgres", "prometheus"), lambda _: values) as settings:
        yield settings


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
