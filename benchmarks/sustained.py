"""`make bench-load`: half of the maximum load for minutes, while everything around changes.

Versions are swapped every 20 s, and Postgres is killed twice and started again. Then every answered
request must be in serving.predictions, no request may have failed, and memory must not have grown.
Writes a JSON file, draws its picture, and ends with one line of JSON; ends with 1 if a request
failed or an answered one is not in the log.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load import Load, Outcome, quantile, run
from benchmarks.servers import (
    OURS,
    Database,
    LogTable,
    Run,
    Server,
    database,
    own_settings,
    serving,
)
from benchmarks.serving import (
    CONNECTIONS,
    commit,
    finish,
    machine,
    make_model,
    pending,
    run_in_folder,
    say,
)
from mlops.serving.payload import switch_current
from mlops.settings import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "load.json"
SHIP_TIMEOUT_S = 300
BUCKET_S = 5.0
IDS = "load"


class Disturbances:
    """What happens during the load, each with its second since the beginning."""

    def __init__(self, run_: Run, postgres: Database, server: Server) -> None:
        self._run, self._postgres, self._server = run_, postgres, server
        self._stop = threading.Event()
        self.swaps: list[tuple[float, str]] = []
        self.kills: list[tuple[float, float]] = []
        """When Postgres was killed, and when it was back."""
        self.memory: list[tuple[float, float]] = []
        """MB of gunicorn and its workers."""
        self.log: list[tuple[float, int]] = []
        """Answered rows that are not in Postgres yet."""
        self.faults: list[BaseException] = []

    @contextmanager
    def during(self, swap_s: float, kill_at: Sequence[float], down_s: float) -> Iterator[None]:
        """Let them happen for the length of the block; raises what failed among them."""
        self._began = time.monotonic()
        threads = [
            threading.Thread(target=self._guarded, args=each, daemon=True)
            for each in (
                (self._swap, swap_s),
                (self._kill, kill_at, down_s),
                (self._watch_memory, 1.0),
                (self._watch_log, 5.0),
            )
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(90)
        if self.faults:
            raise self.faults[0]

    @property
    def _now(self) -> float:
        return round(time.monotonic() - self._began, 2)

    def _guarded(self, work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as fault:
            self.faults.append(fault)

    def _swap(self, every_s: float) -> None:
        version = "1"
        while not self._stop.wait(every_s):
            version = "2" if version == "1" else "1"
            switch_current(self._run.settings.payloads_dir, version)
            self.swaps.append((self._now, version))

    def _kill(self, at: Sequence[float], down_s: float) -> None:
        for moment in at:
            if self._stop.wait(max(0.0, moment - self._now)):
                return
            killed = self._now
            self._postgres.kill()
            self._stop.wait(down_s)
            self._postgres.start()
            self.kills.append((killed, self._now))

    def _watch_memory(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            self.memory.append((self._now, round(self._server.memory_mb(), 2)))

    def _watch_log(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            self.log.append((self._now, pending(self._server)))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all figures of a run; its files lie in `folder`."""
    say("fitting and exporting two models")
    facts = make_model(folder, options.trees, options.sample)
    run_ = Run(folder, own_settings(folder))
    run_.load()
    switch_current(run_.settings.payloads_dir, "1")
    if options.new_code:
        with (run_.settings.payloads_dir / "2" / "predict.py").open("a") as code:
            code.write("\n# Another line: gunicorn replaces its workers for it.\n")
    asked = run_.questions(OURS, 1, 1000)
    with database(run_) as postgres, serving(OURS, run_, folder) as server:
        # Before each of them, so that the memory of all that was needed once is there.
        most = run(
            Load(server.port, asked, OURS.decode, options.probe_s, 1.0, connections=CONNECTIONS)
        )
        rate = most.rps * options.share
        say(f"{most.rps:.0f} requests/s at most; {rate:.0f} for {options.seconds:.0f} s")
        _await_log(server)
        LogTable(run_).empty()
        load = Load(
            server.port,
            asked,
            OURS.decode,
            options.seconds,
            connections=CONNECTIONS,
            rate=rate,
            ids=IDS,
        )
        around = Disturbances(run_, postgres, server)
        step = options.seconds / (options.kills + 1)
        kill_at = [step * (number + 1) for number in range(options.kills)]
        with around.during(options.swap_s, kill_at, options.down_s):
            outcome = run(load)
        shipped_s = _await_log(server)
        return {
            **_verdict(outcome, run_, around, shipped_s),
            "max_rps": round(most.rps, 1),
            "rate": round(rate, 1),
            "swap_every_s": options.swap_s,
            "postgres_down": around.kills,
            "course": _course(outcome),
            "memory": around.memory,
            "log": around.log,
            "swapped": around.swaps,
            "failures": outcome.failures[:20],
            "model": facts,
            "machine": machine(),
            "commit": commit(),
        }


