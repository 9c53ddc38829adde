"""Which Prometheus the stack starts, and with what."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops.settings import ROOT
from mlops.stack import prometheus
from mlops.stack.services import launch_environment, services
from tests.fixtures.postgres import make_settings


def make_program(folder: Path, says: str = "prometheus, version 3.5.0 (branch: HEAD)") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "prometheus"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that finds with only `tmp_path/bin` on PATH (and the system's tools)."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def find(**values: Any) -> prometheus.Choice:
        return prometheus.find(make_settings(tmp_path, **{"prometheus": "auto", **values}))

    return find


def test_the_one_of_the_setting_comes_before_that_on_path(tmp_path: Path, found: Any) -> None:
    on_path = make_program(tmp_path / "bin")
    assert found().program == on_path
    named = make_program(tmp_path / "named")
    choice = found(prometheus_home=tmp_path / "named")
    assert choice.program == named
    assert choice.sentence == f"Prometheus: {named} collects the metrics of predict"


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ("prometheus, version 2.36.9 (branch: HEAD)", "is version 2.36, 2.37 or later is needed"),
        ("something else", "is no program that tells its version"),
    ],
)
def test_one_that_cannot_be_used_is_not_and_a_line_says_why(
    tmp_path: Path, found: Any, says: str, why: str
) -> None:
    make_program(tmp_path / "bin", says)
    choice = found()
    assert choice.program is None
    assert choice.sentence.startswith("Prometheus: ")
    assert f"{why}: no metrics are collected" in choice.sentence
    assert "\n" not in choice.sentence


def test_without_one_a_line_says_how_to_get_it(tmp_path: Path, found: Any) -> None:
    choice = found()
    assert choice.program is None
    assert "none is on PATH; unpack one from prometheus.io" in choice.sentence
    assert "MLOPS_PROMETHEUS_HOME" in choice.sentence
    assert found(prometheus_home=tmp_path / "nowhere").program is None


def test_off_is_off(tmp_path: Path, found: Any) -> None:
    make_program(tmp_path / "bin")
    assert found(prometheus="off") == prometheus.Choice(
        None, "Prometheus: MLOPS_PROMETHEUS is off: no metrics are collected"
    )


def test_the_systems_own_on_the_same_port_keeps_nothing_from_starting(
    tmp_path: Path, found: Any
) -> None:
    make_program(tmp_path / "bin")
    with socket.socket() as its:
        its.bind(("127.0.0.1", 0))
        its.listen()
        choice = found(prometheus_port=its.getsockname()[1])
    assert choice.program is None
    assert "is taken, maybe by the system's own; set MLOPS_PROMETHEUS_PORT" in choice.sentence


def test_what_was_decided_holds_until_it_is_decided_anew(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    settings.state_dir.mkdir()
    assert "prometheus" not in {each.name for each in services(settings)}
    prometheus.remember(settings, make_program(tmp_path / "bin"))
    assert "prometheus" in {each.name for each in services(settings)}
    prometheus.remember(settings, None)
    assert "prometheus" not in {each.name for each in services(settings)}


def test_it_asks_this_stacks_api_and_keeps_its_data_in_bounds(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    command = prometheus.server_command(settings, tmp_path / "prometheus")
    options = dict(each.partition("=")[::2] for each in command[1:])
    assert options["--web.listen-address"] == f"127.0.0.1:{settings.prometheus_port}"
    assert options["--storage.tsdb.path"].startswith(str(settings.state_dir))
    written = Path(options["--config.file"]).read_text()
    assert re.findall(r'targets: \["(.*)"\]', written) == [f"127.0.0.1:{settings.predict_port}"]


def test_containers_have_the_same_bounds_and_the_file_as_it_is() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    command = compose["services"]["prometheus"]["command"]
    assert f"--storage.tsdb.retention.time={prometheus.RETENTION_TIME}" in command
    assert f"--storage.tsdb.retention.size={prometheus.RETENTION_SIZE}" in command
    assert prometheus.CONFIGURATION.read_text().count(prometheus.TARGET) == 1
    # It asks predict, and nobody else of the loop can be asked by it.
    networks = {name: set(each["networks"]) for name, each in compose["services"].items()}
    reached = {name for name, its in networks.items() if its & networks["prometheus"]}
    assert reached == {"prometheus", "predict", "grafana", "streamlit"}
    assert networks["predict"] & networks["prometheus"] == {"scrape"}


def test_it_gets_no_secret(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    settings.state_dir.mkdir()
    prometheus.remember(settings, tmp_path / "prometheus")
    (service,) = [each for each in services(settings) if each.name == "prometheus"]
    secrets = {"postgres_password", "predict_db_password", "webhook_token"}
    values = set(launch_environment(service, settings).values())
    assert not {name for name in secrets if settings.secret(name) in values}


def test_the_configuration_is_what_prometheus_takes() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no `promtool` on PATH: prometheus.yml is NOT checked (apt install prometheus)")
    done = subprocess.run([promtool, "check", "config", str(prometheus.CONFIGURATION)], check=False)
    assert done.returncode == 0
