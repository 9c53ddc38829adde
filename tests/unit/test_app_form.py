"""The form of the page *Try it* comes from `model.json` alone."""

from __future__ import annotations

from typing import Any

import pytest

from mlops.app import form

CHURN: dict[str, Any] = {
    "model": "churn",
    "version": "7",
    "candidate": "RandomForest",
    "target": {"name": "left", "positive": "gone", "negative": "stays", "question": "Gone soon?"},
    "threshold": 0.25,
    "inputs": [
        {
            "name": "months_with_us",
            "kind": "number",
            "description": "Months since the contract began.",
            "unit": "months",
            "min": 1,
            "max": 1240,
            "median": 18,
            "integer": True,
            "missing": [],
            "required": True,
        },
        {
            "name": "discount",
            "kind": "number",
            "description": "Share of the price",
            "unit": None,
            "min": 0.0,
            "max": 0.5,
            "median": 0.05,
            "integer": False,
            "missing": ["-1"],
            "required": True,
        },
        {
            "name": "plan",
            "kind": "category",
            "description": "Tariff",
            "values": ["big", "n/a", "small"],
            "mode": "small",
            "missing": ["n/a"],
            "required": True,
        },
        {
            "name": "region",
            "kind": "category",
            "description": "",
            "values": ["north", "south"],
            "mode": "south",
            "missing": [],
            "required": True,
        },
    ],
    "training": {
        "window_start": "2024-01",
        "window_end": "2024-06",
        "rows": 12345,
        "positive_rate": 0.1,
    },
}


def by_name(model: dict[str, Any]) -> dict[str, form.Field]:
    return {field.name: field for field in form.fields(model)}


def with_input(name: str, **changes: Any) -> dict[str, Any]:
    inputs = [{**entry, **changes} if entry["name"] == name else entry for entry in CHURN["inputs"]]
    return {**CHURN, "inputs": inputs}


def test_fields_follow_the_models_order() -> None:
    assert [field.name for field in form.fields(CHURN)] == [
        "months_with_us",
        "discount",
        "plan",
        "region",
    ]


def test_a_number_starts_at_its_median_and_tells_unit_description_and_range() -> None:
    field = by_name(CHURN)["months_with_us"]
    assert (field.label, field.default, field.step) == ("Months with us (months)", 18, 1)
    assert isinstance(field.default, int)
    assert field.help == "Months since the contract began. In training: 1 to 1,240, median 18."
    assert not field.optional


def test_a_decimal_number_moves_in_small_steps() -> None:
    field = by_name(CHURN)["discount"]
    assert (field.default, field.step, field.format) == (0.05, 0.01, "%.3f")
    assert field.optional
    assert field.help.endswith("May be left empty.")
    assert field.empty_label == "not known"


@pytest.mark.parametrize(
    ("low", "high", "step", "shown"),
    [(0.0, 0.003, 1e-5, "%.6f"), (-8019.5, 102127.0, 1.0, "%.1f"), (4.0, 4.0, 0.01, "%.3f")],
)
def test_steps_follow_the_range(low: float, high: float, step: float, shown: str) -> None:
    field = by_name(with_input("discount", min=low, max=high))["discount"]
    assert (field.step, field.format) == (pytest.approx(step), shown)


def test_the_cards_word_for_missing_stands_for_empty_and_is_no_value() -> None:
    field = by_name(CHURN)["plan"]
    assert field.options == (form.EMPTY, "big", "small")
    assert field.default == "small"
    assert field.empty_label == "n/a"


def test_a_category_without_missing_markers_must_be_chosen() -> None:
    field = by_name(CHURN)["region"]
    assert field.options == ("north", "south")
    assert field.default == "south"


def test_the_models_typical_record_fills_the_form_in() -> None:
    model = CHURN | {
        "reference": {"months_with_us": 30, "discount": None, "plan": None, "region": "north"}
    }
    defaults = {name: field.default for name, field in by_name(model).items()}
    assert defaults == {
        "months_with_us": 30,
        "discount": None,
        "plan": form.EMPTY,
        "region": "north",
    }


def test_a_category_that_training_only_saw_empty_may_stay_empty() -> None:
    field = by_name(with_input("region", values=[], mode=None))["region"]
    assert field.options == (form.EMPTY,)
    assert field.optional


def test_a_number_that_training_only_saw_empty_has_no_range() -> None:
    model = with_input("discount", min=None, max=None, median=None)
    field = by_name(model)["discount"]
    assert field.default is None
    assert field.help == "Share of the price. May be left empty."


def test_empty_fields_are_sent_as_null() -> None:
    sent = form.record(
        form.fields(CHURN), {"months_with_us": 3, "plan": form.EMPTY, "region": "north"}
    )
    assert sent == {"months_with_us": 3, "discount": None, "plan": None, "region": "north"}


