"""Gather the evidence of the versions in use, and keep it with their runs; never decides anything.

What a version is judged on are the validation rows of its run with the scores that they got out of
fold (`reference/reference.parquet`); where other rows are to be scored, the version's recipe is
fitted again on rows that leave them out (`recipe`). Everything is measured once and kept as
`evidence/evidence.json`, from which pictures and the model card are drawn.

A version that has its evidence is passed over, so a rerun does what is left. `evidence.json` is
written last: where it is, everything is.
"""

from __future__ import annotations

import json
import logging
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import mlflow.artifacts
import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient
from numpy.typing import NDArray
from psycopg2.extensions import connection as Connection
from sklearn.pipeline import Pipeline

from mlops.dataset.card import PERIOD, SCORE, TARGET, Card, Costs
from mlops.dataset.rows import load_window
from mlops.evidence import contributions, figures, measures, model_card, recipe, style
from mlops.registry.models import PRODUCTION, STAGING, get_version, load_pipeline
from mlops.reporting.library import card_path, write_bytes, write_page
from mlops.serving.payload import reference_customer
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.candidates import ENSEMBLE
from mlops.training.fit import in_learning_order, score_window
from mlops.training.records import lock
from mlops.training.runs import by_candidate

logger = logging.getLogger(__name__)

FOLDER, CARD_FOLDER = "evidence", "model_card"
NUMBERS = "evidence.json"
SCHEMA = 1

IMPORTANCE_ROWS = 3000
"""Validation rows that are shuffled: ROC AUC is known to 0.02 by then."""

REFIT_ROWS = 100_000
"""Rows before validation that a recipe is fitted on again, some twenty times."""

CONTRIBUTION_ROWS = 200
"""Validation rows that are explained, 2^n coalitions each."""

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Written:
    """What became of one version: `written`, `there` (it had its evidence), `failed` or `later`."""

    version: str
    stage: str
    outcome: str
    seconds: float = 0.0
    bytes: int = 0
    reason: str | None = None


def write_evidence(
    connection: Connection,
    card: Card,
    settings: Settings | None = None,
    progress: Progress = lambda _: None,
) -> list[Written]:
    """Write evidence for the production version and each staged one that has none; return all.

    Production comes first. After `evidence_seconds` no further version is begun: it is `later`, and
    the next call takes it up; with 0 none is. A version that fails is told and logged, and the
    others go on. The production version gets its model card too, in its run and in `reports/cards`.

    The connection's transactions are its own: it is committed after each version.
    """
    settings = settings or get_settings()
    client = tracking.client(settings)
    begin = time.perf_counter()
    done = []
    for stage, version in in_use(client, card).items():
        if time.perf_counter() - begin >= settings.evidence_seconds:
            done.append(Written(version, stage, "later"))
            continue
        started = time.perf_counter()
        try:
            outcome, size = _write(connection, client, card, version, stage, settings, progress)
            connection.commit()
            seconds = time.perf_counter() - started
            done.append(Written(version, stage, outcome, round(seconds, 1), size))
        except Exception as error:
            connection.rollback()
            logger.exception("version %s of %s has no evidence", version, card.name)
            reason = f"{type(error).__name__}: {error}"
            done.append(Written(version, stage, "failed", reason=reason))
        progress(_in_words(done[-1]))
    left = [each.version for each in done if each.outcome == "later"]
    if left and settings.evidence_seconds:
        progress(
            f"version {', '.join(left)}: later, {settings.evidence_seconds:g} s are over"
            " (evidence_seconds)"
        )
    return done


def in_use(client: MlflowClient, card: Card) -> dict[str, str]:
    """Return the versions in use by their alias, production first, then staging."""
    try:
        aliases = client.get_registered_model(card.name).aliases
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return {}
        raise
    return {name: str(aliases[name]) for name in (PRODUCTION, *STAGING) if name in aliases}


