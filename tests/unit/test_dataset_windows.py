"""Windows are cut by time; figures of a frame are counted right."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops.dataset.card import load_card
from mlops.dataset.errors import DataError
from mlops.dataset.parsing import parse_csv
from mlops.dataset.summary import summary, summary_text
from mlops.dataset.windows import split_window, validation_periods
from tests.unit.test_dataset_parsing import text


def rows(*months: tuple[str, int, int]) -> pd.DataFrame:
    """Return rows of (period, negatives, positives)."""
    frames = [
        pd.DataFrame({"period": period, "target": [0] * negatives + [1] * positives})
        for period, negatives, positives in months
    ]
    return pd.concat(frames, ignore_index=True)


def test_the_latest_months_are_validation():
    window = split_window(rows(("2008-10", 3, 2), ("2008-12", 2, 2), ("2009-01", 1, 1)), 2)
    assert (len(window.earlier), len(window.validation)) == (5, 6)
    assert (window.start, window.end) == ("2008-10", "2009-01")


@given(
    st.lists(
        st.tuples(st.dates().map(lambda d: f"{d.year:04d}-{d.month:02d}"), st.integers(1, 3)),
        min_size=3,
        unique_by=lambda month: month[0],
    ),
    st.integers(1, 2),
    st.randoms(),
)
def test_nothing_that_is_fitted_is_later_than_what_is_validated(months, validation, random):
    frame = rows(*((period, n, n) for period, n in months))
    order = list(range(len(frame)))
    random.shuffle(order)
    window = split_window(frame.iloc[order], validation)
    assert window.earlier["period"].max() < window.validation["period"].min()
    assert len(window.earlier) + len(window.validation) == len(frame)


@pytest.mark.parametrize(
    ("months", "message"),
    [
        ([("2009-01", 5, 5), ("2009-02", 5, 5)], r"rows of 2 period\(s\) \(2009-01, 2009-02\)"),
        (
            [("2008-12", 5, 0), ("2009-01", 5, 5), ("2009-02", 5, 5)],
            "earlier part, 2008-12 to 2008-12: found 0 positives in 5 rows, expected both",
        ),
        (
            [("2008-12", 5, 5), ("2009-01", 0, 4), ("2009-02", 0, 3)],
            "validation part, 2009-01 to 2009-02: found 7 positives in 7 rows, expected both",
        ),
    ],
)
def test_a_window_that_cannot_be_learnt_from_is_refused(months, message):
    with pytest.raises(DataError, match=message):
        split_window(rows(*months), 2)


def test_the_summary_counts_months_answers_and_missing_values():
    card = load_card("bank_marketing")
    figures = summary(parse_csv(text().encode(), card, "bank.csv"), card)
    assert (figures["rows"], figures["positives"], figures["positive_rate"]) == (4, 1, 0.25)
    assert figures["periods"][1] == {
        **{"period": "2008-11", "rows": 1, "positives": 1, "positive_rate": 1.0}
    }
    assert figures["missing_shares"]["pdays"] == 0.75
    shown = summary_text(figures).splitlines()
    assert shown[0] == "bank_marketing: 4 rows, 1 positive (25.0%), 3 months"
    assert "2008-05          2      0.0%" in shown
    assert "pdays       75.0%" in shown


def test_the_months_of_validation_are_those_that_a_split_makes_them():
    frame = rows(("2008-10", 30, 2), ("2008-11", 9, 2), ("2008-12", 9, 2), ("2009-01", 5, 2))
    assert validation_periods(frame, 1) == ["2009-01"]
    assert validation_periods(frame, 1, 10) == ["2008-12", "2009-01"]
    assert validation_periods(frame, 1, 10_000) == ["2008-11", "2008-12", "2009-01"]
    assert validation_periods(frame, 9) == ["2008-10", "2008-11", "2008-12", "2009-01"]
    for fewest in (1, 10, 10_000):
        cut = split_window(frame, 1, fewest).validation
        assert sorted(set(cut["period"])) == validation_periods(frame, 1, fewest)
