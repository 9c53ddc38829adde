"""Fit one candidate on one training's window, and keep what came of it as one MLflow run.

The pipeline is built so that ONNX gives its scores exactly: numbers are float32 from the frame to
the classifier, missing numbers become the column's median, categories are one-hot (a missing one,
"", is a category of its own, an unseen one is all zeros), and only what needs scaling is scaled.
Never decides what is deployed.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from psycopg2.extensions import connection as Connection
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from mlops.dataset.card import TARGET, Card
from mlops.dataset.rows import data_digest, load_window
from mlops.dataset.windows import Window, split_window
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.candidates import Candidate, get_candidate, make_classifier
from mlops.training.errors import CandidateError
from mlops.training.metrics import all_metrics, best_f1_threshold, best_profit_threshold
from mlops.training.records import Training, lock, read_training

logger = logging.getLogger(__name__)

CALIBRATION_FOLDS = 3


@dataclass(frozen=True)
class Fitted:
    """A fitted pipeline, the rows that it saw (rows by features, target, period), and its time."""

    pipeline: Pipeline
    rows: pd.DataFrame
    seconds: float


def fit_candidate(
    name: str, training_id: str, connection: Connection, settings: Settings | None = None
) -> dict[str, Any]:
    """Fit candidate `name` for a training, and return `{run_id, candidate, metrics}`.

    One finished MLflow run a training and candidate: a rerun returns that, and marks what an
    interrupted one left behind as killed. Two at the same time wait for one another.

    Raises CandidateError, naming the candidate, with the run marked failed and tagged `failure`.
    """
    settings = settings or get_settings()
    training = read_training(connection, training_id)
    lock(connection, f"{training_id}/{name}")
    client = tracking.client(settings)
    experiment = tracking.experiment(client, training.card)
    for earlier in tracking.runs(client, experiment, training_id, name):
        if earlier.info.status == "FINISHED":
            logger.info("%s was fitted already: run %s", name, earlier.info.run_id)
            return _result(name, earlier)
        if earlier.info.status != "FAILED":
            client.set_terminated(earlier.info.run_id, "KILLED")
    run = client.create_run(
        experiment,
        run_name=f"{name} {training.window_start}..{training.window_end}",
        tags=tracking.tags(training, name),
    )
    run_id = run.info.run_id
    try:
        _fit_and_log(name, training, connection, settings, run_id)
        client.set_terminated(run_id, "FINISHED")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        _mark_failed(client, run_id, reason)
        raise CandidateError(name, reason) from error
    except BaseException:
        _mark_failed(client, run_id, "interrupted", status="KILLED")
        raise
    return _result(name, client.get_run(run_id))


def _fit_and_log(
    name: str, training: Training, connection: Connection, settings: Settings, run_id: str
) -> None:
    candidate = get_candidate(name, settings.candidates)
    card = training.load_card(settings)
    frame = load_window(connection, card, training.window_start, training.window_end)
    logged = learn(card, candidate, frame, settings)
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
    card: Card, candidate: Candidate, frame: pd.DataFrame, settings: Settings
) -> tracking.Logged:
    """Return what one candidate makes of a window of labelled rows; nothing is logged or stored.

    A training and a replay learn by this, so that they learn alike. Raises DataError if the window
    cannot be cut into fitting and validation, and whatever the classifier raises.
    """
    window = split_window(frame, card.time.validation_months)
    fitted = fit_pipeline(card, candidate, window.fitting, settings.seed, settings.training_threads)
    scores = score_window(fitted.pipeline, card, window.validation)
    return tracking.Logged(
        card=card,
        candidate=candidate,
        pipeline=fitted.pipeline,
        reference=window.validation.assign(score=scores),
        metrics={
            **evaluate(card, fitted, window, scores),
            "fit_seconds": fitted.seconds,
            "sampled_rows": len(fitted.rows),
            "fitting_rows": len(window.fitting),
            "fitting_positive_rate": float(window.fitting[TARGET].mean()),
            "validation_rows": len(window.validation),
            "validation_positive_rate": float(window.validation[TARGET].mean()),
        },
        params={
            "class": candidate.class_path,
            **candidate.params,
            "scale": candidate.scale,
            "max_rows": candidate.max_rows,
            "seed": settings.seed,
            **tracking.cost_params(card.costs),
            "fitting_periods": f"{window.start}..{window.fitting['period'].max()}",
            "validation_periods": f"{window.validation['period'].min()}..{window.end}",
        },
        digest=data_digest(frame),
    )


def fit_pipeline(
    card: Card, candidate: Candidate, rows: pd.DataFrame, seed: int, threads: int = 1
) -> Fitted:
    """Return the candidate fitted on `rows` (features and target), or on a sample of these.

    A sample has `max_rows` rows with the same share of positives, chosen by `seed`.
    """
    if candidate.max_rows is not None and len(rows) > candidate.max_rows:
        share = candidate.max_rows / len(rows)
        sample = rows.groupby(TARGET).sample(frac=share, random_state=seed).sort_index()
        logger.warning(
            "%s is fitted on a sample of %d of %d rows (max_rows), %.1f %% positive",
            candidate.name,
            len(sample),
            len(rows),
            100 * sample[TARGET].mean(),
        )
        rows = sample
    pipeline = build_pipeline(card, candidate, seed, threads)
    begin = time.perf_counter()
    # BLAS and OpenMP take all cores by default, and every candidate has a process of its own.
    with threadpool_limits(limits=threads):
        pipeline.fit(rows[card.feature_names], rows[TARGET].to_numpy())
    return Fitted(pipeline, rows, time.perf_counter() - begin)


def build_pipeline(card: Card, candidate: Candidate, seed: int, threads: int = 1) -> Pipeline:
    """Return the unfitted pipeline (`vectoriser`, `classifier`) of a candidate.

    Its input is a frame with the card's features: numbers float32 with NaN, categories str with "".
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
        ("numbers", Pipeline(numbers), card.numbers),
        ("categories", one_hot, card.categories),
    ]
    classifier = make_classifier(candidate, seed, threads)
    if not hasattr(classifier, "predict_proba"):
        # Shuffled: the rows are in order of time, and a model of other months may rank a fold the
        # wrong way round, which would turn the fitted slope, and with it every score.
        folds = StratifiedKFold(CALIBRATION_FOLDS, shuffle=True, random_state=seed)
        classifier = CalibratedClassifierCV(
            classifier, method="sigmoid", cv=folds, ensemble=False, n_jobs=threads
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

    `scores` are those of validation. The threshold has the most profit there if the card has costs,
    else the best F1; accuracy, F1 and profit of both parts are those of the decision at it, which
    is the one that the API makes.
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


def _result(name: str, run: Run) -> dict[str, Any]:
    return {"run_id": run.info.run_id, "candidate": name, "metrics": dict(run.data.metrics)}


def _mark_failed(client: Any, run_id: str, reason: str, status: str = "FAILED") -> None:
    try:
        client.set_tag(run_id, tracking.FAILURE_TAG, reason[: tracking.TAG_LENGTH])
        client.set_terminated(run_id, status)
    except MlflowException as error:  # MLflow may be what failed
        logger.warning("run %s could not be marked %s: %s", run_id, status, error)
