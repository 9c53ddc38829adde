"""The file of candidates: what it makes, and how it says what is wrong with it."""

import pytest
from sklearn.linear_model import LogisticRegression

from mlops.settings import Settings
from mlops.training.candidates import (
    CandidatesError,
    get_candidate,
    load_candidates,
    make_classifier,
)


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "candidates.yaml"
        path.write_text(text)
        return path

    return write


def test_the_five_default_candidates_can_all_be_made():
    candidates = load_candidates(Settings(_env_file=None).candidates)
    assert list(candidates) == [
        *("XGBClassifier", "LogisticRegression", "RandomForest", "SVC", "MLPClassifier")
    ]
    for candidate in candidates.values():
        params = make_classifier(candidate, seed=5, threads=1).get_params()
        assert params["random_state"] == 5
        assert params.get("n_jobs", 1) == 1
        assert {name: params[name] for name in candidate.params} == candidate.params


def test_a_new_candidate_is_one_entry(written):
    path = written("Mine: {class: sklearn.linear_model.LogisticRegression, params: {C: 3}}")
    classifier = make_classifier(get_candidate("Mine", path), seed=1)
    assert isinstance(classifier, LogisticRegression)
    assert classifier.C == 3


def test_the_file_may_set_the_seed_itself(written):
    path = written(
        "Mine: {class: sklearn.linear_model.LogisticRegression, params: {random_state: 9}}"
    )
    assert make_classifier(get_candidate("Mine", path), seed=1).random_state == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no candidate"),
        ("- a list", "found no candidate"),
        ("Mine: [", "not YAML"),
        ("Mine: sklearn", "Mine: found 'sklearn', expected keys"),
        ("Mine: {params: {}}", "Mine.class: Field required"),
        (
            "Ensemble: {class: sklearn.linear_model.LogisticRegression}",
            "Ensemble: the mean of the best candidates is called so",
        ),
        ("Mine: {class: subprocess.Popen}", "expected a class of sklearn, xgboost, lightgbm"),
        ("Mine: {class: sklearn_evil.Model}", "expected a class of sklearn, xgboost, lightgbm"),
        ("Mine: {class: sklearn.svm.SVC, scales: true}", "Mine.scales: Extra inputs"),
        ("Mine: {class: sklearn.svm.SVC, max_rows: 3}", "Mine.max_rows: Input should be greater"),
        ("Mine: {class: sklearn.svm.SVC}\nMine: {class: sklearn.svm.SVC}", "found 'Mine' twice"),
        ("Mine: {class: sklearn.svm.SVC, calibration: platt}", "Mine.calibration: .*'sigmoid'"),
        ("Mine: {class: sklearn.svm.SVC, search: {C: 3}}", "Mine.search.C: found 3, expected a"),
        ("Mine: {class: sklearn.svm.SVC, search: {C: []}}", "Mine.search.C: found an empty list"),
        ("Mine: {class: sklearn.svm.SVC, search: {C: [1, 1]}}", "Mine.search.C: found a choice tw"),
        ("Mine: {class: sklearn.svm.SVC, search: {C: {low: 1}}}", r"search.C: .*high: Field requi"),
        ("Mine: {class: sklearn.svm.SVC, search: {C: {low: 2, high: 1}}}", "expected low < high"),
        ("Mine: {class: sklearn.svm.SVC, search: {C: {low: a, high: 1}}}", "low: Input should be"),
        (
            "Mine: {class: sklearn.svm.SVC, search: {C: {low: 0, high: 1, log: true}}}",
            "low above 0",
        ),
        ("Mine: {class: sklearn.svm.SVC, search: {class_weight: [heavy]}}", "of none, balanced"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_fault(written, text, message):
    path = written(text)
    with pytest.raises(CandidatesError, match=message) as raised:
        load_candidates(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{class: sklearn.svm.SVCC}", "no class 'SVCC': did you mean SVC"),
        ("{class: sklearn.swm.SVC}", "sklearn.swm cannot be imported"),
        ("{class: sklearn.svm.SVR}", "is no classifier"),
        ("{class: sklearn.svm.SVC, params: {gama: 1}}", "no parameter 'gama': did you mean gamma"),
        ("{class: xgboost.XGBClassifier, params: {max_dept: 1}}", "did you mean max_depth"),
        ("{class: sklearn.svm.SVC, search: {gama: [1]}}", "Mine.search: .*no parameter 'gama'"),
    ],
)
def test_a_class_or_parameter_that_does_not_exist_is_named(written, entry, message):
    candidate = get_candidate("Mine", written(f"Mine: {entry}"))
    with pytest.raises(CandidatesError, match=message):
        make_classifier(candidate, seed=1)


def test_an_unknown_candidate_names_those_there_are(written):
    path = written("Mine: {class: sklearn.svm.SVC}")
    with pytest.raises(CandidatesError, match="no candidate 'Yours': there are Mine"):
        get_candidate("Yours", path)
