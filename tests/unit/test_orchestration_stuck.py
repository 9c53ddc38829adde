"""Which of Mage's runs are stuck, by what is seen of them; the clock is in the test's hand."""

from __future__ import annotations

import subprocess
import sys

import psutil

from mlops.orchestration.server import block_process, run_process
from mlops.orchestration.stuck import MOST_DEATHS, Judge, UnfinishedRun, Worker, workers_of

LIMIT = 600.0


def run(**states: str) -> UnfinishedRun:
    blocks = dict(enumerate(states.values(), start=1))
    return UnfinishedRun(7, "retrain", "r1", blocks, dict(enumerate(states, start=1)))


def worker(name: str, seconds: float, pid: int = 100, moved: int = 0) -> Worker:
    return Worker(name, pid, created=float(pid), seconds=seconds, bytes=moved)


def test_a_run_in_which_nothing_moves_is_stuck_after_the_limit() -> None:
    judge, hangs = Judge(LIMIT), run(open="completed", fit="running")
    idle = [worker(block_process(2), 3.0)]
    assert judge.stuck([hangs], idle, 0) == {}
    assert judge.stuck([hangs], idle, LIMIT - 1) == {}
    (reason,) = judge.stuck([hangs], idle, LIMIT + 1).values()
    assert reason.startswith("block fit: nothing has moved for 600 s")


def test_a_training_that_works_is_never_stuck() -> None:
    judge = Judge(LIMIT)
    for minute in range(24 * 60):
        busy = [worker(block_process(1), 50.0 * minute)]
        assert judge.stuck([run(fit="running")], busy, 60.0 * minute) == {}


def test_the_little_that_an_idle_process_takes_is_no_work() -> None:
    judge, found = Judge(LIMIT), {}
    for minute in range(12):
        idle = [worker(block_process(1), 0.2 * minute)]
        found = judge.stuck([run(fit="running")], idle, 60.0 * minute)
    assert found


def test_a_slow_download_is_work_though_it_takes_no_processor() -> None:
    judge = Judge(LIMIT)
    for minute in range(24 * 60):
        loads = [worker(block_process(1), 0.1 * minute, moved=600_000 * minute)]  # 10 kB/s
        assert judge.stuck([run(fit="running")], loads, 60.0 * minute) == {}


def test_the_lines_that_an_idle_process_writes_are_no_work() -> None:
    judge, found = Judge(LIMIT), {}
    for minute in range(12):
        idle = [worker(block_process(1), 0.0, moved=2_000 * minute)]
        found = judge.stuck([run(fit="running")], idle, 60.0 * minute)
    assert found


def test_what_a_process_writes_is_seen() -> None:
    """Into a pipe, which no disk is asked for."""
    code = "import os, sys; sys.stdin.read(1); os.write(1, bytes(50_000)); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:

        def moved() -> int:
            (found,) = (w for w in workers_of(psutil.Process()) if w.pid == child.pid)
            return found.bytes

        before = moved()
        child.stdin.write(b"x")
        child.stdin.flush()
        child.stdout.read(50_000)
        assert moved() - before >= 50_000
    finally:
        child.kill()
        child.communicate()


def test_a_block_that_ends_is_a_sign_of_life() -> None:
    judge = Judge(LIMIT)
    judge.stuck([run(fit="running", deploy="initial")], [], 0)
    judge.stuck([run(fit="completed", deploy="running")], [], LIMIT - 1)
    assert judge.stuck([run(fit="completed", deploy="running")], [], LIMIT + 100) == {}
    assert judge.stuck([run(fit="completed", deploy="running")], [], 2 * LIMIT) != {}


def test_a_process_that_dies_again_and_again_is_given_up() -> None:
    """Mage begins anew each time, for ever; it looks busy all the while."""
    judge = Judge(LIMIT)
    for life in range(MOST_DEATHS):
        at_work = [worker(block_process(1), 30.0, pid=100 + life)]
        assert judge.stuck([run(fit="running")], at_work, 60.0 * life) == {}
        assert judge.stuck([run(fit="queued")], [], 60.0 * life + 30) == {} or life == 2
    (reason,) = judge.stuck([run(fit="running")], [], 200).values()
    assert "block fit: its process has died 3 times" in reason


def test_a_run_in_one_process_is_known_by_its_own_name() -> None:
    judge = Judge(LIMIT)
    for minute in range(60):
        busy = [worker(run_process(7), 10.0 * minute)]
        assert judge.stuck([run(monitor="running")], busy, 60.0 * minute) == {}


def test_work_for_another_run_counts_for_nothing() -> None:
    judge = Judge(LIMIT)
    for minute in range(12):
        busy = [worker(run_process(8), 50.0 * minute), worker("python", 50.0 * minute, 5)]
        found = judge.stuck([run(fit="running")], busy, 60.0 * minute)
    assert found


def test_a_run_that_has_ended_is_forgotten() -> None:
    judge = Judge(LIMIT)
    judge.stuck([run(fit="running")], [], 0)
    judge.stuck([], [], 10)
    assert judge.stuck([run(fit="running")], [], LIMIT + 1) == {}


def test_a_new_process_that_counts_from_nothing_does_not_put_the_limit_off() -> None:
    judge = Judge(LIMIT)
    judge.stuck([run(fit="running")], [worker(block_process(1), 90.0)], 0)
    judge.stuck([run(fit="running")], [worker(block_process(1), 0.1, 101)], 300)
    found = judge.stuck([run(fit="running")], [worker(block_process(1), 0.1, 101)], LIMIT + 1)
    assert found


def test_where_processes_cannot_be_told_apart_nothing_is_judged_idle() -> None:
    judge = Judge(LIMIT, sees_work=False)
    judge.stuck([run(fit="running")], [], 0)
    assert judge.stuck([run(fit="running")], [], 100 * LIMIT) == {}


def test_names_of_processes_fit_into_what_linux_keeps() -> None:
    assert len(block_process(99_999_999).encode()) <= 15
    assert len(run_process(99_999_999).encode()) <= 15
