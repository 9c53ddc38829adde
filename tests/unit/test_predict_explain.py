"""Contributions are Shapley's, whatever the model, and add up to the difference of the scores."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shap
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.dataset.card import Card, load_card
from mlops.serving.export import export_onnx
from mlops.serving.payload import describe_model, render_payload
from mlops.settings import Settings
from mlops.training.candidates import load_candidates
from mlops.training.fit import fit_pipeline
from predictor import explain as explaining
from predictor.errors import RequestError
from predictor.explain import coalition_worths, explain, shapley
from predictor.model import Model
from tests.fixtures.predict import make_payload, make_rows

CARD = load_card("bank_marketing")
CANDIDATES = load_candidates(Settings(_env_file=None).candidates)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_payload(tmp_path_factory.mktemp("payloads"), "1"))


def records(card: Card, rows: int, seed: int) -> list[dict[str, Any]]:
    """Return made-up rows as a caller sends them: whole numbers, missing ones as None."""
    frame = make_rows(card, rows, seed)[card.feature_names].astype(object)
    return [
        {name: None if value in ("", None) or value != value else value for name, value in row}
        for row in (each.items() for each in frame.to_dict("records"))
    ]


def by_orders(worths: np.ndarray) -> np.ndarray:
    """Return the Shapley values as Shapley defines them: the mean gain over all orders."""
    players = int(math.log2(len(worths)))
    gains = np.zeros(players)
    for order in permutations(range(players)):
        coalition = 0
        for player in order:
            gains[player] += worths[coalition | 1 << player] - worths[coalition]
            coalition |= 1 << player
    return gains / math.factorial(players)


def a_game(most: int) -> st.SearchStrategy[np.ndarray]:
    worth = st.floats(-10, 10, allow_nan=False, width=32)
    return st.integers(0, most).flatmap(
        lambda players: st.lists(worth, min_size=1 << players, max_size=1 << players).map(np.array)
    )


@given(a_game(5))
@settings(deadline=None, max_examples=60)
def test_values_are_the_mean_gains_over_all_orders(worths: np.ndarray) -> None:
    assert shapley(worths) == pytest.approx(by_orders(worths), abs=1e-9)


@given(a_game(8))
@settings(deadline=None, max_examples=60)
def test_values_sum_to_what_all_are_worth_more_than_none(worths: np.ndarray) -> None:
    assert shapley(worths).sum() == pytest.approx(worths[-1] - worths[0], abs=1e-9)


def test_who_adds_nothing_gets_nothing_and_equals_get_the_same() -> None:
    # The first two are worth 3 together, nothing alone; the third never counts; the fourth is 5.
    def worth(coalitions: np.ndarray) -> np.ndarray:
        return 3.0 * (coalitions[:, 0] & coalitions[:, 1]) + 5.0 * coalitions[:, 3]

    assert shapley(coalition_worths(worth, 4)) == pytest.approx([1.5, 1.5, 0, 5])


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 9, 4096])
def test_worths_are_asked_for_in_blocks_each_coalition_once(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "BLOCK_ROWS", rows)
    asked: list[np.ndarray] = []

    def worth(coalitions: np.ndarray) -> np.ndarray:
        asked.append(coalitions)
        return coalitions @ np.array([1.0, 2.0, 4.0])

    assert coalition_worths(worth, 3).tolist() == list(range(8))
    assert max(map(len, asked)) <= rows
    assert sum(map(len, asked)) == 8


def test_contributions_sum_to_the_difference_of_the_two_predictions(model: Model) -> None:
    reference = model.card["reference"]
    for record in records(CARD, 20, seed=5):
        answer = explain(model, record)
        (score,), (base,) = (model.score([model.read(each, 0)[0]]) for each in (record, reference))
        assert (answer["probability"], answer["reference_probability"]) == (score, base)
        total = sum(each["contribution"] for each in answer["contributions"])
        assert total == pytest.approx(score - base, abs=1e-9)
        sizes = [abs(each["contribution"]) for each in answer["contributions"]]
        assert sizes == sorted(sizes, reverse=True)
        assert {each["field"] for each in answer["contributions"]} == set(CARD.feature_names)


NUMBER = st.none() | st.integers(-(2**127), 2**127) | st.sampled_from([0, -1, 2**24, -(10**30)])
# What UTF-8 has: half a pair of surrogates is no JSON, and never gets as far as a record.
LETTER = st.characters(codec="utf-8", exclude_characters="\x00")
TEXT = st.none() | st.text(LETTER, max_size=20)


@given(
    st.fixed_dictionaries(
        {each.name: NUMBER if each.kind == "number" else TEXT for each in CARD.features}
    )
)
@settings(deadline=None, max_examples=40)
def test_hostile_records_are_explained_exactly_too(model: Model, record: dict[str, Any]) -> None:
    answer = explain(model, record)
    total = sum(each["contribution"] for each in answer["contributions"])
    assert 0 <= answer["probability"] <= 1
    assert total == pytest.approx(answer["probability"] - answer["reference_probability"], abs=1e-9)


def test_the_reference_itself_has_nothing_to_explain(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = explain(model, model.card["reference"])
    assert answer["probability"] == answer["reference_probability"]
    assert [each["contribution"] for each in answer["contributions"]] == [0.0] * 11
    # Nor has one that says the same in another way: 40.0, or a word for missing.
    reference = {**model.card["reference"], CARD.categories[0]: None}
    again = {
        **reference,
        CARD.numbers[0]: float(reference[CARD.numbers[0]]),
        CARD.categories[0]: "unknown",
    }
    card = {**model.card, "reference": reference}
    monkeypatch.setattr(model, "card", card)
    assert {each["contribution"] for each in explain(model, again)["contributions"]} == {0.0}


def test_a_missing_value_is_explained_as_a_value(model: Model) -> None:
    field = CARD.categories[0]
    answer = explain(model, {**model.card["reference"], field: "unknown"})
    first = answer["contributions"][0]
    assert (first["field"], first["value"]) == (field, None)
    assert first["reference"] == model.card["reference"][field]
    assert first["contribution"] == pytest.approx(
        answer["probability"] - answer["reference_probability"], abs=1e-9
    )
    assert first["contribution"] != 0


def test_warnings_and_decision_are_those_of_a_prediction(model: Model) -> None:
    record = {**model.card["reference"], CARD.categories[0]: "never seen"}
    answer = explain(model, record)
    assert answer["warnings"] == model.read(record, 0)[1] != []
    assert answer["decision"] == model.decisions[answer["probability"] >= model.threshold]


def test_a_list_is_refused_and_so_is_what_predict_refuses(model: Model) -> None:
    reference = model.card["reference"]
    for body, code in (
        ([reference], "not_one_record"),
        ([], "not_one_record"),
        ("text", "wrong_type"),
        ({**reference, "shoe_size": 43}, "unknown_field"),
        ({}, "missing_field"),
    ):
        with pytest.raises(RequestError) as caught:
            explain(model, body)
        assert (caught.value.code, caught.value.status) == (code, 422)


def test_too_many_differences_are_refused_before_anything_is_scored(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record,) = records(CARD, 1, seed=5)
    different = sum(1 for name, value in record.items() if value != model.card["reference"][name])
    monkeypatch.setattr(explaining, "MAX_DIFFERENT", different)
    assert explain(model, record)["contributions"]
    monkeypatch.setattr(explaining, "MAX_DIFFERENT", different - 1)
    with pytest.raises(RequestError, match=f"{different} fields differ.*at most {different - 1}"):
        explain(model, record)


def fitted_model(name: str, folder: Path) -> Model:
    """Return candidate `name` as deployment leaves it, fitted on made-up rows."""
    frame = make_rows(CARD, seed=1)
    pipeline = fit_pipeline(CARD, CANDIDATES[name], frame, Settings(_env_file=None)).pipeline
    onnx = export_onnx(pipeline, CARD, frame, 1e-5)
    described = describe_model(
        CARD, "1", onnx, frame, run_id="r", candidate=name, training_id="t", threshold=0.5,
        metrics={}, window=("2008-05", "2009-01"),
    )  # fmt: skip
    return Model(render_payload("1", onnx.content, described, folder))


class Codes:
    """Two records in numbers, as SHAP's maskers need them: a category is 0 or 1, missing is -1."""

    def __init__(self, model: Model, reference: dict[str, Any], record: dict[str, Any]) -> None:
        self.model = model
        self.texts = {name: [reference[name], record[name]] for name in CARD.categories}

    def code(self, values: dict[str, Any]) -> list[float]:
        return [
            float(self.texts[name].index(value))
            if name in self.texts
            else (-1.0 if value is None else float(value))
            for name, value in ((name, values[name]) for name in CARD.feature_names)
        ]

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores of coded rows, by what /predict scores with."""
        records = [
            {
                name: self.texts[name][int(code)]
                if name in self.texts
                else (None if code == -1 else code)
                for name, code in zip(CARD.feature_names, row, strict=True)
            }
            for row in rows
        ]
        return np.array(self.model.score(records))


@pytest.mark.parametrize("name", sorted(CANDIDATES))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_agrees_with_the_exact_explainer_of_shap(name: str, tmp_path: Path) -> None:
    model = fitted_model(name, tmp_path)
    reference = model.read(model.card["reference"], 0)[0]
    for record in records(CARD, 3, seed=6):
        codes = Codes(model, reference, record)
        masker = shap.maskers.Independent(np.array([codes.code(reference)]))
        found = shap.explainers.Exact(codes.scores, masker)(np.array([codes.code(record)]))
        answer = explain(model, record)
        ours = {each["field"]: each["contribution"] for each in answer["contributions"]}
        assert [ours[each] for each in CARD.feature_names] == pytest.approx(
            found.values[0].tolist(), abs=1e-6
        )
        assert max(map(abs, ours.values())) > 1e-4, "nothing moved: anything would agree"
