"""`docker/compose.py` between evaluator and Grafana, by a stand-in for `docker` that takes notes.

It answers as told and starts nothing: what an engine makes of it is held by tests/compose.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlops.settings import ROOT

STAND_IN = """#!{python}
import json, os, sys
folder = os.path.dirname(__file__)
with open(os.path.join(folder, "calls"), "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
with open(os.path.join(folder, "answers.json")) as answers:
    for asked, (code, said) in json.load(answers).items():
        if asked in " ".join(sys.argv[1:]):
            print(said)
            sys.exit(code)
"""

SERVICES = ("evaluator", "grafana", "listener", "mage", "postgres", "prometheus", "streamlit")
HAND_OVER = (
    "--profile evaluator run --rm --no-deps -T --entrypoint python evaluator"
    " -m mlops.alerting.evaluator --hand-over"
)
EVALUATOR_RUNS = {"ps --all --quiet evaluator": (0, "0ce1")}
GRAFANA_RUNS = {"ps --all --quiet grafana": (0, "06af")}


class Docker:
    """The stand-in, in a folder of its own: what it answers, and what it was asked."""

    def __init__(self, folder: Path, watcher: str) -> None:
        self.folder = folder
        services: dict[str, Any] = {
            name: {"image": f"{name}:1", "environment": {}, "volumes": []} for name in SERVICES
        }
        self.exchange = folder / "exchange"
        mount = {"source": str(self.exchange), "target": "/srv/mlops/exchange"}
        services["mage"]["volumes"] = [mount]
        self.services = services
        self.answers: dict[str, tuple[int, str]] = {}
        script = folder / "docker"
        script.write_text(STAND_IN.replace("{python}", sys.executable))
        script.chmod(0o755)
        self.tell(MLOPS_GRAFANA="off" if watcher == "evaluator" else "auto")

    def tell(self, **settings: str) -> None:
        """Have the configuration say these settings, too."""
        self.services["streamlit"]["environment"] |= settings
        said = json.dumps({"services": self.services})
        self.answer({"config --format json": (0, said)})

    def answer(self, answers: dict[str, tuple[int, str]]) -> None:
        """Answer a command that contains a text by (exit code, output); all others by 0, ''."""
        self.answers |= answers
        (self.folder / "answers.json").write_text(json.dumps(self.answers))

    @property
    def calls(self) -> list[str]:
        """What was to change something, in order, without `compose`."""
        lines = (self.folder / "calls").read_text().splitlines()
        calls = [" ".join(json.loads(line)).removeprefix("compose ") for line in lines]
        asks = ("config", "ps", "image inspect")
        return [
            each for each in calls if not each.removeprefix("--profile evaluator ").startswith(asks)
        ]


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`docker/compose.py`, which writes no secrets here."""
    spec = importlib.util.spec_from_file_location("compose_py", ROOT / "docker" / "compose.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ensure_secrets", list)
    return module


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Docker(tmp_path, "grafana")


def up_of(calls: list[str]) -> str:
    """Return the last command, without its options."""
    assert calls[-1].startswith("up --detach --build --wait --wait-timeout ")
    return calls[-1].split(maxsplit=6)[-1]


def test_grafana_takes_over_from_the_evaluator(compose: ModuleType, docker: Docker) -> None:
    docker.answer(EVALUATOR_RUNS | GRAFANA_RUNS)
    assert compose.main(["up"]) == 0
    assert docker.calls[:-1] == [
        "build postgres listener",
        "--profile evaluator stop evaluator",
        "up --detach --wait --wait-timeout 600 postgres",
        HAND_OVER,
        "--profile evaluator rm --stop --force evaluator",
    ]
    assert up_of(docker.calls) == "grafana listener mage postgres prometheus streamlit"


def test_prometheus_switched_off_is_left_out(compose: ModuleType, docker: Docker) -> None:
    docker.tell(MLOPS_PROMETHEUS="off")
    assert compose.main(["up"]) == 0
    assert up_of(docker.calls) == "grafana listener mage postgres streamlit"


def test_grafana_takes_over_where_the_evaluators_container_has_gone(
    compose: ModuleType, docker: Docker
) -> None:
    """After `down`: nobody knows who watched before, and the states are in the database."""
    assert compose.main(["up"]) == 0
    assert HAND_OVER in docker.calls


def test_grafana_that_watches_already_takes_nothing_over(
    compose: ModuleType, docker: Docker
) -> None:
    docker.answer(GRAFANA_RUNS)
    assert compose.main(["up"]) == 0
    assert docker.calls[:-1] == ["--profile evaluator rm --stop --force evaluator"]


@pytest.mark.parametrize("services", [["streamlit"], ["listener", "evaluator"]])
def test_without_grafana_nothing_is_handed_over(
    compose: ModuleType, docker: Docker, services: list[str]
) -> None:
    docker.answer(EVALUATOR_RUNS)
    assert compose.main(["up", *services]) == 0
    assert HAND_OVER not in docker.calls
    assert "--profile evaluator stop evaluator" not in docker.calls


def test_grafana_switched_off_is_removed_for_the_evaluator(
    compose: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    docker = Docker(tmp_path, "evaluator")
    docker.answer(GRAFANA_RUNS)
    assert compose.main(["up"]) == 0
    assert docker.calls[:-1] == ["--profile evaluator rm --stop --force grafana"]


def test_grafana_that_cannot_be_had_leaves_the_evaluator_alone(
    compose: ModuleType, docker: Docker, capfd: pytest.CaptureFixture[str]
) -> None:
    docker.answer(EVALUATOR_RUNS | {"image inspect": (1, ""), "pull grafana": (18, "")})
    assert compose.main(["up"]) == 18
    assert docker.calls == ["pull grafana"]
    said = capfd.readouterr().err
    assert "grafana:1" in said
    assert "evaluator" in said
    assert "MLOPS_GRAFANA=off" in said


@pytest.mark.parametrize("failing", ["build postgres", "stop evaluator", "--wait-timeout 600 p"])
def test_nothing_is_handed_over_if_a_step_before_fails(
    compose: ModuleType, docker: Docker, failing: str
) -> None:
    docker.answer(EVALUATOR_RUNS | {failing: (17, "")})
    assert compose.main(["up"]) == 17
    assert failing in docker.calls[-1]


def test_grafana_is_not_started_before_the_hand_over(
    compose: ModuleType, docker: Docker, capfd: pytest.CaptureFixture[str]
) -> None:
    """The evaluator's container stays, stopped: the next `up` tries again."""
    docker.answer(EVALUATOR_RUNS | {"--hand-over": (1, "")})
    assert compose.main(["up"]) == 1
    assert docker.calls[-1] == HAND_OVER
    assert "Grafana is not started" in capfd.readouterr().err


def test_folders_of_the_exchange_are_their_groups_and_mage_is_in_it(
    compose: ModuleType, docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_EXCHANGE_GROUP", "")
    assert compose.main(["up"]) == 0
    folders = {path.name: path.stat() for path in docker.exchange.iterdir()}
    assert set(folders) == {"inbox", "outbox", "rejected", "done"}
    for found in folders.values():
        assert found.st_mode & 0o2070 == 0o2070
        assert not found.st_mode & 0o002, "anybody on this machine could put files there"
    assert os.environ["MLOPS_EXCHANGE_GROUP"] == str(folders["inbox"].st_gid)


def test_a_folder_that_cannot_be_made_is_named(
    compose: ModuleType, docker: Docker, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.exchange.write_text("a file")
    assert compose.main(["up"]) == compose.REFUSED
    said = capsys.readouterr().err
    assert str(docker.exchange) in said
    assert "MLOPS_EXCHANGE_DIR" in said
