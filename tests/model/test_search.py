"""A search of parameters: what it finds, what it leaves alone, and that it is the same twice."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import optuna
import pytest
import yaml

from mlops.serving.export import export_onnx
from mlops.settings import Settings
from mlops.training import search
from mlops.training.candidates import Candidate, load_candidates
from mlops.training.fit import balanced_weights, fit_pipeline, learn, score_window
from mlops.training.search import own_values, search_space, time_folds, tune
from tests.fixtures.churn import churn_card, churn_rows

SETTINGS = Settings(_env_file=None, search_trials=5, search_folds=2)
LINEAR = {"name": "Linear", "class": "sklearn.linear_model.LogisticRegression", "scale": True}
STRONGER = {"C": {"low": 0.1, "high": 10, "log": True}, "calibration": ["none"]}


def linear(search, **params):
    return Candidate.model_validate({**LINEAR, "params": params, "search": search})


@pytest.fixture
def card(tmp_path):
    return churn_card(tmp_path)


def test_parameters_that_hide_the_signal_are_replaced(card):
    poor = linear({**STRONGER, "class_weight": ["none"]}, C=1e-6)
    told = []
    found = tune(card, poor, churn_rows(), SETTINGS, told=told.append)
    assert [trial.number for trial in told] == [1, 2, 3, 4, 5]
    assert told[0].values == {"C": 1e-6, "class_weight": "none", "calibration": "none"}
    assert found.params["search_chosen"] > 1
    assert found.candidate.params["C"] >= 0.1
    best = min(trial.brier for trial in told if trial.brier is not None)
    assert found.metrics["search_brier_best"] == best < found.metrics["search_brier_own"] - 0.02
    assert not found.params["search_cut_short"]


def test_the_files_parameters_stay_where_there_is_nothing_to_find(card):
    noise = churn_rows(signal=0.0)
    steady = linear({**STRONGER, "class_weight": ["none"]}, C=0.001)
    found = tune(card, steady, noise, SETTINGS)
    assert found.candidate == steady
    assert found.params["search_chosen"] == 1
    assert "the file's parameters stay" in found.text


def test_a_trial_that_is_clearly_behind_is_pruned(card):
    told = []
    harmful = {"C": [1e-7, 1e-8], "class_weight": ["none"], "calibration": ["none"]}
    tune(card, linear(harmful, C=1.0), churn_rows(), SETTINGS, told=told.append)
    assert {trial.state for trial in told[1:]} == {"pruned"}
    assert all(len(trial.briers) == 1 for trial in told[1:])
    assert "pruned after fold 1" in told[1].text


def test_trials_that_fail_are_told_and_the_search_goes_on(card):
    told = []
    broken = {"C": [-1.0, 1.0], "class_weight": ["none"], "calibration": ["none"]}
    found = tune(card, linear(broken, C=1e-6), churn_rows(), SETTINGS, told=told.append)
    failed = [trial for trial in told if trial.state == "failed"]
    assert failed, [trial.text for trial in told]
    assert "InvalidParameterError" in failed[0].text
    assert found.metrics["search_failed"] == len(failed)
    assert len(told) == 5


def test_a_score_that_is_no_number_is_a_trial_that_failed(card, monkeypatch):
    def nowhere(pipeline, *rest):
        scores = score_window(pipeline, *rest)
        return scores * np.nan if pipeline["classifier"].C > 1 else scores

    monkeypatch.setattr(search, "score_window", nowhere)
    told = []
    broken = {"C": [100.0, 10.0], "class_weight": ["none"], "calibration": ["none"]}
    found = tune(card, linear(broken, C=1.0), churn_rows(), SETTINGS, told=told.append)
    assert [trial.state for trial in told] == ["complete", *["failed"] * 4]
    assert "not a number" in told[-1].text
    assert found.candidate == linear(broken, C=1.0)


def test_if_every_trial_fails_the_files_parameters_are_fitted(card):
    impossible = linear({"C": [-1.0, -2.0]}, C=-3.0)
    found = tune(card, impossible, churn_rows(), SETTINGS)
    assert found.candidate == impossible
    assert found.metrics["search_failed"] == 5


def test_a_search_that_was_interrupted_comes_to_what_it_would_have(card):
    frame, candidate = churn_rows(), linear(STRONGER, C=1e-6)
    whole = []
    expected = tune(card, candidate, frame, SETTINGS, told=whole.append)

    study = optuna.create_study()
    seen = []

    class Killed(BaseException):
        pass

    def told(trial):
        seen.append(trial)
        if trial.number == 3:
            raise Killed

    with pytest.raises(Killed):
        tune(card, candidate, frame, SETTINGS, lambda _: study, told)
    study.ask()  # the trial that was under way
    again = []
    found = tune(card, candidate, frame, SETTINGS, lambda _: study, again.append)
    assert found.candidate == expected.candidate
    assert [trial.again for trial in again] == [True, True, True, False, False]
    assert [trial.briers for trial in again] == [trial.briers for trial in whole]
    assert [trial.values for trial in again] == [trial.values for trial in whole]
    states = [trial.state.name for trial in study.trials]
    assert states.count("FAIL") == 1, "what was under way when the process died"


def test_seconds_cut_a_search_short_and_it_says_so(card):
    hasty = SETTINGS.model_copy(update={"search_seconds": 1e-6})
    found = tune(card, linear(STRONGER), churn_rows(), hasty)
    assert found.metrics["search_trials"] == 1
    assert found.params["search_cut_short"]
    assert "cut short" in found.text


def test_without_trials_or_space_nothing_is_searched(card):
    frame = churn_rows()
    for candidate, trials in ((linear(None), 5), (linear(STRONGER), 0)):
        settings = SETTINGS.model_copy(update={"search_trials": trials})
        assert tune(card, candidate, frame, settings).candidate is candidate
    assert tune(card, linear(STRONGER), frame[:250], SETTINGS).metrics == {}, "one month only"


def test_folds_are_the_latest_months_each_after_all_that_it_is_fitted_on(card):
    folds = time_folds(card, churn_rows(), SETTINGS)
    assert [(each.end, each.earlier["period"].max()) for each in folds] == [
        ("2020-03", "2020-02"),
        ("2020-04", "2020-03"),
    ]
    few = time_folds(card, churn_rows(rows_a_month=120), SETTINGS)
    assert [set(each.validation["period"]) for each in few] == [{"2020-03", "2020-04"}]


def test_class_weights_and_calibration_are_part_of_every_space():
    svc = Candidate.model_validate(
        {
            "name": "SVC",
            "class": "sklearn.svm.SVC",
            "params": {"class_weight": "balanced"},
            "search": {},
        }
    )
    space = search_space(svc, SETTINGS)
    assert space["class_weight"].values == ["none", "balanced"]
    assert space["calibration"].values == ["sigmoid", "isotonic"], "it has no other probabilities"
    assert own_values(svc, SETTINGS) == {"class_weight": "balanced", "calibration": "sigmoid"}
    other = svc.with_values({"class_weight": "none", "calibration": "isotonic"})
    assert (other.params, other.class_weight) == ({}, "none"), "the two weights would multiply"
    assert list(search_space(linear(STRONGER), SETTINGS)) == ["C", "calibration", "class_weight"]


def test_balanced_answers_weigh_the_same_within_the_weights_of_rows():
    target = np.array([0, 0, 0, 1])
    weights = np.array([1.0, 2.0, 3.0, 0.5])
    balanced = balanced_weights(weights, target)
    assert balanced.mean() == pytest.approx(1)
    assert balanced[3] == pytest.approx(balanced[:3].sum())
    assert balanced[:3] / balanced[0] == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("calibration", ["sigmoid", "isotonic"])
@pytest.mark.parametrize(
    "entry",
    [
        {"class": "sklearn.tree.DecisionTreeClassifier", "params": {"max_depth": 3}},
        {"class": "sklearn.svm.LinearSVC", "scale": True},
        {"class": "xgboost.XGBClassifier", "params": {"n_estimators": 20, "max_depth": 2}},
    ],
)
def test_a_calibration_brings_the_level_back_that_class_weights_move(card, entry, calibration):
    candidate = Candidate.model_validate(
        {"name": "Any", **entry, "class_weight": "balanced", "calibration": calibration}
    )
    alike = SETTINGS.model_copy(update={"recency_half_life_months": 0})
    frame = churn_rows(rows_a_month=500)
    scores = score_window(fit_pipeline(card, candidate, frame, alike).pipeline, card, frame)
    assert scores.mean() == pytest.approx(frame["target"].mean(), abs=0.02)
    if hasattr(fit_pipeline(card, candidate, frame, alike).pipeline[-1].estimator, "predict_proba"):
        bare = candidate.model_copy(update={"calibration": "none"})
        moved = score_window(fit_pipeline(card, bare, frame, alike).pipeline, card, frame)
        assert moved.mean() > frame["target"].mean() + 0.05


def test_a_new_classifier_is_one_entry(card, tmp_path):
    path = tmp_path / "candidates.yaml"
    path.write_text("""