def test_only_fields_that_may_not_be_empty_are_asked_for() -> None:
    fields = form.fields(CHURN)
    sent = form.record(fields, {"region": "north"})
    assert form.unanswered(fields, sent) == ["Months with us (months)"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, "`inputs` must be a list"),
        ({"inputs": []}, "`inputs` must be a list"),
        ({"inputs": [{"kind": "number"}]}, "input 1 has no `name`"),
        (with_input("plan", kind="picture"), "'plan' has kind 'picture'"),
        (with_input("plan", values=None), "'plan' has no list `values`"),
        (with_input("discount", max="much"), "'discount' has `max` 'much'"),
    ],
)
def test_a_description_that_gives_no_form_is_refused_by_name(
    model: dict[str, Any], words: str
) -> None:
    with pytest.raises(form.FormError, match=words):
        form.fields(model)


def test_verdict_names_threshold_and_base_rate() -> None:
    verdict = form.verdict(CHURN, 0.4, "gone")
    assert verdict.answer == "gone"
    assert verdict.times == pytest.approx(4)
    assert verdict.sentence == (
        "“gone”, because 40.0% reaches the decision threshold of 25.0%."
        " The base rate, the share of positives in training, is 10.0%."
    )


def test_verdict_shows_enough_digits_to_tell_the_probability_from_the_threshold() -> None:
    sentence = form.verdict(CHURN, 0.24996, "stays").sentence
    assert "24.996% is below the decision threshold of 25.000%" in sentence


def test_verdict_says_why_the_threshold_lies_where_it_does() -> None:
    costs = {"contact": 5.0, "success": 50.0, "unit": "euros"}
    sentence = form.verdict(CHURN | {"costs": costs}, 0.4, "gone").sentence
    assert "a contact costs 5 euros, a success brings 50." in sentence


def test_verdict_does_without_a_base_rate() -> None:
    verdict = form.verdict(CHURN | {"training": {}}, 0.1, "stays")
    assert verdict.times is None
    assert "base rate" not in verdict.sentence


def test_provenance_tells_version_candidate_window_and_rows() -> None:
    assert form.provenance(CHURN) == [
        "Version 7",
        "RandomForest",
        "learnt from 2024-01 to 2024-06",
        "12,345 rows",
    ]


def why(**contributions: float) -> dict[str, Any]:
    """Return what /explain answers: the named fields move the score from 0.1, the others do not."""
    parts = [
        {
            "field": entry["name"],
            "value": None if entry["kind"] == "category" else 1240,
            "reference": entry.get("mode", 18),
            "contribution": contributions.get(entry["name"], 0.0),
        }
        for entry in CHURN["inputs"]
    ]
    parts.sort(key=lambda part: -abs(part["contribution"]))
    total = 0.1 + sum(contributions.values())
    return {"probability": total, "reference_probability": 0.1, "contributions": parts}


def test_an_explanation_tells_fields_with_their_values_the_largest_first() -> None:
    found = form.explanation(CHURN, why(months_with_us=0.2, plan=-0.05))
    assert [(step.label, step.change) for step in found.steps] == [
        ("months with us = 1,240", 0.2),
        ("plan = n/a", -0.05),
    ]
    assert found.steps[0].told == "months with us is 1,240, usually 18: +20.0 points"
    assert (found.base, found.probability) == (0.1, pytest.approx(0.25))
    assert found.sentence.endswith(
        "scores 10.0%. This record scores 25.0%: months with us = 1,240 adds 20.0 points,"
        " plan = n/a takes 5.0 points off."
    )


def test_what_hardly_counts_is_told_together_and_nothing_is_lost() -> None:
    small = {"discount": 0.0003, "plan": -0.0002, "region": 0.0001}
    found = form.explanation(CHURN, why(months_with_us=0.2, **small))
    assert [step.label for step in found.steps] == ["months with us = 1,240", "3 others"]
    assert sum(step.change for step in found.steps) == pytest.approx(found.probability - found.base)
    assert found.steps[1].told.count("\n") == 2
    alone = form.explanation(CHURN, why(months_with_us=0.2, plan=0.0001))
    assert [step.label for step in alone.steps] == ["months with us = 1,240", "plan = n/a"]


def test_values_of_people_are_no_markdown() -> None:
    assert form.literal("job = *a* $5 <=50K, 8.2%") == r"job = \*a\* \$5 \<=50K, 8.2%"


def test_a_record_like_the_reference_has_no_steps() -> None:
    found = form.explanation(CHURN, why())
    assert found.steps == ()
    assert found.sentence.endswith("This record scores the same: no field of it changes anything.")


def test_the_profit_is_told_with_the_costs_that_it_assumes() -> None:
    model = CHURN | {
        "costs": {"contact": 2.5, "success": 40.0, "unit": "pounds"},
        "profit": {
            **{"per_rows": 1000, "rows": 3472, "all": -780.5, "curve": []},
            "chosen": {"threshold": 0.25, "share": 0.469, "profit": 1604.8},
        },
    }
    assert form.profit_sentence(model) == (
        "Whoever scores at least 25.0% is contacted: 46.9% of the 3,472 customers of validation,"
        " which earns 1,605 pounds per 1,000 customers. To contact everybody would lose 780 pounds."
        " Assumed in the card: a contact costs 2.5 pounds, a “gone” is worth 40 pounds."
    )
