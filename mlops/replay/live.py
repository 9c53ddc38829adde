"""Play months on a stack of the replay's own: API, evaluator's code, listener, Mage, registry.

Its folders, ports and secrets are nobody else's, and it is stopped whatever happens. It presses the
buttons that a person or the calendar presses: a month's traffic, labels that are due, the pipeline
*monitor*. Alerts, retrains and promotions have to come by themselves. Months pass within seconds,
so the rules get the replay's clock: the evaluator's code runs here, and its process does not.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
import requests
from psycopg2.extras import RealDictCursor

from mlops.alerting.alerts import is_tried_again
from mlops.database import connect
from mlops.dataset.card import PERIOD, Card
from mlops.dataset.rows import periods_to_come
from mlops.dataset.sources import read_source
from mlops.dataset.timeline import add_months, month_start, period_of
from mlops.monitoring.monitor import load_threshold
from mlops.orchestration.mage import trigger_pipeline, wait_for_run
from mlops.registry.models import current_deployment
from mlops.replay.fast import Asked, about, play_policies
from mlops.replay.figures import Month, Policy, Replayed, Retrain, Scored, month_figures
from mlops.replay.report import result_of
from mlops.replay.watch import Judge
from mlops.replay.world import World
from mlops.serving.traffic import Label, Simulation, deliver_labels, simulate_month
from mlops.settings import ROOT, Settings
from mlops.stack import processes
from mlops.stack.services import SERVICES_PYTHON

PIPELINE_LIMIT_S = 1800.0
RETRAIN_LIMIT_S = 3600.0
_POLL_S = 0.5

Say = Callable[[str], object]


class LiveReplayError(RuntimeError):
    """The replay's stack did not come up, or the loop stood still; the message says where."""


def changes_for_live(start: str) -> dict[str, str]:
    """Return what a live replay from `start` on needs to be otherwise: history, and no rest."""
    return {"card.time.history_until": f'"{add_months(start, -1)}"', "retrain_cool_down_s": "0"}


@contextmanager
def own_stack(settings: Settings, say: Say) -> Iterator[None]:
    """Run the stack of `settings` for the length of the block, without the process evaluator.

    Raises LiveReplayError, with the ends of the logs, if it does not come up.
    """
    say("starting a stack of its own")
    try:
        up = _stack(settings, "up")
        if up.returncode:
            logs = _stack(settings, "logs").stdout
            raise LiveReplayError(f"the stack did not come up:\n{up.stdout}\n{logs}")
        processes.stop(settings, "evaluator")
        yield
    finally:
        say("stopping it")
        _stack(settings, "down")


def _stack(settings: Settings, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SERVICES_PYTHON), "-m", "mlops.stack", command],
        cwd=ROOT,
        env={**os.environ, **settings.environment(), "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl-C is ours: it must not end the one that stops the stack
    )


def play_beside(
    asked: Asked,
    settings: Settings,
    card: Card,
    progress: Callable[[Policy, Month], object],
    say: Say,
) -> dict[str, Any]:
    """Play `alert` live, and the other policies in memory on the same rows; return the result.

    The live one's figures stand under `alert`. Raises as `own_stack` and `play_live`, DataError if
    the source cannot be used.
    """
    raw = read_source(card, settings)
    end = asked.end or str(raw.frame[PERIOD].max())
    world = World(card, raw.frame, asked.start, end, asked.label_delay)
    with own_stack(settings, say):
        live = play_live(asked, settings, card, lambda month: progress("alert", month), say)
    others = [policy for policy in asked.policies if policy != "alert"]
    say("the other policies, in memory")
    beside = play_policies(asked, others, world, settings, progress)
    return result_of([*beside, live], card, **about(asked, world, raw.origin, "live"))


def play_live(
    asked: Asked,
    settings: Settings,
    card: Card,
    progress: Callable[[Month], object],
    say: Say,
) -> Replayed:
    """Play policy `alert` on the running stack of `settings`; return what came of it.

    Raises LiveReplayError if a retrain does not end, PipelineFailed if a pipeline fails.
    """
    return _Live(asked, settings, card, say).play(progress)


