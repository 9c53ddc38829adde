"""`make bench-serving`: our API beside what people would use instead, same machine, same model.

Rounds are interleaved (each server once, then each again), so that whatever the machine does
meanwhile falls on all of them; a ratio is the median of the rounds' ratios. Every server is started
anew in each round. Each answer is checked against sklearn's. Writes a JSON file and ends with one
line of JSON; ends with 1 if a request failed or an answered row is not in the log.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks.bulk import score_file
from benchmarks.load import Load, Outcome, quantile, run
from benchmarks.servers import (
    BENTOML,
    CONSTANT,
    CONSTANT_THREADS,
    FASTAPI,
    MLFLOW,
    OURS,
    PEERS,
    SERVICES,
    WORKERS,
    Kind,
    LogTable,
    Run,
    Server,
    database,
    own_settings,
    serving,
)
from benchmarks.sizes import installed_mb
from mlops.serving.payload import switch_current
from mlops.settings import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "serving.json"
CONNECTIONS = 4
KINDS = (OURS, MLFLOW, BENTOML, FASTAPI, CONSTANT, CONSTANT_THREADS)
SHIP_TIMEOUT_S = 180

_NEEDS = {
    "mlflow": ["mlflow", "scikit-learn", "xgboost-cpu"],
    "bentoml": ["bentoml", "scikit-learn", "xgboost-cpu", "pandas"],
    "fastapi": ["fastapi", "uvicorn", "scikit-learn", "xgboost-cpu", "pandas"],
    "constant": ["gunicorn"],
    "constant_gthread": ["gunicorn"],
}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all figures of a run; its files lie in `folder`."""
    say("fitting and exporting the model")
    facts = make_model(folder, options.trees, options.sample)
    run_ = Run(folder, own_settings(folder))
    run_.load()
    switch_current(run_.settings.payloads_dir, "1")
    kinds = [OURS, CONSTANT] if options.quick else list(KINDS)
    if MLFLOW in kinds:
        _compile()
        _save_for_mlflow(run_)
    rounds: dict[str, list[dict[str, Any]]] = {kind.name: [] for kind in kinds}
    began = datetime.now(timezone.utc)
    with database(run_):
        for number in range(options.rounds):
            for kind in kinds:
                figures = _round(kind, run_, options.seconds)
                if kind.scores and number < options.files:
                    figures |= _file(kind, run_, options.rows)
                rounds[kind.name].append(figures)
                say(f"round {number + 1}/{options.rounds}  {_line(kind, figures)}")
    return {
        **_headline(rounds, run_, options),
        "servers": {
            kind.name: {
                "title": kind.title,
                "environment_mb": round(_environment_mb(kind, run_), 1),
                **_spreads(rounds[kind.name]),
                "rounds": rounds[kind.name],
            }
            for kind in kinds
        },
        "model": facts,
        "conditions": {
            "workers": WORKERS,
            "connections": CONNECTIONS,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "started_at": began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "minutes": round((datetime.now(timezone.utc) - began).total_seconds() / 60, 1),
        },
        "machine": machine(),
        "commit": commit(),
    }


def make_model(folder: Path, trees: int, sample: bool) -> dict[str, Any]:
    """Have the model and its forms written into `folder`, by a process that then is gone."""
    command = [sys.executable, "-m", "benchmarks.model", str(folder), "--trees", str(trees)]
    done = subprocess.run(
        command + ["--sample"] * sample, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _compile() -> None:
    """Have byte code of all libraries: the first start of a server is not to pay for the next."""
    say("compiling the libraries, once")
    for environment in (SERVICES, PEERS):
        for site in environment.glob("lib/python3.*/site-packages"):
            # Some packages carry files that are no Python of this version: those stay as they are.
            subprocess.run(
                [environment / "bin" / "python", "-m", "compileall", "-qq", "-j0", site],
                check=False,
                capture_output=True,
            )


def _save_for_mlflow(run_: Run) -> None:
    subprocess.run(
        [PEERS / "bin" / "python", "-m", "benchmarks.peers.mlflow_model", run_.folder / "mlflow"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), **MLFLOW.environment(run_, 0)},
        check=True,
        capture_output=True,
    )


