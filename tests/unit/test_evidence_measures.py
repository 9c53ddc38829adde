"""What is told of a version is what its rows say: held to scikit-learn, SHAP and hand counts."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shap
from sklearn import metrics as sk

from mlops.dataset.card import PERIOD, SCORE, TARGET, Card, Costs, load_card
from mlops.dataset.windows import split_window
from mlops.evidence import collect, contributions, measures, recipe
from mlops.serving.payload import describe_model
from mlops.settings import Settings
from mlops.training.candidates import Candidate
from mlops.training.fit import learn
from mlops.training.tracking import Logged
from predictor.explain import shapley
from tests.fixtures.churn import TEMPLATE, churn_rows
from tests.fixtures.postgres import make_settings

COSTS = Costs(contact=1.0, success=10.0, unit="euros")
LINEAR = Candidate.model_validate(
    {"name": "Linear", "class": "sklearn.linear_model.LogisticRegression", "scale": True}
)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a second a version is not to take one a test."""
    monkeypatch.setattr(measures, "METRIC_RESAMPLES", 60)
    monkeypatch.setattr(measures, "RESAMPLES", 300)


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card(TEMPLATE)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_settings(tmp_path_factory.mktemp("evidence"))


@pytest.fixture(scope="module")
def learnt(card: Card, settings: Settings) -> Logged:
    return learn(card, LINEAR, churn_rows(), settings)


@pytest.fixture(scope="module")
def rows(learnt: Logged) -> pd.DataFrame:
    return learnt.reference


