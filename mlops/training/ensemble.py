"""The mean of a training's best candidates, as one more candidate; fits nothing anew.

Scores that err in different ways err less in the mean. Its out-of-fold scores are the mean of
theirs, its pipeline answers the mean of theirs, and it is ranked, registered, exported and served
like any of them, under the name `Ensemble`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run
from numpy.typing import NDArray
from psycopg2.extensions import connection as Connection
from sklearn.ensemble import VotingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import LabelEncoder

from mlops.dataset.card import PERIOD, SCORE, Card
from mlops.dataset.rows import load_window
from mlops.dataset.windows import Window
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.candidates import ENSEMBLE, Candidate, get_candidate, load_candidates
from mlops.training.errors import TrainingError
from mlops.training.fit import Fitted, evaluate, in_learning_order
from mlops.training.ranking import in_order, squared_errors
from mlops.training.records import Training, read_training
from mlops.training.runs import by_candidate, run_once
from mlops.training.tracking import Logged

FEWEST = 2
"""Members of a mean: of one it would be that one again."""

TRAIN_ROWS = 10_000
"""Of which the `train_` metrics are: as telling as all, and every member has to score them."""

_CLASS = "sklearn.ensemble.VotingClassifier"
_SHARED_METRICS = (
    "fitting_rows",
    "fitting_positive_rate",
    "earlier_positive_rate",
    "validation_rows",
    "validation_positive_rate",
)
_SHARED_PARAMS = (
    *("seed", "recency_half_life_months", "validation_folds"),
    *("fitting_periods", "validation_periods"),
)


def has_ensemble(finished: Collection[str], settings: Settings) -> bool:
    """Return whether a training with these finished candidates has an ensemble."""
    return min(len(finished), settings.ensemble_size) >= FEWEST


def choose(
    metrics: Mapping[str, Mapping[str, float]],
    errors: Callable[[str], NDArray[np.float64]],
    settings: Settings,
) -> list[str]:
    """Return the best `ensemble_size` candidates by the ranking of trainings, best first.

    `metrics` and `errors` are those of `in_order`. Empty if there is no ensemble of these.
    """
    if not has_ensemble(metrics, settings):
        return []
    return in_order(metrics, errors)[: settings.ensemble_size]


def blend(learnt: Mapping[str, Logged], frame: pd.DataFrame, settings: Settings) -> Logged:
    """Return the mean of what the candidates `learnt` (best first) from the window `frame`.

    Nothing is fitted. Raises TrainingError, naming the two, if they were not scored on the same
    rows: labels may have come in between.
    """
    begin = time.perf_counter()
    members = list(learnt.values())
    first = members[0]
    rows = first.reference.drop(columns=SCORE)
    for name, member in learnt.items():
        if not member.reference.drop(columns=SCORE).equals(rows):
            raise TrainingError(
                f"{next(iter(learnt))} and {name} were scored on different rows, of which there is "
                "no mean: train once more"
            )
    scores = np.mean([member.reference[SCORE].to_numpy() for member in members], axis=0)
    pipeline = mean_pipeline({name: member.pipeline for name, member in learnt.items()})
    # In the order that candidates learn in: the same rows are to give the same figures.
    frame = in_learning_order(frame, first.card)
    fitted = Fitted(pipeline, frame.sample(min(TRAIN_ROWS, len(frame)), random_state=settings.seed))
    before = frame[frame[PERIOD] < rows[PERIOD].min()]
    metrics = evaluate(first.card, fitted, Window(before, rows), scores)
    return Logged(
        card=first.card,
        candidate=Candidate.model_validate({"name": ENSEMBLE, "class": _CLASS}),
        pipeline=pipeline,
        reference=rows.assign(**{SCORE: scores}),
        metrics={
            **metrics,
            **{name: first.metrics[name] for name in _SHARED_METRICS},
            "fit_seconds": time.perf_counter() - begin,
            "sampled_rows": len(frame),
        },
        params={
            "class": _CLASS,
            "members": ", ".join(learnt),
            **tracking.cost_params(first.card.costs),
            **{name: first.params[name] for name in _SHARED_PARAMS},
        },
        digest=first.digest,
    )


def mean_pipeline(members: Mapping[str, Pipeline]) -> Pipeline:
    """Return a fitted pipeline that takes what each of `members` takes, and answers their mean."""
    voting = VotingClassifier(list(members.items()), voting="soft")
    # What its fit would set, had it fitted them.
    voting.estimators_ = list(members.values())
    voting.le_ = LabelEncoder().fit([0, 1])
    voting.classes_ = voting.le_.classes_
    return Pipeline([("classifier", voting)])


def fit_ensemble(
    training_id: str, connection: Connection, settings: Settings | None = None
) -> dict[str, Any] | None:
    """Log the mean of a training's best finished candidates, and return what `fit_candidate` does.

    None if there is none: `ensemble_size` or the finished candidates are fewer than two. As with
    candidates there is one finished run a training, which a rerun returns.

    Raises CandidateError with the run marked failed; the candidates are not touched.
    """
    settings = settings or get_settings()
    training = read_training(connection, training_id)
    client = tracking.client(settings)
    runs = finished_runs(
        tracking.runs(client, tracking.experiment(client, training.card), training_id),
        list(load_candidates(settings.candidates)),
    )
    if not has_ensemble(runs, settings):
        return None

    def work(training: Training, run_id: str) -> None:
        references = {
            name: tracking.load_reference(run.info.run_id, settings) for name, run in runs.items()
        }
        names = choose(
            {name: run.data.metrics for name, run in runs.items()},
            lambda name: squared_errors(references[name]),
            settings,
        )
        card = training.load_card(settings)
        learnt = {
            name: _logged(name, card, runs[name], references[name], settings) for name in names
        }
        frame = load_window(connection, card, training.window_start, training.window_end)
        tracking.log(run_id, blend(learnt, frame, settings), settings)

    return run_once(ENSEMBLE, training_id, connection, settings, work)


def finished_runs(runs: list[Run], names: list[str]) -> dict[str, Run]:
    """Return the finished run of each of `names` that has one among a training's `runs`."""
    chosen = by_candidate(runs, names)
    return {
        name: run
        for name in names
        if (run := chosen[name]) is not None and run.info.status == "FINISHED"
    }


def _logged(name: str, card: Card, run: Run, reference: pd.DataFrame, settings: Settings) -> Logged:
    """Return what a run has logged, as it was before."""
    return Logged(
        card=card,
        candidate=get_candidate(name, settings.candidates),
        pipeline=tracking.load_pipeline(run.info.run_id, settings),
        reference=reference,
        metrics=dict(run.data.metrics),
        params=dict(run.data.params),
        digest=run.data.tags["data_digest"],
    )
