"""From the bytes of a CSV to a checked frame; never writes, never guesses, never drops a row.

Everything that a card asks of a file is checked here, before anything is stored.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mlops.dataset.card import PERIOD, TARGET, Card, Feature
from mlops.dataset.errors import DataError
from mlops.dataset.timeline import (
    TimelineError,
    periods_as_given,
    periods_by_date,
    periods_by_month_order,
    periods_by_row_order,
    refuse_outside,
)

_SEPARATORS = {";": "semicolon ;", ",": "comma ,", "\t": "tab", "|": "bar |"}


class _Table:
    """The text of a file by column, and where each row stands in it."""

    def __init__(self, columns: dict[str, list[str]], lines: list[int]) -> None:
        self.columns = columns
        self.lines = lines

    def place(self, index: int) -> str:
        """Name a row both ways people count: rows of data from 1, and the editor's line."""
        return f"row {index + 1} (line {self.lines[index]} of the file)"


def parse_csv(content: bytes, card: Card, source: str) -> pd.DataFrame:
    """Return the rows of a CSV, checked against `card`, in the file's order.

    Columns: the card's features (numbers float32 with NaN, categories str with "" for missing),
    `target` (int8, 1 = positive) and `period` (str). The index counts the rows of data from 0.

    Raises DataError with all that is wrong: encoding, separator, header, rows of another length,
    values of a wrong type or out of bounds, unknown answers, empty columns, an impossible order.
    """
    text = _decode(content, source)
    separator = _separator(text, card, source)
    header, rows, lines = _split(text, separator, source)
    names = _canonical_names(header, card, source)
    if not rows:
        raise DataError(source, ["found a header and no row of data, expected at least one row"])
    _refuse_ragged_rows(rows, lines, len(header), source)
    table = _Table(
        {
            name: [value.strip() for value in values]
            for name, values in zip(names, zip(*rows, strict=True), strict=True)
            if name not in card.left_out
        },
        lines,
    )
    problems: list[str] = []
    frame = pd.DataFrame(index=pd.RangeIndex(len(rows)))
    for feature in card.features:
        read = _numbers if feature.kind == "number" else _categories
        frame[feature.name] = read(table, card, feature, problems)
    frame[TARGET] = _targets(table, card, problems)
    periods = _periods(table, card, problems)
    if periods is not None:
        frame[PERIOD] = pd.Series(periods, dtype=object)
        _refuse_empty_columns(frame, card, problems)
    if problems:
        raise DataError(source, problems)
    return frame


def _decode(content: bytes, source: str) -> str:
    if not content.strip():
        raise DataError(source, ["found an empty file, expected a header and rows"])
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(source, ["found text in UTF-16, expected UTF-8: save it as CSV UTF-8"])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = content[error.start : error.start + 1].hex()
        raise DataError(
            source,
            [
                f"line {line}: found byte 0x{found}, which is not UTF-8 (Latin-1, from a "
                "spreadsheet?), expected text in UTF-8: save it as CSV UTF-8"
            ],
        ) from None
    if not text.strip():
        raise DataError(source, ["found no text, expected a header and rows"])
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(source, [f"line {line}: found a zero byte, expected text: is this a CSV?"])
    if text.lstrip()[:1] == "<":
        raise DataError(source, ["found a web page (it begins with <), expected a CSV"])
    return text


def _separator(text: str, card: Card, source: str) -> str:
    """Return the separator under which the header holds the most columns of the card."""
    line = text.lstrip("\r\n").splitlines()[0]
    wanted = {card.target.column, *_time_columns(card), *card.left_out}
    for feature in card.features:
        wanted |= {feature.name, *feature.aliases}

    def known(separator: str) -> int:
        return len(wanted.intersection(_clean(name) for name in line.split(separator)))

    best = max(_SEPARATORS, key=lambda separator: (known(separator), separator in card.separators))
    if best not in card.separators and known(best) > 1:
        accepted = " or ".join(_SEPARATORS[separator] for separator in card.separators)
        raise DataError(
            source,
            [
                f"line 1: found columns separated by {_SEPARATORS[best]}, expected {accepted} "
                "(`separators` in the card)"
            ],
        )
    return best if best in card.separators else card.separators[0]


