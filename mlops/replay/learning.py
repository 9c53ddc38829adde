"""Learn from a window of the world as a training does, each window once for all policies.

The candidates are those of the settings, learnt by `mlops.training.fit.learn` in processes of their
own, blended (`mlops.training.ensemble`) and ranked as a training does. Nothing is stored, and
nothing goes to production here.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops.dataset.card import Card
from mlops.dataset.errors import DataQualityError
from mlops.dataset.quality import check_window, refused
from mlops.dataset.rows import data_digest
from mlops.settings import Settings
from mlops.training.candidates import ENSEMBLE, Candidate, load_candidates
from mlops.training.ensemble import blend, choose
from mlops.training.errors import TrainingError
from mlops.training.fit import learn
from mlops.training.ranking import in_order, squared_errors
from mlops.training.tracking import Logged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Challenger:
    """The best candidate of a window, and who else was tried (`failures`: name → reason)."""

    start: str
    end: str
    logged: Logged
    leaderboard: dict[str, float]
    """ROC AUC on validation of each candidate that was learnt, best first."""
    failures: dict[str, str]

    @property
    def candidate(self) -> str:
        """Name of the candidate."""
        return self.logged.candidate.name

    @property
    def threshold(self) -> float:
        """The score (0..1) from which a customer is contacted."""
        return self.logged.metrics["validation_threshold"]


class Learner:
    """Learns windows; asked for the same rows again, it has the answer.

    Made by `learning`, which ends its processes.
    """

    def __init__(self, card: Card, settings: Settings, pool: ProcessPoolExecutor | None) -> None:
        self.card = card
        self.settings = settings
        self.candidates = load_candidates(settings.candidates)
        self._pool = pool
        self._known: dict[str, Challenger] = {}
        self._ahead: dict[str, dict[str, Future[Logged]]] = {}

    def ahead(self, frame: pd.DataFrame) -> None:
        """Begin with a window that will be asked for, if there are processes to do so."""
        digest = data_digest(frame)
        if self._pool is not None and digest not in self._known and digest not in self._ahead:
            self._ahead[digest] = {
                name: self._pool.submit(_learn, self.card, candidate, frame, self.settings)
                for name, candidate in self.candidates.items()
            }

    def challenger(self, frame: pd.DataFrame, start: str, end: str) -> Challenger:
        """Return the best that the candidates make of the labelled rows `frame`.

        `start` and `end` are the periods of the window. Raises DataQualityError if its rows are
        refused, TrainingError, naming each reason, if no candidate could be fitted.
        """
        digest = data_digest(frame)
        if digest not in self._known:
            self._known[digest] = self._best(frame, start, end, digest)
        return self._known[digest]

    def _best(self, frame: pd.DataFrame, start: str, end: str, digest: str) -> Challenger:
        faults = refused(check_window(frame, self.card, self.settings))
        if faults:
            raise DataQualityError(f"the rows of {start} to {end} ({self.card.name})", faults)
        self.ahead(frame)
        under_way = self._ahead.pop(digest, {})
        learnt: dict[str, Logged] = {}
        failures: dict[str, str] = {}
        for name, candidate in self.candidates.items():
            try:
                learnt[name] = (
                    under_way[name].result()
                    if name in under_way
                    else _learn(self.card, candidate, frame, self.settings)
                )
            except Exception as error:
                # As in a training: one that fails is named, and the others go on.
                failures[name] = f"{type(error).__name__}: {error}"
                logger.warning("%s to %s: %s failed: %s", start, end, name, failures[name])
        if not learnt:
            reasons = "\n".join(f"  - {name}: {reason}" for name, reason in failures.items())
            raise TrainingError(f"{start} to {end}: no candidate could be fitted:\n{reasons}")
        try:
            learnt |= self._ensemble(learnt, frame)
        except Exception as error:
            failures[ENSEMBLE] = f"{type(error).__name__}: {error}"
            logger.warning("%s to %s: %s failed: %s", start, end, ENSEMBLE, failures[ENSEMBLE])
        ranked = in_order(*_judged(learnt))
        return Challenger(
            start,
            end,
            learnt[ranked[0]],
            {name: learnt[name].metrics["validation_roc_auc"] for name in ranked},
            failures,
        )

    def _ensemble(self, learnt: Mapping[str, Logged], frame: pd.DataFrame) -> dict[str, Logged]:
        """Return the mean of the best of `learnt` under its name; nothing if there is none."""
        names = choose(*_judged(learnt), self.settings)
        if not names:
            return {}
        return {ENSEMBLE: blend({name: learnt[name] for name in names}, frame, self.settings)}


def _judged(
    learnt: Mapping[str, Logged],
) -> tuple[dict[str, dict[str, float]], Callable[[str], NDArray[np.float64]]]:
    """Return what candidates are ranked by: their metrics, and their squared errors by name."""
    return (
        {name: logged.metrics for name, logged in learnt.items()},
        lambda name: squared_errors(learnt[name].reference),
    )


@contextmanager
def learning(card: Card, settings: Settings, processes: int = 2) -> Iterator[Learner]:
    """Yield a learner with so many processes; 1: it learns in this one."""
    if processes < 2:
        yield Learner(card, settings, None)
        return
    # Not forked: this process has threads of its own by now.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            yield Learner(card, settings, pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _learn(card: Card, candidate: Candidate, frame: pd.DataFrame, settings: Settings) -> Logged:
    return learn(card, candidate, frame, settings)
