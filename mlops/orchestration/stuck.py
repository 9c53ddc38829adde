"""Ends the runs of Mage that nobody would ever end, and says so; it starts nothing.

`server` starts it beside Mage, and again should it end. Mage begins anew with what a crash has
interrupted, so these cases are left, each of which would be in the loop's way for good: a block
that hangs; one whose process dies each time that it is begun anew (out of memory, say); a retrain
whose run has ended, or is gone, without having written its outcome; and a run whose retrain has
been given up, beside which the next one would train. A block that works is not ended for being
slow: a limit counts only while nothing of a run moves: its blocks, the processor time of its
processes, and what these read and write in files and pipes. What goes through a socket is counted
by nobody: a block that waits for a lock or for an answer, and does nothing else, is idle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json

from mlops.alerting.retrains import PIPELINE, close_retrain
from mlops.database import connect
from mlops.orchestration.server import block_process, run_process
from mlops.orchestration.watching import watch
from mlops.settings import Settings, get_settings

LOOK_EVERY_S = 5.0

MOST_DEATHS = 3
"""Processes of one block that may die before it is given up."""

GRACE_S = 60.0
"""How long a retrain may be open without a run under way, or its run be under way after its end:
either of the two is written first."""

_BUSY_S = 1.0
_BUSY_SHARE = 0.01
"""Processor time that is work, in seconds and of the time since the last sign of it. Less is what
the threads of an idle process take."""

_BUSY_BYTES = 100_000
_BUSY_BYTES_PER_S = 4096
"""Read and written, that is work: a slow download into a file, say. Less is what an idle process
does: it looks into `/proc` for its parent, or writes a line."""


@dataclass(frozen=True)
class Worker:
    """A process that works for a run: its name says for which.

    `seconds` of a processor it had, and it has read and written so many `bytes` of files and pipes.
    """

    name: str
    pid: int
    created: float
    seconds: float
    bytes: int = 0


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that Mage counts as under way; `blocks` holds states, `names` names, both by id."""

    id: int
    pipeline: str
    retrain_id: str
    blocks: Mapping[int, str]
    names: Mapping[int, str]

    @property
    def ended_blocks(self) -> frozenset[int]:
        """Those that will not run again. The others come and go as their processes do."""
        open_states = ("initial", "queued", "running")
        return frozenset(b for b, state in self.blocks.items() if state not in open_states)

    @property
    def processes(self) -> set[str]:
        """Names of the processes that may work for it."""
        return {run_process(self.id), *map(block_process, self.blocks)}

    @property
    def at_work(self) -> str:
        """The blocks that are under way, for a message."""
        busy = [self.names[b] for b, state in self.blocks.items() if state in ("running", "queued")]
        return f"block {', '.join(sorted(busy))}" if busy else "no block"


@dataclass
class _Sign:
    """What a run looked like when it last moved."""

    ended: frozenset[int]
    at: float
    seconds: float
    bytes: int


@dataclass
class Judge:
    """Remembers what runs looked like, and tells which are stuck; asks nobody.

    `limit` is in seconds. `sees_work` says whether processes can be told from one another at all:
    where not, nothing is ever judged by its lack of work.
    """

    limit: float
    sees_work: bool = True
    _signs: dict[int, _Sign] = field(default_factory=dict)
    _lives: dict[str, set[tuple[int, float]]] = field(default_factory=dict)

    def stuck(
        self, runs: Iterable[UnfinishedRun], workers: Iterable[Worker], now: float
    ) -> dict[int, str]:
        """Return the reason by run; `now` is in seconds of a clock that does not go back.

        Called again and again: what it has not seen twice it does not judge.
        """
        runs, workers = list(runs), list(workers)
        known = {name for run in runs for name in run.processes}
        self._signs = {run.id: self._signs[run.id] for run in runs if run.id in self._signs}
        self._lives = {name: lives for name, lives in self._lives.items() if name in known}
        for worker in workers:
            if worker.name in known:
                self._lives.setdefault(worker.name, set()).add((worker.pid, worker.created))
        reasons = {}
        for run in runs:
            reason = self._deaths(run, workers) or self._idleness(run, workers, now)
            if reason is not None:
                reasons[run.id] = reason
        return reasons

    def _deaths(self, run: UnfinishedRun, workers: list[Worker]) -> str | None:
        alive = {(worker.pid, worker.created) for worker in workers}
        for name in run.processes:
            dead = self._lives.get(name, set()) - alive
            if len(dead) >= MOST_DEATHS:
                return (
                    f"{run.at_work}: its process has died {len(dead)} times (killed, or out of"
                    " memory?)"
                )
        return None

    def _idleness(self, run: UnfinishedRun, workers: list[Worker], now: float) -> str | None:
        names = run.processes
        seconds = sum(worker.seconds for worker in workers if worker.name in names)
        moved = sum(worker.bytes for worker in workers if worker.name in names)
        sign = self._signs.get(run.id)
        if sign is None or sign.ended != run.ended_blocks:
            self._signs[run.id] = _Sign(run.ended_blocks, now, seconds, moved)
            return None
        # Less than before, if another process has begun: that one counts from nothing.
        sign.seconds, sign.bytes = min(sign.seconds, seconds), min(sign.bytes, moved)
        waited = now - sign.at
        if (
            seconds - sign.seconds >= _BUSY_S + _BUSY_SHARE * waited
            or moved - sign.bytes >= _BUSY_BYTES + _BUSY_BYTES_PER_S * waited
        ):
            self._signs[run.id] = _Sign(run.ended_blocks, now, seconds, moved)
            return None
        if not self.sees_work or now - sign.at < self.limit:
            return None
        return f"{run.at_work}: nothing has moved for {self.limit:.0f} s (MLOPS_MAGE_BLOCK_LIMIT_S)"


