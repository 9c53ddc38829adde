"""A file of rows means what the same records mean to /predict, whatever stands in it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier

from mlops.serving import client
from mlops.serving.export import export_onnx
from predictor import batch as batching
from predictor import tables
from predictor.batch import Batch, Request
from predictor.columns import number_from
from predictor.errors import LogUnavailable, RequestError
from predictor.model import Model
from predictor.tables import CSV, NDJSON, PARQUET, SUFFIXES, BrokenFile
from tests.fixtures.predict import exported, make_model, make_payload

ASKED = Request("asked", "2026-01-01T00:00:00+00:00", "2009-03-01", "test")


class Log:
    """Takes what a batch logs; `room` says whether there is any."""

    def __init__(self) -> None:
        self.content, self.rows = b"", 0
        self.room: Callable[[], bool] = lambda: True

    def append(self, lines: bytes, rows: int, share: float = 1.0) -> None:
        if not self.room():
            raise LogUnavailable("full")
        assert lines.endswith(b"\n")
        assert lines.count(b"\n") == rows
        self.content += lines
        self.rows += rows

    def logged(self) -> list[tuple[int, dict[str, Any], float, int]]:
        """Return each row's number, features, probability and warnings, as Postgres takes them."""
        rows = []
        for line in self.content.decode().split("\n")[:-1]:
            cells = [cell.replace("\\\\", "\\") for cell in line.split("\t")]
            assert cells[0] == "asked"
            assert cells[2:6] == [ASKED.made_at, ASKED.period, "test", "1"]
            rows.append((int(cells[1]), orjson.loads(cells[6]), float(cells[7]), int(cells[8])))
        return rows


