"""Files of rows, read and written in blocks: CSV, NDJSON and Parquet.

A table reads its file one block after the other, so that a block is all that is ever in memory. A
block can be decoded and written by any thread; `Table.emit` puts the written blocks together in
their order. What the caller sent besides the model's fields passes through: a row of text is
written as it came, with what was found added in front and behind, never parsed and printed anew.

Nothing here knows what a value means (`columns`) or scores it (`batch`).
"""

from __future__ import annotations

import base64
import csv
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from predictor import columns
from predictor.columns import ABSENT, Column
from predictor.errors import RequestError, shown
from predictor.model import Input, Model

# Blocks four times as large take no less time, and 90 MB more.
BLOCK_BYTES = 256 * 1024
BLOCK_ROWS = 4 * 1024
MAX_ROW_BYTES = 1024 * 1024
BATCH_BYTES = 2 * 1024 * 1024  # of a block of Parquet, as it is held
# Row groups of the answer: each costs the writer some kB until the end of the file.
GROUP_ROWS = 128 * 1024
GROUP_BYTES = 32 * 1024 * 1024
GROUP_SECONDS = 10.0  # a slow model's rows are sent before their reader gives up

ADDED_FIRST = "row"
ADDED_LAST = ("probability", "decision", "warnings")
ADDED = (ADDED_FIRST, *ADDED_LAST)

CSV, NDJSON, PARQUET = "text/csv", "application/x-ndjson", "application/vnd.apache.parquet"
SUFFIXES = {CSV: ".csv", NDJSON: ".ndjson", PARQUET: ".parquet"}

_BOM = b"\xef\xbb\xbf"
_QUOTE, _LINE_FEED, _RETURN = ord('"'), ord("\n"), ord("\r")
_SEPARATORS = (",", ";", "\t")


class BrokenFile(Exception):
    """A file that cannot be read on: what was scored before stands, and no summary follows."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True)
class Fault:
    """A row that is not scored, as it is reported."""

    line: int
    field: str | None
    code: str
    message: str


@dataclass
class Scored:
    """What was found about the `kept` rows of a block, in their order."""

    kept: np.ndarray
    """Places in the block of the rows that were scored."""
    probabilities: pa.Array
    decisions: np.ndarray
    """0: negative, 1: positive."""
    warnings: np.ndarray


@dataclass
class Block:
    """Rows that stand together in a file and can be told apart; `faults` are those that cannot."""

    lines: np.ndarray
    """Where each row begins in the file, as a person counts, from 1."""
    numbers: np.ndarray
    """Each row's place among the rows of data, from 0."""
    rows: int
    """Of data, `faults` among them."""
    faults: list[Fault] = field(default_factory=list)

    def columns(self, inputs: Sequence[Input]) -> list[Column]:
        """Return the model's columns."""
        raise NotImplementedError

    def record(self, place: int) -> Any:
        """Return a row as `Model.read` takes it."""
        raise NotImplementedError

    def write(self, scored: Scored) -> Any:
        """Return what `Table.emit` takes."""
        raise NotImplementedError


class Table:
    """A file of rows, one of which is read at a time."""

    content_type: str

    def __init__(self, model: Model) -> None:
        self.model = model

    def start(self) -> bytes:
        """Return how the scored file begins."""
        return b""

    def blocks(self) -> Iterator[Block]:
        """Yield the file's rows; raises BrokenFile."""
        raise NotImplementedError

    def emit(self, written: Any) -> bytes:
        """Return the bytes of a written block; blocks must come in their order."""
        raise NotImplementedError

    def end(self) -> bytes:
        """Return how the scored file ends."""
        return b""

    def close(self) -> None:
        """Close the file."""


def open_table(path: Path, content_type: str, model: Model, max_bytes: int) -> Table:
    """Return the file as a table; raises RequestError if its columns are not what is needed."""
    if content_type == PARQUET:
        return _ParquetTable(path, model, max_bytes)
    return _CsvTable(path, model) if content_type == CSV else _JsonTable(path, model)


