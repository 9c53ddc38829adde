"""The ensemble of a training against a real MLflow and Postgres: one run, whatever happens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow.artifacts
import numpy as np
import pytest

from mlops.database import connect
from mlops.dataset.card import SCORE
from mlops.training import tracking
from mlops.training.candidates import ENSEMBLE
from mlops.training.ensemble import fit_ensemble
from mlops.training.errors import CandidateError
from mlops.training.fit import score_window
from tests.fixtures.churn import churn_rows
from tests.integration.test_training_runs import World

CANDIDATES = """
Linear: {class: sklearn.linear_model.LogisticRegression, scale: true}
Boosted: {class: xgboost.XGBClassifier, params: {n_estimators: 10}}
Small: {class: sklearn.tree.DecisionTreeClassifier, params: {max_depth: 2}}
Unfit: {class: sklearn.tree.DecisionTreeClassifier, params: {max_depth: -1}}
"""


class Blending(World):
    """A world in which the best two candidates are blended."""

    def __init__(self, settings, folder):
        super().__init__(settings.model_copy(update={"ensemble_size": 2}), folder)
        self.try_out(CANDIDATES)

    def blend(self, training_id):
        with connect(settings=self.settings) as connection:
            return fit_ensemble(training_id, connection, self.settings)


@pytest.fixture
def world(database, mlflow_server, tmp_path):
    return Blending(database, tmp_path)


@pytest.fixture
def trained(world):
    """A training `t` with three finished candidates and one that failed."""
    world.start("t")
    for name in ("Linear", "Boosted", "Small"):
        world.fit(name, "t")
    with pytest.raises(CandidateError):
        world.fit("Unfit", "t")
    return world


def test_the_mean_of_the_best_two_is_a_run_that_is_ranked_and_registered_like_any(trained):
    blended = trained.blend("t")
    board = trained.finish("t")
    entries = {entry["candidate"]: entry for entry in board}
    assert blended["candidate"] == ENSEMBLE
    assert entries[ENSEMBLE]["run_id"] == blended["run_id"]
    assert entries[ENSEMBLE]["status"] == "finished"
    assert entries[ENSEMBLE]["version"]
    assert board[-1]["candidate"] == "Unfit"

    settings, run_id = trained.settings, blended["run_id"]
    run = tracking.client(settings).get_run(run_id)
    members = run.data.params["members"].split(", ")
    assert len(members) == 2
    assert tracking.recipe_of(run) is None
    references = {
        name: tracking.load_reference(entries[name]["run_id"], settings) for name in members
    }
    mean = np.mean([each[SCORE] for each in references.values()], axis=0)
    reference = tracking.load_reference(run_id, settings)
    np.testing.assert_array_equal(reference[SCORE], mean)

    loaded = tracking.load_pipeline(run_id, settings)
    unseen = churn_rows(seed=3)
    theirs = [tracking.load_pipeline(entries[name]["run_id"], settings) for name in members]
    expected = np.mean([score_window(each, trained.card, unseen) for each in theirs], axis=0)
    assert score_window(loaded, trained.card, unseen) == pytest.approx(expected, abs=1e-9)


def test_the_logged_model_names_the_packages_of_all_its_members(trained, tmp_path):
    run_id = trained.blend("t")["run_id"]
    path = mlflow.artifacts.download_artifacts(
        artifact_uri=tracking.model_uri(run_id, trained.settings),
        dst_path=str(tmp_path),
        tracking_uri=trained.settings.mlflow_url,
    )
    text = (Path(path) / "requirements.txt").read_text()
    required = {line.partition("==")[0] for line in text.split()}
    assert "scikit-learn" in required
    assert any(name.startswith("xgboost") for name in required)


def test_a_rerun_returns_the_finished_run_and_two_at_once_make_one(trained):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(trained.blend, ["t", "t"])
    assert first["run_id"] == second["run_id"] == trained.blend("t")["run_id"]
    names = [run.data.tags["candidate"] for run in trained.runs("t")]
    assert names.count(ENSEMBLE) == 1


def test_an_ensemble_that_fails_is_named_and_the_candidates_are_ranked_without_it(
    trained, monkeypatch
):
    def broken(*_):
        raise ValueError("no such mean")

    with monkeypatch.context() as patch:
        patch.setattr("mlops.training.ensemble.blend", broken)
        with pytest.raises(CandidateError, match="no such mean"):
            trained.blend("t")
    board = trained.finish("t")
    assert {entry["candidate"] for entry in board[:3]} == {"Linear", "Boosted", "Small"}
    failed = {entry["candidate"]: entry["reason"] for entry in board[3:]}
    assert failed[ENSEMBLE] == "ValueError: no such mean"
    # What failed may be tried again.
    assert trained.blend("t")["metrics"]["validation_brier"] < 0.25


def test_of_one_finished_candidate_there_is_no_ensemble_and_none_is_missed(world):
    world.start("t")
    world.fit("Linear", "t")
    assert world.blend("t") is None
    board = world.finish("t")
    assert ENSEMBLE not in {entry["candidate"] for entry in board}


def test_an_ensemble_whose_block_died_is_missed(trained):
    reasons = {entry["candidate"]: entry["reason"] for entry in trained.finish("t")}
    assert "its process did not get that far" in reasons[ENSEMBLE]
