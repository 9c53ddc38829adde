"""How often the rules alarm where nothing has happened: months dealt anew, so that none differs.

    python -m mlops.replay.false_alarms --shuffles 20

All rows are pooled and dealt at random to the months, whose sizes stay. Time then says nothing, so
whatever alarms is a false alarm. A champion is learnt from the months before its first, as a
training does it; a new one follows every half year, so that small months meet the small references
that retraining leaves behind. Each month is judged twice, as in life: when it is over, and when its
labels have come. Months are measured by `measure_month` and judged by the rule files' own SQL on a
Postgres of its own, in a transaction that is undone. No alert is told, and nothing is retrained
because of one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from psycopg2.extensions import connection as Connection

from mlops.alerting.alerts import RETRAINING_RULES
from mlops.alerting.evaluator import to_samples
from mlops.alerting.rules import Rule, load_provisioning, provisioning_environment
from mlops.database import connect
from mlops.dataset.card import PERIOD, SCORE, TARGET, Card, load_card
from mlops.dataset.sources import read_source
from mlops.monitoring.monitor import measure_month, store_columns, store_metrics
from mlops.registry.models import record_deployment
from mlops.replay.ground import own_settings
from mlops.settings import Settings, get_settings
from mlops.stack.postgres import running
from mlops.training.candidates import Candidate, get_candidate, load_candidates
from mlops.training.fit import learn, score_window
from mlops.training.tracking import Logged

FIRST = "2009-01"
"""The first month that is judged; those before it are what the first champion learns from."""

CHAMPION_MONTHS = 6
SHUFFLES = 5


@dataclass(frozen=True)
class JudgedMonth:
    """A month of a shuffle, and the titles of the rules that alarmed because of it."""

    shuffle: int
    period: str
    rows: int
    reference_rows: int
    alarms: tuple[str, ...]


@dataclass
class FalseAlarms:
    """What the rules made of months in which nothing has happened."""

    months: list[JudgedMonth] = field(default_factory=list)

    @property
    def by_rule(self) -> dict[str, int]:
        """Return how many months each rule alarmed, of the rules that did."""
        return dict(sorted(Counter(rule for each in self.months for rule in each.alarms).items()))

    @property
    def alarms(self) -> int:
        """Return the number of alarms that would have started a retrain."""
        return sum(count for rule, count in self.by_rule.items() if rule in RETRAINING_RULES)

    @property
    def rate(self) -> float:
        """Return the alarms that would have started a retrain, a month."""
        return self.alarms / len(self.months) if self.months else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the figures as JSON has them."""
        return {
            "false_alarm_rate": self.rate,
            "months": len(self.months),
            "alarms": self.alarms,
            "alarms_by_rule": self.by_rule,
            "shuffles": len({each.shuffle for each in self.months}),
        }