def _check_columns(names: Sequence[str], model: Model) -> None:
    where = f"its columns are {', '.join(map(shown, names[:50]))}"
    for name in ADDED:
        if name in names:
            raise RequestError(
                "reserved_field",
                f"the file has a column {name}, which the answer adds: rename it or leave it out",
                field=name,
            )
    absent = [each.name for each in model.inputs if each.required and each.name not in names]
    if absent:
        raise RequestError(
            "missing_field",
            f"the file has no column {', '.join(absent)},"
            f" which {model.card['model']} needs; {where}",
            field=absent[0],
        )
    for each in model.inputs:
        if list(names).count(each.name) > 1:
            raise RequestError(
                "wrong_header",
                f"the file has the column {each.name} twice; {where}",
                field=each.name,
            )


# Text


@dataclass
class _Lines:
    """Whole rows of text in `data`: row i is data[starts[i]:ends[i]], without its line break."""

    data: bytes
    starts: np.ndarray
    ends: np.ndarray
    lines: np.ndarray
    marks: np.ndarray | None
    """Places of separators outside of quotes (CSV)."""
    quoted: bool


def _split(file: BinaryIO, line: int, separator: str | None) -> Iterator[_Lines]:
    """Yield the rows of a file from where it stands, in line `line`; `separator` is that of CSV.

    A quote is one only where a field of CSV begins; until it ends, line breaks do not count.
    """
    rest = b""
    more = True
    whole = False  # whether what is left may hold a whole row
    while more or rest:
        data = rest
        if more and not (whole and len(rest) >= BLOCK_BYTES):
            chunk = file.read(BLOCK_BYTES)
            more = bool(chunk)
            data += chunk
        if not more and data and not data.endswith(b"\n"):
            data += b"\n"
        if not data:
            return
        array = np.frombuffer(data, np.uint8)
        breaks = np.flatnonzero(array == _LINE_FEED)
        marks = None
        quotes = np.empty(0, np.int64)
        if separator is not None:
            mark = ord(separator)
            marks = np.flatnonzero(array == mark)
            if _QUOTE in data:
                quotes = _quotes(data, array, mark)
                marks = marks[np.searchsorted(quotes, marks) % 2 == 0]
        ends = breaks[np.searchsorted(quotes, breaks) % 2 == 0] if len(quotes) else breaks
        if not len(ends):
            if not more or len(data) > MAX_ROW_BYTES:
                raise _endless(line, separator, bool(len(quotes)), more)
            rest, whole = data, False
            continue
        ends = ends[:BLOCK_ROWS]
        starts = np.empty_like(ends)
        starts[0] = 0
        starts[1:] = ends[:-1] + 1
        lines = line + np.searchsorted(breaks, starts)
        if (ends - starts).max() > MAX_ROW_BYTES:
            place = int((ends - starts).argmax())
            raise _endless(int(lines[place]), separator, bool(len(quotes)), True)
        used = int(ends[-1]) + 1
        line += int(np.searchsorted(breaks, used))
        rest, whole = data[used:], True
        # A row of Windows ends before the carriage return.
        ends = ends - ((ends > starts) & (array[ends - 1] == _RETURN))
        yield _Lines(data[:used], starts, ends, lines, marks, bool(len(quotes)))


def _endless(line: int, separator: str | None, quoted: bool, more: bool) -> BrokenFile:
    hint = ": a quote opens there and is not closed" if separator and quoted else ""
    if not more:
        return BrokenFile("wrong_row", f"the row from line {line} on does not end{hint}")
    return BrokenFile(
        "too_long", f"the row from line {line} on is over {MAX_ROW_BYTES >> 20} MB{hint}"
    )


