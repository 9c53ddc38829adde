"""ONNX scores as sklearn does, for every kind of candidate, or is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx as onnx_format
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from mlops.dataset.card import load_card
from mlops.serving.export import (
    ExportError,
    OnnxModel,
    ParityError,
    export_onnx,
    hostile_rows,
    score_onnx,
    tree_thresholds,
)
from mlops.settings import Settings
from mlops.training.candidates import Candidate, load_candidates
from mlops.training.ensemble import mean_pipeline
from mlops.training.fit import fit_pipeline, score_window
from tests.fixtures.predict import exported, make_model, make_rows

CARD = load_card("bank_marketing")
SETTINGS = Settings(_env_file=None)
CANDIDATES = load_candidates(SETTINGS.candidates)


@pytest.mark.parametrize("name", sorted(CANDIDATES))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_candidate_scores_alike_in_onnx(name: str) -> None:
    fitting, unseen = make_rows(CARD, seed=1), make_rows(CARD, rows=400, seed=2)
    unseen.loc[::5, CARD.categories[0]] = "never seen"
    unseen.loc[::7, CARD.numbers[0]] = 1e6
    pipeline = fit_pipeline(CARD, CANDIDATES[name], fitting, SETTINGS).pipeline
    onnx = export_onnx(pipeline, CARD, unseen, tolerance=1e-5)
    assert 0 <= onnx.max_difference <= 1e-5
    assert list(onnx.inputs) == CARD.feature_names
    assert set(onnx.inputs.values()) == {"float32", "string"}
    found = score_onnx(onnx.content, CARD, unseen)
    assert np.abs(found - score_window(pipeline, CARD, unseen)).max() == onnx.max_difference
    assert np.unique(found).size > 10, "a constant would agree with anything"


KINDS: dict[str, dict[str, Any]] = {
    "XGB": {"class": "xgboost.XGBClassifier", "params": {"n_estimators": 30, "max_depth": 3}},
    "LogReg": {"class": "sklearn.linear_model.LogisticRegression", "scale": True},
    "RF": {"class": "sklearn.ensemble.RandomForestClassifier", "params": {"n_estimators": 20}},
    "SVC": {"class": "sklearn.svm.SVC", "scale": True, "params": {"C": 10}},
    "MLP": {
        "class": "sklearn.neural_network.MLPClassifier",
        "scale": True,
        "params": {"max_iter": 40},
    },
    "HGB": {
        "class": "sklearn.ensemble.HistGradientBoostingClassifier",
        "params": {"max_iter": 30},
    },
}


@cache
def calibrated(kind: str, calibration: str) -> Pipeline:
    """A classifier fitted on numbers with all their digits, with a calibration on top."""
    candidate = Candidate.model_validate({"name": kind, "calibration": calibration, **KINDS[kind]})
    return fit_pipeline(CARD, candidate, digits(make_rows(CARD, seed=1)), SETTINGS).pipeline


@pytest.mark.parametrize("calibration", ["none", "sigmoid", "isotonic"])
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:overflow")
def test_every_calibration_of_every_classifier_scores_alike(kind: str, calibration: str) -> None:
    unseen = digits(make_rows(CARD, rows=300, seed=2))
    onnx = export_onnx(calibrated(kind, calibration), CARD, unseen, tolerance=1e-5)
    assert np.unique(score_onnx(onnx.content, CARD, unseen)).size > 10


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:overflow")
def test_the_mean_of_models_is_one_model_with_the_same_inputs_and_outputs() -> None:
    unseen = digits(make_rows(CARD, rows=300, seed=2))
    members = {
        name: calibrated(name, how)
        for name, how in (("XGB", "none"), ("SVC", "isotonic"), ("HGB", "sigmoid"))
    }
    mean = mean_pipeline(members)
    onnx = export_onnx(mean, CARD, unseen, tolerance=1e-5)
    alone = [export_onnx(member, CARD, unseen, tolerance=1e-5) for member in members.values()]
    expected = np.mean([score_onnx(each.content, CARD, unseen) for each in alone], axis=0)
    assert score_onnx(onnx.content, CARD, unseen) == pytest.approx(expected, abs=1e-6)
    assert onnx.inputs == alone[0].inputs
    graphs = [onnx_format.load_from_string(each.content).graph for each in (onnx, alone[0])]
    first, other = ([str(out) for out in graph.output] for graph in graphs)
    assert first == other
    assert len(onnx.content) < sum(len(each.content) for each in alone) + 2000
    # The splits of all its trees are tried, as of a single model.
    splits = tree_thresholds(onnx.content, CARD)
    for name, values in tree_thresholds(alone[2].content, CARD).items():
        assert set(values) <= set(splits[name])
    again = export_onnx(mean, CARD, unseen, tolerance=1e-5)
    assert again.content == onnx.content


def test_an_isotonic_curve_of_which_all_scores_are_the_same_is_a_constant() -> None:
    frame = make_rows(CARD, seed=1)
    for name in CARD.numbers:
        frame[name] = np.float32(1)
    for name in CARD.categories:
        frame[name] = "same"
    candidate = Candidate.model_validate({"name": "Flat", "calibration": "isotonic", **KINDS["RF"]})
    pipeline = fit_pipeline(CARD, candidate, frame, SETTINGS).pipeline
    onnx = export_onnx(pipeline, CARD, make_rows(CARD, rows=50, seed=2), tolerance=1e-5)
    scores = score_onnx(onnx.content, CARD, make_rows(CARD, rows=50, seed=3))
    assert np.unique(scores).size == 1


def test_a_column_that_was_empty_all_through_is_an_input_all_the_same() -> None:
    fitting = make_rows(CARD, seed=1)
    fitting[CARD.numbers[-1]] = np.float32("nan")
    fitting[CARD.categories[-1]] = ""
    pipeline = fit_pipeline(CARD, CANDIDATES["LogisticRegression"], fitting, SETTINGS).pipeline
    onnx = export_onnx(pipeline, CARD, make_rows(CARD, seed=2), tolerance=1e-5)
    assert list(onnx.inputs) == CARD.feature_names


def test_difference_over_tolerance_is_refused_and_the_worst_row_named() -> None:
    card, frame, pipeline, onnx = exported(0)

    class Off:
        """Scores as the pipeline, but for one row."""

        classes_ = pipeline.classes_

        def __getattr__(self, name: str) -> Any:
            return getattr(pipeline, name)

        def predict_proba(self, features: Any) -> np.ndarray:
            scores = pipeline.predict_proba(features)
            scores[17] += 0.2
            return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlops.serving.export._convert", lambda *_: onnx.content)
        with pytest.raises(ParityError, match=r"validation row 17: .*2\.00e-01") as caught:
            export_onnx(Off(), card, frame, 1e-5)
    assert f"'age': {frame['age'][17]}" in str(caught.value)


def test_scaler_before_trees_is_caught() -> None:
    """The trap of float32 at tree thresholds: real, not made up."""
    random = np.random.default_rng(0)
    frame = make_rows(CARD, rows=3000, seed=3)
    for name in CARD.numbers:
        frame[name] = random.integers(-8000, 100_000, len(frame)).astype(np.float32)
    frame["target"] = random.integers(0, 2, len(frame)).astype(np.int8)
    scaled = make_model(CARD, frame, RandomForestClassifier(30, random_state=0), bound=False)
    with pytest.raises(ParityError, match="scale only for models that need it"):
        export_onnx(scaled, CARD, frame, 1e-5)


def test_what_onnx_cannot_express_is_named() -> None:
    card, frame, *_ = exported(0)
    pipeline = make_model(card, frame)
    pipeline.steps.insert(1, ("odd", FunctionTransformer(np.tanh)))
    with pytest.raises(ExportError, match="LogisticRegression cannot be expressed in ONNX"):
        export_onnx(pipeline, card, frame, 1e-5)


def test_labels_other_than_0_and_1_are_refused() -> None:
    card, frame, *_ = exported(0)
    frame = frame.assign(target=np.where(frame["target"] == 1, 2, 1))
    with pytest.raises(ExportError, match="classes"):
        export_onnx(make_model(card, frame), card, frame, 1e-5)


@cache
def candidate(name: str) -> tuple[Pipeline, OnnxModel]:
    """A candidate fitted on numbers with all their digits, and its export."""
    fitting, unseen = digits(make_rows(CARD, seed=1)), digits(make_rows(CARD, rows=300, seed=2))
    pipeline = fit_pipeline(CARD, CANDIDATES[name], fitting, SETTINGS).pipeline
    return pipeline, export_onnx(pipeline, CARD, unseen, tolerance=1e-5)


def digits(frame: pd.DataFrame) -> pd.DataFrame:
    """Make numbers neighbours in float32 in some columns: splits then lie between two of them."""
    random = np.random.default_rng(5)
    for place, name in enumerate(CARD.numbers):
        scale = np.float32((1, 1e-3, 1e-7)[place % 3])
        frame[name] += (random.random(len(frame)) * scale).astype(np.float32)
    return frame


NUMBERS = (
    st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.floats(-200, 200, width=32)
    | st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 3.4028234663852886e38, -3.4028234663852886e38])
    | st.just(float("nan"))
)
TEXTS = st.sampled_from(["red", "green", "blue", "", " ", "Red", "red "]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
)


@pytest.mark.parametrize("name", sorted(CANDIDATES))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:overflow")
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_candidate_scores_alike_whatever_a_row_holds(name: str, data: st.DataObject) -> None:
    pipeline, onnx = candidate(name)
    thresholds = tree_thresholds(onnx.content, CARD)

    def numbers(column: str) -> st.SearchStrategy[Any]:
        splits = thresholds.get(column)
        if splits is None:
            return NUMBERS
        beside = [np.nextafter(splits, np.float32(side)) for side in (-np.inf, np.inf)]
        return NUMBERS | st.sampled_from(np.concatenate([splits, *beside]).tolist())

    row = st.fixed_dictionaries(
        {name: numbers(name) for name in CARD.numbers} | dict.fromkeys(CARD.categories, TEXTS)
    )
    rows = pd.DataFrame(
        data.draw(st.lists(row, min_size=1, max_size=15)), columns=CARD.feature_names
    )
    rows = rows.astype(
        {each.name: np.float32 if each.kind == "number" else object for each in CARD.features}
    )
    found, expected = score_onnx(onnx.content, CARD, rows), score_window(pipeline, CARD, rows)
    assert np.abs(found - expected).max() <= 1e-5
    assert ((found >= 0) & (found <= 1)).all()


def test_hostile_rows_hold_the_ends_of_what_a_request_may_hold_and_are_the_same_again() -> None:
    frame = make_rows(CARD, seed=2)
    splits = {CARD.numbers[0]: np.array([40.5, 1e-3], dtype=np.float32)}
    rows = hostile_rows(CARD, frame, splits)
    pd.testing.assert_frame_equal(rows, hostile_rows(CARD, frame, splits))
    assert list(rows.columns) == CARD.feature_names
    assert rows.isin(["", np.nan]).all(axis=1).any(), "no row has everything missing"
    for name in CARD.numbers:
        column = rows[name].to_numpy()
        assert column.dtype == np.float32
        assert {np.finfo(np.float32).max, np.finfo(np.float32).min} <= set(column)
        assert (np.signbit(column) & (column == 0)).any()
        assert ((column > 0) & (column < np.finfo(np.float32).tiny)).any()
        assert np.isfinite(column[~np.isnan(column)]).all()
    near = {np.float32(40.5), *(np.nextafter(np.float32(40.5), np.float32([0, 99])))}
    assert near <= set(rows[CARD.numbers[0]])
    for name in CARD.categories:
        assert {"", " ", "never seen"} <= set(rows[name])


def test_a_threshold_that_is_off_by_the_last_digit_is_refused() -> None:
    """The validation rows do not see it: no value of theirs lies there."""
    pipeline, exact = candidate("RandomForest")
    graph = onnx_format.load_from_string(exact.content)
    trees = next(node for node in graph.graph.node if node.op_type.startswith("TreeEnsemble"))
    named = {each.name: each for each in trees.attribute}
    values = named["nodes_values"].floats
    # A root, which every row comes to.
    root = next(
        place
        for place, (node, value) in enumerate(zip(named["nodes_nodeids"].ints, values, strict=True))
        if node == 0 and 5 < value < 85
    )
    values[root] = float(np.nextafter(np.float32(values[root]), np.float32(np.inf)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlops.serving.export._convert", lambda *_: graph.SerializeToString())
        with pytest.raises(ParityError, match=r"hostile row \(thresholds \d+\)"):
            export_onnx(pipeline, CARD, digits(make_rows(CARD, rows=300, seed=2)), 1e-5)


def test_numbers_that_become_infinite_are_refused_and_the_row_named() -> None:
    frame = make_rows(CARD, seed=1)
    for name in CARD.numbers:
        frame[name] *= np.float32(1e-3)  # a deviation below 1, by which they are divided
    pipeline = make_model(CARD, frame, bound=False)
    with pytest.raises(ParityError, match=r"hostile row \(\w+ -?3\.4\d+e\+38\): sklearn cannot"):
        export_onnx(pipeline, CARD, frame, 1e-5)
