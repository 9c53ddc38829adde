"""Play one policy month by month in memory: score, measure, alert, retrain, gate, deploy.

It calls what the loop calls (learning, `measure_month`, the rules, the gate), without MLflow, Mage
and HTTP. It decides nothing of its own, and starts no server: the Postgres for the rules is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from mlops.dataset.card import SCORE
from mlops.dataset.errors import DataError
from mlops.monitoring.monitor import measure_month
from mlops.registry.gate import GateDecision, decide_on_unseen
from mlops.replay.figures import Month, Policy, Replayed, Retrain, Scored, month_figures
from mlops.replay.learning import Challenger, Learner
from mlops.replay.watch import Measured, Wanted, Watch
from mlops.replay.world import World
from mlops.settings import Settings
from mlops.training.errors import TrainingError
from mlops.training.fit import score_window


def replay(
    policy: Policy,
    world: World,
    learner: Learner,
    settings: Settings,
    watch: Watch | None = None,
    progress: Callable[[Month], object] = lambda month: None,
) -> Replayed:
    """Play the months of `world` under one policy, and return what came of it.

    The first version is learnt from all the history, and is in production without a comparison:
    there is nobody to compare with. A retrain happens at the end of a month, and what it promotes
    answers from the next month on. Policy `alert` needs a `watch`.

    Raises TrainingError if not even the first version can be learnt.
    """
    if policy == "alert" and watch is None:
        raise ValueError("policy alert needs a Watch: rules are judged on a Postgres")
    return _Replay(policy, world, learner, settings, watch if policy == "alert" else None).play(
        progress
    )


def plan(world: World, learner: Learner, settings: Settings) -> None:
    """Have the learner begin with every window that retraining each month will ask for."""
    first, last = world.history()  # every policy waits for this one
    learner.ahead(world.labelled(first, last, world.history_end))
    for period in world.periods[:-1]:
        start, end = world.window(period, settings.retrain_window_months)
        learner.ahead(world.labelled(start, end, period))


class _Replay:
    def __init__(
        self,
        policy: Policy,
        world: World,
        learner: Learner,
        settings: Settings,
        watch: Watch | None,
    ) -> None:
        self.policy = policy
        self.world = world
        self.learner = learner
        self.settings = settings
        self.watch = watch
        self.version = 0
        self.champion: Challenger
        self.answered: dict[str, pd.DataFrame] = {}
        """Month → what the champion was asked, with its scores."""

    def play(self, progress: Callable[[Month], object]) -> Replayed:
        began = time.monotonic()
        world = self.world
        start, end = world.history()
        self._deploy(
            self.learner.challenger(world.labelled(start, end, world.history_end), start, end),
            "first",
        )
        months: list[Month] = []
        scored: list[Scored] = []
        for period in world.periods:
            last = period == world.periods[-1]
            month, told = self._month(period, retrains=not last)
            months.append(month)
            scored.append(told)
            progress(month)
        return Replayed(self.policy, months, scored, time.monotonic() - began)

    def _month(self, period: str, retrains: bool) -> tuple[Month, Scored]:
        champion, version = self.champion, str(self.version)
        rows = self.world.traffic(period)
        score = score_window(champion.logged.pipeline, self.world.card, rows)
        self.answered[period] = rows.assign(score=score, period=period)
        measured = self._measure(period)
        alerts, wanted = self._watched(period, measured.values())
        retrain = self._retrain(period, wanted) if retrains and wanted is not None else None
        target = self.world.outcome(period)
        of_month, _ = measured[period]
        month = Month(
            period=period,
            rows=len(rows),
            version=version,
            candidate=champion.candidate,
            threshold=champion.threshold,
            prediction_drift=of_month.prediction_drift,
            prediction_drift_noise=of_month.prediction_drift_noise,
            num_drifted_columns=of_month.num_drifted_columns,
            alerts=tuple(alerts),
            retrain=retrain,
            **month_figures(target, score, champion.threshold, self.world.card),
        )
        return month, Scored(period, score, target)

    def _measure(self, at: str) -> dict[str, Measured]:
        """Return what is measured anew at the end of month `at`: itself, and whose labels came.

        The others that the champion answered would come to what they came to before.
        """
        known = {
            period: rows.assign(target=self.world.labels(period, at))
            for period, rows in self.answered.items()
        }
        return {
            period: measure_month(
                self.champion.logged.reference,
                known[period],
                self.world.card,
                str(self.version),
                period,
                self.champion.threshold,
                self.settings,
                with_report=False,
                earlier=[rows for earlier, rows in known.items() if earlier < period],
            )
            for period in known
            if period in (at, self.world.known_until(at))
        }

    def _watched(
        self, period: str, measured: Iterable[Measured]
    ) -> tuple[list[str], Wanted | None]:
        if self.watch is not None:
            return self.watch.month_over(period, measured)
        return [], Wanted(period, "every month") if self.policy == "monthly" else None

    def _retrain(self, period: str, wanted: Wanted) -> Retrain:
        start, end = self.world.window(period, self.settings.retrain_window_months)
        about: dict[str, Any] = {"cause": wanted.cause, "window_start": start, "window_end": end}
        try:
            frame = self.world.labelled(start, end, period)
            challenger = self.learner.challenger(frame, start, end)
        except (TrainingError, DataError) as error:
            retrain = Retrain(**about, candidate=None, outcome="failed", reason=str(error))
            self._close(wanted, retrain)
            return retrain
        decision = self._gate(challenger)
        retrain = Retrain(
            **about,
            candidate=challenger.candidate,
            outcome="promoted" if decision.promote else "kept_champion",
            reason=decision.reason,
            version=str(self.version + 1) if decision.promote else None,
            challenger_roc_auc=decision.numbers.get("challenger_roc_auc"),
            champion_roc_auc=decision.numbers.get("champion_roc_auc"),
        )
        if decision.promote:
            self._deploy(challenger, wanted.cause)
        self._close(wanted, retrain)
        return retrain

    def _gate(self, challenger: Challenger) -> GateDecision:
        """Return the decision on the challenger's validation, whose scores are out of fold."""
        champion, card = self.champion.logged, self.world.card
        rows = challenger.logged.reference
        return decide_on_unseen(
            rows,
            rows[SCORE].to_numpy(),
            champion.params["fitting_periods"],
            lambda unseen: score_window(champion.pipeline, card, unseen),
            card,
            challenger.logged.metrics["earlier_positive_rate"],
            self.settings,
        )

    def _deploy(self, challenger: Challenger, cause: str) -> None:
        self.champion = challenger
        self.version += 1
        self.answered = {}
        if self.watch is not None:
            self.watch.deployed(str(self.version), cause)

    def _close(self, wanted: Wanted, retrain: Retrain) -> None:
        if self.watch is not None:
            self.watch.closed(wanted, retrain.outcome, retrain.reason)
