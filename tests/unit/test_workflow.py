"""What the workflow may do: call make, and read. Everything else a person could not do at home."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops.settings import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@(v\d+(\.\d+)*|[0-9a-f]{40})")
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


def read(path: Path) -> dict[Any, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def make_targets() -> set[str]:
    rules = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(rules)


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_is_a_workflow() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml"]


def test_workflow_runs_on_every_push_and_pull_request(workflow: Path) -> None:
    triggers = read(workflow)[True]  # YAML 1.1 takes the key `on` for a truth value
    assert triggers == {"push": None, "pull_request": None}


def test_steps_call_make_and_nothing_else(workflow: Path) -> None:
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    assert commands
    for command in commands:
        assert "\n" not in command, command
        program, *arguments = shlex.split(EXPRESSION.sub("x", command))
        assert program == "make", command
        targets = [each for each in arguments if "=" not in each]
        assert targets, command
        assert set(targets) <= make_targets(), command


def test_lint_tests_and_containers_are_all_run() -> None:
    commands = " ".join(step.get("run", "") for path in WORKFLOWS for step in steps(path))
    assert "make test" in commands  # lints first: see the Makefile
    assert "make compose-test REQUIRED=1" in commands  # never skipped there, and with Grafana
    assert re.search(r"^test: lint\b", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_supported_python_is_tried() -> None:
    requires = re.search(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())
    assert requires
    assert requires[1] == ">=3.10,<3.13"
    matrix = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12"]


def test_workflow_may_read_only(workflow: Path) -> None:
    content = read(workflow)
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert "permissions" not in job
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_no_step_sees_a_secret_or_what_a_stranger_wrote(workflow: Path) -> None:
    """A title or a branch name in a command would be run by its shell."""
    text = workflow.read_text(encoding="utf-8")
    used = set(EXPRESSION.findall(text))
    assert not [each for each in used if "secrets" in each or "token" in each]
    for step in steps(workflow):
        for each in EXPRESSION.findall(step.get("run", "")):
            assert each.startswith("matrix."), each


def test_actions_are_pinned(workflow: Path) -> None:
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used
    assert not [each for each in used if not PINNED.fullmatch(each)]


def test_no_job_runs_for_ever_and_older_runs_make_way(workflow: Path) -> None:
    content = read(workflow)
    assert content["concurrency"]["cancel-in-progress"] is True
    for name, job in content["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 90, name