def _round(kind: Kind, run_: Run, seconds: float) -> dict[str, Any]:
    """Start one server, and measure it once."""
    outcomes: list[Outcome] = []

    def load(rows: int, count: int, **how: Any) -> Outcome:
        asked = run_.questions(kind, rows, count)
        done = run(Load(server.port, asked, kind.decode, connections=CONNECTIONS, **how))
        outcomes.append(done)
        return done

    with serving(kind, run_, run_.folder) as server:
        one = load(1, 1000, seconds=seconds, warmup=seconds / 5)
        memory = server.memory_mb()
        backlog = pending(server) if kind is OURS else 0
        half = load(1, 1000, seconds=seconds, warmup=seconds / 10, rate=max(1.0, one.rps / 2))
        figures = {
            "start_s": server.start_s,
            "rps": one.rps,
            "p50_ms": one.quantile_ms(0.5),
            "p99_ms": one.quantile_ms(0.99),
            "half_load_rps": half.rps,
            "half_load_p50_ms": half.quantile_ms(0.5),
            "half_load_p99_ms": half.quantile_ms(0.99),
            "half_load_late_p99_ms": quantile(half.late, 0.99) * 1000,
            "memory_mb": memory,
            "generator_us": one.cpu_s / max(1, one.answered) * 1e6,
        }
        if kind.scores:
            many = load(1000, 10, seconds=seconds, warmup=seconds / 10)
            figures |= {
                "rows_per_s": many.rps * 1000,
                "rows_p50_ms": many.quantile_ms(0.5),
                "memory_1000_rows_mb": server.memory_mb(),
            }
        figures["failed"] = sum(len(done.failures) for done in outcomes)
        for done in outcomes:
            for name, reason in done.failures[:3]:
                say(f"FAILED {kind.name} {name}: {reason}")
        if kind is OURS:
            sent = one.answered + half.answered + 1000 * many.answered + 1  # and the first
            figures |= {"log_backlog_one_row": backlog} | _await_log(run_, server, sent)
    return figures


def _file(kind: Kind, run_: Run, rows: int) -> dict[str, Any]:
    """Start one server, and send it a file."""
    with serving(kind, run_, run_.folder) as server:
        bulk = score_file(server, run_, rows)
        figures: dict[str, Any] = {
            "file_rows": bulk.rows,
            "file_s": bulk.seconds,
            "file_peak_mb": bulk.peak_mb,
            "file_mb": bulk.file_mb,
        }
        if kind is OURS:
            log = _await_log(run_, server, bulk.rows + 1)
            figures |= {f"file_{name}": value for name, value in log.items()}
    return figures


def pending(server: Server) -> int:
    """Return how many rows ours has answered that are not in Postgres yet."""
    health = requests.get(f"http://127.0.0.1:{server.port}/health", timeout=30).json()
    return int(health["log"]["pending"])


def _await_log(run_: Run, server: Server, sent: int) -> dict[str, Any]:
    """Return how many answered rows were not in Postgres yet, and how long that took; tidy up."""
    table = LogTable(run_)
    began = time.perf_counter()
    backlog = left = pending(server)
    while left and time.perf_counter() - began < SHIP_TIMEOUT_S:
        time.sleep(0.1)
        left = pending(server)
    shipped = time.perf_counter() - began
    rows = table.rows()
    table.empty()
    return {
        "log_backlog": backlog,
        "log_ship_s": shipped,
        "log_rows": rows,
        "log_rows_lost": sent - rows,
    }