def columns(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return rows[TARGET].to_numpy(), rows[SCORE].to_numpy()


def test_the_curves_and_counts_are_those_of_scikit_learn(rows: pd.DataFrame) -> None:
    target, score = columns(rows)
    threshold = float(np.median(score))
    roc = measures.roc(target, score, threshold)
    area = np.trapezoid if hasattr(np, "trapezoid") else np.trapz
    drawn = float(area(roc["true_positive_rate"], roc["false_positive_rate"]))
    assert roc["auc"] == pytest.approx(sk.roc_auc_score(target, score))
    assert drawn == pytest.approx(roc["auc"], abs=0.003), "the line that is drawn has this area"
    assert roc["low"] < roc["auc"] < roc["high"]
    counts = measures.confusion(target, score, threshold)
    expected = sk.confusion_matrix(target, score >= threshold)
    assert [counts["true_negatives"], counts["false_positives"]] == expected[0].tolist()
    assert [counts["false_negatives"], counts["true_positives"]] == expected[1].tolist()
    found = measures.precision_recall(target, score, threshold)["at_threshold"]
    assert found["precision"] == pytest.approx(sk.precision_score(target, score >= threshold))
    assert found["recall"] == pytest.approx(sk.recall_score(target, score >= threshold))


def test_gains_do_not_depend_on_the_order_of_equal_scores() -> None:
    target = np.array([1] * 20 + [0] * 60)
    score = np.full(80, 0.3)
    told = measures.gains(target, score, 0.5)
    assert told["lift"] == pytest.approx([1.0] * 100), "scores that know nothing have a lift of 1"
    assert told["at_threshold"] == {"share": 0.0, "found": 0.0}
    perfect = measures.gains(target, target * 0.8 + 0.1, 0.5)
    assert perfect["found"][25] == pytest.approx(1.0), "a quarter is positive, and found first"
    assert perfect["lift"][9] == pytest.approx(4.0)


def test_calibration_counts_every_row_once_and_knows_a_shift(rows: pd.DataFrame) -> None:
    target, score = columns(rows)
    told = measures.calibration(target, score)
    assert sum(group["rows"] for group in told["groups"]) == len(rows)
    assert all(group["low"] <= group["share"] <= group["high"] for group in told["groups"])
    shifted = measures.calibration(target, np.clip(score + 0.2, 0, 1))
    assert shifted["error"] == pytest.approx(0.2, abs=0.05)


def test_metrics_have_intervals_that_hold_their_value(rows: pd.DataFrame) -> None:
    target, score = columns(rows)
    told = measures.metrics(target, score, 0.3, COSTS, 1)
    assert set(told["values"]) >= {"roc_auc", "brier", "precision", "recall", "profit"}
    for name, each in told["values"].items():
        assert each["low"] <= each["value"] <= each["high"], name
    assert told == measures.metrics(target, score, 0.3, COSTS, 1), "the same rows, the same numbers"


def test_the_intervals_of_many_rows_shrink_as_all_of_them_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(3)
    target = random.integers(0, 2, 4000)
    score = np.clip(0.5 + 0.2 * (target - 0.5) + random.normal(0, 0.2, 4000), 0, 1)
    whole = measures.metrics(target, score, 0.5, None, 1)["values"]["roc_auc"]
    monkeypatch.setattr(measures, "METRIC_ROWS", 1000)
    drawn = measures.metrics(target, score, 0.5, None, 1)["values"]["roc_auc"]
    assert drawn["value"] == whole["value"]
    assert drawn["high"] - drawn["low"] == pytest.approx(whole["high"] - whole["low"], rel=0.4)


def test_a_slice_without_enough_of_an_answer_has_no_auc(rows: pd.DataFrame, card: Card) -> None:
    few = rows.assign(plan=np.where(np.arange(len(rows)) < 12, "rare", rows["plan"]))
    told = {each["value"]: each for each in measures.slices(few, card)}
    assert told["rare"]["auc"] is None
    assert told["rare"]["rows"] == 12
    assert told["basic"]["low"] < told["basic"]["auc"] < told["basic"]["high"]


def test_the_weights_are_those_by_which_the_api_explains() -> None:
    worths = np.random.default_rng(5).random(1 << 6)
    assert worths @ contributions.shapley_weights(6) == pytest.approx(shapley(worths))


def test_contributions_are_those_of_shap_and_sum_to_the_score(
    learnt: Logged, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = learnt.reference.head(8)[card.feature_names]
    typical = collect.typical_customer(churn_rows(), card)
    places = {value: place for place, value in enumerate(["", "basic", "plus"])}

    def score(frame: pd.DataFrame) -> np.ndarray:
        return np.asarray(learnt.pipeline.predict_proba(frame)[:, 1])

    def by_numbers(values: np.ndarray) -> np.ndarray:
        frame = pd.DataFrame(values, columns=card.feature_names).astype(np.float32)
        return score(frame.assign(plan=[list(places)[int(each)] for each in values[:, 2]]))

    def as_numbers(frame: pd.DataFrame) -> np.ndarray:
        return frame.assign(plan=frame["plan"].map(places)).to_numpy(dtype=np.float64)

    found = contributions.contributions(score, some, typical, card.feature_names, 1)
    background = as_numbers(typical.to_frame().T)
    expected = shap.explainers.Exact(by_numbers, background)(as_numbers(some)).values
    assert found == pytest.approx(expected, abs=1e-6)
    base = score(typical.to_frame().T.astype(some.dtypes))[0]
    assert found.sum(axis=1) + base == pytest.approx(score(some), abs=1e-9)
    monkeypatch.setattr(contributions, "EXACT_FIELDS", 2)
    drawn = contributions.contributions(score, some, typical, card.feature_names, 1)
    assert drawn.sum(axis=1) + base == pytest.approx(score(some), abs=1e-9)
    assert drawn == pytest.approx(found, abs=0.01), "drawn orders are near all of them"


def test_the_typical_customer_is_the_reference_of_the_api(card: Card) -> None:
    frame = churn_rows()
    frame.loc[:, "visits"] = np.where(np.arange(len(frame)) % 3, np.nan, frame["visits"])
    onnx: Any = SimpleNamespace(inputs={}, max_difference=0.0)
    told = describe_model(
        card, "1", onnx, frame, run_id="r", candidate="c", training_id="t", threshold=0.5,
        metrics={}, window=("2020-01", "2020-04"),
    )["reference"]  # fmt: skip
    typical = collect.typical_customer(frame, card)
    assert {name: collect._plain(value) for name, value in typical.items()} == told


def test_importance_is_measured_on_rows_that_the_fit_had_not_seen(
    card: Card, settings: Settings
) -> None:
    """Of a forest that knows its rows by heart, a served fit would say that noise matters."""
    frame = churn_rows(rows_a_month=120).assign(
        visits=np.random.default_rng(1).permutation(480).astype(np.float32)
    )
    forest = Candidate.model_validate(
        {"name": "Forest", "class": "sklearn.ensemble.RandomForestClassifier",
         "params": {"n_estimators": 30}}
    )  # fmt: skip
    window = split_window(frame, 1)
    folds = recipe.folds(
        card, recipe.Recipe((forest,)), window.earlier, window.validation, settings
    )
    parts = [(fold.score, window.validation.iloc[fold.places]) for fold in folds]
    told = {e["field"]: e["loss"] for e in contributions.permutation_importance(parts, card, 1)}
    assert told["spend"] > 0.05
    assert abs(told["visits"]) < 0.5 * told["spend"]


def test_the_recipe_fitted_again_gives_the_scores_of_its_training(
    learnt: Logged, card: Card, settings: Settings
) -> None:
    validation = learnt.reference.drop(columns=SCORE)
    frame = churn_rows().sort_values([PERIOD, *card.feature_names, TARGET], ignore_index=True)
    earlier = frame[frame[PERIOD] < validation[PERIOD].min()].reset_index(drop=True)
    own = recipe.Recipe((LINEAR,))
    again = recipe.scores_of(recipe.folds(card, own, earlier, validation, settings), validation)
    assert again == pytest.approx(learnt.reference[SCORE].to_numpy(), abs=1e-12)


def test_a_learning_curve_ends_at_the_whole_window_and_months_are_not_told_by_themselves(
    learnt: Logged, card: Card, settings: Settings
) -> None:
    said: list[str] = []
    told = collect.measure(
        card, learnt.pipeline, recipe.Recipe((LINEAR,)), learnt.reference, churn_rows(),
        0.3, None, settings, said.append,
    )  # fmt: skip
    assert told["learning"][-1]["auc"] == pytest.approx(told["roc"]["auc"])
    assert [each["months"] for each in told["learning"]] == [1, 2, 3]
    assert [(each["period"], each["how"]) for each in told["months"]] == [
        ("2020-02", "by the months before"),
        ("2020-03", "by the months before"),
        ("2020-04", "out of fold"),
    ]
    assert told["profit"] is None
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    old = collect.measure(
        card, learnt.pipeline, None, learnt.reference, churn_rows(), 0.3, None, settings
    )
    assert old["importance"] is None
    assert "recipe" in old["notes"][0]


@pytest.mark.parametrize(("months", "sizes"), [(1, [1]), (3, [1, 2, 3]), (10, [1, 2, 5, 10])])
def test_sizes_of_a_learning_curve_end_at_all_months(months: int, sizes: list[int]) -> None:
    assert recipe.curve_sizes(months) == sizes
