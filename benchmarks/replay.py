"""`make bench-replay`: what retraining is worth on the real months, and how often it cries wolf.

Plays the three policies in memory (`mlops.replay`), then judges months in which nothing happens
(`mlops.replay.false_alarms`). Writes benchmarks/results/replay.json, redraws the table of
docs/retraining.md and its picture, and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.serving import commit, draw, machine, say, write_results
from mlops.replay.false_alarms import SHUFFLES, measure_false_alarms
from mlops.replay.fast import Asked, own_ground, play_fast
from mlops.replay.figures import Month, Policy
from mlops.settings import ROOT

START = "2009-01"
RESULTS = ROOT / "benchmarks" / "results" / "replay.json"
KEYS = {
    "auc": "roc_auc",
    "average_precision": "average_precision",
    "brier": "brier",
    "mean_monthly_auc": "mean_monthly_auc",
    "lift": "lift_at_10",
    "profit": "profit",
}
"""Beginning of a figure's name in the line → its name in the result; the policy's name follows."""


def measure(asked: Asked, shuffles: int) -> dict[str, Any]:
    """Return the replay's result, the false alarms and what both depend on."""
    began, played = time.monotonic(), commit()  # before: work may go on meanwhile
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with own_ground(asked) as (settings, card):
        result = play_fast(asked, settings, card, tell_month)
        say(f"false alarms: {shuffles} shuffles of the months")
        alarms = measure_false_alarms(card, settings, shuffles)
    return {
        "started_at": started_at,
        "commit": played,
        "machine": machine(),
        **result,
        "false_alarms": alarms.summary(),
        "seconds": round(time.monotonic() - began, 1),
    }


def line_of(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the line: those of each policy, and of the loop (policy alert)."""
    policies = figures["policies"]
    line: dict[str, Any] = {}
    for name, key in KEYS.items():
        for policy, found in policies.items():
            value = found[key]
            line[f"{name}_{policy}"] = None if value is None else round(value, 4)
    return {
        **line,
        "retrains": policies["alert"]["retrains"],
        "retrains_monthly": policies["monthly"]["retrains"],
        "versions": policies["alert"]["versions"],
        "false_alarm_rate": round(figures["false_alarms"]["false_alarm_rate"], 4),
        "false_alarm_months": figures["false_alarms"]["months"],
        "rows": policies["alert"]["rows"],
        "source": figures["source"],
        "seconds": figures["seconds"],
    }


def tell_month(policy: Policy, month: Month) -> None:
    """Tell the person who waits how far it is."""
    say(f"{policy:<8} {month.period}  version {month.version}")


def main() -> int:
    """Measure, write the file, redraw the page, print the line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--from", dest="start", default=START)
    parser.add_argument("--to", help="default: the last month of the data")
    parser.add_argument("--candidate", action="append", default=[])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--shuffles", type=int, default=SHUFFLES, help="of the false alarms")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    asked = Asked(
        start=options.start,
        end=options.to,
        candidates=options.candidate,
        processes=options.processes,
    )
    figures = measure(asked, options.shuffles)
    write_results(figures, options.results)
    if options.results == RESULTS:
        draw()
    print(json.dumps(line_of(figures)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
