"""Start a training, and finish it: the leaderboard of its candidates, all of them registered.

The candidates between are fitted by `mlops.training.fit`, each in a process of its own. What goes
to production is not decided here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from numpy.typing import NDArray
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json

from mlops.dataset.card import Card
from mlops.dataset.rows import data_digest, load_window
from mlops.dataset.timeline import month_start
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.candidates import ENSEMBLE, load_candidates, make_classifier
from mlops.training.data_checks import require_quality
from mlops.training.ensemble import finished_runs, has_ensemble
from mlops.training.errors import TrainingError
from mlops.training.ranking import in_order, squared_errors
from mlops.training.records import Training, find_training, lock, read_training
from mlops.training.runs import by_candidate

logger = logging.getLogger(__name__)


def start_training(
    connection: Connection,
    card: Card,
    cause: str,
    start: str,
    end: str,
    training_id: str,
    settings: Settings | None = None,
) -> Training:
    """Record a training on the periods `start` to `end`, and return it; again, nothing changes.

    Raises DataQualityError if its rows are not fit to be learnt from or the window cannot be cut
    into fitting and validation (`ops.data_checks` keeps why), CandidatesError if an entry of the
    candidates cannot be used, TrainingError if the id is of another training.
    """
    settings = settings or get_settings()
    for candidate in load_candidates(settings.candidates).values():
        make_classifier(candidate, settings.seed)
    lock(connection, training_id)
    known = find_training(connection, training_id)
    if known is not None:
        if (known.card, known.window_start, known.window_end) != (card.name, start, end):
            raise TrainingError(
                f"training {training_id} is of {known.card}, {known.window_start} to "
                f"{known.window_end}: start one on {card.name}, {start} to {end} with another id"
            )
        return known
    frame = load_window(connection, card, start, end)
    require_quality(connection, card, frame, start, end, training_id, settings)
    training = Training(training_id, card.name, cause, start, end, data_digest(frame))
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.trainings (id, card, cause, window_start, window_end, data_digest)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (
                training_id,
                card.name,
                cause,
                month_start(start),
                month_start(end),
                training.data_digest,
            ),
        )
    return training


def finish_training(
    connection: Connection, training_id: str, settings: Settings | None = None
) -> list[dict[str, Any]]:
    """Register every finished candidate (once), store the leaderboard and return it, best first.

    Entries: rank, candidate, status (finished, failed), reason, run_id, version, metrics. Failed
    candidates stand last, without rank, version and metrics.

    Raises TrainingError if no candidate was fitted, naming each one's reason; the leaderboard of
    failures is stored and committed before, so that this training does not count as under way.
    """
    settings = settings or get_settings()
    lock(connection, training_id)
    training = read_training(connection, training_id)
    client = tracking.client(settings)
    runs = tracking.runs(client, tracking.experiment(client, training.card), training_id)
    names = list(load_candidates(settings.candidates))
    if has_ensemble(finished_runs(runs, names), settings):
        names.append(ENSEMBLE)
    leaderboard = rank(
        runs, names, lambda run_id: squared_errors(tracking.load_reference(run_id, settings))
    )
    finished = [entry for entry in leaderboard if entry["status"] == "finished"]
    if not finished:
        _store(connection, training_id, leaderboard)
        connection.commit()
        reasons = "\n".join(f"  - {each['candidate']}: {each['reason']}" for each in leaderboard)
        raise TrainingError(f"training {training_id}: no candidate could be fitted:\n{reasons}")
    for entry in finished:
        entry["version"] = _register(client, training, entry, settings)
    _store(connection, training_id, leaderboard)
    return leaderboard


def rank(
    runs: list[Run], names: list[str], errors: Callable[[str], NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """Return the leaderboard of `runs` (the earliest first), one entry for each of `names`.

    In the order of `mlops.training.ranking`; `errors` returns the squared errors of a run, by its
    id. Where a candidate has several finished runs the earliest counts. One that has no run at all
    is told as failed.
    """
    entries = [_entry(name, run) for name, run in by_candidate(runs, names).items()]
    finished = {each["candidate"]: each for each in entries if each["status"] == "finished"}
    order = in_order(
        {name: entry["metrics"] for name, entry in finished.items()},
        lambda name: errors(finished[name]["run_id"]),
    )
    failed = sorted({each["candidate"] for each in entries} - set(order))
    entries.sort(key=lambda entry: [*order, *failed].index(entry["candidate"]))
    for place, entry in enumerate(entries, start=1):
        entry["rank"] = place if entry["status"] == "finished" else None
    return entries


def leaderboard_text(leaderboard: list[dict[str, Any]]) -> str:
    """Return the leaderboard as a table of lines, for logs."""
    columns = (
        ("Brier", "validation_brier", "{:.4f}"),
        ("ROC AUC", "validation_roc_auc", "{:.3f}"),
        ("avg prec", "validation_average_precision", "{:.3f}"),
        ("lift 10 %", "validation_lift_at_10", "{:.2f}"),
        ("train AUC", "train_roc_auc", "{:.3f}"),
        ("fit s", "fit_seconds", "{:.1f}"),
        ("rows", "sampled_rows", "{:,.0f}"),
    )
    width = max([len("candidate"), *(len(entry["candidate"]) for entry in leaderboard)])
    heads = "".join(f"{head:>11}" for head, _, _ in columns)
    lines = [f"{'#':>2}  {'candidate':<{width}}  {'version':>7}{heads}"]
    for entry in leaderboard:
        if entry["status"] != "finished":
            reason = entry["reason"].splitlines()[0]
            lines.append(f" -  {entry['candidate']:<{width}}  failed: {reason}")
            continue
        values = "".join(
            f"{form.format(entry['metrics'][key]) if key in entry['metrics'] else '-':>11}"
            for _, key, form in columns
        )
        version = entry["version"] or "-"
        lines.append(f"{entry['rank']:>2}  {entry['candidate']:<{width}}  {version:>7}{values}")
        rows = entry["metrics"].get("fitting_rows", 0)
        if entry["metrics"].get("sampled_rows", rows) < rows:
            lines[-1] += f" of {rows:,.0f} (max_rows)"
    return "\n".join(lines)


def _entry(name: str, run: Run | None) -> dict[str, Any]:
    finished = run is not None and run.info.status == "FINISHED"
    if run is None:
        reason = "it has no run: its process did not get that far"
    else:
        reason = run.data.tags.get(tracking.FAILURE_TAG, f"its run is {run.info.status}")
    return {
        "rank": None,
        "candidate": name,
        "status": "finished" if finished else "failed",
        "reason": None if finished else reason,
        "run_id": run.info.run_id if run is not None else None,
        "version": None,
        "metrics": dict(run.data.metrics) if run is not None and finished else {},
    }


def _register(
    client: MlflowClient, training: Training, entry: dict[str, Any], settings: Settings
) -> str:
    """Return the version of an entry's run, registered if it is not yet."""
    run_id = entry["run_id"]
    try:
        client.get_registered_model(training.card)
    except MlflowException:
        client.create_registered_model(training.card)
    for version in client.search_model_versions(f"name = '{training.card}'"):
        if version.run_id == run_id:
            return str(version.version)
    uri = tracking.model_uri(run_id, settings)
    version = client.create_model_version(
        training.card,
        uri,
        run_id=run_id,
        model_id=uri.removeprefix("models:/"),
        tags={
            tracking.TRAINING_TAG: training.id,
            tracking.CANDIDATE_TAG: entry["candidate"],
            "stage": "none",
        },
        description=f"{entry['candidate']}, place {entry['rank']} of training {training.id}",
    )
    return str(version.version)


def _store(connection: Connection, training_id: str, leaderboard: list[dict[str, Any]]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE ops.trainings SET leaderboard = %s,"
            " finished_at = coalesce(finished_at, clock_timestamp()) WHERE id = %s",
            (Json(leaderboard), training_id),
        )
