"""Replay from the command line: policies played month by month, a table, and the report.

    python -m mlops.replay --fast
    python -m mlops.replay --fast --policy alert --set retrain_window_months=6

It starts what a replay needs, in folders and on ports of its own, and stops it whatever happens.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from mlops.dataset.card import CardError, load_card
from mlops.dataset.errors import DataError
from mlops.orchestration.mage import MageError
from mlops.replay.fast import Asked, own_ground, play_fast
from mlops.replay.figures import POLICIES, Month, Policy
from mlops.replay.ground import OverrideError, first_month
from mlops.replay.live import LiveReplayError, changes_for_live, play_beside
from mlops.replay.report import write_report
from mlops.replay.watch import UnknownRuleError
from mlops.replay.words import FIGURES, cell
from mlops.serving.traffic import TrafficError
from mlops.settings import get_settings
from mlops.training.candidates import CandidatesError


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what was asked for; return the exit code, 2 if that cannot be played."""
    options = _options(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s")
    console = Console(highlight=False, soft_wrap=True)
    try:
        asked = asked_for(arguments)
    except (OverrideError, CardError) as error:
        print(error, file=sys.stderr)
        return 2
    changes = dict(asked.changes)
    if not options.fast:
        if "alert" not in asked.policies:
            print("only policy alert is played live: add --fast", file=sys.stderr)
            return 2
        changes |= changes_for_live(asked.start)
    # Whoever ends it has the servers stopped, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with own_ground(replace(asked, changes=changes)) as (settings, card):
            if options.fast:
                result = play_fast(asked, settings, card, printer(console))
            else:
                say = partial(console.print, style="dim", markup=False)
                result = play_beside(asked, settings, card, printer(console), say)
    except (
        *(OverrideError, ValidationError, CardError, CandidatesError, DataError),
        UnknownRuleError,
    ) as error:
        print(error, file=sys.stderr)
        return 2
    except (LiveReplayError, MageError, TrafficError) as error:
        print(error, file=sys.stderr)
        return 1
    show(result, console)
    folder = get_settings().reports_dir if options.out is None else options.out
    for path in write_report(result, folder):
        console.print(f"written: {path}")
    return 0


def asked_for(arguments: Sequence[str] | None) -> Asked:
    """Return what the arguments of the command line ask for, the card's months where they do not.

    Raises CardError if there is no such card, OverrideError if it tells no month to begin with.
    """
    options = _options(arguments)
    card = load_card(options.set.get("card", get_settings().card))
    return Asked(
        policies=options.policy or POLICIES,
        start=options.start or first_month(card),
        end=options.to,
        label_delay=options.label_delay,
        changes=options.set,
        thresholds=options.threshold,
        candidates=options.candidate,
        processes=options.processes,
    )


def printer(console: Console) -> Callable[[Policy, Month], None]:
    """Return what prints a line a month, under the name of its policy."""
    told: list[Policy] = []

    def tell(policy: Policy, month: Month) -> None:
        if policy not in told:
            told.append(policy)
            console.print(f"[bold]{policy}[/]")
        auc = "  -  " if month.roc_auc is None else f"{month.roc_auc:.3f}"
        drift = "  -  " if month.prediction_drift is None else f"{month.prediction_drift:.2f}"
        line = (
            f"  {month.period} {month.rows:>6,} rows  version {month.version:>2}"
            f"  AUC {auc}  Brier {month.brier:.3f}  drift {drift}"
        )
        if month.alerts:
            line += f"  [{', '.join(month.alerts)}]"
        if month.retrain is not None:
            line += f"  → {month.retrain.candidate}: {month.retrain.outcome.replace('_', ' ')}"
        console.print(line, markup=False)

    return tell


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the figures, a line a policy."""
    heads = "".join(f"{head:>13}" for _, head, _, _ in FIGURES)
    console.print(f"\n[bold]{'policy':<8}{heads}[/]")
    for policy, found in result["policies"].items():
        cells = "".join(f"{cell(found[key], form):>13}" for _, _, key, form in FIGURES)
        console.print(f"{policy:<8}{cells}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mlops.replay", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--fast", action="store_true", help="in memory: the same code without HTTP, Mage and MLflow"
    )
    parser.add_argument("--policy", action="append", choices=POLICIES, help="default: all three")
    parser.add_argument("--from", dest="start", help="default: as the card says")
    parser.add_argument("--to", help="default: the last month of the data")
    parser.add_argument(
        "--label-delay", type=int, default=0, metavar="MONTHS", help="0: known at the month's end"
    )
    parser.add_argument(
        "--set",
        action=_Pairs,
        metavar="NAME=VALUE",
        help="a setting of mlops/settings.py, or card.<path>; may be given again",
    )
    parser.add_argument(
        "--window", type=int, metavar="MONTHS", help="short for --set retrain_window_months=MONTHS"
    )
    parser.add_argument(
        "--threshold",
        action=_Pairs,
        metavar="RULE=NUMBER",
        help='of an alert rule instead of its file\'s: "Prediction drift=0.2"',
    )
    parser.add_argument(
        "--candidate", action="append", default=[], help="only this one; may be given again"
    )
    parser.add_argument("--processes", type=int, default=2, help="that candidates are learnt in")
    parser.add_argument("--out", type=Path, help="folder of the report; default: reports")
    options = parser.parse_args(arguments, argparse.Namespace(set={}, threshold={}))
    if options.window is not None:
        options.set["retrain_window_months"] = str(options.window)
    try:
        options.threshold = {rule: float(value) for rule, value in options.threshold.items()}
    except ValueError as error:
        parser.error(f"--threshold: {error}")
    return options


class _Pairs(argparse.Action):
    """Collects NAME=VALUE into a dict."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        name, equals, value = str(values).partition("=")
        if not equals or not name:
            parser.error(f"{option_string}: found {values!r}, expected NAME=VALUE")
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), name: value})


if __name__ == "__main__":
    sys.exit(main())