def _quotes(data: bytes, array: np.ndarray, mark: int) -> np.ndarray:
    """Return the places of quotes that open and close, in turn (doubled ones may stand in it)."""
    quotes = np.flatnonzero(array == _QUOTE)
    opens, closes = quotes[0::2], quotes[1::2]
    before = array[opens - 1]
    before[opens == 0] = _LINE_FEED
    starts = (before == mark) | (before == _LINE_FEED)
    starts[1:] |= opens[1:] == closes[: len(opens) - 1] + 1  # the second half of a doubled one
    after = array[np.minimum(closes + 1, len(array) - 1)]
    stops = (after == mark) | (after == _LINE_FEED) | (after == _RETURN) | (after == _QUOTE)
    stops |= closes + 1 == len(array)
    if starts.all() and stops.all():
        return quotes
    # Some stand in the middle of a field, and mean themselves: one by one.
    previous = array[quotes - 1]
    previous[quotes == 0] = _LINE_FEED
    found: list[int] = []
    position = 0
    for place in quotes[(previous == mark) | (previous == _LINE_FEED)].tolist():
        if place < position:
            continue
        close = data.find(b'"', place + 1)
        while close >= 0 and data[close + 1 : close + 2] == b'"':
            close = data.find(b'"', close + 2)
        found.append(place)
        if close < 0:
            break
        found.append(close)
        position = close + 1
    return np.array(found, np.int64)


def _strings(data: bytes, starts: np.ndarray, ends: np.ndarray) -> pa.Array:
    """Return data[start:end] of each row as an Arrow array."""
    if not len(starts):
        return pa.array([], pa.string())
    offsets = np.empty(2 * len(starts) + 1, np.int32)
    offsets[0:-1:2], offsets[1::2], offsets[-1] = starts, ends, ends[-1]
    # Rows and what stands between them, in turn: so both are slices of one buffer.
    both = pa.Array.from_buffers(
        pa.string(), 2 * len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    return both.take(pa.array(np.arange(0, 2 * len(starts), 2)))


def joined(texts: pa.Array) -> bytes:
    """Return an array of texts as one, made without a copy of each."""
    if isinstance(texts, pa.ChunkedArray):
        return b"".join(map(joined, texts.chunks))
    if not len(texts):
        return b""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return bytes(data.slice(int(ends[0]), int(ends[-1] - ends[0])))


def texts_of(numbers: Any) -> pa.Array:
    """Return numbers as they are written."""
    return pc.cast(pa.array(numbers) if isinstance(numbers, np.ndarray) else numbers, pa.string())


class _TextTable(Table):
    def __init__(self, path: Path, model: Model) -> None:
        super().__init__(model)
        self._file: BinaryIO = path.open("rb")
        self._bom = self._file.read(3) == _BOM
        if not self._bom:
            self._file.seek(0)

    def emit(self, written: bytes) -> bytes:
        return written

    def close(self) -> None:
        self._file.close()


class _CsvTable(_TextTable):
    content_type = CSV

    def __init__(self, path: Path, model: Model) -> None:
        super().__init__(path, model)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        here = self._file.tell()
        head = self._file.read(MAX_ROW_BYTES)
        first = head.split(b"\n", 1)[0].removesuffix(b"\r")
        if b"\r" in first and b'"' not in first:
            raise RequestError(
                "wrong_header", "the lines end with CR alone, expected LF or CR LF (line 1)"
            )
        names: list[str] = []
        best = -1
        for separator in _SEPARATORS:
            reader = csv.reader(io.StringIO(head.decode(errors="replace")), delimiter=separator)
            try:
                found = [name.strip() for name in next(reader)]
            except (csv.Error, StopIteration):
                continue
            matches = len(self.model.names.intersection(found))
            if matches > best:
                best, names, self.separator = matches, found, separator
        if not names:
            raise RequestError("empty", "the file is empty, expected a header and rows")
        self._file.seek(here)
        header = next(_split(self._file, 1, self.separator))
        start, end = int(header.starts[0]), int(header.ends[0])
        self._header = header.data[start:end]
        after = int(header.starts[1]) if len(header.starts) > 1 else len(header.data)
        self._line = 1 + header.data[:after].count(b"\n")
        self._end = header.data[end:after] or b"\n"
        self._file.seek(here + after)
        _check_columns(names, self.model)
        self.width = len(names)
        self.places = {each.name: names.index(each.name) for each in self.model.inputs
                       if each.name in names}  # fmt: skip
        kinds = pa.dictionary(pa.int32(), pa.string())
        wanted = [f"{place}" for place in self.places.values()]
        self.conversion = pa.csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, kinds),
            strings_can_be_null=False,
            check_utf8=False,  # the whole file was checked when it came
        )
        plain = self._end.decode()
        tails = [
            f"{self.separator}{self._cell(decision)}{self.separator}{warnings}{plain}"
            for decision in self.model.decisions
            for warnings in range(len(self.model.inputs) + 1)
        ]
        self.tails = pa.array(tails, pa.string())

    def _cell(self, text: str) -> str:
        if any(each in text for each in (self.separator, '"', "\n", "\r")):
            doubled = text.replace('"', '""')
            return f'"{doubled}"'
        return text

    def start(self) -> bytes:
        mark = self.separator.encode()
        added = mark.join([b"", *(name.encode() for name in ADDED_LAST)])
        first = ADDED_FIRST.encode() + mark
        return (_BOM if self._bom else b"") + first + self._header + added + self._end

    def blocks(self) -> Iterator[Block]:
        first = 0
        for found in _split(self._file, self._line, self.separator):
            block = _CsvBlock(self, found, first)
            first += block.rows
            yield block


