"""`make bench-training`: our five candidates beside the plain way, and what the pipeline adds.

Pairs are interleaved, so that whatever the machine does meanwhile falls on both: each way in a
process of its own, on the same rows, with the same months held out. Both are then asked about the
months that come after the window, which neither has seen. Last, *train* runs in a real Mage with
MLflow (`benchmarks/mage_runs.py`). Writes benchmarks/results/training.json, redraws the table of
docs/performance.md, and ends with one line of JSON.

A pair's folder holds `asked.json` (features, seed, card, at_once) and rows as `earlier.parquet`,
`validation.parquet` (the months held out) and `later.parquet`; each way writes what it came to as
`plain.json` or `ours.json`: `wall_s` and `cpu_s` from rows in memory to five judged models, the
`best` by its own judgement, and ROC AUC of each model on `validation` and `later`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.mage_runs import measure_pipeline
from benchmarks.our_way import CANDIDATES
from benchmarks.serving import commit, draw, machine, run_in_folder, say, write_results
from benchmarks.watched import run_watched
from mlops.dataset.card import PERIOD, Card, load_card
from mlops.dataset.sources import read_source
from mlops.dataset.timeline import add_months
from mlops.dataset.windows import split_window
from mlops.settings import ROOT, Settings, get_settings

RESULTS = ROOT / "benchmarks" / "results" / "training.json"
WAYS = ("plain", "ours")
MONTHS_AFTER = 3
"""That judge a window's models; the card's fewest months of *test*."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all figures of a run; its files lie in `folder`."""
    began, started_at = time.monotonic(), datetime.now(timezone.utc)
    settings, played = get_settings(), commit()
    card = load_card(settings.card)
    raw = read_source(card, settings)
    pairs = []
    ends = window_ends(card, raw.frame, options.windows, settings)
    # The first window, which *train* learns from, is what the clock is read on.
    turns = [ends[0]] * options.rounds + ends[1:]
    for number, end in enumerate(turns, start=1):
        pairs.append(_pair(card, raw.frame, end, options.at_once, settings, folder))
        say(f"pair {number}/{len(turns)}  {_line(pairs[-1])}")
    timed = pairs[: options.rounds]
    each_window = [pairs[0], *pairs[options.rounds :]]
    pipeline = measure_pipeline(options.pipelines, CANDIDATES) if options.pipelines else None
    return {
        **headline(timed, each_window, pipeline),
        "pairs": pairs,
        "pipeline": pipeline,
        "conditions": {
            "rounds": options.rounds,
            "at_once": options.at_once,
            "started_at": started_at.isoformat(timespec="seconds"),
        },
        "source": raw.origin,
        "machine": machine(),
        "commit": played,
        "seconds": round(time.monotonic() - began, 1),
    }


