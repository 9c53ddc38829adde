"""Months: the arithmetic of periods, and the period of every row of a file; never reads a file.

A period is a month, written "2009-03" in code and kept as the `date` of its first day in Postgres.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

_PERIOD = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


class TimelineError(ValueError):
    """A row has no place in time; `row` is its 1-based number among the rows of data."""

    def __init__(self, row: int, found: str, expected: str) -> None:
        super().__init__(f"row {row}: found {found}, expected {expected}")
        self.row = row
        self.found = found
        self.expected = expected


def month_start(period: str) -> date:
    """Return the first day of `period`. Raises ValueError if it is not written like 2009-03."""
    match = _PERIOD.fullmatch(period)
    if match is None:
        raise ValueError(f"found period {period!r}, expected year and month, like 2009-03")
    return date(int(match[1]), int(match[2]), 1)


def period_of(day: date) -> str:
    """Return the period that `day` lies in."""
    return f"{day.year:04d}-{day.month:02d}"


def add_months(period: str, months: int) -> str:
    """Return the period `months` after `period`; before it, if negative."""
    start = month_start(period)
    total = start.year * 12 + start.month - 1 + months
    return f"{total // 12:04d}-{total % 12 + 1:02d}"


def months_between(start: str, end: str) -> int:
    """Return how many months `end` lies after `start`: 0 for the same period."""
    first, last = month_start(start), month_start(end)
    return (last.year - first.year) * 12 + last.month - first.month


def period_range(start: str, end: str) -> list[str]:
    """Return every period from `start` to `end`, both included; empty if `end` is earlier."""
    return [add_months(start, months) for months in range(months_between(start, end) + 1)]


def periods_by_month_order(months: Sequence[str], start: str, end: str | None = None) -> list[str]:
    """Return the period of each row of a file in time order that tells months but no years.

    `months` are names as "may"; the first row lies in `start`, and a month smaller than the one
    before starts a new year. `end` is the latest period that the source can hold: a file that is
    not in time order runs past it, and is found out.

    Raises TimelineError at the first row that is no month, does not begin at `start`, or lies
    after `end`.
    """
    begin = month_start(start)
    number_of = {name: number for number, name in enumerate(MONTHS, start=1)}
    year, previous = begin.year, begin.month
    periods: list[str] = []
    for row, name in enumerate(months, start=1):
        month = number_of.get(name.lower())
        if month is None:
            raise TimelineError(row, repr(name), f"a month: {', '.join(MONTHS)}")
        if row == 1 and month != begin.month:
            raise TimelineError(
                row,
                repr(name),
                f"{MONTHS[begin.month - 1]!r}: the file's first rows are of {start}, and without "
                "these the order of the rows does not tell their year",
            )
        if month < previous:
            year += 1
        previous = month
        period = f"{year:04d}-{month:02d}"
        if end is not None and period > end:
            raise TimelineError(
                row,
                f"{name!r} after a later month, which counts as {period}",
                f"rows in order of time, none after {end} (`time.end` in the card)",
            )
        periods.append(period)
    return periods


def periods_by_date(values: Sequence[str], date_format: str) -> list[str]:
    """Return the period of each date, read by `date_format` (as in `datetime.strptime`).

    Raises TimelineError at the first value that is not such a date.
    """
    known: dict[str, str] = {}
    for row, value in enumerate(values, start=1):
        if value in known:
            continue
        try:
            known[value] = period_of(datetime.strptime(value, date_format))
        except ValueError:
            raise TimelineError(row, repr(value), f"a date written as {date_format}") from None
    return [known[value] for value in values]


def periods_by_row_order(rows: int, start: str, end: str) -> list[str]:
    """Return the period of each of `rows` rows, dealt evenly, in order, from `start` to `end`.

    What a file without any time allows. Raises TimelineError if a month would stay without a row.
    """
    months = period_range(start, end)
    if rows < len(months):
        raise TimelineError(
            max(rows, 1),
            f"{rows} rows in all",
            f"at least one for each of the {len(months)} months from {start} to {end} "
            "(`time` in the card)",
        )
    return [months[row * len(months) // rows] for row in range(rows)]


def refuse_outside(periods: Sequence[str], start: str | None, end: str | None) -> None:
    """Raise TimelineError at the first period before `start` or after `end`; None is no bound."""
    wrong = {
        period
        for period in set(periods)
        if (start is not None and period < start) or (end is not None and period > end)
    }
    if wrong:
        row = next(row for row, period in enumerate(periods, start=1) if period in wrong)
        bounds = f"{start or 'any'} to {end or 'any'} (`time` in the card)"
        raise TimelineError(row, f"a row of {periods[row - 1]}", f"periods from {bounds}")


def periods_as_given(values: Sequence[str]) -> list[str]:
    """Return `values` after a check that each is a period. Raises TimelineError if not."""
    known: set[str] = set()
    for row, value in enumerate(values, start=1):
        if value not in known:
            if _PERIOD.fullmatch(value) is None:
                raise TimelineError(row, repr(value), "year and month, like 2009-03")
            known.add(value)
    return list(values)
