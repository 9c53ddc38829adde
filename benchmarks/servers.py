"""The servers of a benchmark: how each is started, asked, watched and stopped.

Every server listens on loopback on a free port, has two workers and a process group of its own, and
is stopped whatever happens. It is never told that it is measured.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
import psycopg2

from benchmarks import bodies
from benchmarks.load import Decode, Question, ask, question
from mlops.database import database_url
from mlops.settings import ROOT, Settings
from mlops.stack import postgres

WORKERS = 2
SERVICES = ROOT / ".venv-services"
PEERS = ROOT / ".venv-peers"
START_TIMEOUT_S = 120.0


class BenchmarkError(RuntimeError):
    """A server cannot be started or answers wrongly; the message says which and how."""


@dataclass(frozen=True)
class Kind:
    """One kind of server: what it is called, how it runs, and how it is asked."""

    name: str
    title: str
    command: Callable[[Run, int], list[str]]
    encode: Callable[[list[dict[str, Any]]], bytes]
    decode: Decode
    path: str = "/predict"
    environment: Callable[[Run, int], dict[str, str]] = lambda run, port: {}
    scores: bool = True
    """Whether its answers are of the model."""


@dataclass
class Run:
    """What the servers of one run share: the model's files and the settings of ours."""

    folder: Path
    settings: Settings
    records: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)

    def load(self) -> None:
        """Read the records and the probabilities that are right for them."""
        content = orjson.loads((self.folder / "records.json").read_bytes())
        self.records, self.scores = content["records"], content["scores"]

    def questions(self, kind: Kind, rows: int, count: int) -> list[Question]:
        """Return `count` requests of `rows` records each to `kind`; records repeat if need be."""
        asked = []
        for number in range(count):
            chosen = [(number * rows + place) % len(self.records) for place in range(rows)]
            body = kind.encode([self.records[place] for place in chosen])
            expected: dict[str, Sequence[float]] = {
                version: [scores[place] for place in chosen] if kind.scores else [0.5]
                for version, scores in self.scores.items()
            }
            asked.append(question(kind.path, body, expected))
        return asked


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


def own_settings(folder: Path) -> Settings:
    """Return settings that touch nothing outside `folder`: own ports, own passwords, no `.env`."""
    postgres_port, predict_port = free_ports(2)
    passwords = ("postgres", "grafana_db", "mlflow_db", "predict_db")
    values: dict[str, Any] = {f"{name}_password": secrets.token_urlsafe(16) for name in passwords}
    return Settings(
        _env_file=None,
        state_dir=folder / "state",
        payloads_dir=folder / "payloads",
        postgres_port=postgres_port,
        predict_port=predict_port,
        predict_workers=WORKERS,
        **values,
    )


# How each is started


def _gunicorn(*arguments: str) -> Callable[[Run, int], list[str]]:
    return lambda run, port: [
        *[str(SERVICES / "bin" / "python"), "-m", "gunicorn", "benchmarks.peers.constant:app"],
        *["--bind", f"127.0.0.1:{port}", "--workers", str(WORKERS), "--no-control-socket"],
        *arguments,
    ]


def _ours_environment(run: Run, port: int) -> dict[str, str]:
    settings = run.settings
    return {
        "MLOPS_PREDICT_PORT": str(port),
        "MLOPS_PREDICT_WORKERS": str(WORKERS),
        "MLOPS_STATE_DIR": str(settings.state_dir),
        "MLOPS_POSTGRES_PORT": str(settings.postgres_port),
        "MLOPS_PREDICT_DB_PASSWORD": settings.secret("predict_db_password"),
    }