def window_ends(card: Card, frame: pd.DataFrame, count: int, settings: Settings) -> list[str]:
    """Return last months of windows: that of *train* first, then evenly on, all with months after.

    As months pass, a window is what a retrain would learn from: `retrain_window_months` back.
    """
    periods = sorted(frame[PERIOD].unique())
    judged = periods[:-MONTHS_AFTER]
    first = card.time.history_until or judged[-1]
    later = [period for period in judged if period > first]
    every = max(1, len(later) // max(1, count - 1)) if later else 1
    return [first, *later[every - 1 :: every]][:count]


def headline(
    timed: list[dict[str, Any]],
    each_window: list[dict[str, Any]],
    pipeline: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the figures of the line. Ratios are ours / plain, the median of the pairs' ratios."""

    def ratio(name: str) -> float:
        return statistics.median(pair["ours"][name] / pair["plain"][name] for pair in timed)

    def middle(way: str, name: str) -> float:
        return statistics.median(pair[way][name] for pair in timed)

    def auc(way: str) -> float:
        return statistics.mean(pair[way]["auc"] for pair in each_window)

    return {
        "wall_ratio": round(ratio("wall_s"), 3),
        "cpu_ratio": round(ratio("cpu_s"), 3),
        "memory_ratio": round(ratio("peak_mb"), 2),
        **{f"auc_{way}": round(auc(way), 4) for way in reversed(WAYS)},
        **{f"wall_s_{way}": round(middle(way, "wall_s"), 2) for way in reversed(WAYS)},
        **{f"cpu_s_{way}": round(middle(way, "cpu_s"), 2) for way in reversed(WAYS)},
        **{f"peak_mb_{way}": round(middle(way, "peak_mb")) for way in reversed(WAYS)},
        "windows": len(each_window),
        "auc_better_windows": sum(
            pair["ours"]["auc"] >= pair["plain"]["auc"] for pair in each_window
        ),
        "pipeline_overhead_s": pipeline and _median(pipeline, "overhead"),
        "pipeline_s": pipeline and _median(pipeline, "total"),
    }


def _median(pipeline: dict[str, Any], name: str) -> float:
    return round(statistics.median(each[name] for each in pipeline["rounds"]), 2)


def _pair(
    card: Card, frame: pd.DataFrame, end: str, at_once: int, settings: Settings, folder: Path
) -> dict[str, Any]:
    """Return what both ways make of the window that ends with period `end`."""
    start = add_months(end, 1 - settings.retrain_window_months)
    after = add_months(end, MONTHS_AFTER)
    window = split_window(
        frame[frame[PERIOD].between(start, end)],
        card.time.validation_months,
        settings.validation_min_rows,
    )
    later = frame[(frame[PERIOD] > end) & (frame[PERIOD] <= after)]
    for name, rows in (
        ("earlier", window.earlier),
        ("validation", window.validation),
        ("later", later),
    ):
        rows.to_parquet(folder / f"{name}.parquet", index=False)
    asked = {
        "card": settings.card,
        "features": card.feature_names,
        "seed": settings.seed,
        "at_once": at_once,
    }
    (folder / "asked.json").write_text(json.dumps(asked))
    return {
        "window": f"{window.start}..{window.end}",
        "later": f"{later[PERIOD].min()}..{later[PERIOD].max()}",
        "rows": len(window.earlier) + len(window.validation),
        "validation_rows": len(window.validation),
        "later_rows": len(later),
        **{way: _play(way, folder, settings) for way in WAYS},
    }


def _play(way: str, folder: Path, settings: Settings) -> dict[str, Any]:
    module = {"plain": "benchmarks.plain_way", "ours": "benchmarks.our_way"}[way]
    command = [sys.executable, "-W", "ignore", "-m", module, str(folder)]
    # As Mage starts a candidate; the plain way takes what it finds: all cores.
    threads = {name: str(settings.training_threads) for name in _THREADS} if way == "ours" else {}
    for name in _THREADS:
        os.environ.pop(name, None)
    watched = run_watched(command, threads)
    if watched.returncode != 0:
        raise SystemExit(f"{module} failed: its errors stand above")
    told: dict[str, Any] = json.loads((folder / f"{way}.json").read_text())
    return {
        **told,
        "auc": told["later_auc"][told["best"]],
        "process_s": watched.seconds,
        "peak_mb": watched.peak_mb,
        "peak_rss_mb": watched.peak_rss_mb,
    }


def _line(pair: dict[str, Any]) -> str:
    parts = [
        f"{way} {pair[way]['wall_s']:.1f} s ({pair[way]['cpu_s']:.1f} s of processor, "
        f"{pair[way]['peak_mb']:.0f} MB), {pair[way]['best']}: ROC AUC {pair[way]['auc']:.3f}"
        for way in WAYS
    ]
    return f"{pair['window']}, judged on {pair['later']}: " + "; ".join(parts)


def main() -> int:
    """Measure, write the file, redraw the page, print the line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="pairs on the window of train")
    parser.add_argument("--windows", type=int, default=6, help="on which ROC AUC is measured")
    parser.add_argument(
        "--at-once", type=int, default=len(CANDIDATES), help="candidates; default: as the pipeline"
    )
    parser.add_argument("--pipelines", type=int, default=3, help="trainings in Mage; 0: none")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    figures = run_in_folder(lambda folder: measure(options, folder))
    write_results(figures, options.results)
    if options.results == RESULTS:
        draw()
    told = {
        name: value
        for name, value in figures.items()
        if name != "pipeline" and not isinstance(value, dict | list)
    }
    print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