def measure_false_alarms(
    card: Card,
    settings: Settings | None = None,
    shuffles: int = SHUFFLES,
    candidate: str | None = None,
    progress: Callable[[JudgedMonth], object] = lambda month: None,
) -> FalseAlarms:
    """Return what the rules make of `shuffles` shuffles of the card's source.

    `candidate` learns (default: the first of the file, which a training prefers). It starts a
    Postgres of its own in a folder of its own, and takes both away. About ten seconds a shuffle.
    Raises DataError as `read_source` does, UnsupportedRuleError for a rule file that the evaluator
    does not know.
    """
    settings = settings or get_settings()
    frame = read_source(card, settings).frame
    folder = Path(tempfile.mkdtemp(prefix="mlops-false-alarms-"))
    try:
        own, _ = own_settings(folder, {})
        with running(own):
            return judge_shuffles(frame, card, own, shuffles, candidate, progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judge_shuffles(
    frame: pd.DataFrame,
    card: Card,
    settings: Settings,
    shuffles: int,
    candidate: str | None = None,
    progress: Callable[[JudgedMonth], object] = lambda month: None,
) -> FalseAlarms:
    """Return what the rules make of shuffles of `frame` (features, target, period).

    `settings` name a migrated Postgres; nothing that is written there stays. Its tables of months
    and deployments must be empty, or the rules would judge what they hold.
    """
    rules = load_provisioning(provisioning_environment(settings)).rules
    learns = (
        next(iter(load_candidates(settings.candidates).values()))
        if candidate is None
        else get_candidate(candidate, settings.candidates)
    )
    found = FalseAlarms()
    for shuffle in range(shuffles):
        shuffled = deal_anew(frame, settings.seed + shuffle)
        for champion, months in _champions(shuffled, card, learns, settings):
            with connect(settings=settings) as connection:
                for month in _judge(champion, months, card, rules, connection, settings):
                    judged = JudgedMonth(shuffle, *month)
                    found.months.append(judged)
                    progress(judged)
                connection.rollback()
    return found


def deal_anew(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows of `frame` dealt at random to its months, each as large as before."""
    order = np.random.default_rng(seed).permutation(len(frame))
    return frame.iloc[order].assign(**{PERIOD: frame[PERIOD].to_numpy()}).reset_index(drop=True)


def _champions(
    frame: pd.DataFrame, card: Card, candidate: Candidate, settings: Settings
) -> Iterator[tuple[Logged, dict[str, pd.DataFrame]]]:
    """Yield each champion, with the months that it answers, scored.

    The first learns from all that is before its months, the later ones from a retrain's window.
    """
    periods = sorted(frame[PERIOD].unique())
    judged = [period for period in periods if period >= FIRST]
    for first in range(0, len(judged), CHAMPION_MONTHS):
        months = judged[first : first + CHAMPION_MONTHS]
        past = [period for period in periods if period < months[0]]
        window = past if not first else past[-settings.retrain_window_months :]
        rows = frame[frame[PERIOD].isin(window)].reset_index(drop=True)
        champion = learn(card, candidate, rows, settings)
        yield champion, {period: _scored(frame, period, champion, card) for period in months}


def _scored(frame: pd.DataFrame, period: str, champion: Logged, card: Card) -> pd.DataFrame:
    rows = frame[frame[PERIOD] == period].reset_index(drop=True)
    return rows.assign(**{SCORE: score_window(champion.pipeline, card, rows)})


def _judge(
    champion: Logged,
    months: dict[str, pd.DataFrame],
    card: Card,
    rules: Sequence[Rule],
    connection: Connection,
    settings: Settings,
) -> Iterator[tuple[str, int, int, tuple[str, ...]]]:
    """Yield period, rows, rows of the reference, and what alarmed once the month was over."""
    version = "1"
    record_deployment(connection, card, version, cause="false alarms")
    earlier: list[pd.DataFrame] = []
    known: set[tuple[str, str]] = set()
    for period, labelled in months.items():
        alarms: set[tuple[str, str]] = set()
        for rows in (labelled.assign(**{TARGET: np.nan}), labelled):
            metrics, drift = measure_month(
                champion.reference,
                rows,
                card,
                version,
                period,
                champion.metrics["validation_threshold"],
                settings,
                with_report=False,
                earlier=earlier,
            )
            store_metrics(connection, metrics)
            store_columns(connection, version, period, drift.by_column if drift else ())
            alarms |= {
                (rule.title, sample.labels["period"])
                for rule in rules
                for sample in _ask(rule, connection)
                if rule.breached_by(sample.value)
            }
        earlier.append(labelled)
        told = tuple(sorted(title for title, _ in alarms - known))
        known |= alarms
        yield period, len(labelled), len(champion.reference), told


def _ask(rule: Rule, connection: Connection) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(rule.sql)
        names = [column.name for column in cursor.description or []]
        return to_samples(rule, names, cursor.fetchall())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each alarm and, on the last line, the figures as JSON; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mlops.replay.false_alarms",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument("--shuffles", type=int, default=SHUFFLES, help=f"default: {SHUFFLES}")
    parser.add_argument(
        "--candidate", help="that learns; default: the first of the candidates' file"
    )
    options = parser.parse_args(arguments)
    if options.shuffles < 1:
        parser.error(f"--shuffles: found {options.shuffles}, expected 1 or more")
    settings = get_settings()
    began = time.monotonic()

    def tell(month: JudgedMonth) -> None:
        if month.alarms:
            print(
                f"shuffle {month.shuffle}, {month.period} ({month.rows:,} rows, reference"
                f" {month.reference_rows:,}): {', '.join(month.alarms)}",
                flush=True,
            )

    found = measure_false_alarms(
        load_card(settings.card), settings, options.shuffles, options.candidate, tell
    )
    for rule, count in found.by_rule.items():
        does = "would retrain" if rule in RETRAINING_RULES else "is noted"
        print(f"{rule}: {count} of {len(found.months)} months ({does})")
    print(f"{found.alarms} false alarms in {len(found.months)} months")
    print(json.dumps({**found.summary(), "seconds": round(time.monotonic() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
