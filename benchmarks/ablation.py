"""What each part of the recipe is worth: the replay on alert, one thing changed at a time.

    python -m benchmarks.ablation
    python -m benchmarks.ablation --only "no weights"

Every row is a command that a person can run alone. Writes benchmarks/results/ablation.json and
redraws the table of docs/retraining.md; rows that were not run again stay as they were.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving import commit, draw, machine, say, write_results
from mlops.replay.__main__ import asked_for
from mlops.replay.fast import own_ground, play_fast
from mlops.settings import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "ablation.json"


@dataclass(frozen=True)
class Row:
    """A variant: its name in the table, and what it changes, as arguments of the replay."""

    name: str
    changes: str = ""
    policy: str = "alert"

    @property
    def arguments(self) -> list[str]:
        """Arguments of `python -m mlops.replay`."""
        return ["--fast", "--policy", self.policy, *shlex.split(self.changes)]

    @property
    def command(self) -> str:
        """What a person types."""
        return f"python -m mlops.replay {shlex.join(self.arguments)}"


ONE = "--candidate XGBClassifier"
"""The candidate that is put forward in most months: it stands for all five, and is quick."""

ROWS = (
    Row("the loop as it is, all five candidates"),
    Row("without the ensemble", "--set ensemble_size=0"),
    Row("its first candidate only: the rows below change one thing of this", ONE),
    Row("never retrained", ONE, policy="static"),
    Row("retrained every month", ONE, policy="monthly"),
    Row("LogisticRegression in its place", "--candidate LogisticRegression"),
    Row("RandomForest in its place", "--candidate RandomForest"),
    Row("MLPClassifier in its place", "--candidate MLPClassifier"),
    Row("rows of 6 months, all count alike", f"{ONE} --window 6 --set recency_half_life_months=0"),
    Row("rows of 3 months, all count alike", f"{ONE} --window 3 --set recency_half_life_months=0"),
    Row("rows count half after half a month", f"{ONE} --set recency_half_life_months=0.5"),
    Row("rows count half after 2 months", f"{ONE} --set recency_half_life_months=2"),
    Row("rows count half after 3 months", f"{ONE} --set recency_half_life_months=3"),
    Row(
        "calendar columns are learnt from",
        f"{ONE} --set card.features.day.learn=true --set card.features.month.learn=true",
    ),
    Row("the newest 2 months judge, not 1", f"{ONE} --set card.time.validation_months=2"),
    Row("gate: 80 % of resamples", f"{ONE} --set gate_confidence=0.8"),
    Row("gate: 99 % of resamples", f"{ONE} --set gate_confidence=0.99"),
    Row("gate: no ROC AUC may be lost", f"{ONE} --set gate_equal=0"),
    Row("gate: 0.05 of ROC AUC may be lost", f"{ONE} --set gate_equal=0.05"),
    Row("alert: intervals of 99 %", f"{ONE} --set performance_confidence=0.99"),
    Row("alert: intervals of 99.99 %", f"{ONE} --set performance_confidence=0.9999"),
    Row("alert: 1.5 times the margins", f"{ONE} --threshold 'Performance loss=1.5'"),
    Row("labels come a month later", f"{ONE} --label-delay 1"),
    Row("seed 1", f"{ONE} --set seed=1"),
    Row("seed 2", f"{ONE} --set seed=2"),
)


def play(row: Row) -> tuple[dict[str, Any], str]:
    """Return the figures of one row, and where the data came from."""
    asked = asked_for(row.arguments)
    with own_ground(asked) as (settings, card):
        result = play_fast(asked, settings, card)
    found = result["policies"][row.policy]
    return {key: value for key, value in found.items() if key != "months"}, result["source"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Play every row, write the file, redraw the table; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", action="append", choices=[row.name for row in ROWS], help="rows; default: all"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    known: dict[str, Any] = {}
    if options.only and options.results.exists():
        known = {row["name"]: row for row in json.loads(options.results.read_text())["rows"]}
    began, source = time.monotonic(), ""
    for row in ROWS:
        if options.only and row.name not in options.only:
            continue
        say(row.command)
        figures, source = play(row)
        known[row.name] = {"name": row.name, "command": row.command, "figures": figures}
        say(f"  ROC AUC {figures['roc_auc']:.4f}, Brier {figures['brier']:.4f}")
    result = {
        "commit": commit(),
        "machine": machine(),
        "source": source,
        "seconds": round(time.monotonic() - began, 1),
        "rows": [known[row.name] for row in ROWS if row.name in known],
    }
    write_results(result, options.results)
    if options.results == RESULTS:
        draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
