"""Fit one candidate on one training's window, and keep what came of it as one MLflow run.

The window's newest months are scored out of fold: each third of them by a pipeline that was fitted
on all other rows of the window, the other thirds included. These scores rank the candidates, choose
the threshold, go through the gate and are what drift is measured against. What is served is fitted
on all rows, the newest included, for in a world that moves they are worth most (docs/retraining.md
has the figures). Rows count the less the older they are (`recency_weights`).

The pipeline is built so that ONNX gives its scores exactly: numbers are float32 from the frame to
the classifier, missing numbers become the column's median, categories are one-hot (a missing one,
"", is a category of its own, an unseen one is all zeros), and only what needs scaling is scaled.
Never decides what is deployed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from psycopg2.extensions import connection as Connection
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from mlops.dataset.card import PERIOD, TARGET, Card
from mlops.dataset.errors import DataError
from mlops.dataset.rows import data_digest, load_window
from mlops.dataset.timeline import months_between
from mlops.dataset.windows import Window, split_window
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.calibration import exact
from mlops.training.candidates import Candidate, get_candidate, make_classifier
from mlops.training.metrics import all_metrics, best_f1_threshold, best_profit_threshold
from mlops.training.records import Training
from mlops.training.runs import run_once

if TYPE_CHECKING:
    from mlops.training.search import StudyOf, Trial

logger = logging.getLogger(__name__)

CALIBRATION_FOLDS = 3


@dataclass(frozen=True)
class Fitted:
    """A fitted pipeline, and the rows that it saw (rows by features, target, period)."""

    pipeline: Pipeline
    rows: pd.DataFrame


def fit_candidate(
    name: str,
    training_id: str,
    connection: Connection,
    settings: Settings | None = None,
    progress: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Fit candidate `name` for a training, and return `{run_id, candidate, metrics}`.

    One finished MLflow run a training and candidate: a rerun returns that, and marks what an
    interrupted one left behind as killed. Two at the same time wait for one another. A search goes
    on where it was interrupted; each of its trials is a run below the candidate's, and a line that
    `progress` is called with.

    Raises CandidateError, naming the candidate, with the run marked failed and tagged `failure`.
    """
    settings = settings or get_settings()

    def work(training: Training, run_id: str) -> None:
        _fit_and_log(name, training, connection, settings, run_id, progress)

    return run_once(name, training_id, connection, settings, work)


def _fit_and_log(
    name: str,
    training: Training,
    connection: Connection,
    settings: Settings,
    run_id: str,
    progress: Callable[[str], None],
) -> None:
    # These two use one another: a search fits, and what is learnt is searched for first.
    from mlops.training.search import stored_study

    candidate = get_candidate(name, settings.candidates)
    card = training.load_card(settings)
    frame = load_window(connection, card, training.window_start, training.window_end)
    if settings.search_trials == 0 or candidate.search is None:
        logged = learn(card, candidate, frame, settings)
    else:

        def told(trial: Trial) -> None:
            progress(trial.text)
            tracking.log_trial(run_id, trial, settings)

        with stored_study(f"{training.id}/{name}", settings) as study_of:
            logged = learn(card, candidate, frame, settings, study_of, told)
        progress(logged.search)
    if logged.digest != training.data_digest:
        # Labels may come in while candidates are fitted; all the same it must be seen.
        logger.warning(
            "%s: the rows of training %s have changed since it started: candidates may have seen "
            "different rows (tag data_digest)",
            name,
            training.id,
        )
    tracking.log(run_id, logged, settings)


