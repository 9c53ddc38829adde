"""Supervisor and what it leaves behind, tried with programs that only sleep."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mlops.settings import Settings, secret_names
from mlops.stack import processes
from mlops.stack.processes import Program
from tests.fixtures.postgres import make_settings

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
# Like Mage: its child is in a session of its own, where no group signal reaches it, and stays when
# its parent goes.
WITH_CHILD = (
    sys.executable,
    "-c",
    "import subprocess, sys, time; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
    " start_new_session=True); time.sleep(600)",
)
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
)
BROKEN = (sys.executable, "-c", "raise SystemExit('no such module')")


def wait_for(condition: Callable[[], object], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def prepared(folder: Path) -> Settings:
    settings = make_settings(folder)
    (settings.state_dir / "logs").mkdir(parents=True)
    return settings


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    # With a space, and deeper than a Unix socket's path may be.
    settings = prepared(tmp_path / "a clone" / ("deep" * 20) / ("er" * 20))
    yield settings
    processes.stop_all(settings)


def started(settings: Settings, *programs: Program) -> None:
    processes.start_supervisor(settings, programs)
    for program in programs:
        processes.start(settings, program.name)


def state(settings: Settings, name: str) -> str:
    return processes.states(settings)[name].name


def test_down_leaves_nothing_behind(settings: Settings) -> None:
    started(settings, Program("a", SLEEP, first=True), Program("b", WITH_CHILD))
    wait_for(lambda: len(processes.leftovers(settings)) == 3)
    processes.stop_all(settings)
    assert processes.leftovers(settings) == []
    assert processes.supervisor_pid(settings) is None


def test_down_leaves_nothing_behind_after_supervisor_was_killed(settings: Settings) -> None:
    started(settings, Program("a", WITH_CHILD), Program("b", STUBBORN))
    wait_for(lambda: len(processes.leftovers(settings)) == 3)
    supervisor = psutil.Process(processes.supervisor_pid(settings))
    supervisor.kill()
    wait_for(lambda: processes.supervisor_pid(settings) is None)
    assert len(processes.leftovers(settings)) == 3
    assert processes.stop_all(settings, patience=2.0) == 3
    assert processes.leftovers(settings) == []


def test_a_service_that_starts_again_ends_what_its_killed_self_left(settings: Settings) -> None:
    """The child of a killed MLflow held its port for ever, and answered for it."""

    def as_service(name: str) -> Program:
        command = ("env", f"{processes.SERVICE_MARK}={name}", *WITH_CHILD)
        return Program(name, command)

    started(settings, as_service("a"), as_service("b"))
    wait_for(lambda: len(processes.leftovers(settings, "a")) == 2)
    wait_for(lambda: len(processes.leftovers(settings, "b")) == 2)
    of_b = {each.pid for each in processes.leftovers(settings, "b")}
    assert processes.end_predecessors(settings, "a") == 2
    assert of_b <= {each.pid for each in processes.leftovers(settings)}
    wait_for(lambda: len(processes.leftovers(settings, "a")) == 2)  # supervisor starts it again


def test_another_clones_processes_are_left_alone(settings: Settings, tmp_path: Path) -> None:
    other = prepared(tmp_path / "other")
    try:
        started(other, Program("a", SLEEP))
        started(settings, Program("a", SLEEP))
        wait_for(lambda: len(processes.leftovers(other)) == 1)
        processes.stop_all(settings)
        assert len(processes.leftovers(other)) == 1
        assert processes.supervisor_pid(other)
    finally:
        processes.stop_all(other)


def test_what_dies_is_restarted(settings: Settings) -> None:
    started(settings, Program("a", SLEEP))
    wait_for(lambda: state(settings, "a") == "RUNNING")
    pid = processes.states(settings)["a"].pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: processes.states(settings)["a"].pid not in (pid, None))


def test_what_cannot_start_is_given_up_and_says_why(settings: Settings) -> None:
    started(settings, Program("a", BROKEN), Program("b", SLEEP))
    wait_for(lambda: state(settings, "a") == "FATAL")
    assert "no such module" in processes.log_path(settings, "a").read_text()
    wait_for(lambda: state(settings, "b") == "RUNNING")


def test_starting_again_keeps_what_runs(settings: Settings) -> None:
    started(settings, Program("a", SLEEP))
    wait_for(lambda: state(settings, "a") == "RUNNING")
    pid = processes.states(settings)["a"].pid
    processes.start(settings, "a")
    assert processes.states(settings)["a"].pid == pid


def test_supervisors_files_hold_no_secret_and_are_private(settings: Settings) -> None:
    started(settings, Program("a", SLEEP))
    configuration = settings.state_dir / "supervisord.conf"
    text = configuration.read_text()
    assert not any(settings.secret(name) in text for name in secret_names(optional=False))
    assert configuration.stat().st_mode & 0o077 == 0
    address = Path((settings.state_dir / "supervisor.address").read_text())
    assert address.stat().st_mode & 0o077 == 0
    processes.stop_all(settings)
    assert not address.exists()
    assert not address.parent.name.startswith("mlops-") or not address.parent.exists()


def test_a_path_that_supervisor_cannot_take_is_refused_by_name(tmp_path: Path) -> None:
    settings = prepared(tmp_path / "100% mine")
    with pytest.raises(processes.SupervisorError, match=r"'%' in a path.*100% mine"):
        processes.start_supervisor(settings, [Program("a", SLEEP)])
    assert processes.supervisor_pid(settings) is None


def test_nothing_runs_before_the_first_start(settings: Settings) -> None:
    assert processes.states(settings) == {}
    assert processes.stop_all(settings) == 0
