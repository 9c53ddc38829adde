"""How Mage is started: its command and environment; never what it runs.

Run as a module (`python -m mlops.orchestration.server`) it imports the heavy libraries once and
hands over to Mage. Mage forks a process for every block run, so what is imported here is there
already, shared, in all of them: importing scikit-learn, MLflow and Evidently anew costs 3 to 9 s a
block.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import hmac
import importlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mlops.database import database_url
from mlops.settings import ROOT, Settings, get_settings

PROJECT = ROOT / "mlops"
PYTHON = ROOT / ".venv" / "bin" / "python"

# Imported before the fork: libraries only, so that a change of our own code counts at the next run.
# OpenMP and OpenBLAS start their threads at their first use, which is in the child.
PRELOADED = (
    "pandas",
    "pyarrow.parquet",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.neural_network",
    "sklearn.svm",
    "xgboost",
    "skops.io",
    "mlflow.sklearn",
    "mlflow.pyfunc",
    "mlflow.data.pandas_dataset",
    "git",  # MLflow imports these two when it logs: 0.3 s of processor time a candidate
    "opentelemetry.sdk.metrics.export",
    "onnxruntime",
    "skl2onnx",
    "onnxmltools",
    "evidently",
    "optuna",
    "optuna.samplers",
    "optuna.storages._rdb.storage",
    "matplotlib.figure",  # of the evidence: a second of processor time
    "matplotlib.backends.backend_agg",
)

_REST_S = 5.0


def mage_command(settings: Settings | None = None) -> list[str]:
    """Return the command that starts Mage's server and scheduler in the foreground."""
    settings = settings or get_settings()
    return [
        str(PYTHON),
        "-m",
        "mlops.orchestration.server",
        "start",
        str(PROJECT),
        "--host",
        settings.host,
        "--port",
        str(settings.mage_port),
    ]


def mage_environment(settings: Settings | None = None) -> dict[str, str]:
    """Return the variables that Mage needs beside those of the parent process.

    Raises MissingSecretError if a secret is not set.
    """
    settings = settings or get_settings()
    owner_password = settings.secret("mage_owner_password")
    return {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "MAGE_DATA_DIR": str(settings.state_dir / "mage"),
        "MAGE_CACHE_DIRECTORY": str(settings.state_dir / "mage" / "cache"),
        "MAGE_DATABASE_CONNECTION_URL": database_url(
            "mage", settings=settings, driver="postgresql+psycopg2"
        ),
        "REQUIRE_USER_AUTHENTICATION": "1",
        "DEFAULT_OWNER_EMAIL": settings.mage_owner_email,
        "DEFAULT_OWNER_USERNAME": "owner",
        "DEFAULT_OWNER_PASSWORD": owner_password,
        # Mage's default key for session tokens is a constant that everybody can read.
        "JWT_SECRET": hmac.new(owner_password.encode(), b"mage-jwt", hashlib.sha256).hexdigest(),
        # Anybody who can log in could otherwise read the environment, secrets included, in a shell.
        "DISABLE_TERMINAL": "1",
        "HIDE_API_TRIGGER_TOKEN": "1",
        # Seconds. The default of 10 made a pipeline of three empty blocks take 47 s; a quarter of a
        # second costs 5 % of one core when idle.
        "SCHEDULER_TRIGGER_INTERVAL": "0.25",
        "SERVER_VERBOSITY": "WARNING",
        "DISABLE_AUTO_BROWSER_OPEN": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # it fills the logs of blocks
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines a trial of a search
        # Else MLflow adds the whole lock to every model that it stores.
        "MLFLOW_UV_AUTO_DETECT": "false",
        # Mage wants an integer here; somebody's DEBUG=False would stop it from starting.
        "DEBUG": "0",
        "ENV": "production",
    }


def tokens_set_path(settings: Settings) -> Path:
    """Return the file that is there when Mage's triggers have their token; see `tokens`."""
    return settings.state_dir / "mage" / "tokens-set"


