"""Records read by columns mean what they mean one by one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import RequestError
from predictor.lists import FEW, read_and_score
from predictor.model import Model
from tests.fixtures.predict import make_payload


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_payload(tmp_path_factory.mktemp("payloads"), "1"))


def one_by_one(model: Model, records: list[Any]) -> Any:
    return [model.read(record, row) for row, record in enumerate(records)]


numbers = st.one_of(
    st.none(),
    st.integers(-5, 100),
    st.integers(-(2**63), 2**64 - 1),  # what the JSON parser gives as whole numbers
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-1, -1.0, 40.0, 2**53 + 1, 3.5, "-1", "NaN", "", "40", True, [], {}]),
)
texts = st.one_of(
    st.none(), st.sampled_from(["red", "unknown", "NaN", "", "new", "a\x00b", "x" * 300, 1, False])
)


@st.composite
def lists(draw: st.DrawFn, model: Model) -> list[Any]:
    """A list of usual records in which some fields hold what they like."""
    records: list[Any] = [dict(model.card["reference"]) for _ in range(FEW + 8)]
    for _ in range(draw(st.integers(0, 6))):
        row = draw(st.integers(0, len(records) - 1))
        each = draw(st.sampled_from(model.inputs))
        if isinstance(records[row], dict):
            records[row][each.name] = draw(numbers if each.is_number else texts)
    if draw(st.booleans()):
        row = draw(st.integers(0, len(records) - 1))
        other = draw(st.sampled_from(["remove", "add", "no record"]))
        if other == "no record":
            records[row] = draw(st.sampled_from([None, 1, "x", []]))
        elif other == "remove":
            records[row].pop("age", None)
        else:
            records[row]["Age"] = 1
    return records


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_list_is_read_as_its_records_are(model: Model, data: st.DataObject) -> None:
    records = data.draw(lists(model))
    expected, fault = None, None
    try:
        expected = one_by_one(model, copy.deepcopy(records))
    except RequestError as error:
        fault = vars(error)
    if expected is None:
        with pytest.raises(RequestError) as found:
            read_and_score(model, copy.deepcopy(records))
        assert vars(found.value) == fault
        return
    read, scores = read_and_score(model, copy.deepcopy(records))
    assert read == expected
    assert [list(map(type, record.values())) for record, _ in read] == [
        list(map(type, record.values())) for record, _ in expected
    ]
    one = [model.score([record])[0] for record, _ in expected]
    assert scores == pytest.approx(one, abs=1e-6)