HistGradientBoosting:
  class: sklearn.ensemble.HistGradientBoostingClassifier
  params: {max_iter: 20, max_leaf_nodes: 4}
  search:
    max_leaf_nodes: {low: 2, high: 8}
    learning_rate: {low: 0.02, high: 0.3, log: true}
""")
    [candidate] = load_candidates(path).values()
    frame = churn_rows()
    logged = learn(card, candidate, frame, SETTINGS.model_copy(update={"search_trials": 2}))
    assert logged.metrics["search_trials"] == 2
    assert logged.metrics["validation_roc_auc"] > 0.7
    assert export_onnx(logged.pipeline, card, logged.reference, 1e-5).max_difference <= 1e-5


TREES = {
    "name": "Trees",
    "class": "xgboost.XGBClassifier",
    "params": {"n_estimators": 10, "subsample": 0.8},
    "search": {"max_depth": {"low": 1, "high": 4}, "subsample": {"low": 0.5, "high": 1.0}},
}


def learnt(asked):
    """Return what candidate and data come to, for a process of its own."""
    entry, card, frame = asked
    # By search_seconds alone the machine would decide.
    settings = SETTINGS.model_copy(update={"search_trials": 4, "search_seconds": 1e6})
    logged = learn(card, Candidate.model_validate(entry), frame, settings)
    logged.metrics.pop("fit_seconds")
    logged.metrics.pop("search_seconds", None)
    return logged.metrics, logged.params, logged.reference["score"].to_numpy()


def test_the_same_data_and_seed_give_the_same_twice_and_in_parallel(card):
    entries = [{**LINEAR, "params": {"C": 1e-5}, "search": STRONGER}, TREES]
    file = yaml.safe_load(SETTINGS.candidates.read_text())
    entries += [{"name": name, **file[name]} for name in ("RandomForest", "SVC", "MLPClassifier")]
    asked = [(entry, card, churn_rows()) for entry in entries]
    first = [learnt(each) for each in asked]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlops.training.fit", "sklearn.linear_model", "xgboost"])
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        beside = list(pool.map(learnt, asked))
    for ours, theirs in zip(first, beside, strict=True):
        assert ours[:2] == theirs[:2]
        assert np.array_equal(ours[2], theirs[2])
    other = SETTINGS.model_copy(update={"seed": 1})
    moved = tune(card, Candidate.model_validate(TREES), churn_rows(), other)
    assert moved.metrics["search_brier_best"] != first[1][0]["search_brier_best"]