def _sklearn_environment(run: Run, port: int) -> dict[str, str]:
    return {
        # `mlflow` starts the uvicorn that is found there.
        "PATH": f"{PEERS / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "BENCHMARK_PIPELINE": str(run.folder / "pipeline.joblib"),
        "BENTOML_HOME": str(run.folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "OMP_NUM_THREADS": "1",  # two workers fill two cores
    }


OURS = Kind(
    "ours",
    "ours (ONNX, validation, log, metrics)",
    lambda run, port: [
        *[str(SERVICES / "bin" / "python"), "-m", "gunicorn"],
        *["-c", str(run.settings.payloads_dir / "current" / "gunicorn.conf.py")],
    ],
    bodies.encode_ours,
    bodies.decode_ours,
    environment=_ours_environment,
)
MLFLOW = Kind(
    "mlflow",
    "mlflow models serve",
    lambda run, port: [
        *[str(PEERS / "bin" / "mlflow"), "models", "serve", "-m", str(run.folder / "mlflow")],
        *["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port), "-w", str(WORKERS)],
    ],
    bodies.encode_mlflow,
    bodies.decode_mlflow,
    path="/invocations",
    environment=_sklearn_environment,
)
BENTOML = Kind(
    "bentoml",
    "BentoML",
    lambda run, port: [
        *[str(PEERS / "bin" / "bentoml"), "serve", "benchmarks.peers.bentoml_service:Classifier"],
        *["--host", "127.0.0.1", "--port", str(port)],
    ],
    bodies.encode_bentoml,
    bodies.decode_bentoml,
    environment=_sklearn_environment,
)
FASTAPI = Kind(
    "fastapi",
    "FastAPI with sklearn",
    lambda run, port: [
        *[str(PEERS / "bin" / "uvicorn"), "benchmarks.peers.fastapi_app:app"],
        *["--host", "127.0.0.1", "--port", str(port), "--workers", str(WORKERS)],
        "--no-access-log",
    ],
    bodies.encode_fastapi,
    bodies.decode_fastapi,
    environment=_sklearn_environment,
)
CONSTANT = Kind(
    "constant",
    "gunicorn, a constant (sync)",
    _gunicorn("--worker-class", "sync"),
    bodies.encode_ours,
    bodies.decode_ours,
    scores=False,
)
CONSTANT_THREADS = Kind(
    "constant_gthread",
    "gunicorn, a constant (gthread)",
    _gunicorn("--worker-class", "gthread", "--threads", "4"),
    bodies.encode_ours,
    bodies.decode_ours,
    scores=False,
)


@dataclass
class Server:
    """A server that runs."""

    kind: Kind
    port: int
    process: subprocess.Popen[bytes]
    start_s: float = 0.0
    """From the start of the command to the first right answer."""

    def family(self) -> list[psutil.Process]:
        """Return its processes, as long as they live."""
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def memory_mb(self) -> float:
        """Return the memory of all its processes in MB; see `memory_mb`."""
        return memory_mb(self.family())


def memory_mb(processes: Sequence[psutil.Process]) -> float:
    """Return the memory of processes in MB (10^6 bytes): PSS, shared pages counted once in sum.

    Where the system does not tell PSS (macOS), it is the sum of USS.
    """
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            info = process.memory_full_info()
            total += getattr(info, "pss", None) or info.uss
    return total / 1e6


@contextmanager
def serving(kind: Kind, run: Run, log_folder: Path) -> Iterator[Server]:
    """Run a server for the length of the block; it has answered rightly when the block begins.

    Raises BenchmarkError with the end of its output if it does not.
    """
    (port,) = free_ports(1)
    if kind is OURS:
        port = run.settings.predict_port
    first = run.questions(kind, 1, 1)[0]
    log = log_folder / f"{kind.name}.log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLOPS_")},
        "PYTHONPATH": str(ROOT),
        **kind.environment(run, port),
    }
    if kind is OURS:
        environment.pop("PYTHONPATH")  # the payload stands alone
    with log.open("ab") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            kind.command(run, port),
            cwd=run.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(kind, port, process)
    try:
        while complaint := ask(port, first, kind.decode, timeout=10):
            if process.poll() is not None or time.perf_counter() - began > START_TIMEOUT_S:
                tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-15:])
                raise BenchmarkError(f"{kind.title} does not answer: {complaint}\n  {tail}")
            time.sleep(0.005)
        server.start_s = time.perf_counter() - began
        yield server
    finally:
        _stop(server)