class _CsvBlock(Block):
    def __init__(self, table: _CsvTable, found: _Lines, first: int) -> None:
        assert found.marks is not None
        self.table = table
        # Lines without anything are no rows.
        there = found.ends > found.starts
        starts, ends, lines = found.starts[there], found.ends[there], found.lines[there]
        numbers = first + np.arange(len(starts))
        cells = 1 + np.searchsorted(found.marks, ends) - np.searchsorted(found.marks, starts)
        whole = cells == table.width
        returned = np.zeros(len(starts), bool)
        if found.data.count(b"\r") != int((found.ends != _line_feeds(found)).sum()):
            returned = _with_returns(found, starts, ends)
        good = whole & ~returned
        super().__init__(lines[good], numbers[good], len(starts))
        for place in np.flatnonzero(~good).tolist():
            reason = (
                "has a carriage return between its cells"
                if whole[place]
                else f"has {cells[place]} cells, expected {table.width} as in the header"
            )
            line = int(lines[place])
            self.faults.append(Fault(line, None, "wrong_row", f"line {line} {reason}"))
        self._data, self._starts, self._ends = found.data, starts[good], ends[good]
        self._quoted = found.quoted
        self._whole = bool(good.all() and there.all())
        self._cells: pa.Table | None = None

    def columns(self, inputs: Sequence[Input]) -> list[Column]:
        if not len(self.lines):
            empty = pa.array([], pa.string()).dictionary_encode()
            return [columns.from_texts(each, empty) for each in inputs]
        data = self._data
        if not self._whole:
            rows = _strings(data, self._starts, self._ends)
            data = joined(pc.binary_join_element_wise(rows, "\n", ""))
        cells = pa.csv.read_csv(
            pa.py_buffer(data),
            read_options=pa.csv.ReadOptions(
                use_threads=False,
                block_size=max(len(data) + 1, BLOCK_BYTES),
                column_names=[f"{place}" for place in range(self.table.width)],
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=self.table.separator, newlines_in_values=self._quoted
            ),
            convert_options=self.table.conversion,
        )
        if cells.num_rows != len(self.lines):
            raise BrokenFile(
                "wrong_row",
                f"the rows from line {self.lines[0]} to {self.lines[-1]} cannot be told apart:"
                f" {len(self.lines)} or {cells.num_rows}",
            )
        self._cells = cells
        absent = pa.nulls(cells.num_rows)
        return [
            columns.from_texts(each, _one(cells.column(f"{self.table.places[each.name]}")))
            if each.name in self.table.places
            else columns.from_arrow(each, absent)
            for each in inputs
        ]

    def record(self, place: int) -> Any:
        assert self._cells is not None
        return {
            each.name: columns.cell_value(
                each, self._cells.column(f"{self.table.places[each.name]}")[place].as_py()
            )
            for each in self.table.model.inputs
            if each.name in self.table.places
        }

    def write(self, scored: Scored) -> bytes:
        kept = scored.kept
        mark = self.table.separator
        tails = scored.decisions * (len(self.table.model.inputs) + 1) + scored.warnings
        return joined(
            pc.binary_join_element_wise(
                texts_of(self.lines[kept]),
                mark,
                _strings(self._data, self._starts[kept], self._ends[kept]),
                mark,
                texts_of(scored.probabilities),
                self.table.tails.take(pa.array(tails)),
                "",
            )
        )


