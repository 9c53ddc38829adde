"""A search against a real Postgres and MLflow: its trials, and what a kill -9 leaves of it."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from mlops.database import connect
from mlops.training import tracking
from mlops.training.fit import fit_candidate
from mlops.training.search import stored_study
from tests.integration.test_training_runs import World

TRIALS = 6
CANDIDATES = """
Linear:
  class: sklearn.linear_model.LogisticRegression
  scale: true
  params: {C: 0.000001}
  search: {C: [1.0, 0.00000001, 0.0000001, -1.0], class_weight: [none], calibration: [none]}
"""


@pytest.fixture
def world(database, mlflow_server, tmp_path):
    world = World(database, tmp_path)
    world.settings = world.settings.model_copy(update={"search_trials": TRIALS, "search_folds": 2})
    world.try_out(CANDIDATES)
    return world


def trials_below(world, run_id):
    client = tracking.client(world.settings)
    found = client.search_runs(
        [tracking.experiment(client, world.card.name)],
        f"tags.`mlflow.parentRunId` = '{run_id}'",
        order_by=["attributes.start_time ASC"],
    )
    return {run.info.run_name: run for run in found}


def fit_in_its_own_process(settings, training_id, pipe):
    """Fit as a block does; after each line of progress it waits to be let on."""

    def progress(text):
        pipe.send(text)
        pipe.recv()

    with connect(settings=settings) as connection:
        fit_candidate("Linear", training_id, connection, settings, progress)


def test_a_search_that_was_killed_goes_on_where_it_was(world):
    training_id = world.card.name
    world.start(training_id)
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=fit_in_its_own_process, args=(world.settings, training_id, theirs)
    )
    process.start()
    theirs.close()
    before = [ours.recv()]
    ours.send("go on")
    before.append(ours.recv())  # the second trial is over, and not logged yet
    with stored_study(f"{training_id}/Linear", world.settings) as study_of, pytest.raises(KeyError):
        raise KeyError(study_of)  # tables are there, whoever comes in between
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    lines = []
    with connect(settings=world.settings) as connection:
        result = fit_candidate("Linear", training_id, connection, world.settings, lines.append)

    assert len(lines) == TRIALS + 1, lines
    assert [", before the interruption" in line for line in lines] == [
        True,
        True,
        *[False] * (TRIALS - 1),
    ]
    told_before = [line.replace(", before the interruption", "") for line in lines[:2]]
    assert told_before == before
    below = trials_below(world, result["run_id"])
    assert list(below) == [f"Linear trial {number}" for number in range(1, TRIALS + 1)]
    status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    for run in below.values():
        assert run.info.status == status[run.data.tags["trial"]]
    assert below["Linear trial 1"].data.params["C"] == "1e-06"
    assert "pruned" in {run.data.tags["trial"] for run in below.values()}
    assert len(world.runs(training_id)) == 2, "trials are no runs of the training"
    run = tracking.client(world.settings).get_run(result["run_id"])
    assert run.data.metrics["search_trials"] == TRIALS
    assert run.data.params["search_cut_short"] == "False"
    board = world.finish(training_id)
    assert [entry["candidate"] for entry in board] == ["Linear"]


def test_a_study_of_other_rows_or_settings_begins_anew(database):
    name = f"{os.getpid()}/Linear"
    with stored_study(name, database) as study_of:
        study_of("these rows").ask()
        assert len(study_of("these rows").trials) == 1
        assert study_of("other rows").trials == []


def make_tables(settings):
    with stored_study(f"{os.getpid()}/at once", settings) as study_of:
        return study_of("same").study_name


def test_five_processes_make_the_tables_at_once(database):
    with connect(settings=database) as connection, connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA optuna CASCADE")
        cursor.execute("CREATE SCHEMA optuna")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlops.training.search", "optuna"])
    with context.Pool(5) as pool:
        assert len(pool.map(make_tables, [database] * 5, chunksize=1)) == 5
    with connect(settings=database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'optuna'")
        assert cursor.fetchone()[0] > 5
        cursor.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename = 'studies'"
        )
        assert cursor.fetchone()[0] == 0
