"""Trainings against a real MLflow and Postgres: one run a candidate, whatever happens."""

from __future__ import annotations

import multiprocessing
import secrets
import subprocess
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
import yaml

from mlops.database import connect
from mlops.dataset.errors import DataError
from mlops.training import tracking
from mlops.training.candidates import CandidatesError
from mlops.training.errors import CandidateError, TrainingError
from mlops.training.fit import fit_candidate, score_window
from mlops.training.metrics import best_profit_threshold, expected_profit
from mlops.training.trainings import finish_training, leaderboard_text, start_training
from tests.fixtures.churn import churn_card, store_churn

CANDIDATES = """
Linear: {class: sklearn.linear_model.LogisticRegression, scale: true}
Small: {class: sklearn.tree.DecisionTreeClassifier, params: {max_depth: 2}}
"""


class World:
    """A card of its own with stored rows, and settings that name it."""

    def __init__(self, settings, folder):
        self.card = churn_card(folder, f"churn_{secrets.token_hex(4)}")
        self.candidates = folder / "candidates.yaml"
        self.settings = settings.model_copy(
            update={"card": str(self.card.path), "candidates": self.candidates}
        )
        self.try_out(CANDIDATES)
        store_churn(self.settings, self.card)

    def try_out(self, candidates):
        self.candidates.write_text(candidates)

    def start(self, training_id, start="2020-01", end="2020-04"):
        with connect(settings=self.settings) as connection:
            return start_training(
                connection, self.card, "test", start, end, training_id, self.settings
            )

    def fit(self, name, training_id):
        with connect(settings=self.settings) as connection:
            return fit_candidate(name, training_id, connection, self.settings)

    def finish(self, training_id):
        with connect(settings=self.settings) as connection:
            return finish_training(connection, training_id, self.settings)

    def runs(self, training_id):
        client = tracking.client(self.settings)
        return tracking.runs(client, tracking.experiment(client, self.card.name), training_id)

    def stored(self, training_id):
        with connect(settings=self.settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT leaderboard, finished_at FROM ops.trainings WHERE id = %s", (training_id,)
            )
            return cursor.fetchone()


@pytest.fixture
def world(database, mlflow_server, tmp_path):
    return World(database, tmp_path)


def test_candidates_that_log_their_data_at_once_do_not_fail_one_another(world):
    mlflow_client = tracking.client(world.settings)
    experiment_id = tracking.experiment(mlflow_client, world.card.name)
    reference = pd.DataFrame({"target": [0, 1]}).join(
        pd.DataFrame({name: [0.0, 1.0] for name in world.card.feature_names})
    )
    for attempt in range(5):  # it takes two that look before either has written
        logged = tracking.Logged(
            world.card, None, None, reference, {}, {}, secrets.token_hex(20) + str(attempt)
        )
        runs = [mlflow_client.create_run(experiment_id).info.run_id for _ in range(8)]
        barrier = threading.Barrier(len(runs))

        def log(run_id, logged=logged, barrier=barrier):
            barrier.wait()
            tracking._log_dataset(mlflow_client, run_id, logged)

        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(log, runs))
        for run_id in runs:
            [found] = mlflow_client.get_run(run_id).inputs.dataset_inputs
            assert found.dataset.digest == logged.digest[:36]