class StuckWatcher:
    """Looks at Mage's runs, and ends those that are stuck.

    `server` is the process of Mage, whose descendants work for its runs; None: the one that started
    this. `say` is told what was done.
    """

    def __init__(
        self,
        settings: Settings,
        server: int | None = None,
        say: Callable[[str], object] = lambda text: print(text, flush=True),
    ) -> None:
        self.settings = settings
        self._server = psutil.Process(server) if server else psutil.Process().parent()
        self._say = say
        self._judge = Judge(settings.mage_block_limit_s, sys.platform == "linux")
        self._over: dict[str, float] = {}
        self._given_up: dict[int, float] = {}
        self._failed: set[int] = set()
        self._said = ""

    def look(self, now: float) -> None:
        """Look once. What is away is said once, and asked again at the next look."""
        try:
            runs = read_runs(self.settings)
            reasons = {
                **self._given_up_for_long(runs, now),
                **self._judge.stuck(runs, workers_of(self._server), now),
            }
            for run in runs:
                if run.id in reasons:
                    self._end(run, reasons[run.id])
            # Mage's scheduler may have been about to queue a block when its run was failed, and
            # writes so over the block's end: nobody would ever take it from the queue.
            cancel_blocks(self._failed, self.settings)
            self._close_what_nobody_will(now)
            self._said = ""
        except psycopg2.Error as error:
            said = str(error).strip()
            if said != self._said:
                self._say(f"stuck runs are not looked for: {said}")
            self._said = said

    def _given_up_for_long(self, runs: list[UnfinishedRun], now: float) -> dict[int, str]:
        """Return the runs whose retrain failed `GRACE_S` ago or earlier: by its limit, say."""
        retrains = {run.retrain_id: run.id for run in runs if run.pipeline == PIPELINE}
        with connect(settings=self.settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT id, reason FROM ops.retrains WHERE id = ANY(%s) AND outcome = 'failed'",
                (list(retrains),),
            )
            failed = {retrains[name]: f"its retrain failed: {why}" for name, why in cursor}
        self._given_up = {run: self._given_up.get(run, now) for run in failed}
        return {run: failed[run] for run, at in self._given_up.items() if now - at >= GRACE_S}

    def _end(self, run: UnfinishedRun, reason: str) -> None:
        """Fail a run in Mage, end its processes, and write the outcome of its retrain."""
        if not fail_run(run, reason, self.settings):
            return  # it has ended by itself since
        self._failed.add(run.id)
        for worker in workers_of(self._server):
            if worker.name in run.processes:
                _kill(worker)
        self._say(f"run {run.id} of {run.pipeline} is failed: {reason}")
        if run.pipeline == PIPELINE:
            with connect(settings=self.settings) as connection:
                _close(connection, run.retrain_id, reason)

    def _close_what_nobody_will(self, now: float) -> None:
        """Fail the retrains without a run under way, once that has been so for `GRACE_S`."""
        with connect(settings=self.settings) as connection:
            with connection.cursor() as cursor:
                cursor.execute("SELECT id FROM ops.retrains WHERE finished_at IS NULL")
                open_ids = [str(row[0]) for row in cursor.fetchall()]
            connection.commit()
            states = {each: _run_state(each, self.settings) for each in open_ids}
            over = {each: state for each, state in states.items() if state in _OVER}
            self._over = {each: self._over.get(each, now) for each in over}
            for each, since in self._over.items():
                if now - since < GRACE_S:
                    continue
                ended = "its run is gone" if over[each] is None else f"its run ended {over[each]}"
                reason = f"{ended} in Mage, and nobody wrote the outcome"
                if _close(connection, each, reason, cancelled=over[each] == "cancelled"):
                    self._say(f"retrain {each} is failed: {reason}")


_OVER = (None, "completed", "failed", "cancelled")


