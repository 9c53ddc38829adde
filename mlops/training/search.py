"""Choose what a candidate is fitted with: parameters, class weights, calibration; by time.

A study of Optuna for each candidate. A trial is judged as the world will judge it: each of the
window's latest blocks of months is scored by a fit on the months before it, and the trial's value
is the Brier score of all these rows. The first trial is the file's own parameters, and they stay
unless another's squared errors are clearly lower on the same rows, by the rule of
`mlops.training.ranking`: the best of several tries is ahead of them by luck alone
(docs/retraining.md, Search, has the figures).

Pruned is what is clearly behind the best so far on the rows that both have scored, paired too.
Optuna's own pruners do not fit folds of months: MedianPruner and WilcoxonPruner also compare levels
of different folds, and here the level of a fold is that of its months, not of the trial (0.10 in
the winter of 2008, 0.24 a year later).

The same rows, settings and entry give the same trials, also if the search is interrupted in
between: what trial n draws depends on the seed, on n, and on the trials before it. Only
`search_seconds` depends on the machine; whether it cut a search short is said in the result.
Never fits what is served, and never logs to MLflow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from mlops.database import connect, database_url
from mlops.dataset.card import TARGET, Card
from mlops.dataset.errors import DataError
from mlops.dataset.rows import data_digest
from mlops.dataset.windows import Window, split_window
from mlops.settings import Settings
from mlops.training.candidates import Candidate, Choices, Range, make_classifier
from mlops.training.fit import fit_pipeline, score_window
from mlops.training.ranking import clearly_lower
from mlops.training.records import lock

if TYPE_CHECKING:  # half a second of import, for whoever searches nothing
    import optuna
    from optuna.distributions import BaseDistribution

logger = logging.getLogger(__name__)

StudyOf = Callable[[str], "optuna.Study"]
"""Gives the study of a search, by the digest of all that its trials' values depend on."""

BEHIND = 2.0
"""Standard errors by which a trial is behind the best when it is pruned. Fewer than it takes to
replace the file's parameters (`ranking.STANDARD_ERRORS`): a mistake here costs one try of several.
"""

TRIAL_ROWS = 10_000
"""On which a trial is fitted at most, drawn by what they count: all trials alike, so that they
compare, and what is served is fitted on all rows. It halves what a forest costs (24 to 13 s)."""

_REASON = "reason"
_REASON_LENGTH = 2000
"""Of an attribute, for Optuna's column."""
_SETUP = "setup"


@dataclass(frozen=True)
class Trial:
    """One try: what was tried, and what came of it. `values` are by parameter, as fitted."""

    candidate: str
    number: int
    """Its place among the trials of the search, from 1 on: 1 is the file's own parameters."""
    of: int
    state: Literal["complete", "pruned", "failed"]
    values: dict[str, Any]
    briers: list[float]
    """Brier score of all rows up to each fold that was scored, the oldest fold first."""
    seconds: float
    reason: str | None = None
    again: bool = False
    """Whether it was tried before the search was interrupted, and is only told again."""

    @property
    def brier(self) -> float | None:
        """The Brier score of the rows of all folds; None if not all were scored."""
        return self.briers[-1] if self.state == "complete" else None

    @property
    def text(self) -> str:
        """One line for a log."""
        came_to = {
            "complete": f"Brier {self.briers[-1]:.4f}" if self.briers else "",
            "pruned": f"pruned after fold {len(self.briers)}",
            "failed": f"failed: {self.reason}",
        }[self.state]
        tried = ", ".join(f"{name} {_short(value)}" for name, value in self.values.items())
        whose = "the file's own: " if self.number == 1 else ""
        return (
            f"{self.candidate}: trial {self.number} of {self.of}, {came_to}, "
            f"{self.seconds:.1f} s{', before the interruption' if self.again else ''} "
            f"({whose}{tried})"
        )


@dataclass(frozen=True)
class Found:
    """What a search came to: the candidate to be learnt with, and how it was chosen."""

    candidate: Candidate
    params: dict[str, Any] = field(default_factory=dict)
    """For the run; empty without a search."""
    metrics: dict[str, float] = field(default_factory=dict)
    text: str = ""