def _await_log(server: Server) -> float:
    began = time.monotonic()
    while pending(server) and time.monotonic() - began < SHIP_TIMEOUT_S:
        time.sleep(0.2)
    return time.monotonic() - began


def _verdict(outcome: Outcome, run_: Run, around: Disturbances, shipped_s: float) -> dict[str, Any]:
    """Return the figures of the JSON line."""
    sent = {
        f"{IDS}-{process}-{number}" for process, count in outcome.names for number in range(count)
    }
    failed = {f"{IDS}-{name}" for name, _ in outcome.failures}
    table = LogTable(run_)
    lost = table.missing(sent - failed)
    for name, reason in outcome.failures[:10]:
        say(f"FAILED {name}: {reason}")
    for name in sorted(lost)[:10]:
        say(f"LOST {name}")
    rows = table.rows()
    begin, end, slope = trend(around.memory)
    return {
        "seconds": outcome.seconds,
        "requests": len(sent),
        "rps": round(outcome.rps, 1),
        "p50_ms": round(outcome.quantile_ms(0.5), 3),
        "p99_ms": round(outcome.quantile_ms(0.99), 3),
        "max_ms": round(outcome.quantile_ms(1.0), 1),
        "failed_requests": len(failed),
        "lost_log_rows": len(lost),
        # More than sent would be rows that nobody has asked for; the key forbids a row twice.
        "log_rows": rows,
        "log_rows_by_version": table.by_version(),
        "log_backlog_max": max((rows for _, rows in around.log), default=0),
        "log_ship_s": round(shipped_s, 1),
        "swaps": len(around.swaps),
        "postgres_kills": len(around.kills),
        "memory_begin_mb": begin,
        "memory_end_mb": end,
        "memory_slope_mb_per_min": slope,
    }


def trend(samples: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return MB at the begin and end of a line through the samples (seconds, MB), and MB a minute.

    The first fifth is left out: there, caches fill that every process fills once.
    """
    settled = samples[len(samples) // 5 :]
    if len(settled) < 2:
        return float("nan"), float("nan"), float("nan")
    times, sizes = np.array(settled).T
    slope, start = np.polyfit(times, sizes, 1)
    begin, end = start + slope * times[0], start + slope * times[-1]
    return round(float(begin), 1), round(float(end), 1), round(float(slope) * 60, 3)


def _course(outcome: Outcome) -> list[dict[str, float]]:
    """Return requests/s, p50 and p99 of each stretch of `BUCKET_S` seconds."""
    buckets: dict[int, list[float]] = {}
    for began, latency in outcome.course:
        buckets.setdefault(int(began // BUCKET_S), []).append(latency)
    course = []
    for number, latencies in sorted(buckets.items()):
        latencies.sort()
        course.append(
            {
                "at_s": number * BUCKET_S,
                "rps": round(len(latencies) / BUCKET_S, 1),
                "p50_ms": round(quantile(latencies, 0.5) * 1000, 3),
                "p99_ms": round(quantile(latencies, 0.99) * 1000, 3),
            }
        )
    return course


def main() -> int:
    """Measure, write the file, redraw the documentation, print the line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument("--share", type=float, default=0.5, help="of the maximum load")
    parser.add_argument("--swap-s", type=float, default=20.0, help="seconds between two swaps")
    parser.add_argument(
        "--new-code", action="store_true", help="versions differ in code: each swap is a reload"
    )
    parser.add_argument("--kills", type=int, default=2, help="of Postgres")
    parser.add_argument("--down-s", type=float, default=10.0, help="Postgres stays away so long")
    parser.add_argument("--probe-s", type=float, default=5.0, help="for finding the maximum load")
    parser.add_argument("--trees", type=int, default=400)
    parser.add_argument("--sample", action="store_true", help="the generated data, whatever is set")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.seconds = options.seconds or options.minutes * 60
    figures = run_in_folder(lambda folder: measure(options, folder))
    told = {
        name: value for name, value in figures.items() if not isinstance(value, (list, dict))
    } | {"log_rows_by_version": figures["log_rows_by_version"]}
    return finish(figures, told, options.results, kept=RESULTS)


if __name__ == "__main__":
    sys.exit(main())
