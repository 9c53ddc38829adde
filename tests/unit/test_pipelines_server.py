"""How Mage is started, and what is mended in its queue, without Mage."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlops.orchestration import mage, server, tokens
from mlops.orchestration.mage import MageUnavailable
from mlops.orchestration.server import tokens_set_path
from mlops.settings import MissingSecretError, Settings
from tests.fixtures.postgres import make_settings


class FakeQueue:
    """As much of Mage's ProcessQueue as the mended functions touch."""

    def __init__(self, jobs: dict[str, Any], pool: bool, waiting: bool) -> None:
        self.job_dict, self.pool, self.started = jobs, pool, 0
        self.queue = SimpleNamespace(empty=lambda: not waiting)

    def has_job(self, job_id: str, **_: Any) -> bool:
        return isinstance(self.job_dict.get(job_id), int)

    def is_worker_pool_alive(self) -> bool:
        return self.pool

    def start_worker_pool(self) -> None:
        self.started += 1


@pytest.fixture
def queue_class() -> type[FakeQueue]:
    copy = type("Queue", (FakeQueue,), {"has_job": FakeQueue.has_job})
    module = SimpleNamespace(
        JobStatus=SimpleNamespace(QUEUED="queued"), ProcessQueue=copy, Worker=None
    )
    server.mend_queue(module)
    return copy


def test_a_job_that_a_worker_is_just_taking_is_not_lost(queue_class: type[FakeQueue]) -> None:
    assert queue_class({"job": "queued"}, pool=True, waiting=False).has_job("job")


def test_a_pool_that_ended_too_early_is_started_again(queue_class: type[FakeQueue]) -> None:
    queue = queue_class({"job": "queued"}, pool=False, waiting=True)
    assert queue.has_job("job")
    assert queue.started == 1


def test_a_job_that_neither_pool_nor_pipe_has_is_lost(queue_class: type[FakeQueue]) -> None:
    assert not queue_class({"job": "queued"}, pool=False, waiting=False).has_job("job")


def test_other_jobs_are_judged_by_mage(queue_class: type[FakeQueue]) -> None:
    queue = queue_class({"running": 123, "done": "completed"}, pool=True, waiting=True)
    assert queue.has_job("running")
    assert not queue.has_job("done")
    assert not queue.has_job("never heard of")


def test_the_queue_that_is_mended_is_the_one_that_mage_has() -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import inspect, mage_ai.orchestration.queue.process_queue as q;"
            "print(list(inspect.signature(q.poll_job_and_execute).parameters)[:3],"
            " list(inspect.signature(q.ProcessQueue.has_job).parameters)[:2],"
            " q.JobStatus.QUEUED.value, q.Worker.__name__);"
            "from mlops.orchestration.server import mend_queue; mend_queue(q)",
        ],
        env={"MAGE_DATABASE_CONNECTION_URL": "sqlite://", "PATH": "", "HOME": "/nonexistent"},
        cwd=server.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert "['queue', 'size', 'job_dict'] ['self', 'job_id'] queued Worker" in found.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="uses prctl")