def mend_queue(process_queue: Any) -> None:
    """Close two gaps in the queue of Mage 0.9.80 (`mage_ai.orchestration.queue.process_queue`).

    It takes a job for lost between the moments when a worker takes it and writes down its process
    id, and then runs the block twice at once; and if its pool looks before the job has reached the
    pipe, the pool ends and the job waits for ever. Here a waiting job is lost only if neither the
    pool nor the pipe has it, and a pool that ended too early is started again. The pool also looks
    ten times a second, not once: a second less for each level of blocks.
    """
    waiting = process_queue.JobStatus.QUEUED
    has_job = process_queue.ProcessQueue.has_job

    def has_job_mended(self: Any, job_id: str, *args: Any, **kwargs: Any) -> bool:
        if self.job_dict.get(job_id) != waiting:
            return bool(has_job(self, job_id, *args, **kwargs))
        if self.is_worker_pool_alive():
            return True
        if self.queue.empty():
            # Asked again: the worker may have taken it, and finished, since the first question.
            return self.job_dict.get(job_id) != waiting and bool(has_job(self, job_id))
        self.start_worker_pool()
        return True

    def poll_job_and_execute(queue: Any, size: int, job_dict: Any, *_: Any) -> None:
        workers: list[Any] = []
        while True:
            workers = [worker for worker in workers if worker.is_alive()]
            if not workers and queue.empty():
                return
            while len(workers) < size and not queue.empty():
                worker = process_queue.Worker(queue, job_dict)
                worker.start()
                workers.append(worker)
            time.sleep(0.1)

    process_queue.ProcessQueue.has_job = has_job_mended
    process_queue.poll_job_and_execute = poll_job_and_execute


def die_with_parent() -> None:
    """Have every process that is forked from now on killed when the one that forked it is gone.

    Mage's server leaves its scheduler behind when it crashes, and the next start would make a
    second one that starts the same blocks. Linux only; elsewhere nothing is changed.
    """
    if sys.platform != "linux":
        return
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1
    os.register_at_fork(
        after_in_child=lambda: prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    )


def run_process(run_id: int) -> str:
    """Return the name of a process that works for a run as a whole; 15 bytes at most (Linux)."""
    return f"run {run_id}"


def block_process(block_run_id: int) -> str:
    """Return the name of a process that works for one block run."""
    return f"block {block_run_id}"


def name_workers(process_queue: Any) -> None:
    """Have a process of Mage's queue go by what it works for, in `ps`, `top` and for `stuck`.

    Linux only; elsewhere nothing is changed.
    """
    if sys.platform != "linux":
        return
    prctl = ctypes.CDLL(None).prctl
    set_name = 15
    start = process_queue.start_session_and_run

    def named(target: Any, *args: Any, **kwargs: Any) -> Any:
        name = {
            "run_pipeline": lambda: run_process(args[0]),
            "run_block": lambda: block_process(args[1]),
        }.get(getattr(target, "__name__", ""))
        if name is not None:
            prctl(set_name, name().encode()[:15], 0, 0, 0)
        return start(target, *args, **kwargs)

    process_queue.start_session_and_run = named


def keep_running(module: str) -> None:
    """Run `module` beside Mage, and again whenever it ends; it ends by itself when Mage does."""

    def run() -> None:
        while True:
            subprocess.run([sys.executable, "-m", module], check=False)
            time.sleep(_REST_S)

    threading.Thread(target=run, name=module, daemon=True).start()


def main() -> None:
    """Import what blocks share, then become `mage` with the arguments of this process."""
    tokens_set_path(get_settings()).unlink(missing_ok=True)
    for name in PRELOADED:
        importlib.import_module(name)
    # MLflow reads the metadata of every installed package when it stores a model: 1.3 s, once.
    importlib.import_module("mlflow.utils.requirements_utils")._init_modules_to_packages_map()
    # By name: this module is also read where Mage is not installed, for the command alone.
    process_queue = importlib.import_module("mage_ai.orchestration.queue.process_queue")
    mend_queue(process_queue)
    name_workers(process_queue)
    die_with_parent()
    gc.collect()
    gc.freeze()  # the collector would otherwise touch, and so copy, every page shared with children
    # Mage can be asked to start a pipeline only with a token, which it takes when it is up.
    subprocess.Popen([sys.executable, "-m", "mlops.orchestration.tokens"])
    keep_running("mlops.orchestration.inbox")
    keep_running("mlops.orchestration.shadow")
    keep_running("mlops.orchestration.stuck")
    sys.argv[0] = "mage"
    runpy.run_module("mage_ai.cli.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