def test_a_training_gives_a_leaderboard_of_registered_runs(world):
    training = world.start("t1")
    fitted = [world.fit(name, "t1") for name in ("Linear", "Small")]
    board = world.finish("t1")
    text = leaderboard_text(board)

    assert {entry["candidate"] for entry in board} == {"Linear", "Small"}
    assert [entry["rank"] for entry in board] == [1, 2]
    assert board[0]["metrics"]["validation_roc_auc"] >= board[1]["metrics"]["validation_roc_auc"]
    assert {entry["version"] for entry in board} == {"1", "2"}
    assert "Linear" in text
    assert world.stored("t1")[0] == board
    assert world.stored("t1")[1] is not None

    run = tracking.client(world.settings).get_run(fitted[0]["run_id"])
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert (tags["training_id"], tags["candidate"]) == ("t1", "Linear")
    assert tags["data_digest"] == training.data_digest
    assert run.data.params["validation_periods"] == "2020-04..2020-04"
    assert run.data.metrics["fitting_rows"] == 1000
    names = ("accuracy", "roc_auc", "average_precision", "brier", "log_loss", "f1", "lift_at_10")
    for name in names:
        assert f"train_{name}" in run.data.metrics
        assert f"validation_{name}" in run.data.metrics
    # The card has no costs: its threshold has the best F1, and there is no profit to tell.
    assert tracking.costs_of(run) is None
    assert "validation_profit" not in run.data.metrics

    # Registering again gives the same versions.
    assert world.finish("t1") == board


def test_costs_choose_the_threshold_and_stay_with_the_run(world):
    content = yaml.safe_load(world.card.path.read_text())
    costs = {"contact": 3.0, "success": 40.0, "unit": "euros"}
    world.card.path.write_text(yaml.safe_dump({**content, "costs": costs}))
    world.start("t1")
    run_id = world.fit("Linear", "t1")["run_id"]
    world.card.path.write_text(yaml.safe_dump(content))  # changed once more since
    run = tracking.client(world.settings).get_run(run_id)
    kept = tracking.costs_of(run)
    assert dict(kept) == costs
    reference = tracking.load_reference(run_id, world.settings)
    threshold = best_profit_threshold(reference["target"], reference["score"], kept)
    assert run.data.metrics["validation_threshold"] == threshold
    assert run.data.metrics["validation_profit"] == expected_profit(
        reference["target"], reference["score"], threshold, kept
    )


def test_the_logged_model_is_fitted_on_all_rows_and_the_logged_scores_are_out_of_fold(world):
    world.start("t1")
    run_id = world.fit("Linear", "t1")["run_id"]
    reference = tracking.load_reference(run_id, world.settings)
    assert len(reference) == 250
    assert list(reference) == [*world.card.feature_names, "target", "period", "score"]

    pipeline = tracking.load_pipeline(run_id, world.settings)
    scores = score_window(pipeline, world.card, reference)
    assert np.abs(scores - reference["score"]).max() > 0
    assert np.corrcoef(scores, reference["score"])[0, 1] > 0.9

    mlflow.set_tracking_uri(world.settings.mlflow_url)
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    assert loaded.metadata.get_input_schema().input_names() == world.card.feature_names
    answered = loaded.predict(reference[world.card.feature_names])
    assert np.allclose(np.asarray(answered)[:, 1], scores)


def test_a_rerun_returns_the_same_run(world):
    world.start("t1")
    first = world.fit("Linear", "t1")
    assert world.fit("Linear", "t1") == first
    assert len(world.runs("t1")) == 1
    assert world.start("t1") == world.start("t1")


def test_what_an_interrupted_process_left_behind_does_not_count(world):
    training = world.start("t1")
    client = tracking.client(world.settings)
    orphan = client.create_run(
        tracking.experiment(client, world.card.name), tags=tracking.tags(training, "Linear")
    )
    fitted = world.fit("Linear", "t1")
    assert fitted["run_id"] != orphan.info.run_id
    assert client.get_run(orphan.info.run_id).info.status == "KILLED"


def test_a_failing_candidate_is_named_and_the_others_go_on(world):
    world.try_out(
        CANDIDATES + "Broken: {class: sklearn.linear_model.LogisticRegression, params: {C: -1}}"
    )
    world.start("t1")
    with pytest.raises(CandidateError, match=r"candidate Broken: InvalidParameterError: .*'C'"):
        world.fit("Broken", "t1")
    world.fit("Linear", "t1")
    world.fit("Small", "t1")
    board = world.finish("t1")
    assert board[-1]["candidate"] == "Broken"
    assert board[-1]["status"] == "failed"
    assert "InvalidParameterError" in board[-1]["reason"]
    assert board[-1]["version"] is None
    assert {run.data.tags["candidate"]: run.info.status for run in world.runs("t1")} == {
        **{"Broken": "FAILED", "Linear": "FINISHED", "Small": "FINISHED"}
    }