@pytest.mark.parametrize(
    ("target", "name"),
    [("run_block", "block 12"), ("run_pipeline", "run 7"), ("something_else", "python")],
)
def test_a_worker_goes_by_what_it_works_for(target: str, name: str) -> None:
    """`stuck` tells by it which processes work for a run; the arguments stay as they were."""
    code = (
        "import pathlib\n"
        "from types import SimpleNamespace\n"
        "from mlops.orchestration.server import name_workers\n"
        f"def {target}(*args): print(args, pathlib.Path('/proc/self/comm').read_text().strip())\n"
        "queue = SimpleNamespace(start_session_and_run=lambda run, *args, **kwargs: run(*args))\n"
        "name_workers(queue)\n"
        f"queue.start_session_and_run({target}, 7, 12, {{}})\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=server.ROOT, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.startswith(f"(7, 12, {{}}) {name}"), found.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="uses prctl")
def test_a_forked_process_dies_with_the_one_that_forked_it() -> None:
    code = (
        "import multiprocessing, os, time\n"
        "from mlops.orchestration.server import die_with_parent\n"
        "def run():\n"
        "    print(os.getpid(), flush=True)\n"  # it runs, so its parent's death is heard of
        "    time.sleep(60)\n"
        "die_with_parent()\n"
        "multiprocessing.get_context('fork').Process(target=run).start()\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=server.ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        parent.kill()
    assert child.name.isdigit()
    deadline = time.monotonic() + 10
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


def test_mage_keeps_its_state_out_of_the_repository(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    environment = server.mage_environment(settings)
    assert Path(environment["MAGE_DATA_DIR"]).is_relative_to(settings.state_dir)
    assert Path(environment["MAGE_CACHE_DIRECTORY"]).is_relative_to(settings.state_dir)


def test_no_secret_of_mage_is_a_default(tmp_path: Path) -> None:
    environment = server.mage_environment(make_settings(tmp_path))
    assert environment["REQUIRE_USER_AUTHENTICATION"] == "1"
    assert environment["DEFAULT_OWNER_PASSWORD"] not in ("", "admin")
    other = server.mage_environment(make_settings(tmp_path))
    assert environment["JWT_SECRET"] != other["JWT_SECRET"]
    assert environment["JWT_SECRET"] != environment["DEFAULT_OWNER_PASSWORD"]


def test_without_an_owner_password_mage_is_not_started(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, mage_owner_password=None)
    with pytest.raises(MissingSecretError, match="MLOPS_MAGE_OWNER_PASSWORD"):
        server.mage_environment(settings)


def test_the_command_line_holds_no_secret(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    command = " ".join(server.mage_command(settings))
    assert f"--host 127.0.0.1 --port {settings.mage_port}" in command
    assert settings.secret("mage_owner_password") not in command


def test_mage_away_is_told_as_such(tmp_path: Path) -> None:
    settings: Settings = make_settings(tmp_path)
    with pytest.raises(mage.MageUnavailable, match="does not answer"):
        mage.trigger_pipeline("prepare", {}, settings)
    with pytest.raises(mage.MageUnavailable, match="not ready"):
        mage.set_trigger_tokens(settings)
    with pytest.raises(mage.MageUnavailable, match="not ready after 0 s: no answer at"):
        mage.wait_until_ready(0.1, settings)


def test_the_log_of_a_failed_block_gives_what_it_printed_and_its_exception(tmp_path: Path) -> None:
    log = tmp_path / "block.log"
    log.write_text(
        '2026-01-01T00:00:00 {"level": "INFO", "message": "Start executing block with X."}\n'
        '2026-01-01T00:00:01 {"level": "INFO", "message": "reading bank.zip"}\n'
        '2026-01-01T00:00:02 {"level": "EXCEPTION", "message": "Failed to execute block", "error":'
        ' "Traceback (most recent call last):\\n  File \\"a.py\\", line 1, in f\\n    g()\\n'
        '    ^^^\\nDataError: bank.csv: row 3\\n  - found x, expected y\\n"}\n'
        "Traceback (most recent call last):\n",
        encoding="utf-8",
    )
    printed, fault = mage._read_log(log)
    assert printed == "reading bank.zip"
    assert fault == "DataError: bank.csv: row 3\n  - found x, expected y"


def test_progress_names_what_is_under_way() -> None:
    blocks = {"train/start": "completed", "train/fit:SVC": "running", "train/fit:XGB": "queued"}
    assert mage.Run(1, "train", "running", "", blocks).progress == "fit:SVC, fit:XGB"
    assert mage.Run(1, "train", "initial", "", {}).progress == "waiting for Mage"


def test_tokens_are_set_however_long_postgres_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(_env_file=None, state_dir=tmp_path)
    (tmp_path / "mage").mkdir()
    away = MageUnavailable("away")
    answers = [away, None, away, None, None]  # before Mage is up, and once more when it is
    calls: list[str] = []

    def step(name: str) -> None:
        calls.append(name)
        error = answers.pop(0)
        if error:
            raise error

    monkeypatch.setattr(tokens, "get_settings", lambda: settings)
    monkeypatch.setattr(tokens, "wait_until_ready", lambda *_: step("wait"))
    monkeypatch.setattr(tokens, "set_trigger_tokens", lambda *_: step("set"))
    tokens.main()
    assert calls == ["wait", "wait", "set", "wait", "set"]
    assert tokens_set_path(settings).exists()
