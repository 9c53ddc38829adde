"""`make bench-growth`: what each candidate takes as a table grows: seconds, memory, rows fitted.

Rows of the card's data are drawn again, numbers a little moved so that no two are alike, as
45 thousand, 450 thousand and 4.5 million; each candidate is fitted once (`fit_pipeline`, as the
pipeline *train* does) in a process of its own, with limits of time and memory. Writes
benchmarks/results/growth.json, redraws the table and the picture of docs/performance.md, and ends
with one line of JSON. Says nothing about how good a model is.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.serving import commit, draw, machine, run_in_folder, say, write_results
from benchmarks.watched import run_watched
from mlops.dataset.card import Card, load_card
from mlops.dataset.sources import read_source
from mlops.settings import ROOT, get_settings
from mlops.training.candidates import get_candidate, load_candidates
from mlops.training.fit import fit_pipeline

RESULTS = ROOT / "benchmarks" / "results" / "growth.json"
SIZES = (45_000, 450_000, 4_500_000)
LIMIT_S, LIMIT_MB = 240.0, 10_000.0
_JITTER = 0.01
"""Of a column's standard deviation."""


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all figures of a run; its files lie in `folder`."""
    began, settings, played = time.monotonic(), get_settings(), commit()
    card = load_card(settings.card)
    raw = read_source(card, settings)
    names = options.candidate or list(load_candidates(settings.candidates))
    found = []
    for size in options.rows:
        file = folder / "rows.parquet"
        grown(raw.frame, card, size, settings.seed).to_parquet(file, index=False)
        for name in names:
            found.append({"rows": size, "candidate": name, **_fit_apart(name, file, options.limit)})
            say(_line(found[-1]))
    return {
        "fits": found,
        "limit_s": options.limit,
        "limit_mb": LIMIT_MB,
        "source": raw.origin,
        "machine": machine(),
        "commit": played,
        "seconds": round(time.monotonic() - began, 1),
    }


def grown(frame: pd.DataFrame, card: Card, size: int, seed: int) -> pd.DataFrame:
    """Return `size` rows drawn from `frame` with their answers and periods, numbers moved a little.

    By a normal draw of a hundredth of the column's standard deviation; a missing number stays so.
    """
    random = np.random.default_rng(seed)
    rows = frame.iloc[np.sort(random.integers(0, len(frame), size))].reset_index(drop=True)
    for name in card.learnt_numbers:
        moved = random.standard_normal(size, dtype=np.float32) * np.float32(
            _JITTER * frame[name].std()
        )
        rows[name] = rows[name].to_numpy() + moved
    return rows


def fit(name: str, file: Path) -> dict[str, Any]:
    """Fit one candidate on the rows of a file, and return what it took (in this process)."""
    settings = get_settings()
    card = load_card(settings.card)
    candidate = get_candidate(name, settings.candidates)
    frame = pd.read_parquet(file)
    loaded_mb = _peak_mb()
    began, used = time.perf_counter(), time.process_time()
    fitted = fit_pipeline(card, candidate, frame, settings)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - used,
        "rows_mb": loaded_mb,
        "peak_mb": _peak_mb(),
        "fitted_rows": len(fitted.rows),
    }


def _peak_mb() -> float:
    """Return the most memory that this process has had (RSS; the kernel's own mark)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _fit_apart(name: str, file: Path, limit_s: float) -> dict[str, Any]:
    """Return what a fit in a process of its own took; `ended` says which limit ended it."""
    module = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth", "--fit", name, str(file)]
    one = str(get_settings().training_threads)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), one)
    watched = run_watched(module, threads, limit_s, LIMIT_MB)
    if watched.returncode == 0:
        return {**json.loads(watched.output.splitlines()[-1]), "ended": None}
    if watched.returncode is None:
        ended = "memory" if watched.peak_mb > LIMIT_MB else "time"
        return {"seconds": watched.seconds, "peak_mb": watched.peak_mb, "ended": ended}
    return {"seconds": watched.seconds, "peak_mb": watched.peak_mb, "ended": "failed"}


def _line(found: dict[str, Any]) -> str:
    text = f"{found['candidate']:<22}{found['rows']:>12,} rows {found['seconds']:8.1f} s"
    text += f"{found['peak_mb']:8.0f} MB"
    if found["ended"]:
        return f"{text}  ended: {found['ended']}"
    fewer = found["fitted_rows"] < found["rows"]
    return text + (f"  fitted on {found['fitted_rows']:,}" if fewer else "")


def line_of(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the line: of the most rows, each candidate's and the worst."""
    most = max(each["rows"] for each in figures["fits"])
    last = [each for each in figures["fits"] if each["rows"] == most]
    return {
        "rows": most,
        **{f"seconds_{each['candidate']}": round(each["seconds"], 1) for each in last},
        "peak_mb": round(max(each["peak_mb"] for each in last)),
        "ended": sum(each["ended"] is not None for each in figures["fits"]),
        "seconds": figures["seconds"],
        "source": figures["source"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the file, redraw the page, print the line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--candidate", action="append", help="default: all of the file")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of one fit")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--fit", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.fit:
        print(json.dumps(fit(options.fit[0], Path(options.fit[1]))))
        return 0
    figures = run_in_folder(lambda folder: measure(options, folder))
    write_results(figures, options.results)
    if options.results == RESULTS:
        draw()
    print(json.dumps(line_of(figures)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