def test_a_training_fails_only_if_every_candidate_has_failed(world):
    world.try_out("Broken: {class: sklearn.linear_model.LogisticRegression, params: {C: -1}}")
    world.start("t1")
    with pytest.raises(CandidateError):
        world.fit("Broken", "t1")
    with pytest.raises(TrainingError, match=r"no candidate could be fitted:\n  - Broken: Invalid"):
        world.finish("t1")
    leaderboard, finished_at = world.stored("t1")
    assert leaderboard[0]["status"] == "failed"
    assert finished_at is not None, "it would count as under way for ever"


def test_what_cannot_be_trained_is_refused_before_anything_is_written(world):
    with pytest.raises(DataError, match="widen the window"):
        world.start("t1", start="2020-04")
    world.try_out("Mine: {class: sklearn.svm.SVC, params: {gama: 1}}")
    with pytest.raises(CandidatesError, match="gamma"):
        world.start("t1")
    assert world.stored("t1") is None
    with pytest.raises(TrainingError, match="no training 't1'"):
        world.fit("Mine", "t1")


def test_an_id_is_of_one_training_only(world):
    world.start("t1")
    with pytest.raises(TrainingError, match="with another id"):
        world.start("t1", end="2020-03")


def test_a_model_with_types_of_elsewhere_is_not_loaded(world):
    import skops.io
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer

    harmful = skops.io.dumps(Pipeline([("run", FunctionTransformer(_of_elsewhere))]))
    with pytest.raises(TrainingError, match="_of_elsewhere"):
        tracking.trusted_types(harmful)


def _of_elsewhere(values):
    return values


def test_five_processes_at_once_do_not_mix_their_runs(world):
    depths = range(1, 6)
    world.try_out(
        "\n".join(
            f"Tree{d}: {{class: sklearn.tree.DecisionTreeClassifier, params: {{max_depth: {d}}}}}"
            for d in depths
        )
    )
    world.start("t1")
    # As in Mage: the libraries are imported once, then a process is forked for each candidate.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlops.training.fit", "sklearn.tree"])
    with ProcessPoolExecutor(max_workers=5, mp_context=context) as pool:
        fitted = list(
            pool.map(_fit_elsewhere, [(world.settings, f"Tree{d}", "t1") for d in depths])
        )
    runs = {run.info.run_id: run for run in world.runs("t1")}
    assert len(runs) == 5
    for depth, result in zip(depths, fitted, strict=True):
        run = runs[result["run_id"]]
        assert run.data.tags["candidate"] == f"Tree{depth}"
        assert run.data.params["max_depth"] == str(depth)
        pipeline = tracking.load_pipeline(result["run_id"], world.settings)
        assert pipeline["classifier"].get_depth() == depth
    assert len({entry["version"] for entry in world.finish("t1")}) == 5


def _fit_elsewhere(asked):
    settings, name, training_id = asked
    with connect(settings=settings) as connection:
        return fit_candidate(name, training_id, connection, settings)


def test_the_commit_is_that_of_the_folder_itself(tmp_path):
    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert tracking.git_commit(tmp_path) is None
    git("init")
    assert tracking.git_commit(tmp_path) is None, "there is no commit yet"
    git("commit", "--allow-empty", "--message", "first")
    assert tracking.git_commit(tmp_path) == git("rev-parse", "HEAD")
    inside = tmp_path / "unpacked"
    inside.mkdir()
    assert tracking.git_commit(inside) is None, "that commit is another project's"
