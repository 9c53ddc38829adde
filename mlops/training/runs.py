"""One finished MLflow run a training and candidate, however often and by whom it is asked for.

What is logged there is the caller's business; nothing is fitted here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from psycopg2.extensions import connection as Connection

from mlops.settings import Settings
from mlops.training import tracking
from mlops.training.errors import CandidateError
from mlops.training.records import Training, lock, read_training

logger = logging.getLogger(__name__)


def run_once(
    name: str,
    training_id: str,
    connection: Connection,
    settings: Settings,
    work: Callable[[Training, str], None],
) -> dict[str, Any]:
    """Let `work` fill the run of candidate `name`, and return `{run_id, candidate, metrics}`.

    `work` gets the training and the id of a new run, and logs what it has. A rerun returns the
    finished run, and marks what an interrupted one left behind as killed. Two at the same time
    wait for one another.

    Raises CandidateError, naming the candidate, with the run marked failed and tagged `failure`.
    """
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
        work(training, run_id)
        client.set_terminated(run_id, "FINISHED")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        _mark_failed(client, run_id, reason)
        raise CandidateError(name, reason) from error
    except BaseException:
        _mark_failed(client, run_id, "interrupted", status="KILLED")
        raise
    return _result(name, client.get_run(run_id))


def by_candidate(runs: list[Run], names: list[str]) -> dict[str, Run | None]:
    """Return the run that counts of each of `names`, None where there is none, and of any other.

    `runs` are a training's, the earliest first. Of several finished ones the earliest counts, else
    the latest of those that are not.
    """
    chosen: dict[str, Run | None] = dict.fromkeys(names)
    for run in runs:
        name = run.data.tags[tracking.CANDIDATE_TAG]
        kept = chosen.get(name)
        if kept is None or kept.info.status != "FINISHED":
            chosen[name] = run
    return chosen


def _result(name: str, run: Run) -> dict[str, Any]:
    return {"run_id": run.info.run_id, "candidate": name, "metrics": dict(run.data.metrics)}


def _mark_failed(client: Any, run_id: str, reason: str, status: str = "FAILED") -> None:
    try:
        client.set_tag(run_id, tracking.FAILURE_TAG, reason[: tracking.TAG_LENGTH])
        client.set_terminated(run_id, status)
    except MlflowException as error:  # MLflow may be what failed
        logger.warning("run %s could not be marked %s: %s", run_id, status, error)