def _stop(server: Server) -> None:
    family = server.family()
    server.process.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
    for process in family:  # those that have made a group of their own
        with suppress(psutil.NoSuchProcess):
            process.kill()
    server.process.wait()


class MemoryWatch:
    """Samples the memory of a server until it is stopped; knows the peak and the course."""

    def __init__(self, server: Server, every_s: float = 0.05) -> None:
        self.samples: list[tuple[float, float]] = []
        """Seconds since the start, MB."""
        self._server, self._every = server, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        return max((mb for _, mb in self.samples), default=0.0)

    def _watch(self) -> None:
        began = time.monotonic()
        while True:
            self.samples.append((time.monotonic() - began, self._server.memory_mb()))
            if self._stop.wait(self._every):
                return


class LogTable:
    """What has arrived of the answers in Postgres."""

    def __init__(self, run: Run) -> None:
        self._settings = run.settings

    def _ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(database_url(settings=self._settings))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def rows(self) -> int:
        """Return the number of rows in serving.predictions."""
        return int(self._ask("SELECT count(*) FROM serving.predictions")[0][0])

    def empty(self) -> None:
        """Make room for the next round, and leave Postgres nothing to tidy up during it."""
        self._ask("TRUNCATE serving.predictions CASCADE")
        connection = psycopg2.connect(database_url(settings=self._settings))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute("CHECKPOINT")
        finally:
            connection.close()

    def missing(self, names: set[str]) -> set[str]:
        """Return those of the request ids that are not in the table."""
        missing = set(names)
        connection = psycopg2.connect(database_url(settings=self._settings))
        try:
            with connection, connection.cursor("requests") as cursor:
                cursor.itersize = 100_000
                cursor.execute("SELECT request_id FROM serving.predictions")
                for (name,) in cursor:
                    missing.discard(name)
        finally:
            connection.close()
        return missing

    def by_version(self) -> dict[str, int]:
        """Return the number of rows that each version has answered."""
        return dict(
            self._ask(
                "SELECT model_version, count(*) FROM serving.predictions"
                " GROUP BY model_version ORDER BY model_version"
            )
        )


class Database:
    """The embedded Postgres of a run, which may be killed and started again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started: list[subprocess.Popen[bytes]] = []

    def kill(self) -> None:
        """Kill the server as a crash would, and return when it is gone."""
        pid = postgres.server_pid(self._settings)
        if pid is None:
            raise BenchmarkError("there is no Postgres to kill")
        server = psutil.Process(pid)
        family = [server, *server.children(recursive=True)]
        server.kill()
        psutil.wait_procs(family, timeout=30)  # its backends notice, and leave by themselves

    def start(self, timeout: float = 60.0) -> None:
        """Start it again on the same data; raises BenchmarkError if it does not come up."""
        user = postgres.system_user()
        until = time.monotonic() + timeout
        while True:
            with (self._settings.state_dir / "postgres.log").open("ab") as output:
                process = subprocess.Popen(
                    postgres.server_command(self._settings),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    **({"user": user, "group": user, "extra_groups": []} if user else {}),  # type: ignore[call-overload]
                )
            self._started.append(process)
            while process.poll() is None and time.monotonic() < until:
                if postgres.is_ready(self._settings):
                    return
                time.sleep(0.1)
            if time.monotonic() > until:
                raise BenchmarkError("Postgres does not come up again")

    def stop(self) -> None:
        """Stop whatever `start` has started."""
        for process in self._started:
            process.send_signal(signal.SIGINT)
            process.wait(30)


@contextmanager
def database(run: Run) -> Iterator[Database]:
    """Run an embedded Postgres for the length of the block, as the stack does."""
    run.settings.state_dir.mkdir(parents=True, exist_ok=True)
    with postgres.running(run.settings):
        server = Database(run.settings)
        try:
            yield server
        finally:
            server.stop()