def _one(column: pa.ChunkedArray) -> pa.DictionaryArray:
    return (
        column.chunk(0) if column.num_chunks == 1 else column.unify_dictionaries().combine_chunks()
    )


def _line_feeds(found: _Lines) -> np.ndarray:
    """Return where the line break of each row stands."""
    feeds = np.empty_like(found.ends)
    feeds[:-1] = found.starts[1:] - 1
    feeds[-1] = len(found.data) - 1
    return feeds


def _with_returns(found: _Lines, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return which rows have a carriage return outside of quotes, where others end a row."""
    array = np.frombuffer(found.data, np.uint8)
    returns = np.flatnonzero(array == _RETURN)
    if found.quoted:
        mark = array[found.marks[0]] if found.marks is not None and len(found.marks) else 0
        quotes = _quotes(found.data, array, int(mark))
        returns = returns[np.searchsorted(quotes, returns) % 2 == 0]
    return np.searchsorted(returns, ends) > np.searchsorted(returns, starts)


class _JsonTable(_TextTable):
    content_type = NDJSON

    def __init__(self, path: Path, model: Model) -> None:
        super().__init__(path, model)
        if not self._file.read(1):
            self.close()
            raise RequestError("empty", "the file is empty, expected a record in each line")
        self._file.seek(3 if self._bom else 0)
        tails = [
            f',"decision":{orjson.dumps(decision).decode()},"warnings":{warnings}}}\n'
            for decision in model.decisions
            for warnings in range(len(model.inputs) + 1)
        ]
        self.tails = pa.array(tails, pa.string())

    def start(self) -> bytes:
        return _BOM if self._bom else b""

    def blocks(self) -> Iterator[Block]:
        first = 0
        for found in _split(self._file, 1, None):
            block = _JsonBlock(self, found, first)
            first += block.rows
            yield block


class _JsonBlock(Block):
    def __init__(self, table: _JsonTable, found: _Lines, first: int) -> None:
        self.table = table
        bounds = zip(found.starts.tolist(), found.ends.tolist(), strict=True)
        texts = [found.data[start:end].strip() for start, end in bounds]
        there = [place for place, text in enumerate(texts) if text]
        # Not parsed yet: that is for the thread that takes the block.
        self._texts = [texts[place] for place in there]
        super().__init__(found.lines[there], first + np.arange(len(there)), len(there))

    def columns(self, inputs: Sequence[Input]) -> list[Column]:
        records: list[Any] = []
        try:
            records = list(map(orjson.loads, self._texts))
        except orjson.JSONDecodeError:
            records = [_parsed(text) for text in self._texts]
        if set(map(type, records)) - {dict} or not all(map(_ADDED.isdisjoint, records)):
            good = [place for place, record in enumerate(records) if self._stands(place, record)]
            records = [records[place] for place in good]
            self._texts = [self._texts[place] for place in good]
            self.lines, self.numbers = self.lines[good], self.numbers[good]
        self._records = records
        names = [each.name for each in inputs]
        try:
            # Of one name it would return the value itself.
            found = list(zip(*map(itemgetter(*names, names[0]), records), strict=True))[:-1]
        except KeyError:  # a field is absent
            found = []
        if not found:
            found = [tuple(record.get(name, ABSENT) for record in records) for name in names]
        return [columns.from_objects(*pair) for pair in zip(inputs, found, strict=True)]

    def _stands(self, place: int, record: Any) -> bool:
        """Return whether a record can be read; else say in `faults` why not."""
        line = int(self.lines[place])
        if isinstance(record, orjson.JSONDecodeError):
            fault = Fault(line, None, "wrong_json", f"line {line} is no JSON: {record}")
        elif not isinstance(record, dict):
            message = f"line {line} is {shown(record)}, expected an object of fields and values"
            fault = Fault(line, None, "wrong_type", message)
        elif name := _reserved(record):
            message = f"line {line} has a field {name}, which the answer adds: rename it"
            fault = Fault(line, name, "reserved_field", message)
        else:
            return True
        self.faults.append(fault)
        return False

    def record(self, place: int) -> Any:
        names = self.table.model.names
        return {key: value for key, value in self._records[place].items() if key in names}

    def write(self, scored: Scored) -> bytes:
        kept = scored.kept
        # What stands between the braces, and a comma if there is anything.
        inner = [self._texts[place][1:-1].strip() for place in kept.tolist()]
        bodies = pa.array([b"," + text if text else b"" for text in inner], pa.binary())
        tails = scored.decisions * (len(self.table.model.inputs) + 1) + scored.warnings
        return joined(
            pc.binary_join_element_wise(
                '{"row":',
                texts_of(self.lines[kept]),
                bodies.view(pa.string()),
                ',"probability":',
                texts_of(scored.probabilities),
                self.table.tails.take(pa.array(tails)),
                "",
            )
        )


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as fault:
        return fault


_ADDED = frozenset(ADDED)


def _reserved(record: Any) -> str | None:
    if isinstance(record, dict) and not _ADDED.isdisjoint(record):
        return next(name for name in ADDED if name in record)
    return None


# Parquet


class _ParquetTable(Table):
    """Parquet, whose texts stay what they mostly are in the file: places in a table of values.

    A value that the file holds once may stand in millions of rows: what is held in memory, and
    written, is one of it. So a small file cannot become a large block.
    """

    content_type = PARQUET

    def __init__(self, path: Path, model: Model, max_bytes: int) -> None:
        super().__init__(model)
        self.max_bytes = max_bytes
        try:
            # Not pre-buffered: a row group may be as large as the file.
            self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=64 * 1024)
            self.schema: pa.Schema = self._file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise RequestError("wrong_parquet", f"the file is no Parquet: {fault}") from fault
        try:
            self._check()
            metadata = self._file.metadata
        finally:
            self._file.close()
        self._file = pq.ParquetFile(
            path,
            metadata=metadata,
            pre_buffer=False,
            buffer_size=64 * 1024,
            read_dictionary=[
                leaf.path
                for leaf in map(self._file.schema.column, range(len(self.schema)))
                if _is_text(leaf)
            ],
        )
        self._sink = io.BytesIO()
        self.scored = _with_added(self._file.schema_arrow)
        # No dictionary is given up for its size: the texts would then be written one by one.
        self._writer = pq.ParquetWriter(
            self._sink, self.scored, store_schema=False, dictionary_pagesize_limit=(1 << 31) - 1
        )
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._since = time.monotonic()

    def _check(self) -> None:
        names, leaves = self.schema.names, self._file.schema
        _check_columns(names, self.model)
        for place, name in enumerate(names):
            if name in names[:place]:
                raise RequestError(
                    "wrong_header", f"the file has the column {shown(name)} twice", field=name
                )
            if (
                pa.types.is_nested(self.schema.field(name).type)
                or leaves.column(place).path != name
            ):
                raise RequestError(
                    "wrong_type",
                    f"column {name} holds {self.schema.field(name).type}, expected one value a row:"
                    " leave it out, or write it as text",
                    field=name,
                )
        for each in self.model.inputs:
            if each.name not in self.schema.names:
                continue
            kind = self.schema.field(each.name).type
            if not _fits(each, kind):
                raise RequestError(
                    "wrong_type",
                    f"column {each.name} holds {kind},"
                    f" expected {'numbers' if each.is_number else 'text'}",
                    field=each.name,
                )
        metadata = self._file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > self.max_bytes:
            raise too_large(self.max_bytes)
        each_row = 0
        for place, name in enumerate(names):
            leaf = leaves.column(place)
            chunks = [group.column(place) for group in groups]
            if leaf.length > MAX_ROW_BYTES:
                raise RequestError(
                    "too_long",
                    f"column {name} holds {leaf.length} bytes a row, at most"
                    f" {MAX_ROW_BYTES >> 20} MB are read",
                    field=name,
                )
            if any("DELTA_BYTE_ARRAY" in chunk.encodings for chunk in chunks):
                raise RequestError(
                    "wrong_parquet",
                    f"column {name} is encoded as DELTA_BYTE_ARRAY, which is not read here:"
                    " write it with another encoding (a dictionary, or PLAIN)",
                    field=name,
                )
            # A number as it is held, a text with its place and its share of the values.
            each_row += leaf.length or 8
            if _is_text(leaf):
                each_row += max(
                    (
                        chunk.total_uncompressed_size // max(1, group.num_rows)
                        for chunk, group in zip(chunks, groups, strict=True)
                    ),
                    default=0,
                )
        self._batch = max(1, min(BLOCK_ROWS, BATCH_BYTES // max(1, each_row)))

    def blocks(self) -> Iterator[Block]:
        first = size = 0
        try:
            for batch in self._file.iter_batches(batch_size=self._batch, use_threads=False):
                batch, unpacked = _own_values(batch, first)
                size += unpacked
                if size > self.max_bytes:
                    raise BrokenFile("body_too_large", too_large(self.max_bytes).message)
                yield _ParquetBlock(self, batch, first)
                first += batch.num_rows
        except (pa.ArrowException, OSError, ValueError) as fault:
            raise BrokenFile(
                "wrong_parquet", f"the file cannot be read beyond row {first}: {fault}"
            ) from fault

    def emit(self, written: pa.RecordBatch) -> bytes:
        if written.num_rows:
            self._waiting.append(written)
            self._waiting_rows += written.num_rows
            self._waiting_bytes += written.nbytes
        if (
            self._waiting_rows >= GROUP_ROWS
            or self._waiting_bytes >= GROUP_BYTES
            or time.monotonic() - self._since > GROUP_SECONDS
        ):
            self._write_group()
        return self._drain()

    def _write_group(self) -> None:
        if self._waiting:
            # With one dictionary a column: with several, all but the first would be written out.
            group = pa.Table.from_batches(self._waiting).unify_dictionaries().combine_chunks()
            self._writer.write_table(group, row_group_size=group.num_rows)
        self._waiting = []
        self._waiting_rows = self._waiting_bytes = 0
        self._since = time.monotonic()

    def end(self) -> bytes:
        self._write_group()
        # By this Arrow's readers know the types that the file came with.
        schema = _with_added(self.schema).serialize().to_pybytes()
        self._writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(schema).decode()})
        self._writer.close()
        return self._drain()

    def _drain(self) -> bytes:
        content = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return content

    def close(self) -> None:
        self._file.close()


def _is_text(leaf: pq.ColumnSchema) -> bool:
    return leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL"


def _with_added(schema: pa.Schema) -> pa.Schema:
    added = [
        pa.field(ADDED_LAST[0], pa.float64()),
        pa.field(ADDED_LAST[1], pa.string()),
        pa.field(ADDED_LAST[2], pa.int32()),
    ]
    own = [each.remove_metadata() for each in schema]
    return pa.schema([pa.field(ADDED_FIRST, pa.int64()), *own, *added])


def _own_values(batch: pa.RecordBatch, first: int) -> tuple[pa.RecordBatch, int]:
    """Return rows that hold no values but their own, and how many bytes they are once unpacked.

    A dictionary may be that of a whole row group. Raises BrokenFile for a row that is too long.
    """
    lengths = np.zeros(batch.num_rows, np.int64)
    size = 0
    found = []
    for column in batch.columns:
        if not pa.types.is_dictionary(column.type):
            size += column.nbytes
            found.append(column)
            continue
        indices, values = column.indices, column.dictionary
        if len(values) > len(indices):
            used = pc.unique(indices.drop_null())
            indices = pc.index_in(indices, used)
        else:
            used = None
        each = pc.binary_length(values).to_numpy(zero_copy_only=False)
        if used is not None:
            each = each[used.to_numpy()]
        lengths += pc.fill_null(pa.array(each).take(indices), 0).to_numpy(zero_copy_only=False)
        found.append((indices, values, used))
    if len(lengths) and lengths.max() > MAX_ROW_BYTES:
        place = int((lengths > MAX_ROW_BYTES).argmax())
        raise BrokenFile("too_long", f"row {first + place + 1} is over {MAX_ROW_BYTES >> 20} MB")
    arrays = [
        pa.DictionaryArray.from_arrays(
            each[0], each[1] if each[2] is None else each[1].take(each[2])
        )
        if isinstance(each, tuple)
        else each
        for each in found
    ]
    return pa.record_batch(arrays, schema=batch.schema), size + int(lengths.sum())


def too_large(max_bytes: int) -> RequestError:
    """Return the error of a file that is over the limit once unpacked."""
    return RequestError(
        "body_too_large",
        f"the file is over {max_bytes / 2**20:g} MB once unpacked: send it in parts",
        status=413,
    )


def _fits(each: Input, kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return True
    if each.is_number:
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


class _ParquetBlock(Block):
    def __init__(self, table: _ParquetTable, batch: pa.RecordBatch, first: int) -> None:
        self.table, self._batch = table, batch
        numbers = first + np.arange(batch.num_rows)
        super().__init__(numbers + 1, numbers, batch.num_rows)

    def columns(self, inputs: Sequence[Input]) -> list[Column]:
        absent = pa.nulls(self._batch.num_rows)
        return [
            columns.from_arrow(
                each,
                self._batch.column(each.name) if each.name in self.table.schema.names else absent,
            )
            for each in inputs
        ]

    def record(self, place: int) -> Any:
        return {
            each.name: columns.plain(self._batch.column(each.name)[place].as_py())
            for each in self.table.model.inputs
            if each.name in self.table.schema.names
        }

    def write(self, scored: Scored) -> pa.RecordBatch:
        kept = pa.array(scored.kept)
        own = [column.take(kept) for column in self._batch.columns]
        decisions = pa.DictionaryArray.from_arrays(
            pa.array(scored.decisions.astype(np.int8)), pa.array(self.table.model.decisions)
        )
        return pa.record_batch(
            [
                pa.array(self.lines[scored.kept]),
                *own,
                scored.probabilities,
                decisions.dictionary_decode(),
                pa.array(scored.warnings.astype(np.int32)),
            ],
            schema=self.table.scored,
        )