def _clean(name: str) -> str:
    return name.strip().strip('"').strip()


def _split(text: str, separator: str, source: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Return header, rows and the line of each row; lines without any text are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        begins = lines[-1] + 1 if lines else 1
        raise DataError(
            source,
            [
                f"the record that begins in line {begins}: {error}; expected quotes in pairs, "
                "and a quote in a text doubled"
            ],
        ) from None
    return [name.strip() for name in rows[0]], rows[1:], lines[1:]


def _canonical_names(header: list[str], card: Card, source: str) -> list[str]:
    """Return the header with aliases replaced. Raises DataError on a wrong set of columns."""
    canonical = {alias: feature.name for feature in card.features for alias in feature.aliases}
    names = [canonical.get(name, name) for name in header]
    optional = set(card.left_out)
    required = {card.target.column, *_time_columns(card), *card.feature_names}
    if card.time.period_column is not None:
        optional.add(card.time.period_column)
        if card.time.period_column in names:
            required -= _time_columns(card) - set(card.feature_names)
            optional |= _time_columns(card)
    if not (required | optional).intersection(names):
        raise DataError(
            source,
            [
                f"line 1: found {', '.join(header[:20])}, expected a header with the columns "
                f"{', '.join(_in_order(card))}"
            ],
        )
    problems = []
    for name, times in Counter(names).items():
        if times > 1:
            also = [written for written in header if canonical.get(written, written) == name]
            problems.append(
                f"header: found column {name!r} {times} times (written {', '.join(also)}), "
                "expected it once"
            )
    missing = [name for name in _in_order(card) if name in required and name not in names]
    extra = [name for name in dict.fromkeys(names) if name not in required | optional]
    for name in missing:
        problems.append(
            f"header: column {name!r} is missing"
            + _or_aliases(card, name)
            + f"; found {', '.join(header[:20])}"
        )
    for name in extra:
        shown = repr(name) if name else "without a name (an index that was saved along?)"
        problems.append(
            f"header: found extra column {shown}, expected only columns of the card: take it "
            f"out, or name it in {card.path.name} under features or left_out"
        )
    if problems:
        raise DataError(source, problems)
    return names


def _in_order(card: Card) -> list[str]:
    return list(dict.fromkeys([*card.feature_names, *_time_columns(card), card.target.column]))


def _time_columns(card: Card) -> set[str]:
    return set() if card.time.column is None else {card.time.column}


def _or_aliases(card: Card, name: str) -> str:
    aliases = card.feature(name).aliases if name in card.feature_names else ()
    return f" (it may also be called {', '.join(aliases)})" if aliases else ""


def _refuse_ragged_rows(
    rows: Sequence[Sequence[str]], lines: Sequence[int], width: int, source: str
) -> None:
    problems = [
        f"row {number} (line {line} of the file): found {len(row)} fields, expected {width} as in "
        "the header"
        for number, (row, line) in enumerate(zip(rows, lines, strict=True), start=1)
        if len(row) != width
    ]
    if problems:
        raise DataError(source, problems)


def _numbers(
    table: _Table, card: Card, feature: Feature, problems: list[str]
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    texts = pd.Series(table.columns[feature.name], dtype=object)
    absent = texts.isin([*card.missing, *feature.missing]).to_numpy()
    if card.decimal != ".":
        # A point is then no decimal one: what it means is not guessed.
        written = texts.where(~texts.str.contains(".", regex=False), "?")
        texts = written.str.replace(card.decimal, ".", regex=False)
    values = pd.to_numeric(texts.where(~absent, None), errors="coerce").to_numpy(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        wrong = ~absent & ~np.isfinite(values.astype(np.float32))
    _report(table, feature.name, wrong, f"a {'whole ' * feature.integer}number", problems)
    with np.errstate(invalid="ignore"):
        if feature.integer:
            fraction = ~absent & ~wrong & (values != np.floor(values))
            _report(table, feature.name, fraction, "a whole number", problems)
        low = -np.inf if feature.minimum is None else feature.minimum
        high = np.inf if feature.maximum is None else feature.maximum
        outside = ~absent & ~wrong & ((values < low) | (values > high))
    _report(table, feature.name, outside, f"a number from {low:.15g} to {high:.15g}", problems)
    return np.where(absent | wrong, np.nan, values).astype(np.float32)


def _categories(table: _Table, card: Card, feature: Feature, problems: list[str]) -> pd.Series:
    texts = table.columns[feature.name]
    absent = {*card.missing, *feature.missing}
    return pd.Series(["" if text in absent else text for text in texts], dtype=object)


def _targets(
    table: _Table, card: Card, problems: list[str]
) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    target = card.target
    texts = np.array(table.columns[target.column], dtype=object)
    positive, negative = texts == target.positive, texts == target.negative
    _report(
        table,
        target.column,
        ~(positive | negative),
        f"{target.positive!r} or {target.negative!r}",
        problems,
    )
    return positive.astype(np.int8)


def _periods(table: _Table, card: Card, problems: list[str]) -> list[str] | None:
    time = card.time
    given = time.period_column is not None and time.period_column in table.columns
    column = (time.period_column if given else time.column) or card.target.column
    values = table.columns[column]
    try:
        if given:
            periods = periods_as_given(values)
        elif time.kind == "row_order":
            periods = periods_by_row_order(len(values), time.start or "", time.end or "")
        elif time.kind == "date":
            periods = periods_by_date(values, time.format or "")
        else:
            periods = periods_by_month_order(values, time.start or "", time.end)
        refuse_outside(periods, time.start, time.end)
        return periods
    except TimelineError as error:
        place = table.place(error.row - 1)
        problems.append(
            f"{place}, column {column!r}: found {error.found}, expected {error.expected}"
        )
        return None


def _refuse_empty_columns(frame: pd.DataFrame, card: Card, problems: list[str]) -> None:
    last = str(frame[PERIOD].max())
    for feature, share in zip(card.features, missing_shares(frame, card).values(), strict=True):
        excused = feature.empty_until is not None and last <= feature.empty_until
        told = any(f"column {feature.name!r}" in problem for problem in problems)
        if share == 1.0 and not excused and not told:
            until = f" in a file that goes on after {feature.empty_until}"
            problems.append(
                f"column {feature.name!r}: found 100 % missing (all {len(frame)} rows), expected "
                f"values{until if feature.empty_until else ''}"
            )


def _report(
    table: _Table,
    column: str,
    wrong: np.ndarray[tuple[int], np.dtype[np.bool_]],
    expected: str,
    problems: list[str],
) -> None:
    """Add the first wrong values of a column to `problems`, and count the others."""
    where = np.flatnonzero(wrong)
    told = 3
    for index in where[:told]:
        text = table.columns[column][index]
        found = repr(text if len(text) <= 40 else text[:40] + "…") if text else "nothing"
        problems.append(
            f"{table.place(index)}, column {column!r}: found {found}, expected {expected}"
        )
    if len(where) > told:
        problems.append(f"column {column!r}: {len(where) - told} more rows like these")


def missing_shares(frame: pd.DataFrame, card: Card) -> dict[str, float]:
    """Return the share (0..1) of missing values of each feature, in the card's order."""
    if frame.empty:
        return dict.fromkeys(card.feature_names, 0.0)
    return {
        feature.name: float(
            (
                frame[feature.name].isna()
                if feature.kind == "number"
                else frame[feature.name].eq("")
            ).mean()
        )
        for feature in card.features
    }