def learn(
    card: Card,
    candidate: Candidate,
    frame: pd.DataFrame,
    settings: Settings,
    study_of: StudyOf | None = None,
    told: Callable[[Trial], None] | None = None,
) -> tracking.Logged:
    """Return what one candidate makes of a window of labelled rows; nothing is logged or stored.

    With `search_trials` its parameters are chosen first (`mlops.training.search.tune`, which gets
    `study_of` and `told`); else it is fitted as its entry says.

    `reference` are the newest months' rows, each with the score that a pipeline gave it which was
    fitted without it; `pipeline` was fitted on all rows. Raises DataError if the window cannot be
    cut, and whatever the classifier raises.
    """
    from mlops.training.search import tune

    digest = data_digest(frame)  # of the rows as they are stored
    frame = in_learning_order(frame, card)
    window = split_window(frame, card.time.validation_months, settings.validation_min_rows)
    found = tune(card, candidate, frame, settings, study_of, told)
    candidate = found.candidate
    begin = time.perf_counter()
    scores = score_out_of_fold(card, candidate, window, settings)
    fitted = fit_pipeline(card, candidate, frame, settings)
    seconds = time.perf_counter() - begin
    if len(fitted.rows) < len(frame):
        logger.warning(
            "%s is fitted on %d of %d rows, drawn by what they count (max_rows)",
            candidate.name,
            len(fitted.rows),
            len(frame),
        )
    return tracking.Logged(
        card=card,
        candidate=candidate,
        pipeline=fitted.pipeline,
        reference=window.validation.assign(score=scores),
        metrics={
            **evaluate(card, fitted, window, scores),
            **found.metrics,
            "fit_seconds": seconds,
            "sampled_rows": len(fitted.rows),
            "fitting_rows": len(frame),
            "fitting_positive_rate": float(frame[TARGET].mean()),
            "earlier_positive_rate": float(window.earlier[TARGET].mean()),
            "validation_rows": len(window.validation),
            "validation_positive_rate": float(window.validation[TARGET].mean()),
        },
        params={
            "class": candidate.class_path,
            "class_weight": candidate.class_weight,
            "calibration": candidate.calibration,
            **candidate.params,
            **found.params,
            "scale": candidate.scale,
            "max_rows": candidate.max_rows,
            "seed": settings.seed,
            **tracking.cost_params(card.costs),
            "recency_half_life_months": settings.recency_half_life_months,
            "validation_folds": settings.validation_folds,
            "fitting_periods": f"{window.start}..{window.end}",
            "validation_periods": f"{window.validation[PERIOD].min()}..{window.end}",
        },
        digest=digest,
        search=found.text,
    )


def in_learning_order(frame: pd.DataFrame, card: Card) -> pd.DataFrame:
    """Return the rows in the order that they are learnt in.

    Live traffic has no order, and boosting and folds draw rows by their places: the same rows are
    to give the same model.
    """
    return frame.sort_values([PERIOD, *card.feature_names, TARGET], ignore_index=True)


def score_out_of_fold(
    card: Card, candidate: Candidate, window: Window, settings: Settings
) -> NDArray[np.float64]:
    """Return a score (0..1) for each row of validation, given by a pipeline that never saw it.

    Validation is dealt into `validation_folds` with the same share of positives; each is scored by
    the candidate fitted on the earlier rows and the other folds. With one fold it is fitted on the
    earlier rows only. Raises DataError if validation has fewer than two rows of an answer.
    """
    if settings.validation_folds == 1:
        fitted = fit_pipeline(card, candidate, window.earlier, settings)
        return score_window(fitted.pipeline, card, window.validation)
    scores = np.empty(len(window.validation))
    for others, fold in deal_folds(window.validation, settings):
        rows = pd.concat([window.earlier, window.validation.iloc[others]], ignore_index=True)
        fitted = fit_pipeline(card, candidate, rows, settings)
        scores[fold] = score_window(fitted.pipeline, card, window.validation.iloc[fold])
    return scores