def read_runs(settings: Settings) -> list[UnfinishedRun]:
    """Return the runs of all pipelines that Mage counts as under way. Raises psycopg2.Error."""
    with connect("mage", settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT r.id, r.pipeline_uuid, r.variables ->> 'retrain_id', b.id, b.block_uuid,"
            " lower(b.status::text)"
            " FROM pipeline_run r LEFT JOIN block_run b ON b.pipeline_run_id = r.id"
            " WHERE r.status IN ('INITIAL', 'RUNNING') ORDER BY r.id, b.id"
        )
        rows = cursor.fetchall()
    found: dict[int, tuple[str, str, dict[int, str], dict[int, str]]] = {}
    for run, pipeline, retrain_id, block, name, state in rows:
        _, _, states, names = found.setdefault(run, (pipeline, retrain_id or f"run-{run}", {}, {}))
        if block is not None:
            states[block], names[block] = state, name
    return [UnfinishedRun(run, *facts) for run, facts in found.items()]


def fail_run(run: UnfinishedRun, reason: str, settings: Settings) -> bool:
    """Mark a run and its unfinished blocks as failed; return False if it has ended meanwhile.

    Mage's scheduler takes it as ended from then on, and its page shows the reason.
    """
    fault = {"error": {"error": reason, "errors": [], "message": reason}}
    with connect("mage", settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE pipeline_run SET status = 'FAILED', completed_at = clock_timestamp()"
            " WHERE id = %s AND status IN ('INITIAL', 'RUNNING')",
            (run.id,),
        )
        if cursor.rowcount == 0:
            return False
        cursor.execute(
            "UPDATE block_run SET status = 'FAILED', completed_at = clock_timestamp(),"
            " metrics = (coalesce(metrics::jsonb, '{}') || %s::jsonb)::json"
            " WHERE pipeline_run_id = %s AND status IN ('RUNNING', 'QUEUED')",
            (Json(fault), run.id),
        )
        cursor.execute(
            "UPDATE block_run SET status = 'CANCELLED'"
            " WHERE pipeline_run_id = %s AND status = 'INITIAL'",
            (run.id,),
        )
    return True


def cancel_blocks(runs: Iterable[int], settings: Settings) -> None:
    """Mark the unfinished blocks of failed runs as cancelled, in Mage; those of a run that a person
    has begun anew are left. Raises psycopg2.Error."""
    runs = list(runs)
    if not runs:
        return
    with connect("mage", settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE block_run SET status = 'CANCELLED' WHERE pipeline_run_id IN"
            " (SELECT id FROM pipeline_run WHERE id = ANY(%s) AND status = 'FAILED')"
            " AND status IN ('INITIAL', 'QUEUED', 'RUNNING')",
            (runs,),
        )


def workers_of(server: psutil.Process | None) -> list[Worker]:
    """Return the processes below Mage's server; what one has done includes its children's."""
    found = []
    try:
        family = server.children(recursive=True) if server else []
    except psutil.Error:
        return []
    for process in family:
        try:
            seconds, moved = 0.0, 0
            for each in (process, *process.children(recursive=True)):
                times = each.cpu_times()
                seconds += times.user + times.system
                moved += _moved(each)
            found.append(Worker(process.name(), process.pid, process.create_time(), seconds, moved))
        except psutil.Error:  # it has ended since
            continue
    return found


def _moved(process: psutil.Process) -> int:
    """Return the bytes that a process has read and written; 0 where the system does not tell."""
    try:
        counted = process.io_counters()
        # What the calls have moved. `*_bytes` is what has come from or gone to a disk: often none.
        return int(counted.read_chars + counted.write_chars)
    except (psutil.AccessDenied, AttributeError):
        return 0


def _kill(worker: Worker) -> None:
    try:
        process = psutil.Process(worker.pid)
        if process.create_time() == worker.created:  # and not another one of that number
            process.kill()
    except psutil.Error:
        pass


def _run_state(retrain_id: str, settings: Settings) -> str | None:
    """Return the state of the latest run of a retrain in Mage's words, None if there is none."""
    own = retrain_id.removeprefix("run-")
    with connect("mage", settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT lower(status::text) FROM pipeline_run WHERE pipeline_uuid = %s"
            " AND (variables ->> 'retrain_id' = %s OR id::text = %s) ORDER BY id DESC LIMIT 1",
            (PIPELINE, retrain_id, own if own != retrain_id else None),
        )
        row: tuple[Any, ...] | None = cursor.fetchone()
    return None if row is None else str(row[0])


def _close(
    connection: Connection, retrain_id: str, reason: str, *, cancelled: bool = False
) -> bool:
    try:
        return close_retrain(connection, retrain_id, "failed", reason, cancelled=cancelled)
    except LookupError:  # the run was stuck before it had opened one
        return False


def main() -> None:
    """Watch until Mage, which started this, has ended."""
    watch(StuckWatcher(get_settings()).look, LOOK_EVERY_S)


if __name__ == "__main__":
    main()