def _headline(
    rounds: dict[str, list[dict[str, Any]]], run_: Run, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of the JSON line; null where a server was not measured."""

    def mid(server: str, name: str) -> float | None:
        return _middle([figures[name] for figures in rounds[server] if name in figures])

    def ratio(name: str, other: str) -> float | None:
        pairs = zip(rounds["ours"], rounds.get(other, []), strict=False)
        return _middle([ours[name] / theirs[name] for ours, theirs in pairs])

    return {
        "rps": mid("ours", "rps"),
        "p50_ms": mid("ours", "p50_ms"),
        "p99_ms": mid("ours", "p99_ms"),
        "rps_ratio_mlflow": ratio("rps", "mlflow"),
        "p50_ratio_mlflow": ratio("p50_ms", "mlflow"),
        "rps_ratio_bentoml": ratio("rps", "bentoml"),
        "rps_ratio_fastapi": ratio("rps", "fastapi"),
        "rps_ratio_floor": ratio("rps", "constant"),
        "p99_half_load_ms": mid("ours", "half_load_p99_ms"),
        "rows_per_s": mid("ours", "rows_per_s"),
        "rows_per_s_ratio_mlflow": ratio("rows_per_s", "mlflow"),
        "rows_per_s_ratio_bentoml": ratio("rows_per_s", "bentoml"),
        "rows_per_s_ratio_fastapi": ratio("rows_per_s", "fastapi"),
        "start_s": mid("ours", "start_s"),
        "memory_mb": mid("ours", "memory_mb"),
        "environment_mb": round(_environment_mb(OURS, run_), 1),
        "batch_rows": options.rows,
        "batch_s": mid("ours", "file_s"),
        "batch_peak_mb": mid("ours", "file_peak_mb"),
        "failed_requests": sum(one["failed"] for each in rounds.values() for one in each),
        "lost_log_rows": sum(
            one["log_rows_lost"] + one.get("file_log_rows_lost", 0) for one in rounds["ours"]
        ),
    }


def _spreads(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return median, min, max and n of every figure."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    spreads = {}
    for name in names:
        values = [figures[name] for figures in rounds if name in figures]
        spreads[name] = {
            "median": _middle(values),
            "min": _rounded(min(values)),
            "max": _rounded(max(values)),
            "n": len(values),
        }
    return spreads


def _middle(values: Sequence[float]) -> float | None:
    return _rounded(statistics.median(values)) if values else None


def _rounded(value: float) -> float:
    """Four digits: more of them mean nothing here."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _environment_mb(kind: Kind, run_: Run) -> float:
    if kind is OURS:
        text = (run_.settings.payloads_dir / "1" / "requirements.txt").read_text()
        lines = [line.strip() for line in text.splitlines()]
        return installed_mb(SERVICES, [line for line in lines if line and line[0] not in "#-"])
    return installed_mb(SERVICES if not kind.scores else PEERS, _NEEDS[kind.name])


def machine() -> dict[str, Any]:
    """Return what the figures depend on; nothing that tells whose machine it is."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "cpu": model,
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_at_start": _load_at_start,
        "versions": {
            **_versions(SERVICES, "gunicorn", "flask", "onnxruntime", "numpy", "orjson"),
            **_versions(PEERS, "mlflow", "bentoml", "fastapi", "uvicorn", "scikit-learn"),
            **_versions(PEERS, "xgboost-cpu", "pandas"),
        },
    }


_load_at_start = round(psutil.getloadavg()[0], 2)
"""Processes that wanted to run before the benchmark began: much over 0 spoils every figure."""


def _versions(environment: Path, *names: str) -> dict[str, str]:
    sites = [str(site) for site in environment.glob("lib/python3.*/site-packages")]
    found = {each.name.lower(): each.version for each in distributions(path=sites)}
    return {name: found[name] for name in names if name in found}


def commit() -> str | None:
    """Return the commit that is checked out, with `+` if files differ from it; None outside git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _line(kind: Kind, figures: dict[str, Any]) -> str:
    parts = [
        f"{kind.name:16} {figures['rps']:7.0f} req/s  p50 {figures['p50_ms']:6.2f} ms"
        f"  p99 {figures['p99_ms']:6.2f} ms (half load {figures['half_load_p99_ms']:6.2f})"
        f"  start {figures['start_s']:5.2f} s  {figures['memory_mb']:4.0f} MB"
    ]
    if "rows_per_s" in figures:
        parts.append(f"{figures['rows_per_s'] / 1000:5.0f} k rows/s")
    if "file_s" in figures:
        parts.append(
            f"{figures['file_rows']:,} rows {figures['file_s']:.1f} s"
            f" {figures['file_peak_mb']:.0f} MB"
        )
    if "log_ship_s" in figures:
        parts.append(f"log behind by {figures['log_backlog']} rows, {figures['log_ship_s']:.1f} s")
    return "  ".join(parts)


def say(text: str) -> None:
    """Tell the person who waits; the JSON line stands alone on stdout."""
    print(text, file=sys.stderr, flush=True)


def draw() -> None:
    """Have the results drawn; that they cannot be is told, and takes nothing from them."""
    command = [str(SERVICES / "bin" / "python"), "-m", "benchmarks.report"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        say("docs/performance.md and its pictures are as they were: benchmarks.report failed")


def run_in_folder(work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return what `work` returns; its folder, and with SIGTERM too whatever it started, goes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    folder.chmod(0o711)  # root's Postgres passes through it as another user
    try:
        return work(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_results(figures: dict[str, Any], path: Path) -> None:
    """Write the figures of a benchmark as JSON, its folder too if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")


def finish(figures: dict[str, Any], told: dict[str, Any], results: Path, kept: Path) -> int:
    """Write `figures` into `results`, redraw the documentation if that is the file that is `kept`.

    Ends with the line of what is `told`; returns the exit code, 1 if a request failed or a row is
    lost.
    """
    write_results(figures, results)
    if results == kept:
        draw()
    print(json.dumps(told), flush=True)
    if figures["failed_requests"] or figures["lost_log_rows"]:
        say(f"{figures['failed_requests']} requests failed, {figures['lost_log_rows']} rows lost")
        return 1
    return 0


def main() -> int:
    """Measure, write the file, redraw the documentation, print the line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the file")
    parser.add_argument("--files", type=int, default=1, help="rounds in which the file is sent")
    parser.add_argument("--trees", type=int, default=400)
    parser.add_argument("--sample", action="store_true", help="the generated data, whatever is set")
    parser.add_argument("--quick", action="store_true", help="ours and the floor, one round")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
        if options.results == RESULTS:
            parser.error("--quick measures nothing to keep: name a file by --results")
    figures = run_in_folder(lambda folder: measure(options, folder))
    told = {name: value for name, value in figures.items() if not isinstance(value, dict)}
    return finish(figures, told, options.results, kept=RESULTS)


if __name__ == "__main__":
    sys.exit(main())
