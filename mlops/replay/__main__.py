"""Replay from the command line: policies played month by month, a table, and the report.

    python -m mlops.replay --fast
    python -m mlops.replay --fast --policy alert --set retrain_window_months=12

It starts what a replay needs, in folders and on ports of its own, and stops it whatever happens.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from mlops.dataset.card import Card, CardError
from mlops.dataset.errors import DataError
from mlops.dataset.sources import read_source
from mlops.replay.engine import plan, replay
from mlops.replay.figures import POLICIES, Month, Policy, Replayed
from mlops.replay.ground import OverrideError, own_candidates, own_settings
from mlops.replay.learning import learning
from mlops.replay.report import FIGURES, cell, result_of, write_report
from mlops.replay.watch import Watch
from mlops.replay.world import World
from mlops.settings import Settings, get_settings
from mlops.stack.postgres import running
from mlops.training.candidates import CandidatesError

START = "2009-01"


def main(arguments: Sequence[str] | None = None) -> int:
    """Play what was asked for; return the exit code, 2 if that cannot be played."""
    options = _options(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s")
    console = Console(highlight=False)
    try:
        with own_ground(options.set, options.candidate) as (settings, card):
            result = play_fast(settings, card, options, console)
    except (OverrideError, ValidationError, CardError, CandidatesError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    show(result, console)
    folder = get_settings().reports_dir if options.out is None else options.out
    for path in write_report(result, folder):
        console.print(f"written: {path}")
    return 0


@contextmanager
def own_ground(
    overrides: Mapping[str, str], candidates: Sequence[str] = ()
) -> Iterator[tuple[Settings, Card]]:
    """Yield settings and card of a folder that is deleted afterwards."""
    # Not in a folder that others may not pass: root's Postgres runs as another user.
    folder = Path(tempfile.mkdtemp(prefix="mlops-replay-"))
    folder.chmod(0o711)
    try:
        settings, card = own_settings(folder, overrides)
        yield own_candidates(settings, candidates, folder), card
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def play_fast(
    settings: Settings, card: Card, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Play the policies in memory; return the result as JSON has it."""
    raw = read_source(card, settings)
    if raw.notice:
        console.print(f"[yellow]{raw.notice}[/]")
    last = options.to or str(raw.frame["period"].max())
    world = World(card, raw.frame, options.start, last, options.label_delay)
    played: list[Replayed] = []
    policies: list[Policy] = options.policy or list(POLICIES)
    with learning(card, settings, options.processes) as learner, running(settings):
        if "monthly" in policies:
            plan(world, learner, settings)
        for policy in policies:
            watch = Watch(card, settings, options.threshold) if policy == "alert" else None
            console.print(f"[bold]{policy}[/]")
            played.append(replay(policy, world, learner, settings, watch, _printer(console)))
    return result_of(
        played,
        card,
        mode="fast",
        start=world.start,
        end=world.end,
        label_delay=world.label_delay,
        source=raw.origin,
        changed={**options.set, **{f"rule {k}": str(v) for k, v in options.threshold.items()}},
    )


def _printer(console: Console) -> Any:
    def tell(month: Month) -> None:
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
        console.print(line, markup=False, soft_wrap=True)

    return tell


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the figures, a line a policy."""
    heads = "".join(f"{head:>13}" for _, head, _, _ in FIGURES)
    console.print(f"\n[bold]{'policy':<8}{heads}[/]", soft_wrap=True)
    for policy, found in result["policies"].items():
        cells = "".join(f"{cell(found[key], form):>13}" for _, _, key, form in FIGURES)
        console.print(f"{policy:<8}{cells}", soft_wrap=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mlops.replay", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--fast", action="store_true", help="in memory: the same code without HTTP, Mage and MLflow"
    )
    parser.add_argument("--policy", action="append", choices=POLICIES, help="default: all three")
    parser.add_argument("--from", dest="start", default=START, help=f"default: {START}")
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
