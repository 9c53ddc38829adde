"""A column of a block of rows as the model takes it: `Input.read` for many rows at once.

A column becomes a table of its distinct values and each row's place in it. What a value means
(missing, unusual, not to be scored, how it stands in the log) is then found once for each distinct
value: for numbers by array operations that decide what is certain, for all else by `Input.read`
itself. So a file's rows mean exactly what the same records mean to `/predict`, at a fraction of the
time, since most columns of a million rows have few values. It never words an error: a row that is
not `good` is read again by itself (`Model.read`), which says why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from predictor.errors import RequestError
from predictor.model import FLOAT32_MAX, Input

ABSENT: Any = type("Absent", (), {})()
"""What a record has where it does not have the field at all."""

EXACT_INTEGERS = 2.0**53  # a double tells whole numbers apart up to here

_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"
_NUMBER_TEXT = re.compile(_NUMBER, re.ASCII)
_WHOLE_TEXT = re.compile(r"[+-]?\d{1,19}", re.ASCII)


@dataclass(frozen=True)
class Column:
    """A column of n rows with u distinct values."""

    codes: np.ndarray
    """n places in the table (int32 or int64)."""
    values: np.ndarray
    """u values as ONNX takes them: float32 with NaN, or str objects with ""."""
    logged: pa.Array
    """u texts: the value as JSON."""
    missing: np.ndarray
    """u booleans."""
    unusual: np.ndarray
    """u booleans: answered with a warning."""
    good: np.ndarray
    """u booleans: may be scored."""


def number_from(text: str) -> float | int | str | None:
    """Return what a cell of text means in a column of numbers: None if empty, itself if no number.

    A number is written in ASCII digits with a decimal point and may have an exponent; blanks around
    it do not count.
    """
    stripped = text.strip(" \t")
    if not stripped:
        return None
    if _WHOLE_TEXT.fullmatch(stripped):
        return int(stripped)
    if _NUMBER_TEXT.fullmatch(stripped):
        return float(stripped)
    return text


def from_texts(field: Input, cells: pa.DictionaryArray) -> Column:
    """Return a column of cells that are text, as in CSV."""
    codes = cells.indices.to_numpy()
    texts = cells.dictionary
    if not field.is_number:
        return _one_by_one(field, codes, texts.to_pylist())
    plain = pc.invert(pc.is_in(texts, pa.array(sorted(field.missing_texts), pa.string())))
    try:
        numbers = pc.cast(pc.if_else(plain, texts, None), pa.float64())
    except pa.ArrowInvalid:
        plain = pc.and_(plain, pc.match_substring_regex(texts, _NUMBER))
        numbers = pc.cast(pc.if_else(plain, texts, None), pa.float64())
    doubles = numbers.to_numpy(zero_copy_only=False)
    # What Arrow's parser takes beyond digits (nan, infinity) is left to `read`.
    certain = plain.to_numpy(zero_copy_only=False) & np.isfinite(doubles)
    return _numbers(field, codes, doubles, certain, lambda i: _cell(field, texts[i].as_py()))


def _cell(field: Input, text: str) -> Any:
    return text if text in field.missing_texts else number_from(text)


def cell_value(field: Input, text: str) -> Any:
    """Return the value that a cell of text stands for, to be read by `Input.read`."""
    return _cell(field, text) if field.is_number else text


def from_arrow(field: Input, cells: pa.Array) -> Column:
    """Return a column of typed values: numbers for a number, texts for a category."""
    if pa.types.is_null(cells.type):
        cells = cells.cast(pa.float64() if field.is_number else pa.string())
    if not pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_encode(null_encoding="encode")
    elif cells.indices.null_count:
        # A null is a value of its own, behind the others; those are not multiplied.
        values = pa.concat_arrays([cells.dictionary, pa.nulls(1, cells.dictionary.type)])
        cells = pa.DictionaryArray.from_arrays(
            cells.indices.cast(pa.int32()).fill_null(len(values) - 1), values
        )
    codes, distinct = cells.indices.to_numpy(), cells.dictionary
    if not field.is_number:
        return _one_by_one(field, codes, distinct.to_pylist())
    # Not safe: whole numbers beyond 2**53 lose digits here, and are read one by one.
    doubles = distinct.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return _numbers(
        field, codes, doubles, np.ones(len(doubles), bool), lambda i: plain(distinct[i].as_py())
    )


def plain(value: Any) -> Any:
    """Return a typed value as JSON would say it: None for NaN."""
    return None if value is None or value != value else value


def from_objects(field: Input, cells: Sequence[Any]) -> Column:
    """Return a column of whatever JSON can say, ABSENT included."""
    kinds = set(map(type, cells))
    if field.is_number and kinds <= {int, float, type(None)}:
        try:
            distinct = pa.array(cells, pa.float64()).dictionary_encode(null_encoding="encode")
        except pa.ArrowInvalid:  # a whole number beyond 2**53
            pass
        else:
            doubles = distinct.dictionary.to_numpy(zero_copy_only=False)
            certain = np.ones(len(doubles), bool)
            return _numbers(field, distinct.indices.to_numpy(), doubles, certain, None)
    elif not field.is_number and kinds <= {str, type(None)}:
        return from_arrow(field, pa.array(cells, pa.string()))
    # 1, 1.0 and true are equal keys and not the same value; lists and objects are no keys at all.
    places: dict[Any, int] = {}
    distinct_cells: list[Any] = []
    found = np.empty(len(cells), np.int64)
    for row, cell in enumerate(cells):
        key = (type(cell), cell if isinstance(cell, (str, int, float)) else None)
        place = places.setdefault(key, len(distinct_cells))
        if place == len(distinct_cells):
            distinct_cells.append(cell)
        found[row] = place
    return _one_by_one(field, found, distinct_cells)


def _numbers(
    field: Input, codes: np.ndarray, doubles: np.ndarray, certain: np.ndarray, cell: Any
) -> Column:
    """Return the column of distinct `doubles`, NaN where missing; `cell(i)` where not `certain`."""
    missing = np.isnan(doubles)
    if field.missing_numbers:
        missing |= np.isin(doubles, list(field.missing_numbers))
    whole = doubles == np.floor(doubles)
    with np.errstate(invalid="ignore"):
        fits = (np.abs(doubles) <= FLOAT32_MAX) & (whole | (not field.integer))
        certain = certain & (missing | (fits & (~whole | (np.abs(doubles) <= EXACT_INTEGERS))))
        unusual = np.zeros(len(doubles), bool)
        if field.warns and field.low is not None and field.high is not None:
            unusual = ~missing & ~((field.low <= doubles) & (doubles <= field.high))
    good = np.ones(len(doubles), bool)
    values = np.where(missing | ~certain, np.nan, doubles)
    whole &= certain & ~missing
    texts = pc.if_else(
        pa.array(whole),
        pc.cast(pa.array(np.where(whole, values, 0.0).astype(np.int64)), pa.string()),
        pc.cast(pa.array(values, from_pandas=True), pa.string()),
    )
    uncertain = np.flatnonzero(~certain)
    if len(uncertain):
        written: list[Any] = texts.to_pylist()
        for place in uncertain.tolist():
            value, good[place], unusual[place] = _read(
                field, doubles[place].item() if cell is None else cell(place)
            )
            missing[place] = value is None
            values[place] = np.nan if value is None else value
            written[place] = None if value is None else orjson.dumps(value).decode()
        texts = pa.array(written, pa.string())
    return Column(
        codes, values.astype(np.float32), pc.fill_null(texts, "null"), missing, unusual, good
    )


def _one_by_one(field: Input, codes: np.ndarray, cells: Sequence[Any]) -> Column:
    read = [_read(field, cell) for cell in cells]
    values = [value for value, _, _ in read]
    missing = np.array([value is None for value in values], bool)
    if field.is_number:
        table = np.array([np.nan if value is None else value for value in values], np.float32)
    else:
        table = np.array(["" if value is None else value for value in values], object)
    return Column(
        codes,
        table,
        pa.array([orjson.dumps(value).decode() for value in values], pa.string()),
        missing,
        np.array([unusual for _, _, unusual in read], bool),
        np.array([good for _, good, _ in read], bool),
    )


def _read(field: Input, cell: Any) -> tuple[Any, bool, bool]:
    """Return a value as `Input.read` gives it, whether it is one, and whether it is unusual."""
    if cell is ABSENT:
        return None, not field.required, False
    try:
        value = field.read(cell, 0)
    except RequestError:
        return None, False, False
    return value, True, value is not None and field.warn(value) is not None
