"""One compose stack for all tests here: built, started, and with one loop behind it.

The tests need a Docker engine, and are run by `make compose-test` only. Without an engine they
are skipped, loudly; with `--required` (on a machine that is known to have all of it) they fail
instead, and so do they if Grafana's image cannot be had. What was measured stands in
`.stack/compose-test.json`, the containers' logs in `.stack/compose-test/`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from mlops.orchestration import mage
from mlops.serving.exchange import make_folders
from mlops.settings import ROOT
from tests.compose.engine import Report, Stack, missing_engine
from tests.fixtures.postgres import free_ports, make_settings
from tests.fixtures.stack import small_sample

REPORT = ROOT / ".stack" / "compose-test.json"
LOGS = ROOT / ".stack" / "compose-test"
_TEST_LIMIT_S = 2400
"""Of one test, with what it needs first: a build without a cache downloads half an hour long."""

DEMO_LIMIT_S = 1200


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--required",
        action="store_true",
        help="compose: fail without a Docker engine or Grafana's image, instead of skipping",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report(REPORT)


_REPORT = pytest.StashKey[Report]()
_SKIPPED = pytest.StashKey[str]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.timeout(_TEST_LIMIT_S))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if reason := config.stash.get(_SKIPPED, None):
        terminalreporter.write_line(f"compose-test SKIPPED: {reason}", yellow=True)
    elif (report := config.stash[_REPORT]).seconds:
        terminalreporter.write_line(report.write(exitstatus))


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """Where seconds and findings go."""
    return pytestconfig.stash[_REPORT]


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config, report: Report) -> Iterator[Stack]:
    """The running stack, every container healthy. Whatever happens, it is taken away again."""
    required = pytestconfig.getoption("--required", default=False)
    reason = missing_engine()
    if reason and required:
        pytest.exit(reason, returncode=1)
    if reason:
        pytestconfig.stash[_SKIPPED] = reason
        pytest.skip(reason)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="mlops-compose-"))
    # The containers' user, who is nobody here, reads the data.
    folder.chmod(0o755)
    data = os.environ.get("MLOPS_DATA")
    with pytest.MonkeyPatch.context() as patch:
        # A person's settings are not what is tested here.
        for name in [name for name in os.environ if name.startswith("MLOPS_")]:
            patch.delenv(name)
        # By the folder of its pipelines Mage tells whose trigger it is.
        patch.setattr(mage, "PROJECT", Path("/srv/mlops/mlops"))
        settings = make_settings(folder, data=data or str(folder / "sample.csv"))
        make_folders(settings)  # as docker/compose.py makes them
        for path in settings.exchange_dir.iterdir():
            path.chmod(0o2770)
        if not data:
            (folder / "sample.csv").write_bytes(small_sample(settings))
        name = f"mlops-test-{secrets.token_hex(3)}"
        stack = Stack(name, settings, free_ports(1)[0], report)
        shutil.rmtree(LOGS, ignore_errors=True)
        try:
            _start(stack, required)
            yield stack
        finally:
            with report.stage("take away"):
                stack.remove(LOGS)
            shutil.rmtree(folder, ignore_errors=True)


def _interrupt(*_: object) -> None:
    """End the run as Ctrl-C does: CI sends SIGTERM as well, which would leave the stack behind.

    A second one is too late to be heard: the stack is being taken away.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _start(stack: Stack, required: bool) -> None:
    stack.report.say(f"project {stack.name}, data {stack.settings.data}")
    with stack.report.stage("find images"):
        stack.choose_services()
    for service, why in stack.left_out.items():
        stack.report.say(f"without {service}: {why}")
    stack.report.say(f"the alert rules are watched by {stack.watcher}")
    stack.report.facts["watcher"] = stack.watcher
    if required and stack.watcher != "grafana":
        pytest.exit(stack.left_out["grafana"], returncode=1)
    with stack.report.stage("build"):
        stack.build()
    sizes = stack.image_megabytes()
    stack.report.facts["image_megabytes"] = sizes
    stack.report.say("images in MB: " + ", ".join(f"{k} {v:,.0f}" for k, v in sizes.items()))
    with stack.report.stage("up"):
        stack.up()


@dataclass(frozen=True)
class Loop:
    """A loop that has closed: what the demo found out, and what was seen from outside meanwhile."""

    facts: dict[str, Any]
    rule_states: set[str]
    """States of the alert rules in Grafana; empty where the evaluator stands in."""


def run_demo(stack: Stack, stage: str) -> Loop:
    """Run what `make compose-demo` runs, and return its facts. Fails unless the loop closes."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            # One look that fails says nothing: Grafana may be busy.
            with suppress(requests.RequestException, AssertionError):
                seen.update(stack.rule_states())

    watching = threading.Thread(target=watch, daemon=True)
    with stack.report.stage(stage):
        if stack.watcher == "grafana":
            watching.start()
        try:
            command = ["python", "-m", "mlops.stack.demo"]
            ran = stack.exec("mage", *command, timeout=DEMO_LIMIT_S, check=False, show=True)
        finally:
            done.set()
    assert ran.returncode == 0, ran.stdout
    assert "loop: closed" in ran.stdout.splitlines(), ran.stdout
    facts = json.loads(stack.exec("mage", "cat", "/var/lib/mlops/demo.json").stdout)
    assert facts["closed"] is True, facts
    return Loop(facts, seen)


@pytest.fixture(scope="session")
def loop(stack: Stack) -> Loop:
    """The first loop of the stack: version 1 or later in production, months played, a retrain."""
    return run_demo(stack, "demo")
