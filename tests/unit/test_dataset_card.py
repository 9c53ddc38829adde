"""Cards: what they say, and how they say what is wrong with them."""

from pathlib import Path

import pytest
import yaml

from mlops.dataset.card import CARDS, CardError, load_card

CHURN = Path(__file__).parent.parent / "data" / "cards" / "churn.yaml"


def churn(tmp_path, **changes):
    """Return the path of the churn card with top-level keys changed."""
    content = {**yaml.safe_load(CHURN.read_text()), **changes}
    path = tmp_path / "churn.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


def test_the_default_card_holds_the_eleven_columns():
    card = load_card("bank_marketing")
    assert card.feature_names == [
        *("age", "job", "balance", "housing", "contact", "day", "month"),
        *("campaign", "pdays", "previous", "poutcome"),
    ]
    assert set(card.left_out) == {"duration", "marital", "education", "default", "loan"}
    assert "leakage" in card.left_out["duration"]
    assert (card.target.positive, card.target.negative) == ("yes", "no")
    assert {"day", "month"}.isdisjoint(card.drift_features)
    assert (card.time.history_until, card.time.validation_months) == ("2009-02", 1)
    assert {*card.learnt_numbers, *card.learnt_categories} == {*card.feature_names} - {
        "day",
        "month",
    }


def test_no_column_of_a_card_stands_in_the_code():
    card = load_card("bank_marketing")
    # Words of everyday English or of time are no evidence.
    names = {*card.feature_names, *card.left_out} - {"day", "month", "previous", "default"}
    quoted = [f"{quote}{name}{quote}" for name in names for quote in "\"'"]
    for path in CARDS.parent.rglob("*.py"):
        found = [text for text in quoted if text in path.read_text(encoding="utf-8")]
        assert not found, f"{path} names {found}"


def test_a_copy_with_other_columns_forgets_the_old_ones():
    card = load_card("bank_marketing")
    assert len(card.feature_names) == 11
    fewer = card.model_copy(update={"features": card.features[:2]})
    assert fewer.feature_names == ["age", "job"]
    assert type(card).model_validate(card.model_dump()) == card


def test_a_card_is_found_by_its_path():
    card = load_card(CHURN)
    assert card.numbers == ["spend", "visits"]
    assert card.categories == ["plan"]
    assert card.path == CHURN.resolve()


def test_costs_are_told_or_not(tmp_path):
    assert load_card(CHURN).costs is None
    costs = load_card(churn(tmp_path, costs=COSTS)).costs
    assert (costs.contact, costs.success, costs.unit, costs.break_even) == (5, 50, "euros", 0.1)
    assert load_card("bank_marketing").costs is not None


def test_an_unknown_card_names_those_there_are():
    with pytest.raises(
        CardError,
        match=r"no card 'bank_marketting': there are bank_marketing, corporate_churn, credit_.* in",
    ):
        load_card("bank_marketting")


COSTS = {"contact": 5, "success": 50, "unit": "euros"}
FEATURE = {"name": "spend", "kind": "number", "description": "Spent"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, r"  target: missing"),
        ({"colour": "red"}, r"  colour: unknown key"),
        (
            {"target": {"column": "left", "positive": True, "negative": "0"}},
            r"target.positive.*quo",
        ),
        ({"features": [FEATURE | {"kind": "text"}]}, r"features\[0\] \(spend\).kind: .*'text'"),
        ({"features": [FEATURE | {"minimun": 0}]}, r"features\[0\] \(spend\).minimun: unknown key"),
        ({"features": [FEATURE, FEATURE]}, r"features: 'spend' names both"),
        ({"features": [FEATURE | {"name": "period"}]}, r"\(period\): .*aliases: \[period\]"),
        ({"features": [FEATURE | {"name": "left"}]}, r"'left' is listed as a feature: leakage"),
        ({"features": [FEATURE | {"minimum": 2, "maximum": 1}]}, r"minimum 2 is above maximum 1"),
        ({"features": [FEATURE | {"kind": "category", "unit": "m"}]}, r"a category has no unit"),
        ({"left_out": {"plan": "why"}}, r"'plan' is both left out and used"),
        ({"time": {"kind": "date", "column": "day"}}, r"time: `kind: date` needs `format`"),
        ({"time": {"kind": "month_order", "column": "day"}}, r"needs `start`"),
        ({"time": {"kind": "date", "format": "%Y"}}, r"time: `kind: date` needs `column`"),
        ({"time": {"kind": "row_order"}}, r"time: `kind: row_order` needs `start` and `end`"),
        ({"time": {"kind": "row_order", "column": "day"}}, r"reads no column"),
        ({"decimal": ","}, r"',' is both `decimal` and one of `separators`"),
        ({"features": [FEATURE | {"name": "score"}]}, r"'score' is a name that every table"),
        (
            {"time": {"kind": "month_order", "column": "day", "start": "2008-1"}},
            r"time.start: found period '2008-1', expected year and month",
        ),
        (
            {
                "time": {
                    **{"kind": "month_order", "column": "d", "start": "2008-05"},
                    **{"history_until": "2008-06", "validation_months": 2},
                }
            },
            r"time: history_until 2008-06 leaves nothing to fit.*2008-07",
        ),
        ({"name": "Churn Data"}, r"name: .*found 'Churn Data'"),
        ({"separators": ["::"]}, r"separators\[0\]"),
        ({"costs": {"contact": 5, "unit": "euros"}}, r"costs.success: missing"),
        ({"costs": COSTS | {"contact": -5}}, r"costs.contact: .*greater than 0 \(found -5\)"),
        ({"costs": COSTS | {"success": 5}}, r"costs: success 5 is not above contact 5: nobody"),
        ({"costs": COSTS | {"success": float("inf")}}, r"costs.success: .*finite"),
        ({"costs": COSTS | {"contact": True}}, r"costs.contact: .*valid number"),
        ({"costs": COSTS | {"unit": ""}}, r"costs.unit: .*at least 1 item"),
        ({"costs": COSTS | {"call": 5}}, r"costs.call: unknown key"),
    ],
)
def test_a_mistake_in_a_card_names_file_and_key(tmp_path, changes, message):
    path = churn(tmp_path, **changes)
    with pytest.raises(CardError, match=message) as error:
        load_card(path)
    assert str(path) in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(CardError, match=r"3 mistake\(s\)"):
        load_card(churn(tmp_path, title=None, question=None, colour="red"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_a_card_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(CardError, match=str(path)):
        load_card(path)
