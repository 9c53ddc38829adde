"""Months: arithmetic, and the period of each row."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops.dataset.timeline import (
    MONTHS,
    TimelineError,
    add_months,
    month_start,
    months_between,
    period_of,
    period_range,
    periods_by_date,
    periods_by_month_order,
    periods_by_row_order,
)

periods = st.dates(date(1000, 1, 1), date(3000, 1, 1)).map(period_of)


def test_a_year_has_twelve_months():
    assert add_months("2008-11", 3) == "2009-02"
    assert add_months("2009-02", -3) == "2008-11"
    assert add_months("2009-12", 12) == "2010-12"
    assert month_start("2009-02") == date(2009, 2, 1)
    assert period_of(date(2009, 2, 28)) == "2009-02"
    assert period_range("2008-11", "2009-02") == ["2008-11", "2008-12", "2009-01", "2009-02"]
    assert period_range("2009-02", "2009-01") == []


@given(periods, st.integers(-1000, 1000))
def test_months_added_are_the_months_between(period, months):
    assert months_between(period, add_months(period, months)) == months
    assert add_months(add_months(period, months), -months) == period


@given(st.lists(periods, min_size=2, max_size=2))
def test_periods_sort_as_their_dates(pair):
    assert sorted(pair) == sorted(pair, key=month_start)


@pytest.mark.parametrize("wrong", ["2009-13", "2009-00", "2009-3", "09-03", "2009-03-01", ""])
def test_what_is_no_period_is_refused(wrong):
    with pytest.raises(ValueError, match="like 2009-03"):
        month_start(wrong)


def test_a_smaller_month_starts_a_new_year_and_months_may_be_left_out():
    names = ["oct", "oct", "dec", "jan", "nov", "feb"]
    assert periods_by_month_order(names, "2008-10") == [
        "2008-10",
        "2008-10",
        "2008-12",
        "2009-01",
        "2009-11",
        "2010-02",
    ]


def test_rows_that_are_not_in_order_of_time_are_found_out():
    with pytest.raises(TimelineError, match=r"row 4: found 'may' .*2010-05, expected .*2009-12"):
        periods_by_month_order(["jun", "may", "jun", "may"], "2008-06", "2009-12")


def test_a_file_without_the_first_months_does_not_tell_its_years():
    with pytest.raises(TimelineError, match=r"row 1: found 'mar', expected 'may'.*year"):
        periods_by_month_order(["mar"], "2008-05")


def test_a_word_that_is_no_month_is_named():
    with pytest.raises(TimelineError, match=f"row 2: found 'mai', expected .*{MONTHS[4]}"):
        periods_by_month_order(["may", "mai"], "2008-05")


def test_dates_are_read_by_their_format():
    assert periods_by_date(["31.12.2020", "01.01.2021"], "%d.%m.%Y") == ["2020-12", "2021-01"]
    with pytest.raises(TimelineError, match=r"row 2: found '12/31/20'.*%d\.%m\.%Y"):
        periods_by_date(["31.12.2020", "12/31/20"], "%d.%m.%Y")


@given(st.integers(1, 500), st.integers(0, 30))
def test_rows_without_any_time_are_dealt_evenly_in_their_order(rows: int, months: int) -> None:
    end = add_months("2023-11", months)
    if rows <= months:
        with pytest.raises(TimelineError, match=f"{rows} rows in all, expected at least one"):
            periods_by_row_order(rows, "2023-11", end)
        return
    periods = periods_by_row_order(rows, "2023-11", end)
    assert periods == sorted(periods)
    held = [periods.count(period) for period in period_range("2023-11", end)]
    assert sum(held) == rows
    assert max(held) - min(held) <= 1
