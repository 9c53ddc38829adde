"""What a CSV must be, and how it is said where it is not."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.dataset.card import load_card
from mlops.dataset.errors import DataError
from mlops.dataset.parsing import missing_shares, parse_csv

CARD = load_card("bank_marketing")
CHURN = load_card(Path(__file__).parent.parent / "data" / "cards" / "churn.yaml")

HEADER = (
    "age;job;marital;balance;housing;contact;day;month;duration;campaign;pdays;previous;poutcome;y"
)
ROWS = [
    "58;management;married;2143;yes;unknown;5;may;261;1;-1;0;unknown;no",
    "44;technician;single;29;yes;unknown;5;may;151;1;-1;0;unknown;no",
    "33;entrepreneur;married;-2;yes;cellular;17;nov;76;1;12;3;success;yes",
    "47;unknown;married;1506;no;telephone;18;feb;92;1;-1;0;unknown;no",
]


def text(*rows: str, header: str = HEADER) -> str:
    return "\n".join([header, *(rows or ROWS)]) + "\n"


def parse(content: str, card=CARD):
    return parse_csv(content.encode(), card, "bank.csv")


def refused(content: str | bytes, card=CARD) -> list[str]:
    """Return the problems that a file is refused for."""
    with pytest.raises(DataError) as error:
        parse_csv(content if isinstance(content, bytes) else content.encode(), card, "bank.csv")
    assert str(error.value).startswith("bank.csv cannot be used:")
    return error.value.problems


def with_field(column: str, value: str, row: int = 2) -> str:
    """Return the file with one field of its `row` (from 1) replaced."""
    fields = ROWS[row - 1].split(";")
    fields[HEADER.split(";").index(column)] = value
    return text(*ROWS[: row - 1], ";".join(fields), *ROWS[row:])


def test_a_right_file_becomes_a_typed_frame():
    frame = parse(text())
    assert list(frame.columns) == [*CARD.feature_names, "target", "period"]
    assert {str(frame[name].dtype) for name in CARD.numbers} == {"float32"}
    assert frame["target"].dtype == np.int8
    assert frame["target"].tolist() == [0, 0, 1, 0]
    assert frame["period"].tolist() == ["2008-05", "2008-05", "2008-11", "2009-02"]
    assert frame["job"].tolist() == ["management", "technician", "entrepreneur", ""]
    assert frame["pdays"].isna().tolist() == [True, True, False, True]
    assert missing_shares(frame, CARD)["contact"] == 0.5


def test_both_copies_in_circulation_give_the_same_frame():
    other = text().replace(";day;", ";day_of_week;").replace("unknown", "").replace(";", ",")
    assert parse(other).equals(parse(text()))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.replace("\n", "\r\n"),
        lambda file: "\ufeff" + file,
        lambda file: file.rstrip("\n"),
        lambda file: file + "\n\n",
        lambda file: file.replace("management", '"management"'),
        lambda file: file.replace("58;", " 58 ;"),
        lambda file: file.replace("58;", "58.0;"),
    ],
    ids=["CRLF", "BOM", "no last newline", "blank lines", "quotes", "blanks", "58.0"],
)
def test_harmless_differences_of_writing_do_not_matter(change):
    assert parse(change(text())).equals(parse(text()))


def test_left_out_columns_may_be_absent_and_are_not_checked():
    rows = [";".join(r.split(";")[:2] + r.split(";")[3:]) for r in ROWS]
    assert parse(text(*rows, header=HEADER.replace("marital;", ""))).equals(parse(text()))
    assert parse(with_field("duration", "an hour")).equals(parse(text()))


def test_a_column_of_months_is_believed_before_the_order_of_rows():
    rows = [f"{row};2010-0{number}" for number, row in enumerate(ROWS, start=1)]
    frame = parse(text(*rows, header=HEADER + ";period"))
    assert frame["period"].tolist() == ["2010-01", "2010-02", "2010-03", "2010-04"]
    problems = refused(text(rows[0], ROWS[1] + ";2012-01", header=HEADER + ";period"))
    assert problems == [
        "row 2 (line 3 of the file), column 'period': found a row of 2012-01, "
        "expected periods from 2008-05 to 2010-11 (`time` in the card)"
    ]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("age", "old", "column 'age': found 'old', expected a whole number"),
        ("age", "44.5", "column 'age': found '44.5', expected a whole number"),
        ("age", "444", "column 'age': found '444', expected a number from 14 to 120"),
        ("balance", "inf", "column 'balance': found 'inf', expected a whole number"),
        ("balance", "1e40", "column 'balance': found '1e40', expected a whole number"),
        ("balance", "1,506", "column 'balance': found '1,506', expected a whole number"),
        ("pdays", "-2", "column 'pdays': found '-2', expected a number from 0 to 10000"),
        ("month", "mai", "column 'month': found 'mai', expected a month: jan"),
        ("y", "maybe", "column 'y': found 'maybe', expected 'yes' or 'no'"),
        ("y", "YES", "column 'y': found 'YES', expected 'yes' or 'no'"),
        ("y", "", "column 'y': found nothing, expected 'yes' or 'no'"),
    ],
)
def test_a_wrong_value_is_named_with_row_line_and_column(column, value, expected):
    (problem,) = refused(with_field(column, value))
    assert problem.startswith(f"row 2 (line 3 of the file), {expected}")


def test_the_line_is_the_editor_s_also_after_a_text_of_two_lines():
    rows = [ROWS[0].replace("management", '"man\nagement"'), ROWS[1].replace("44;", "old;")]
    (problem,) = refused(text(*rows))
    assert problem.startswith("row 2 (line 4 of the file), column 'age': found 'old'")


def test_several_faults_are_told_at_once_and_many_are_counted():
    bad = [row.replace(";no", ";perhaps").replace("58;", "x;") for row in ROWS[:2] * 4]
    problems = refused(text(*bad))
    assert any("row 1 (line 2 of the file), column 'age'" in problem for problem in problems)
    assert "column 'y': 5 more rows like these" in problems


def test_at_most_ten_faults_are_shown():
    with pytest.raises(DataError) as error:
        parse(text(*["1;2"] * 30))
    assert str(error.value).count("found 2 fields") == 10
    assert str(error.value).endswith("and 20 more")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (HEADER.replace("age;", "alter;"), "header: column 'age' is missing; found alter, job"),
        (HEADER.replace("age;", "alter;"), "header: found extra column 'alter'"),
        (
            HEADER.replace("day;", "d;"),
            "column 'day' is missing (it may also be called day_of_week)",
        ),
        (HEADER.replace(";y", ";answer"), "header: column 'y' is missing"),
        (HEADER.replace("job", "age"), "header: found column 'age' 2 times"),
        (
            HEADER.replace("marital", "day_of_week"),
            "header: found column 'day' 2 times (written day_of_week, day), expected it once",
        ),
        (HEADER.replace("marital", ""), "extra column without a name (an index"),
    ],
)
def test_a_wrong_header_is_named_by_column(header, problem):
    assert any(problem in found for found in refused(text(header=header)))


def test_a_file_without_a_header_is_told_so():
    (problem,) = refused("\n".join(ROWS))
    assert problem.startswith("line 1: found 58, management")
    assert "expected a header with the columns age, job" in problem


@pytest.mark.parametrize(("separator", "name"), [("\t", "tab"), ("|", "bar |")])
def test_a_wrong_separator_is_recognised(separator, name):
    (problem,) = refused(text().replace(";", separator))
    assert problem == (
        f"line 1: found columns separated by {name}, expected semicolon ; or comma , "
        "(`separators` in the card)"
    )


def test_a_separator_that_this_card_does_not_accept_is_recognised():
    (problem,) = refused("spend;visits;plan;day;left\n1;2;basic;01.01.2020;0\n", CHURN)
    assert "found columns separated by semicolon ;, expected comma ," in problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "found an empty file, expected a header and rows"),
        (b"\n\n", "found an empty file, expected a header and rows"),
        (b"\xef\xbb\xbf", "found no text"),
        (HEADER.encode(), "found a header and no row of data"),
        (text().encode("utf-16"), "found text in UTF-16, expected UTF-8"),
        (text().replace("technician", "café").encode("latin-1"), "line 3: found byte 0xe9"),
        (b"<!DOCTYPE html><html></html>", "found a web page"),
        (b"age;job\n\x00\x01", "line 2: found a zero byte"),
        (text().replace("technician", '"technician').encode(), "record that begins in line 3"),
        (text(*ROWS[:2], ROWS[2] + ";1").encode(), "row 3 (line 4 of the file): found 15 fields"),
        (text(*ROWS[:2], ROWS[2][:40]).encode(), "row 3 (line 4 of the file): found 7 fields"),
    ],
)
def test_a_file_that_is_no_whole_csv_is_refused(content, problem):
    assert problem in refused(content)[0]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_a_file_holds_it_is_read_or_refused_with_a_reason(data):
    """Bytes cut out, put in or changed anywhere: DataError is the only error."""
    content = bytearray(text().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(start + 20, len(content))))
        content[start:stop] = data.draw(
            st.binary(max_size=8)
            | st.sampled_from([b";", b'"', b"\n", b"\r", b"\t", b"nan", b"1e999"])
        )
    try:
        frame = parse_csv(bytes(content), CARD, "bank.csv")
    except DataError:
        return
    assert list(frame.columns) == [*CARD.feature_names, "target", "period"]
    assert np.isfinite(frame[CARD.numbers].fillna(0).to_numpy()).all()
    assert frame["target"].isin([0, 1]).all()


def test_a_column_without_any_value_is_refused():
    rows = [row.replace(";cellular;", ";;").replace(";telephone;", ";unknown;") for row in ROWS]
    assert refused(text(*rows)) == [
        "column 'contact': found 100 % missing (all 4 rows), expected values in a file that goes "
        "on after 2008-06"
    ]
    emptied = [";" + row.split(";", 1)[1] for row in ROWS]
    assert refused(text(*emptied)) == [
        "column 'age': found 100 % missing (all 4 rows), expected values"
    ]


def test_a_column_may_be_empty_as_long_as_the_source_was():
    frame = parse(text(*ROWS[:2]))
    assert frame["contact"].tolist() == ["", ""]


def test_a_card_with_dates_needs_no_order_and_no_column_of_its_time():
    content = (
        "customer,spend,visits,plan,day,left\na,10.5,3,basic,31.12.2020,0\nb,,1,none,01.01.2020,1\n"
    )
    frame = parse(content, CHURN)
    assert list(frame.columns) == ["spend", "visits", "plan", "target", "period"]
    assert frame["period"].tolist() == ["2020-12", "2020-01"]
    assert frame["plan"].tolist() == ["basic", ""]
    (problem,) = refused(content.replace("01.01.2020", "2020-01-01"), CHURN)
    assert problem == (
        "row 2 (line 3 of the file), column 'day': found '2020-01-01', "
        "expected a date written as %d.%m.%Y"
    )


def test_a_card_may_say_that_its_files_write_a_decimal_comma():
    card = CHURN.model_copy(update={"decimal": ",", "separators": (";",)})
    head = "customer;day;spend;visits;plan;left\n"
    frame = parse(head + "a;01.02.2020;1,5;3;basic;0\nb;02.02.2020;0,25;4;none;1\n", card)
    assert frame["spend"].tolist() == [1.5, 0.25]
    (problem,) = refused(head + "a;01.02.2020;1.500;3;basic;0\n", card)
    assert "column 'spend': found '1.500', expected a number" in problem


@pytest.mark.parametrize("given_months", [True, False])
def test_a_file_without_time_gives_its_months_in_the_period_column_or_by_its_order(given_months):
    card = load_card("corporate_churn")
    head = "corporation,lastmonth_activity,lastyear_activity,number_of_employees,exited"
    rows = [f"Firm {row},{row},{row * 9},{row + 1},{row % 2}" for row in range(36)]
    if given_months:
        head, rows = head + ",period", [f"{row},2023-0{1 + n // 12}" for n, row in enumerate(rows)]
    frame = parse("\n".join([head, *rows]), card)
    assert frame["period"].nunique() == (3 if given_months else 18)
    assert frame["period"].is_monotonic_increasing
    assert "corporation" not in frame


def test_fewer_rows_than_months_to_deal_them_over_are_refused_with_the_way_out():
    card = load_card("corporate_churn")
    head = "corporation,lastmonth_activity,lastyear_activity,number_of_employees,exited\n"
    (problem,) = refused(head + "Firm,1,2,3,0\n", card)
    assert "found 1 rows in all, expected at least one for each of the 18 months" in problem
    assert "`time` in the card" in problem