def deal_folds(
    validation: pd.DataFrame, settings: Settings
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the places of the other rows and of the fold's own, fold by fold.

    Each of `validation_folds` has the same share of positives. Raises DataError if an answer has
    fewer than two rows.
    """
    target = validation[TARGET].to_numpy()
    scarcest = int(min(target.sum(), len(target) - target.sum()))
    if scarcest < 2:
        periods = validation[PERIOD]
        raise DataError(
            "the window",
            [
                f"validation part, {periods.min()} to {periods.max()}: found "
                f"{scarcest} row(s) of an answer, expected 2 or more: widen the window"
            ],
        )
    folds = StratifiedKFold(
        min(settings.validation_folds, scarcest), shuffle=True, random_state=settings.seed
    )
    return list(folds.split(validation, target))


def fit_pipeline(
    card: Card, candidate: Candidate, rows: pd.DataFrame, settings: Settings
) -> Fitted:
    """Return the candidate fitted on `rows` (features, target, period), the recent ones first.

    Rows count by `recency_weights`. If the candidate takes `max_rows` only, those are drawn by what
    they count (`draw_by_weight`).
    """
    weights = recency_weights(rows[PERIOD], settings.recency_half_life_months)
    if candidate.max_rows is not None and len(rows) > candidate.max_rows:
        kept, kept_weights = draw_by_weight(weights, candidate.max_rows, settings.seed)
        rows, weights = rows.iloc[kept], kept_weights
    pipeline = build_pipeline(card, candidate, settings.seed, settings.training_threads)
    target = rows[TARGET].to_numpy()
    # BLAS and OpenMP take all cores by default, and every candidate has a process of its own.
    with threadpool_limits(limits=settings.training_threads):
        features = pipeline["vectoriser"].fit_transform(rows[card.feature_names], target)
        if candidate.class_weight == "balanced":
            _fit_balanced(pipeline["classifier"], features, target, weights)
        else:
            pipeline["classifier"].fit(features, target, sample_weight=weights)
    exact(pipeline["classifier"], settings.parity_tolerance)
    return Fitted(pipeline, rows)


def balanced_weights(weights: NDArray[np.float64], target: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return `weights` such that both answers weigh the same in the sum, 1 in the mean."""
    shares = np.array([weights[target == answer].sum() for answer in (0, 1)]) / weights.sum()
    counts = weights / (2 * shares[target])
    return np.asarray(counts / counts.mean())


def _fit_balanced(
    classifier: Any, features: Any, target: NDArray[np.int8], weights: NDArray[np.float64]
) -> None:
    """Fit `classifier` with both answers weighing the same; a calibration, with the true weights.

    Balanced weights move the level of the scores, and a calibration is there to put it right:
    fitted with the same weights, as sklearn would, it would learn the moved one.
    """
    counts = balanced_weights(weights, target)
    if not isinstance(classifier, CalibratedClassifierCV):
        classifier.fit(features, target, sample_weight=counts)
        return
    inner = classifier.estimator
    method = "decision_function" if hasattr(inner, "decision_function") else "predict_proba"
    scores = cross_val_predict(
        inner, features, target, cv=classifier.cv, method=method, params={"sample_weight": counts}
    )
    inner.fit(features, target, sample_weight=counts)
    # As CalibratedClassifierCV does with ensemble=False, but for the two weights.
    classifier.set_params(estimator=FrozenEstimator(inner)).fit(features, target)
    [calibrated] = classifier.calibrated_classifiers_
    positive = np.asarray(scores if scores.ndim == 1 else scores[:, 1], dtype=np.float64)
    calibrated.calibrators[0].fit(positive, target, weights)
    calibrated.estimator = inner
    classifier.set_params(estimator=inner)


def recency_weights(periods: pd.Series, half_life_months: float) -> NDArray[np.float64]:
    """Return what each row counts, 1 in the mean: half as much for each half-life of its age.

    `periods` are months as strings; age is counted from the latest of them, in months. Weights of
    mean 1 leave a candidate's regularisation what it is without any. A half-life of 0 counts all
    rows alike.
    """
    if half_life_months == 0:
        return np.ones(len(periods))
    distinct, places = np.unique(periods.to_numpy(dtype=str), return_inverse=True)
    ages = np.array([months_between(period, distinct[-1]) for period in distinct])
    weights = 0.5 ** (ages[places] / half_life_months)
    return np.asarray(weights / weights.mean())


def draw_by_weight(
    weights: NDArray[np.float64], size: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return about `size` places of `weights`, ascending, and what each counts, 1 in the mean.

    Heavy rows are all drawn, light ones by chance, and count for those that were not: so each month
    keeps the share that it has in the whole (Horvitz and Thompson 1952, inclusion by min(1, c w)).
    """
    heavy = np.zeros(len(weights), dtype=bool)
    while True:
        scale = (size - heavy.sum()) / weights[~heavy].sum()
        more = heavy | (weights * scale >= 1)
        if (more == heavy).all():
            break
        heavy = more
    chance = np.where(heavy, 1.0, weights * scale)
    kept = np.flatnonzero(np.random.default_rng(seed).random(len(weights)) < chance)
    counts = weights[kept] / chance[kept]
    return kept, counts / counts.mean()


def build_pipeline(card: Card, candidate: Candidate, seed: int, threads: int = 1) -> Pipeline:
    """Return the unfitted pipeline (`vectoriser`, `classifier`) of a candidate.

    Its input is a frame with the card's features: numbers float32 with NaN, categories str with "".
    Those that are not to be learnt from stay inputs, which the vectoriser leaves out: what a client
    sends does not change with what a model uses.
    """
    numbers: list[tuple[str, Any]] = [
        # A column may be empty all through a window. Dropped, ONNX would expect it all the same.
        ("impute", SimpleImputer(strategy="median", keep_empty_features=True))
    ]
    if candidate.scale:
        # Beyond the range that was fitted a number counts as the end of it. Without bounds, 1e38
        # becomes infinite when it is scaled, which sklearn refuses and ONNX answers with NaN; and
        # months that go beyond are ranked better (2009-03 … 2010-11: ROC AUC +0.004 to +0.011).
        numbers.append(("bound", MinMaxScaler(clip=True)))
        numbers.append(("scale", StandardScaler()))
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    parts = [
        ("numbers", Pipeline(numbers), card.learnt_numbers),
        ("categories", one_hot, card.learnt_categories),
    ]
    classifier = make_classifier(candidate, seed, threads)
    calibration = candidate.calibration
    if calibration == "none" and not hasattr(classifier, "predict_proba"):
        calibration = "sigmoid"
    if calibration != "none":
        # Shuffled: the rows are in order of time, and a model of other months may rank a fold the
        # wrong way round, which would turn the fitted slope, and with it every score.
        folds = StratifiedKFold(CALIBRATION_FOLDS, shuffle=True, random_state=seed)
        classifier = CalibratedClassifierCV(
            classifier, method=calibration, cv=folds, ensemble=False, n_jobs=threads
        )
    return Pipeline(
        [
            ("vectoriser", ColumnTransformer([part for part in parts if part[2]])),
            ("classifier", classifier),
        ]
    )


def score_window(pipeline: Pipeline, card: Card, rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return the probability (0..1) of the positive answer for each of `rows`."""
    return np.asarray(pipeline.predict_proba(rows[card.feature_names])[:, 1], dtype=np.float64)


def evaluate(
    card: Card, fitted: Fitted, window: Window, scores: NDArray[np.float64]
) -> dict[str, float]:
    """Return `train_*` (on the rows that were fitted), `validation_*` and `validation_threshold`.

    `scores` are those of validation, out of fold. The threshold has the most profit there if the
    card has costs, else the best F1; accuracy, F1 and profit of both parts are those of the
    decision at it, which is the one that the API makes.
    """
    target = window.validation[TARGET].to_numpy()
    threshold = (
        best_f1_threshold(target, scores)
        if card.costs is None
        else best_profit_threshold(target, scores, card.costs)
    )
    train = all_metrics(
        fitted.rows[TARGET].to_numpy(),
        score_window(fitted.pipeline, card, fitted.rows),
        threshold,
        card.costs,
    )
    validation = all_metrics(target, scores, threshold, card.costs)
    return {
        **{f"train_{key}": value for key, value in train.items()},
        **{f"validation_{key}": value for key, value in validation.items()},
        "validation_threshold": threshold,
    }