class _Live:
    def __init__(self, asked: Asked, settings: Settings, card: Card, say: Say) -> None:
        self.asked = asked
        self.settings = settings
        self.card = card
        self.say = say
        self.judge = Judge(settings, asked.thresholds, requests.post)
        self.pending: list[tuple[str, tuple[Label, ...]]] = []

    def play(self, progress: Callable[[Month], object]) -> Replayed:
        began = time.monotonic()
        self._first_version()
        with connect(settings=self.settings) as connection:
            periods = periods_to_come(connection, self.card)
        periods = [
            each
            for each in periods
            if each >= self.asked.start and (self.asked.end is None or each <= self.asked.end)
        ]
        months, scored = [], []
        for period in periods:
            month, told = self._month(period, retrains=period != periods[-1])
            months.append(month)
            scored.append(told)
            progress(month)
        return Replayed("alert", months, scored, time.monotonic() - began)

    def _first_version(self) -> None:
        """Have a version learnt from the history, and in production whatever the gate says."""
        training = "replay-first"
        self._pipeline("prepare")
        self._pipeline("train", training_id=training, cause="first of a replay")
        self._pipeline("deploy", training_id=training, cause="first of a replay")
        with connect(settings=self.settings) as connection:
            if current_deployment(connection, self.card) is not None:
                return
        (row,) = self._rows("SELECT leaderboard FROM ops.trainings WHERE id = %s", training)
        best = row["leaderboard"][0]["version"]
        self._pipeline("promote", version=best, cause="first of a replay: compared with none")

    def _month(self, period: str, retrains: bool) -> tuple[Month, Scored]:
        self.say(f"{period}: traffic")
        simulation = self._traffic(period)
        self._pipeline("monitor")
        since = self._now()
        self.say(f"{period}: alert rules")
        alerts = self.judge.month_over(period)
        retrain = self._retrained(since) if retrains else None
        scored = self._scored(period, simulation)
        return self._told(period, simulation, scored, alerts, retrain), scored

    def _traffic(self, period: str) -> Simulation:
        """Play the month, and deliver the labels that are due at its end."""
        with connect(settings=self.settings) as connection:
            simulation = simulate_month(
                period, self.card, connection, settings=self.settings, deliver=False
            )
            self.pending.append((period, simulation.labels))
            due = add_months(period, -self.asked.label_delay)
            for month, labels in self.pending:
                if month <= due:
                    deliver_labels(connection, labels)
            self.pending = [each for each in self.pending if each[0] > due]
        if len(simulation.versions) != 1:
            raise LiveReplayError(
                f"{period} was answered by versions {', '.join(simulation.versions)}, expected one"
            )
        return simulation

    def _retrained(self, since: datetime) -> Retrain | None:
        """Return the retrain that the alerts have started since, once it has ended; None if none.

        The listener has answered each notification, and decides about it a moment later; about the
        next try of a retrain that failed, too.
        """
        deadline = time.monotonic() + RETRAIN_LIMIT_S
        while self._is_at_work():
            if time.monotonic() > deadline:
                raise LiveReplayError("a retrain did not end: see pipeline retrain in Mage")
            time.sleep(_POLL_S)
        found = self._rows(
            "SELECT retrains.*, window_start, window_end, leaderboard FROM ops.retrains"
            " LEFT JOIN ops.trainings ON trainings.id = retrains.training_id"
            " WHERE retrains.started_at >= %s ORDER BY retrains.started_at DESC LIMIT 1",
            since,
        )
        if not found:
            return None
        row = found[0]
        candidates = {each["version"]: each["candidate"] for each in row["leaderboard"] or []}
        return Retrain(
            cause=row["cause"],
            window_start=period_of(row["window_start"]) if row["window_start"] else "-",
            window_end=period_of(row["window_end"]) if row["window_end"] else "-",
            candidate=candidates.get(row["challenger"]),
            outcome=row["outcome"],
            reason=row["reason"],
            version=row["challenger"] if row["outcome"] == "promoted" else None,
            challenger_roc_auc=row["challenger_score"],
            champion_roc_auc=row["champion_score"],
        )

    def _is_at_work(self) -> bool:
        """Return whether an alert waits, or is about to, or a retrain runs: all at one moment."""
        with connect(settings=self.settings) as connection:
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT EXISTS (SELECT FROM ops.alerts WHERE handled_at IS NULL)"
                    " OR EXISTS (SELECT FROM ops.retrains WHERE finished_at IS NULL)"
                )
                row = cursor.fetchone()
            if row is None or row[0]:
                return True
            return is_tried_again(connection, self.card, self.judge.titles, self.settings)

    def _scored(self, period: str, simulation: Simulation) -> Scored:
        """Return the month's scores as the API gave them, in the file's order."""
        rows = self._rows(
            "SELECT request_id, probability FROM serving.predictions"
            " WHERE period = %s AND model_version = %s AND purpose = 'simulation'",
            month_start(period),
            simulation.versions[0],
        )
        score_of = {row["request_id"]: row["probability"] for row in rows}
        return Scored(
            period,
            np.array([score_of[name] for name, _, _ in simulation.labels], dtype=np.float64),
            np.array([label for _, _, label in simulation.labels], dtype=np.int64),
        )

    def _told(
        self,
        period: str,
        simulation: Simulation,
        scored: Scored,
        alerts: list[str],
        retrain: Retrain | None,
    ) -> Month:
        (version,) = simulation.versions
        (measured,) = self._rows(
            "SELECT prediction_drift, prediction_drift_noise, num_drifted_columns"
            " FROM grafana.evidently_metrics WHERE model_version = %s AND period = %s",
            version,
            month_start(period),
        )
        (deployed,) = self._rows(
            "SELECT candidate FROM ops.deployments WHERE model_version = %s ORDER BY id LIMIT 1",
            version,
        )
        threshold = load_threshold(self.card, version, self.settings)
        return Month(
            period=period,
            rows=len(scored.score),
            version=version,
            candidate=deployed["candidate"],
            threshold=threshold,
            alerts=tuple(alerts),
            retrain=retrain,
            **measured,
            **month_figures(scored.target, scored.score, threshold, self.card),
        )

    def _pipeline(self, name: str, **variables: Any) -> None:
        self.say(f"pipeline {name}")
        run = trigger_pipeline(name, variables, self.settings)
        wait_for_run(run, PIPELINE_LIMIT_S, settings=self.settings)

    def _now(self) -> datetime:
        (row,) = self._rows("SELECT clock_timestamp() AS now")
        now: datetime = row["now"]
        return now

    def _rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with (
            connect(settings=self.settings) as connection,
            connection.cursor(cursor_factory=RealDictCursor) as cursor,
        ):
            cursor.execute(query, values)
            return [dict(row) for row in cursor.fetchall()]
