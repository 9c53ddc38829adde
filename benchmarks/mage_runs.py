"""What a `train` pipeline in a real Mage costs beside the learning itself.

Postgres, MLflow and Mage are the benchmark's own (folder, ports, secrets) and started as the stack
starts them; its other servers have no part in a training. A run is taken apart by timestamps that
are there anyway: of blocks in Mage's database, of runs in MLflow's, and the tag by which a run says
when its learning was over.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.servers import BenchmarkError
from benchmarks.serving import say
from mlops.database import connect
from mlops.orchestration.mage import trigger_pipeline, wait_for_run
from mlops.replay.ground import own_candidates, own_settings
from mlops.settings import ROOT, Settings
from mlops.stack import postgres
from mlops.stack.services import launch_environment, services
from mlops.training import tracking

LIMIT_S = 600.0
START_LIMIT_S = 600.0
"""Of a busy machine; half a minute of a quiet one."""


@dataclass(frozen=True)
class Phases:
    """A run's seconds, one part after the other; `learning` is the part that is no overhead."""

    mage_starts: float
    """Asked for → the first block runs."""
    start_block: float
    """The window is recorded and checked."""
    mage_fans_out: float
    """→ the first candidate's block runs."""
    before_learning: float
    """Block → learning: process, imports of ours, rows from Postgres, the run in MLflow."""
    learning: float
    """At least one candidate learns."""
    between_learning: float
    """None learns, though not all have (those that wait for others' places)."""
    logging: float
    """The last to learn writes its run: model, reference, metrics."""
    mage_joins: float
    """→ the leaderboard's block runs."""
    leaderboard_block: float
    """Ranked and registered."""
    mage_ends: float
    """→ the run is completed, as who waits for it sees."""

    @property
    def total(self) -> float:
        """From asked for to completed."""
        return sum(asdict(self).values())

    @property
    def overhead(self) -> float:
        """All but the learning."""
        return self.total - self.learning


def measure_pipeline(rounds: int, candidates: Sequence[str]) -> dict[str, Any]:
    """Return `{overhead_s, rounds: [...]}` of `rounds` trainings, in a stack that ends with it.

    Raises BenchmarkError if a server does not come up, PipelineFailed if a run fails.
    """
    folder = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    folder.chmod(0o711)  # root's Postgres passes through it as another user
    try:
        settings, _ = own_settings(folder, {"search_trials": "0", "ensemble_size": "0"})
        settings = own_candidates(settings, candidates, folder)
        say("starting Postgres, MLflow and Mage")
        with own_servers(settings):
            run_id = trigger_pipeline("prepare", {}, settings)
            wait_for_run(run_id, LIMIT_S, settings=settings)
            found = []
            for number in range(rounds):
                found.append(train(f"bench-{number}", settings))
                say(f"train {number + 1}/{rounds}  " + _line(found[-1]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "rounds": [
            {
                **{name: round(value, 2) for name, value in asdict(each).items()},
                "total": round(each.total, 2),
                "overhead": round(each.overhead, 2),
            }
            for each in found
        ]
    }


@contextmanager
def own_servers(settings: Settings) -> Iterator[None]:
    """Run Postgres, MLflow and Mage for the length of the block, each as in the stack.

    Raises BenchmarkError, with the end of the log, if one does not come up.
    """
    wanted = [each for each in services(settings) if each.name in ("mlflow", "mage")]
    started: list[subprocess.Popen[bytes]] = []
    with postgres.running(settings):
        try:
            for service in wanted:
                with _log(service.name, settings).open("wb") as output:
                    process = subprocess.Popen(
                        service.command(),
                        cwd=ROOT,
                        env=launch_environment(service, settings),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                started.append(process)
            until = time.monotonic() + START_LIMIT_S
            for service, process in zip(wanted, started, strict=True):
                while (complaint := service.health() if service.health else None) is not None:
                    if process.poll() is not None or time.monotonic() > until:
                        log = _log(service.name, settings).read_text(errors="replace")
                        raise BenchmarkError(f"{service.name}: {complaint}\n{log[-3000:]}")
                    time.sleep(0.5)
            yield
        finally:
            for process in reversed(started):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _log(name: str, settings: Settings) -> Path:
    return settings.state_dir / f"{name}.log"


def train(training_id: str, settings: Settings) -> Phases:
    """Run *train* on the running stack, and return where its time went."""
    asked = time.time()
    run_id = trigger_pipeline("train", {"training_id": training_id}, settings)
    wait_for_run(run_id, LIMIT_S, settings=settings)
    ended = time.time()
    return phases(asked, ended, block_times(run_id, settings), learnt(training_id, settings))


def block_times(run_id: int, settings: Settings) -> dict[str, tuple[float, float]]:
    """Return when each block of a run started and was completed, in seconds of the epoch."""
    with connect("mage", settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT block_uuid, extract(epoch FROM started_at)::float8,"
            " extract(epoch FROM completed_at)::float8 FROM block_run WHERE pipeline_run_id = %s",
            (run_id,),
        )
        return {name: (start, end) for name, start, end in cursor.fetchall()}


def learnt(training_id: str, settings: Settings) -> list[tuple[float, float]]:
    """Return when each candidate of a training learnt, from and to, in seconds of the epoch."""
    client = tracking.client(settings)
    experiment = tracking.experiment(client, Path(settings.card).stem)
    spans = []
    for run in tracking.runs(client, experiment, training_id):
        end = datetime.fromisoformat(run.data.tags[tracking.LEARNT_TAG]).timestamp()
        spans.append((end - run.data.metrics["fit_seconds"], end))
    return spans


def phases(
    asked: float,
    ended: float,
    blocks: dict[str, tuple[float, float]],
    spans: Sequence[tuple[float, float]],
) -> Phases:
    """Return the parts of a run from its timestamps (epoch seconds); the parts sum up to it."""
    children = [times for name, times in blocks.items() if name.startswith("train/fit_candidate:")]
    start, leaderboard = blocks["train/start"], blocks["train/leaderboard"]
    first, last = min(begin for begin, _ in children), max(end for _, end in children)
    begin, end = min(begin for begin, _ in spans), max(end for _, end in spans)
    learning = covered(spans)
    return Phases(
        mage_starts=start[0] - asked,
        start_block=start[1] - start[0],
        mage_fans_out=first - start[1],
        before_learning=begin - first,
        learning=learning,
        between_learning=end - begin - learning,
        logging=last - end,
        mage_joins=leaderboard[0] - last,
        leaderboard_block=leaderboard[1] - leaderboard[0],
        mage_ends=ended - leaderboard[1],
    )


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Return how long at least one of the spans lasts."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def _line(found: Phases) -> str:
    return f"{found.total:.1f} s, of which {found.overhead:.1f} s are not learning: " + ", ".join(
        f"{name} {value:.1f}" for name, value in asdict(found).items() if name != "learning"
    )