def tune(
    card: Card,
    candidate: Candidate,
    frame: pd.DataFrame,
    settings: Settings,
    study_of: StudyOf | None = None,
    told: Callable[[Trial], None] | None = None,
) -> Found:
    """Return `candidate` with the parameters to be learnt with, chosen on the rows of `frame`.

    Without `search_trials`, without `search` in its entry, or where the window has no month before
    its last ones, it is returned as it is. `study_of` keeps the trials (`stored_study`); without
    it they are forgotten. `told` is called after each trial.

    A trial that fails is told, and the search goes on.
    """
    if settings.search_trials == 0 or candidate.search is None:
        return Found(candidate)
    folds = time_folds(card, frame, settings)
    if not folds:
        return Found(candidate)
    study = (study_of or _forgotten_study)(_setup(card, candidate, frame, settings))
    return _Search(card, candidate, folds, settings, study, told or (lambda _: None)).run()


def time_folds(card: Card, frame: pd.DataFrame, settings: Settings) -> list[Window]:
    """Return the folds of a search, the oldest first: months to be scored, and all before them.

    The blocks that are scored are the latest `search_folds` of `validation_months` each, or as
    many as have `validation_min_rows` rows. Fewer where either part would lack rows or an answer.
    """
    folds: list[Window] = []
    rest = frame
    while len(folds) < settings.search_folds:
        try:
            fold = split_window(rest, card.time.validation_months, settings.validation_min_rows)
        except DataError:
            break
        if min(len(fold.earlier), len(fold.validation)) < settings.validation_min_rows and folds:
            break
        folds.insert(0, fold)
        rest = fold.earlier
    return folds


def search_space(candidate: Candidate, settings: Settings) -> dict[str, Choices | Range]:
    """Return what is tried of each parameter: the entry's `search`, class weights, calibration."""
    space = dict(candidate.search or {})
    own_weights = candidate.params.get("class_weight")
    if not isinstance(own_weights, dict):  # weights that a person has chosen stay
        space.setdefault("class_weight", Choices(values=["none", "balanced"]))
    calibrations = ["none", "sigmoid", "isotonic"]
    if not hasattr(make_classifier(candidate, settings.seed), "predict_proba"):
        calibrations.remove("none")  # it has no other probabilities
    space.setdefault("calibration", Choices(values=calibrations))
    return space


def own_values(candidate: Candidate, settings: Settings) -> dict[str, Any]:
    """Return the values of the candidate as it stands, of the parameters in its search space."""
    classifier = make_classifier(candidate, settings.seed)
    values = {
        **classifier.get_params(),
        "class_weight": candidate.params.get("class_weight") or candidate.class_weight,
        "calibration": candidate.calibration,
    }
    if candidate.calibration == "none" and not hasattr(classifier, "predict_proba"):
        values["calibration"] = "sigmoid"  # what it gets in any case
    return {name: values[name] for name in search_space(candidate, settings)}


def values_drawn(space: dict[str, Choices | Range], params: dict[str, Any]) -> dict[str, Any]:
    """Return the `params` of a trial of Optuna as the values that the file lists."""
    values = {}
    for name, dimension in space.items():
        values[name] = params[name]
        if isinstance(dimension, Choices):
            values[name] = next(each for each in dimension.values if _coded(each) == params[name])
    return values


@contextmanager
def stored_study(name: str, settings: Settings) -> Iterator[StudyOf]:
    """Yield what gives the study `name` of Postgres (database `mlops`, schema `optuna`).

    It is the same again after a crash. A study of that name whose trials had other rows, settings
    or another entry is begun anew: its values do not compare.
    """
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with connect(settings=settings) as connection:
        # All candidates come at once, and each would make the tables.
        lock(connection, "optuna")
        storage = RDBStorage(
            database_url(settings=settings, driver="postgresql+psycopg2"),
            engine_kwargs={
                "connect_args": {"options": "-c search_path=optuna -c timezone=UTC"},
                "pool_size": 1,
            },
            skip_compatibility_check=True,
        )
        if storage.get_current_version() != storage.get_head_version():
            storage.upgrade()  # tables of an older Optuna

    def study_of(setup: str) -> optuna.Study:
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        if study.user_attrs.get(_SETUP, setup) != setup:
            logger.warning("study %s is of other rows or settings: it begins anew", name)
            optuna.delete_study(study_name=name, storage=storage)
            study = optuna.create_study(storage=storage, study_name=name)
        study.set_user_attr(_SETUP, setup)
        return study

    try:
        yield study_of
    finally:
        storage.remove_session()
        storage.engine.dispose()