class Scored:
    """A file that went through the batch, and what came of it."""

    def __init__(self, model: Model, folder: Path, content: bytes, kind: str) -> None:
        path = folder / f"rows{SUFFIXES[kind]}"
        path.write_bytes(content)
        table = tables.open_table(path, kind, model, 1 << 30)
        self.log, rejected = Log(), io.BytesIO()
        batch = Batch(model, table, ASKED, self.log)  # type: ignore[arg-type]
        try:
            self.content = b"".join(batch.predictions(rejected))
        finally:
            table.close()
        self.summary = batch.summary()
        self.faults = [orjson.loads(line) for line in rejected.getvalue().splitlines()]

    def rows(self) -> list[dict[str, Any]]:
        """Return the scored rows of CSV."""
        return list(csv.DictReader(io.StringIO(self.content.decode("utf-8-sig"), newline="")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of trees, which scores a row the same whatever stands around it."""
    folder = make_payload(tmp_path_factory.mktemp("payloads"), "1")
    card, frame, _, _ = exported(0)
    forest = make_model(card, frame, RandomForestClassifier(20, max_depth=5, random_state=0))
    (folder / "model.onnx").write_bytes(export_onnx(forest, card, frame, 1.0).content)
    return Model(folder)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_payload(tmp_path_factory.mktemp("payloads"), "1"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture
def score(model: Model, folder: Path) -> Callable[..., Scored]:
    return lambda content, kind=CSV: Scored(model, folder, content, kind)


def as_csv(rows: list[dict[str, Any]], **how: Any) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, **how)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return file.getvalue().encode()


def attempt(model: Model, record: Any, line: int) -> Any:
    """Return what `Model.read` returns or raises."""
    try:
        return model.read(record, line)
    except RequestError as refused:
        return refused


def check(model: Model, scored: Scored, records: list[dict[str, Any]], lines: list[int]) -> None:
    """Hold a batch against `Model.read` and `Model.score`, row by row."""
    found = iter(scored.log.logged())
    faults = {fault["line"]: fault for fault in scored.faults}
    good = 0
    for number, (record, line) in enumerate(zip(records, lines, strict=True)):
        read = attempt(model, record, line)
        if isinstance(read, RequestError):
            fault = faults.pop(line)
            assert (fault["code"], fault["field"]) == (read.code, read.field)
            assert fault["message"].removeprefix("line").removeprefix(
                "row"
            ) == read.message.removeprefix("row")
            continue
        values, warnings = read
        good += 1
        row, features, probability, count = next(found)
        assert (row, features, count) == (number, values, len(warnings))
        assert probability == model.score([values])[0]
    assert not faults
    assert scored.summary == {
        "request_id": "asked",
        "version": "1",
        "rows": len(records),
        "scored": good,
        "rejected": len(records) - good,
    }


NUMBERS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-3, 100),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-1, 40.0, 3.4028234663852886e38, 3.5e38, 2.0**53 + 2, -0.0, 1e-320]),
)
TEXTS = st.one_of(
    st.sampled_from(["red", "green", "blue", "", "unknown", "NaN", "x" * 257, "a\x00b", "\\n\t\\"]),
    st.text(max_size=8),
)
ANYTHING = st.one_of(NUMBERS, TEXTS, st.booleans(), st.just([]), st.just({}), st.just([1]))


def records(model: Model, draw: Any, anything: bool = True) -> list[dict[str, Any]]:
    number = ANYTHING if anything else NUMBERS
    text = ANYTHING if anything else st.one_of(TEXTS, st.none())
    # Mostly usual values, or hardly a row would be scored.
    usual = {each.name: 40 if each.is_number else "red" for each in model.inputs}
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        row = dict(usual)
        for each in draw(st.lists(st.sampled_from(model.inputs), max_size=3)):
            row[each.name] = draw(number if each.is_number else text)
        if anything and draw(st.integers(0, 9)) == 0:
            del row[draw(st.sampled_from(sorted(row)))]
        rows.append(row)
    return rows


HYPOTHESIS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@HYPOTHESIS
@given(data=st.data())
def test_ndjson_means_what_predict_reads(
    model: Model, score: Callable[..., Scored], data: st.DataObject
) -> None:
    rows = records(model, data.draw)
    content = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    # As /predict gets them: JSON has no other numbers.
    parsed = [orjson.loads(line) for line in content.splitlines()]
    scored = score(content, NDJSON)
    check(model, scored, parsed, list(range(1, len(rows) + 1)))
    for line in scored.content.splitlines():
        answer = orjson.loads(line)
        record = parsed[answer["row"] - 1]
        values, warnings = model.read(record, 0)
        assert answer == {
            "row": answer["row"],
            **record,
            "probability": (p := model.score([values])[0]),
            "decision": model.decisions[p >= model.threshold],
            "warnings": len(warnings),
        }


@HYPOTHESIS
@given(data=st.data())
def test_parquet_means_what_predict_reads(
    model: Model, score: Callable[..., Scored], data: st.DataObject
) -> None:
    rows = records(model, data.draw, anything=False)
    columns = {}
    for each in model.inputs:
        values = [row[each.name] for row in rows]
        if not each.is_number:
            kind = data.draw(st.sampled_from([pa.string(), pa.large_string()]))
            columns[each.name] = pa.array(values, kind)
            if data.draw(st.booleans()):
                columns[each.name] = columns[each.name].dictionary_encode()
        elif all(value is None or isinstance(value, int) for value in values) and all(
            value is None or abs(value) < 2**63 for value in values
        ):
            columns[each.name] = pa.array(values, pa.int64())
        else:
            columns[each.name] = pa.array(
                [None if value is None else float(value) for value in values], pa.float64()
            )
    table = pa.table(columns)
    file = io.BytesIO()
    pq.write_table(table, file)
    scored = score(file.getvalue(), PARQUET)
    check(model, scored, table.to_pylist(), list(range(1, len(rows) + 1)))
    answer = pq.read_table(io.BytesIO(scored.content))
    kept = [row - 1 for row in answer["row"].to_pylist()]
    assert (
        answer.select(table.column_names).to_pylist()
        == table.take(pa.array(kept, pa.int64())).to_pylist()
    )


CELLS = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.from_regex(r"[ \t]?[+-]?[0-9]{0,4}\.?[0-9]{0,3}([eE][+-]?[0-9]{1,3})?[ ]?", fullmatch=True),
    st.sampled_from(["", " ", "NaN", "nan", "inf", "-1", "-1.0", "0x10", "1_0", "1e5", "१", "--1"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=6),
)


@HYPOTHESIS
@example(None)
@given(data=st.data())
def test_csv_means_what_predict_reads(
    model: Model, score: Callable[..., Scored], data: st.DataObject | None
) -> None:
    usual = {each.name: "40" if each.is_number else "red" for each in model.inputs}
    if data is None:  # more rows than a block has, and all kinds of numbers
        rows = [usual | {"balance": str(n), "age": "x"[n % 7 :] or "3"} for n in range(9000)]
        how: dict[str, Any] = {}
    else:
        rows = []
        for _ in range(data.draw(st.integers(1, 12))):
            names = data.draw(st.lists(st.sampled_from(sorted(usual)), max_size=3))
            rows.append(usual | {"id": data.draw(CELLS)} | {n: data.draw(CELLS) for n in names})
        how = {
            "delimiter": data.draw(st.sampled_from(",;\t")),
            "lineterminator": data.draw(st.sampled_from(["\n", "\r\n"])),
            "quoting": data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        }
    content = as_csv(rows, **how)
    lines, line = [], 2
    for row in rows:
        lines.append(line)
        line += 1 + sum(cell.count("\n") for cell in row.values())
    read = [
        {
            each.name: number_from(cell)
            if each.is_number and cell not in each.missing_texts
            else cell
            for each in model.inputs
            for cell in [row[each.name]]
        }
        for row in rows
    ]
    scored = score(content)
    check(model, scored, read, lines)
    starts = dict(zip(lines, rows, strict=True))
    delimiter = how.get("delimiter", ",")
    reader = csv.DictReader(io.StringIO(scored.content.decode(), newline=""), delimiter=delimiter)
    for answer in reader:
        assert {name: answer[name] for name in rows[0]} == starts[int(answer["row"])]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("40", 40), (" 40 ", 40), ("+40", 40), ("-0", 0), ("007", 7), ("4.0", 4.0), ("4.", 4.0),
        (".5", 0.5), ("1e3", 1000.0), ("1E-3", 0.001), ("", None), (" ", None), ("1e999", math.inf),
        ("1,5", "1,5"), ("nan", "nan"), ("inf", "inf"), ("0x1", "0x1"), ("1_0", "1_0"), ("e", "e"),
        (".", "."), ("-", "-"), ("१", "१"), ("4 0", "4 0"), ("\n4", "\n4"),
    ],
)  # fmt: skip
def test_reads_numbers_from_cells(text: str, number: Any) -> None:
    found = number_from(text)
    assert (found, type(found)) == (number, type(number))


def line_of(**cells: str) -> bytes:
    """Return a header and one row."""
    usual = dict.fromkeys(
        ["age", "balance", "day", "campaign", "pdays", "previous"], "40"
    ) | dict.fromkeys(["job", "housing", "contact", "month", "poutcome"], "red")
    return as_csv([usual | cells])


def test_keeps_the_lines_of_quoted_breaks_blank_lines_and_ragged_rows(
    score: Callable[..., Scored],
) -> None:
    header, good, _ = line_of(id='a "b"\n\nc').split(b"\n", 1)[0], line_of(id="1"), None
    row = good.split(b"\r\n")[1]
    broken = line_of(id='a "b"\n\nc').split(b"\r\n", 1)[1]
    content = b"\n".join(
        [header.strip(), row, b"", broken.strip(), row + b",7", row[:-6], b"", row]
    )
    scored = score(content)
    assert [int(each["row"]) for each in scored.rows()] == [2, 4, 10]
    assert scored.rows()[1]["id"] == 'a "b"\n\nc'
    assert [(each["line"], each["code"]) for each in scored.faults] == [
        (7, "wrong_row"),
        (8, "wrong_row"),
    ]
    assert "13 cells, expected 12" in scored.faults[0]["message"]
    # Numbers of the log are places among the rows of data.
    assert [number for number, *_ in scored.log.logged()] == [0, 1, 4]


def test_a_quote_inside_a_cell_means_itself(score: Callable[..., Scored]) -> None:
    header, row, _ = line_of(id="1").split(b"\r\n")
    inch = row[:-1] + b'5" pipe'
    scored = score(b"\n".join([header, inch, row, row[:-1] + b'"7"" pipe"', inch, row]))
    assert [each["id"] for each in scored.rows()] == ['5" pipe', "1", '7" pipe', '5" pipe', "1"]
    assert scored.summary["rejected"] == 0


def test_a_quote_that_never_closes_is_an_error_and_names_its_line(
    score: Callable[..., Scored],
) -> None:
    header, row, _ = line_of(id="1").split(b"\r\n")
    content = b"\n".join([header, row, row[:-1] + b'"open', row, row])
    with pytest.raises(BrokenFile, match=r"line 3 .*does not end: a quote"):
        score(content)
    with pytest.raises(BrokenFile, match=r"line 3 on is over 1 MB: a quote"):
        score(content + (b"\n" + row) * 40_000)


def test_carriage_returns_between_cells_are_a_bad_row(score: Callable[..., Scored]) -> None:
    header, row, _ = line_of(id="1").split(b"\r\n")
    scored = score(b"\r\n".join([header, row, row[:-1] + b"a\rb", row[:-1] + b'"a\rb"', row, b""]))
    assert [int(each["row"]) for each in scored.rows()] == [2, 4, 5]
    assert [(each["line"], each["code"]) for each in scored.faults] == [(3, "wrong_row")]


def test_keeps_mark_line_ends_and_separator(score: Callable[..., Scored]) -> None:
    content = b"\xef\xbb\xbf" + line_of(id="x;y").replace(b",", b";").replace(b"x;y", b'"x;y"')
    scored = score(content)
    first, second, end = scored.content.split(b"\r\n")
    assert first.startswith(b"\xef\xbb\xbfrow;age;")
    assert first.endswith(b";probability;decision;warnings")
    assert b'"x;y"' in second
    assert end == b""


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (lambda content: content.replace(b"age", b"Age"), "missing_field", "age"),
        (lambda content: content.replace(b",id", b",age"), "wrong_header", "age"),
        (lambda content: content.replace(b",id", b",decision"), "reserved_field", "decision"),
        (lambda content: content.replace(b"\r\n", b"\r"), "wrong_header", None),
        (lambda content: b"\xef\xbb\xbf", "empty", None),
        (lambda content: b"", "empty", None),
    ],
)
def test_refuses_a_header_before_anything_is_scored(
    score: Callable[..., Scored], change: Callable[[bytes], bytes], code: str, field: str | None
) -> None:
    with pytest.raises(RequestError) as refused:
        score(change(line_of(id="1")))
    assert (refused.value.code, refused.value.field) == (code, field)


def test_a_header_alone_is_a_file_of_no_rows(score: Callable[..., Scored]) -> None:
    scored = score(line_of(id="1").split(b"\r\n")[0])
    assert (scored.summary["rows"], scored.content.count(b"\n")) == (0, 1)


def test_lines_that_are_no_records_are_bad_rows(model: Model, score: Callable[..., Scored]) -> None:
    good = orjson.dumps(model.card["reference"])
    lines = [
        good,
        b"",
        b"  ",
        b"{",
        b"[1]",
        b"7",
        b'{"a":1},{"a":1}',
        b" " + good + b" \r",
        b"null",
    ]
    lines += [b'{"row": 1}', b"{}", good[:-1] + b',"id":"k"}', b'{"age": NaN}']
    scored = score(b"\n".join(lines), NDJSON)
    found = [orjson.loads(line) for line in scored.content.splitlines()]
    assert [each["row"] for each in found] == [1, 8, 12]
    assert found[2]["id"] == "k"
    codes = {each["line"]: each["code"] for each in scored.faults}
    assert codes == {
        4: "wrong_json", 5: "wrong_type", 6: "wrong_type", 7: "wrong_json", 9: "wrong_type",
        10: "reserved_field", 11: "missing_field", 13: "wrong_json",
    }  # fmt: skip
    assert scored.summary["rows"] == 11


def test_refuses_parquet_of_another_kind(model: Model, score: Callable[..., Scored]) -> None:
    def table(**columns: Any) -> bytes:
        usual = {each.name: [40] if each.is_number else ["red"] for each in model.inputs}
        file = io.BytesIO()
        pq.write_table(pa.table(usual | columns), file)
        return file.getvalue()

    assert score(table(), PARQUET).summary["scored"] == 1
    for columns, field in (
        ({"age": ["40"]}, "age"),
        ({"job": [1]}, "job"),
        ({"age": [True]}, "age"),
    ):
        with pytest.raises(RequestError) as refused:
            score(table(**columns), PARQUET)
        assert (refused.value.code, refused.value.field) == ("wrong_type", field)
    with pytest.raises(RequestError, match="no Parquet"):
        score(table()[:-5], PARQUET)
    whole = table(id=["x" * 10_000])
    broken = whole[:100] + bytes(200) + whole[300:]
    with pytest.raises((BrokenFile, RequestError), match=r"cannot be read|no Parquet"):
        score(broken, PARQUET)


def test_a_parquet_that_unpacks_to_too_much_is_refused(model: Model, tmp_path: Path) -> None:
    rows = 200_000
    columns: dict[str, Any] = {
        each.name: pa.array(np.full(rows, 40)) if each.is_number else pa.array(["red"] * rows)
        for each in model.inputs
    }
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)  # some kB: each column is one value
    table = tables.open_table(path, PARQUET, model, 4 << 20)
    with pytest.raises(BrokenFile, match="over 4 MB"):
        list(table.blocks())


def parquet_of(model: Model, rows: int, how: dict[str, Any] | None = None, **more: Any) -> bytes:
    """Return a file of usual rows, with `more` columns."""
    columns: dict[str, Any] = {
        each.name: pa.array(np.full(rows, 40)) if each.is_number else pa.array(["red"] * rows)
        for each in model.inputs
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns | more), file, **(how or {}))
    return file.getvalue()


def test_a_long_text_that_parquet_holds_once_is_not_multiplied(
    model: Model, score: Callable[..., Scored]
) -> None:
    rows = 4096
    # Some kB, of which a naive reader makes 400 MB.
    content = parquet_of(model, rows, note=pa.array(["x" * 100_000] * rows))
    pool = pa.system_memory_pool()
    before = pool.max_memory()
    scored = score(content, PARQUET)
    assert pool.max_memory() - before < 32 << 20
    assert scored.summary["scored"] == rows
    assert len(scored.content) < 1 << 20
    answer = pq.ParquetFile(io.BytesIO(scored.content), read_dictionary=["note"])
    (note,) = answer.read(["note"]).column("note").unify_dictionaries().chunks
    assert note.dictionary.to_pylist() == ["x" * 100_000]
    assert note.null_count == 0
    assert pq.read_schema(io.BytesIO(scored.content)).field("note").type == pa.string()


def test_a_row_of_parquet_over_a_megabyte_is_refused_as_in_csv(
    model: Model, score: Callable[..., Scored]
) -> None:
    note, more = ["x"] * 5000, ["y"] * 5000
    note[4500], more[4500] = "x" * 600_000, "y" * 600_000
    assert score(parquet_of(model, 5000, note=note), PARQUET).summary["scored"] == 5000
    with pytest.raises(BrokenFile, match="row 4501 is over 1 MB") as broken:
        score(parquet_of(model, 5000, note=note, more=more), PARQUET)
    assert broken.value.code == "too_long"
    with pytest.raises(BrokenFile, match="over 1024 MB once unpacked"):
        score(parquet_of(model, 4096, note=["x" * 1_000_000] * 4096), PARQUET)


@pytest.mark.parametrize("dictionary", [True, False])
def test_columns_of_parquet_that_the_model_does_not_know_pass_through_exactly(
    model: Model, score: Callable[..., Scored], dictionary: bool
) -> None:
    rows = 10_000
    unique = [f"k{n}" for n in range(rows)]
    more = {
        "a.b": pa.array([None if n % 7 == 0 else text for n, text in enumerate(unique)]),
        "large": pa.array(unique, pa.large_string()),
        "view": pa.array(unique, pa.string_view()),
        "bytes": pa.array([b"\xff\x00", None] * (rows // 2)),
        "kind": pa.array(["a", "b"] * (rows // 2)).dictionary_encode().cast(
            pa.dictionary(pa.int8(), pa.string())
        ),
        "when": pa.array(range(rows), pa.timestamp("ns", "Europe/Paris")),
        "small": pa.array([1, None] * (rows // 2), pa.uint16()),
        "fixed": pa.array([b"abcd"] * rows, pa.binary(4)),
        "none": pa.nulls(rows),
    }  # fmt: skip
    how = {"use_dictionary": dictionary, "row_group_size": 7000}
    content = parquet_of(model, rows, how, **more)
    before = pq.read_table(io.BytesIO(content))
    after = pq.read_table(io.BytesIO(score(content, PARQUET).content))
    assert after.select(before.column_names).schema.equals(before.schema)
    assert after.select(before.column_names).to_pylist() == before.to_pylist()


def test_missing_texts_of_parquet_are_told_by_their_place(
    model: Model, score: Callable[..., Scored]
) -> None:
    job = ["red", None, "", "x" * 300, "green"]
    scored = score(parquet_of(model, 5, job=pa.array(job)), PARQUET)
    assert [features["job"] for _, features, _, _ in scored.log.logged()] == [
        "red", None, None, "green",
    ]  # fmt: skip
    assert [(each["line"], each["code"]) for each in scored.faults] == [(4, "too_long")]


@pytest.mark.parametrize(
    ("column", "how", "code"),
    [
        (pa.array([[1, 2]] * 9), {}, "wrong_type"),
        (pa.array([{"a": "x"}] * 9), {}, "wrong_type"),
        (pa.array([b"x" * (2 << 20)] * 9, pa.binary(2 << 20)), {}, "too_long"),
        (
            pa.array(["x"] * 9),
            {"use_dictionary": False, "column_encoding": {"more": "DELTA_BYTE_ARRAY"}},
            "wrong_parquet",
        ),
    ],
)
def test_refuses_columns_of_parquet_whose_size_cannot_be_known_before(
    model: Model, score: Callable[..., Scored], column: pa.Array, how: dict[str, Any], code: str
) -> None:
    with pytest.raises(RequestError, match="column more") as refused:
        score(parquet_of(model, 9, how, more=column), PARQUET)
    assert (refused.value.code, refused.value.field) == (code, "more")


def test_answers_in_few_row_groups(model: Model, score: Callable[..., Scored]) -> None:
    rows = 3 * tables.GROUP_ROWS // 2
    found = pq.ParquetFile(io.BytesIO(score(parquet_of(model, rows), PARQUET).content)).metadata
    assert (found.num_rows, found.num_row_groups) == (rows, 2)


def test_matrix_products_differ_in_the_last_bit_at_most(linear: Model, folder: Path) -> None:
    rows = [linear.card["reference"] | {"age": age, "job": None} for age in range(18, 90)]
    content = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    logged = Scored(linear, folder, content, NDJSON).log.logged()
    for row, (_, _, probability, _) in zip(rows, logged, strict=True):
        assert probability == pytest.approx(linear.score([linear.read(row, 0)[0]])[0], abs=2e-7)


def test_waits_for_room_in_the_log_and_gives_up_at_last(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "LOG_POLL_SECONDS", 0.001)
    log, tries = Log(), iter(range(1000))
    log.room = lambda: next(tries) >= 5
    lines = pa.array([f"line {n}\n" for n in range(100)])
    batching.append_patiently(log, lines)  # type: ignore[arg-type]
    assert log.content == b"".join(b"line %d\n" % n for n in range(100))
    monkeypatch.setattr(batching, "LOG_PATIENCE_SECONDS", 0.05)
    log.room = lambda: False
    with pytest.raises(LogUnavailable):
        batching.append_patiently(log, lines)  # type: ignore[arg-type]


def test_keeps_room_on_the_disk_for_what_the_spool_may_still_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 100
    monkeypatch.setattr(
        batching.shutil, "disk_usage", lambda folder: SimpleNamespace(total=0, used=0, free=free)
    )
    log: Any = SimpleNamespace(left=lambda: 60)
    batching.keep_room(tmp_path, 40, log)
    batching.keep_room(tmp_path, 100, None)
    with pytest.raises(RequestError, match="MLOPS_SPOOL_MAX_MB") as refused:
        batching.keep_room(tmp_path, 41, log)
    assert (refused.value.code, refused.value.status) == ("no_room", 503)
    assert refused.value.retry_after
    free = 59  # while it is written
    with pytest.raises(RequestError):
        batching.keep_room(tmp_path, 0, log)


def test_a_busy_server_is_asked_ever_more_seldom_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = requests.Response()
    answer.status_code, answer.raw = 429, io.BytesIO()
    answer.headers["Retry-After"] = "5"
    answer._content = b'{"error": {"code": "busy", "message": "come back"}}'
    waits: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    monkeypatch.setattr(client.PredictClient, "_send_file", lambda *_: answer)
    source = tmp_path / "in.csv"
    with client.PredictClient("http://x") as asking, pytest.raises(client.ApiError) as refused:
        asking.score_file(source, tmp_path / "out.csv", tmp_path / "bad.ndjson")
    assert (refused.value.status, refused.value.code) == (429, "busy")
    assert waits[:5] == [5, 5, 5, 8, 16]
    assert max(waits) == 60
    assert 300 < sum(waits) < 700


def test_logs_in_pieces_that_fit_a_small_spool(model: Model) -> None:
    sizes = []

    class Small(Log):
        def append(self, lines: bytes, rows: int, share: float = 1.0) -> None:
            sizes.append(len(lines))
            super().append(lines, rows, share)

    log = Small()
    lines = pa.array([f"{n} {'x' * 300}\n" for n in range(5000)])
    batching.append_patiently(log, lines)  # type: ignore[arg-type]
    assert log.rows == 5000
    assert max(sizes) < 1.1 * batching.LOG_PIECE_BYTES