def collect(
    connection: Connection,
    card: Card,
    version: str,
    stage: str,
    settings: Settings,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Return the evidence of a version: JSON, as `docs/operations.md` lists it.

    Parts that need the recipe are None or empty where the run does not keep it; `notes` says so.
    Raises RegistryError or TrainingError if the version, its model or its rows are gone.
    """
    client = tracking.client(settings)
    run = client.get_run(str(get_version(card, version, settings).run_id))
    run_id = run.info.run_id
    reference = tracking.load_reference(run_id, settings)
    window = load_window(
        connection, card, run.data.tags["window_start"], run.data.tags["window_end"]
    )
    progress(f"version {version}: {len(reference):,} validation rows of {len(window):,}")
    costs = tracking.costs_of(run)
    return {
        "schema": SCHEMA,
        "made_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "model": card.name,
        "version": version,
        "stage": stage,
        "candidate": run.data.tags.get(tracking.CANDIDATE_TAG, ""),
        "target": {
            "positive": card.target.positive,
            "negative": card.target.negative,
            "question": card.question,
        },
        "lineage": _lineage(run, settings),
        **measure(
            card,
            load_pipeline(card, version, settings),
            recipe_of(client, run),
            reference,
            window,
            float(run.data.metrics["validation_threshold"]),
            costs,
            _as_learnt(run, settings),
            progress,
        ),
    }


def _as_learnt(run: Run, settings: Settings) -> Settings:
    """Return the settings with those of the run: today's may be others, and its recipe is asked."""
    kinds = {"seed": int, "recency_half_life_months": float, "validation_folds": int}
    params = run.data.params
    return settings.model_copy(
        update={name: kind(params[name]) for name, kind in kinds.items() if name in params}
    )


def measure(
    card: Card,
    pipeline: Pipeline,
    learnt: recipe.Recipe | None,
    reference: pd.DataFrame,
    window: pd.DataFrame,
    threshold: float,
    costs: Costs | None,
    settings: Settings,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Return the numbers of a version: those of its validation rows, and of refits of its recipe.

    `reference` are the validation rows (features, target, period, score), `window` all rows of its
    training. Without `learnt` what takes refits is None or empty, and `notes` says so.
    """
    target, score = reference[TARGET].to_numpy(), reference[SCORE].to_numpy(dtype=np.float64)
    found: dict[str, Any] = {
        "threshold": threshold,
        "data": _data_of(window, reference),
        "metrics": measures.metrics(target, score, threshold, costs, settings.seed),
        "roc": measures.roc(target, score, threshold),
        "precision_recall": measures.precision_recall(target, score, threshold),
        "calibration": measures.calibration(target, score),
        "scores": measures.score_distribution(target, score),
        "gains": measures.gains(target, score, threshold),
        "confusion": measures.confusion(target, score, threshold),
        "profit": measures.profit(target, score, threshold, costs),
        "slices": measures.slices(reference, card),
        "months": measures.months(reference, "out of fold"),
        "contributions": _contributions(card, pipeline, reference, window, settings, progress),
        "importance": None,
        "learning": [],
        "notes": [],
    }
    if learnt is None:
        found["notes"] = [
            "The run does not keep its recipe (it is of an older release), so that importance,"
            " learning curve and earlier months are left out."
        ]
        return found
    return found | _by_refits(learnt, card, reference, window, found, settings, progress)


def _write(
    connection: Connection,
    client: MlflowClient,
    card: Card,
    version: str,
    stage: str,
    settings: Settings,
    progress: Progress,
) -> tuple[str, int]:
    run_id = str(get_version(card, version, settings).run_id)
    lock(connection, f"evidence/{run_id}")
    numbers = _kept(client, run_id)
    there = numbers is not None
    size = 0
    if numbers is None:
        numbers = collect(connection, card, version, stage, settings, progress)
        drawn = figures.draw(numbers)
        files = {f"{name}.png": style.image(figure, "png") for name, figure in drawn.items()}
        files[NUMBERS] = json.dumps(numbers, allow_nan=False).encode()
        size += _upload(client, run_id, FOLDER, files)
    if stage == PRODUCTION and not _has_card(client, run_id, settings, version):
        made = model_card.make(card, {**numbers, "version": version, "stage": stage})
        size += _upload(
            client,
            run_id,
            CARD_FOLDER,
            {"model_card.html": made.html.encode(), "model_card.pdf": made.pdf},
        )
        path = card_path(settings.reports_dir, version)
        write_bytes(path.with_suffix(".pdf"), made.pdf)
        write_page(path, made.html)
        there = False
    return ("there" if there else "written"), size


def _kept(client: MlflowClient, run_id: str) -> dict[str, Any] | None:
    """Return the evidence that a run has, None if it has none, or an older kind."""
    if f"{FOLDER}/{NUMBERS}" not in {each.path for each in client.list_artifacts(run_id, FOLDER)}:
        return None
    with tempfile.TemporaryDirectory(prefix="mlops-evidence-") as folder:
        path = client.download_artifacts(run_id, f"{FOLDER}/{NUMBERS}", folder)
        numbers: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return numbers if numbers.get("schema") == SCHEMA else None


def _has_card(client: MlflowClient, run_id: str, settings: Settings, version: str) -> bool:
    names = {each.path for each in client.list_artifacts(run_id, CARD_FOLDER)}
    path = card_path(settings.reports_dir, version)
    return (
        {f"{CARD_FOLDER}/model_card.{kind}" for kind in ("html", "pdf")} <= names
        and path.is_file()
        and path.with_suffix(".pdf").is_file()
    )


def _upload(client: MlflowClient, run_id: str, folder: str, files: dict[str, bytes]) -> int:
    """Log files as artifacts, in their order; return their bytes."""
    with tempfile.TemporaryDirectory(prefix="mlops-evidence-") as local:
        for name, content in files.items():
            path = Path(local) / name
            path.write_bytes(content)
            client.log_artifact(run_id, str(path), folder)
    return sum(len(content) for content in files.values())


def _contributions(
    card: Card,
    pipeline: Pipeline,
    reference: pd.DataFrame,
    window: pd.DataFrame,
    settings: Settings,
    progress: Progress,
) -> dict[str, Any]:
    """Return Shapley contributions of some validation rows by the pipeline that is served."""
    fields = [feature.name for feature in card.features if feature.learn]
    rows = _sample(reference, CONTRIBUTION_ROWS, settings.seed)[card.feature_names]
    typical = typical_customer(window, card)

    def score(asked: pd.DataFrame) -> NDArray[np.float64]:
        return score_window(pipeline, card, asked)

    begin = time.perf_counter()
    values = contributions.contributions(score, rows, typical, fields, settings.seed)
    exact = len(fields) <= contributions.EXACT_FIELDS
    progress(
        f"contributions: {len(rows)} rows, {'exact' if exact else 'drawn orders'},"
        f" {time.perf_counter() - begin:.1f} s"
    )
    size = np.abs(values).mean(axis=0)
    return {
        "rows": len(rows),
        "exact": exact,
        "reference": {name: _plain(typical[name]) for name in fields},
        "reference_score": float(score(typical.to_frame().T.astype(rows.dtypes))[0]),
        "fields": [
            {
                "field": fields[place],
                "mean": float(size[place]),
                "values": [round(float(each), 6) for each in values[:, place]],
                "levels": _levels(rows[fields[place]])
                if card.feature(fields[place]).kind == "number"
                else None,
            }
            for place in np.argsort(-size, kind="stable")
        ],
    }


def typical_customer(rows: pd.DataFrame, card: Card) -> pd.Series:
    """Return the reference customer of `rows` (`reference` of model.json) as a record of a frame.

    What is missing there is what a frame holds in its place: NaN, or "" of a category.
    """
    absent = {each.name: np.nan if each.kind == "number" else "" for each in card.features}
    told = reference_customer(card, rows)
    return pd.Series(
        {
            name: absent[name]
            if value is None
            else value
            if isinstance(value, str)
            else float(value)
            for name, value in told.items()
        },
        dtype=object,
    )


def _by_refits(
    learnt: recipe.Recipe,
    card: Card,
    reference: pd.DataFrame,
    window: pd.DataFrame,
    found: dict[str, Any],
    settings: Settings,
    progress: Progress,
) -> dict[str, Any]:
    """Return what takes fits by the recipe: importance, learning curve, earlier months."""
    validation = reference.drop(columns=SCORE).reset_index(drop=True)
    earlier = window[window[PERIOD] < validation[PERIOD].min()]
    notes = found["notes"]
    if len(earlier) > REFIT_ROWS:
        notes = [
            *notes,
            f"Importance, learning curve and earlier months are of fits on {REFIT_ROWS:,} of the"
            f" {len(earlier):,} rows before validation.",
        ]
    earlier = in_learning_order(_sample(earlier, REFIT_ROWS, settings.seed), card)
    begin = time.perf_counter()
    whole = recipe.folds(card, learnt, earlier, validation, settings)
    progress(f"recipe fitted on {len(whole)} folds, {time.perf_counter() - begin:.1f} s")
    kept = _sample(validation, IMPORTANCE_ROWS, settings.seed).index
    parts = [(fold.score, validation.iloc[np.intersect1d(fold.places, kept)]) for fold in whole]
    fields = contributions.permutation_importance(parts, card, settings.seed)
    progress(f"importance: {len(kept):,} rows, most of {fields[0]['field']}")
    forward = recipe.forward_months(card, learnt, earlier, settings, progress)
    curve = recipe.learning_curve(card, learnt, earlier, validation, whole, settings, progress)
    return {
        "importance": {"rows": len(kept), "repeats": contributions.REPEATS, "fields": fields},
        "months": [*forward, *found["months"]],
        "learning": curve,
        "notes": notes,
    }


def recipe_of(client: MlflowClient, run: Run) -> recipe.Recipe | None:
    """Return the recipe of a run: its candidate, or its members' of an ensemble; None if not kept.

    Members are found by name among the runs of the same training.
    """
    if run.data.tags.get(tracking.CANDIDATE_TAG) != ENSEMBLE:
        own = tracking.recipe_of(run)
        return None if own is None else recipe.Recipe((own,))
    names = run.data.params.get("members", "").split(", ")
    runs = tracking.runs(client, run.info.experiment_id, run.data.tags[tracking.TRAINING_TAG])
    members = [
        None if each is None else tracking.recipe_of(each)
        for each in map(by_candidate(runs, names).get, names)
    ]
    known = tuple(each for each in members if each is not None)
    return recipe.Recipe(known) if len(known) == len(names) else None


def _data_of(window: pd.DataFrame, reference: pd.DataFrame) -> dict[str, Any]:
    return {
        "window_start": str(window[PERIOD].min()),
        "window_end": str(window[PERIOD].max()),
        "rows": len(window),
        "positive_rate": float(window[TARGET].mean()),
        "validation_start": str(reference[PERIOD].min()),
        "validation_end": str(reference[PERIOD].max()),
        "validation_rows": len(reference),
        "validation_positives": int(reference[TARGET].sum()),
    }


def _lineage(run: Run, settings: Settings) -> dict[str, Any]:
    """Return where a version comes from, by its run; libraries are those it was stored with."""
    tags = run.data.tags
    return {
        "run_id": run.info.run_id,
        "training_id": tags.get(tracking.TRAINING_TAG),
        "cause": tags.get("cause"),
        "trained_at": datetime.fromtimestamp(run.info.start_time / 1000, timezone.utc).strftime(
            "%Y-%m-%d %H:%M UTC"
        ),
        "commit": tags.get("mlflow.source.git.commit"),
        "data_digest": tags.get("data_digest"),
        "params": dict(sorted(run.data.params.items())),
        "libraries": _libraries(run.info.run_id, settings),
        "written_with": f"Python {platform.python_version()}",
    }


def _libraries(run_id: str, settings: Settings) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="mlops-evidence-") as folder:
        try:
            # Whole: MLflow finds no single file below a model's address.
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=tracking.model_uri(run_id, settings),
                dst_path=folder,
                tracking_uri=settings.mlflow_url,
            )
            lines = (Path(path) / "requirements.txt").read_text(encoding="utf-8").splitlines()
        except (MlflowException, OSError):
            return []
    return sorted(line.strip() for line in lines if line.strip())


def _sample(rows: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """Return at most so many of `rows`, drawn, in their order."""
    return rows if len(rows) <= most else rows.sample(most, random_state=seed).sort_index()


def _levels(column: pd.Series) -> list[float | None]:
    """Return each number's rank as a share (0 lowest, 1 highest), None for a missing one."""
    ranks = column.rank(method="average")
    span = max(float(ranks.max() - ranks.min()), 1.0) if ranks.notna().any() else 1.0
    low = float(ranks.min()) if ranks.notna().any() else 0.0
    return [None if rank != rank else round((rank - low) / span, 3) for rank in ranks]


def _plain(value: Any) -> float | str | None:
    if isinstance(value, str):
        return value or None
    return None if value != value else float(value)


def _in_words(done: Written) -> str:
    name = f"version {done.version} ({done.stage})"
    if done.outcome == "failed":
        return f"{name}: no evidence: {done.reason}"
    if done.outcome == "there":
        return f"{name}: has its evidence"
    return f"{name}: evidence written, {done.seconds:.1f} s, {done.bytes / 1000:,.0f} kB"