class _Search:
    """The trials of one candidate, those of an interrupted search included."""

    def __init__(
        self,
        card: Card,
        candidate: Candidate,
        folds: list[Window],
        settings: Settings,
        study: optuna.Study,
        told: Callable[[Trial], None],
    ) -> None:
        self.card = card
        self.candidate = candidate
        self.folds = folds
        self.settings = settings
        self.study = study
        self.told = told
        self.space = search_space(candidate, settings)
        self._errors: dict[int, NDArray[np.float64]] = {}

    def run(self) -> Found:
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)  # of a process that died
        done = self._done()
        for place, trial in enumerate(done):
            self.told(self._trial(place, trial, again=True))
        while len(done) < self.settings.search_trials:
            if sum(_seconds(trial) for trial in done) >= self.settings.search_seconds:
                break
            self._try(len(done), done)
            done = self._done()
            self.told(self._trial(len(done) - 1, done[-1]))
        return self._found(done)

    def _trial(self, place: int, trial: optuna.trial.FrozenTrial, again: bool = False) -> Trial:
        states: dict[str, Literal["complete", "pruned", "failed"]] = {
            "COMPLETE": "complete",
            "PRUNED": "pruned",
            "FAIL": "failed",
        }
        return Trial(
            self.candidate.name,
            place + 1,
            self.settings.search_trials,
            states[trial.state.name],
            own_values(self.candidate, self.settings)
            if place == 0
            else values_drawn(self.space, trial.params),
            [value for _, value in sorted(trial.intermediate_values.items())],
            _seconds(trial),
            trial.user_attrs.get(_REASON),
            again,
        )

    def _done(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that count, in order: one that was interrupted is drawn again."""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.name in ("COMPLETE", "PRUNED") or _REASON in trial.user_attrs
        ]

    def _try(self, place: int, done: list[optuna.trial.FrozenTrial]) -> None:
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        seed = np.random.SeedSequence([self.settings.seed, place]).generate_state(1)[0]
        # Optuna draws ten at random before it learns from them: a small budget would have no other.
        at_random = max(1, min(10, self.settings.search_trials // 3))
        self.study.sampler = TPESampler(seed=int(seed), n_startup_trials=at_random)
        asked = {name: _distribution(each) for name, each in self.space.items()}
        trial = self.study.ask(self._enqueue_own(asked) if place == 0 else asked)
        try:
            candidate = self.candidate
            if place > 0:
                candidate = candidate.with_values(values_drawn(self.space, trial.params))
            errors = self._errors_until_behind(candidate, trial, self._best(done))
            if errors is not None and not np.isfinite(errors).all():
                # Optuna would count it as failed without a word, and it would be drawn for ever.
                raise ValueError("a score is not a number")
        except Exception as error:  # of any library: this one is named, and the search goes on
            trial.set_user_attr(_REASON, f"{type(error).__name__}: {error}"[:_REASON_LENGTH])
            self.study.tell(trial, state=TrialState.FAIL)
            return
        if errors is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self._errors[trial.number] = errors
            self.study.tell(trial, float(errors.mean()))

    def _errors_until_behind(
        self,
        candidate: Candidate,
        trial: optuna.Trial,
        best: optuna.trial.FrozenTrial | None,
    ) -> NDArray[np.float64] | None:
        """Return the squared errors of all folds; None as soon as they are clearly the higher."""
        errors = np.empty(0)
        for step, fold in enumerate(self.folds, start=1):
            errors = np.append(errors, self._fold_errors(candidate, fold))
            trial.report(float(errors.mean()), step)
            if best is None or step == len(self.folds):
                continue
            if clearly_lower(self._errors_of(best)[: len(errors)], errors, BEHIND):
                return None
        return errors

    def _enqueue_own(self, asked: dict[str, BaseDistribution]) -> dict[str, BaseDistribution]:
        """Have the next trial be the file's own; return what it can be asked for.

        A value that its own space does not hold (a default that is no number, say) is left out:
        Optuna would draw another in its place.
        """
        from optuna.trial import TrialState

        coded = {
            name: _coded(value) for name, value in own_values(self.candidate, self.settings).items()
        }
        held = {name: each for name, each in asked.items() if _holds(self.space[name], coded[name])}
        if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self.study.enqueue_trial({name: coded[name] for name in held})
        return held

    def _fold_errors(self, candidate: Candidate, fold: Window) -> NDArray[np.float64]:
        few = min(candidate.max_rows or TRIAL_ROWS, TRIAL_ROWS)
        candidate = candidate.model_copy(update={"max_rows": few})
        with warnings.catch_warnings():
            # What is served says so once; here it would be said for each fold of each trial.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = fit_pipeline(self.card, candidate, fold.earlier, self.settings)
        scores = score_window(fitted.pipeline, self.card, fold.validation)
        return np.asarray((scores - fold.validation[TARGET].to_numpy()) ** 2)

    def _errors_of(self, trial: optuna.trial.FrozenTrial) -> NDArray[np.float64]:
        """Return the squared errors of a finished trial; fitted again if a dead process had it."""
        if trial.number not in self._errors:
            candidate = self.candidate
            if trial.number != self._done()[0].number:
                candidate = candidate.with_values(values_drawn(self.space, trial.params))
            self._errors[trial.number] = np.concatenate(
                [self._fold_errors(candidate, fold) for fold in self.folds]
            )
        return self._errors[trial.number]

    def _best(self, done: list[optuna.trial.FrozenTrial]) -> optuna.trial.FrozenTrial | None:
        complete = [trial for trial in done if trial.state.name == "COMPLETE"]
        return min(complete, key=lambda trial: trial.value or 0.0, default=None)

    def _found(self, done: list[optuna.trial.FrozenTrial]) -> Found:
        best, own = self._best(done), done[0] if done else None
        states = [trial.state.name for trial in done]
        cut_short = len(done) < self.settings.search_trials
        candidate, chosen, why = self.candidate, 0, "the file's parameters stay"
        if best is None:
            why += ": no trial could be fitted"
        elif own is None or own.state.name != "COMPLETE":
            chosen, why = done.index(best), "the file's parameters could not be fitted"
        elif best.number == own.number:
            why += ": no trial is lower"
        elif clearly_lower(self._errors_of(best), self._errors_of(own)):
            chosen, why = done.index(best), "clearly lower than the file's"
        else:
            why += f": {best.value:.4f} is not clearly lower than {own.value:.4f}"
        if chosen:
            assert best is not None
            candidate = candidate.with_values(values_drawn(self.space, best.params))
        text = (
            f"{self.candidate.name}: {len(done)} trials, {states.count('PRUNED')} pruned, "
            f"{states.count('FAIL')} failed: trial {chosen + 1} is learnt with ({why})"
            + (f"; cut short after {self.settings.search_seconds:g} s" if cut_short else "")
        )
        metrics = {
            "search_trials": float(len(done)),
            "search_pruned": float(states.count("PRUNED")),
            "search_failed": float(states.count("FAIL")),
            "search_seconds": sum(_seconds(trial) for trial in done),
        }
        for name, trial in (("search_brier_best", best), ("search_brier_own", own)):
            if trial is not None and trial.state.name == "COMPLETE":
                metrics[name] = float(trial.value or 0.0)
        return Found(
            candidate,
            {
                "search_chosen": chosen + 1,
                "search_cut_short": cut_short,
                "search_periods": (
                    f"{self.folds[0].validation['period'].min()}..{self.folds[-1].end}"
                ),
            },
            metrics,
            text,
        )


def _forgotten_study(_setup: str) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study()


def _setup(card: Card, candidate: Candidate, frame: pd.DataFrame, settings: Settings) -> str:
    """Return a digest of all that the values of trials depend on."""
    parts = {
        "candidate": candidate.model_dump(mode="json"),
        "rows": data_digest(frame),
        "learnt": [*card.learnt_numbers, *card.learnt_categories],
        "validation_months": card.time.validation_months,
        **{
            name: getattr(settings, name)
            for name in (
                *("seed", "search_folds", "validation_min_rows", "recency_half_life_months"),
                "parity_tolerance",  # bounds the slopes of isotonic calibrations
            )
        },
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _distribution(dimension: Choices | Range) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(dimension, Choices):
        return CategoricalDistribution([_coded(value) for value in dimension.values])
    if dimension.whole:
        return IntDistribution(
            int(dimension.low), int(dimension.high), dimension.log, int(dimension.step or 1)
        )
    return FloatDistribution(dimension.low, dimension.high, dimension.log, dimension.step)


def _holds(dimension: Choices | Range, coded: Any) -> bool:
    if isinstance(dimension, Choices):
        return coded in [_coded(value) for value in dimension.values]
    return isinstance(coded, int | float) and dimension.low <= coded <= dimension.high


def _coded(value: Any) -> Any:
    """Return a value as Optuna can store it: what is no plain value, as JSON."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value)


def _seconds(trial: optuna.trial.FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration is not None else 0.0


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
