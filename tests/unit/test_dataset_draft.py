"""A drafted card loads, reads the file that it was drafted from, and says what it has guessed."""

from __future__ import annotations

import csv
import gzip
import io
import string
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops.dataset import draft as drafting
from mlops.dataset import sniff as sniffing
from mlops.dataset.card import CardError, load_card
from mlops.dataset.draft import draft_card, draft_text, main
from mlops.dataset.errors import DataError
from mlops.dataset.parsing import parse_csv
from mlops.dataset.sniff import sniff


def write(folder: Path, text: str | bytes, name: str = "file.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def table(rows: int = 400, **columns: Any) -> str:
    """Return a CSV of `rows` rows with an answer, two plain features, and `columns`."""
    random = np.random.default_rng(5)
    held: dict[str, Any] = {
        "age": random.integers(18, 80, rows),
        "plan": random.choice(["basic", "plus"], rows),
        **columns,
        "churned": random.choice(["yes", "no"], rows, p=[0.2, 0.8]),
    }
    out = io.StringIO()
    writer = csv.writer(out, delimiter=";", lineterminator="\n")
    writer.writerow(held)
    writer.writerows(zip(*(list(values) for values in held.values()), strict=True))
    return out.getvalue()


def dates(rows: int = 400, months: int = 10) -> list[str]:
    return [f"2023-{1 + row * months // rows:02}-15" for row in range(rows)]


def keys(found: drafting.Draft) -> str:
    return "\n".join(f"{each.key}: {each.text}" for each in found.decisions)


def is_number(text: str) -> bool:
    try:
        float(text.strip().replace(",", "."))
    except ValueError:
        return False
    return True


names = st.text(
    st.sampled_from(string.ascii_letters + string.digits + "_- %\"'#:{}[]&*!|>@`,äß€\n\t"),
    min_size=1,
    max_size=80,
).filter(lambda name: name.strip() != "" and not is_number(name))  # a number is no header
texts = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0\r\n\x1c\x1d\x1e\x85"),
    max_size=12,
).map(str.strip)
columns = st.one_of(
    st.lists(st.integers(-(10**9), 10**9).map(str), min_size=40, max_size=40),
    st.lists(st.floats(-1e6, 1e6, width=32).map(lambda x: f"{x:.4f}"), min_size=40, max_size=40),
    st.lists(st.sampled_from(["a", "b", "NA", "", "?", "unknown", "no"]), min_size=40, max_size=40),
    st.lists(st.sampled_from(["1", "2.5", "NA", "", "-1"]), min_size=40, max_size=40),
    st.lists(texts, min_size=40, max_size=40),
    st.dates().map(lambda day: [day.isoformat()] * 40),
    st.just(dates(40)),
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    held=st.dictionaries(names, columns, min_size=1, max_size=6),
    separator=st.sampled_from(list(sniffing.SEPARATORS)),
    answers=st.sampled_from([("yes", "no"), ("1", "0"), ("true", "false"), ("Ä: b", "#x")]),
)
def test_a_drafted_card_reads_its_file_whatever_the_columns(
    tmp_path_factory: pytest.TempPathFactory,
    held: dict[str, list[str]],
    separator: str,
    answers: tuple[str, str],
) -> None:
    folder = tmp_path_factory.mktemp("drafted")
    held = {name.strip(): values for name, values in held.items()}
    held.pop("target", None)
    held |= {"plain": [f"v{row % 3}" for row in range(40)]}
    held |= {"target": [answers[row % 7 == 0] for row in range(40)]}
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    writer.writerow(held)
    writer.writerows(zip(*held.values(), strict=True))
    path = write(folder, out.getvalue())
    found = draft_card(path)
    assert not found.problems
    card = load_card(found.path)
    assert card.target.column == "target"
    frame = parse_csv(path.read_bytes(), card, path.name)
    assert len(frame) == 40
    assert set(card.left_out) | {
        alias for each in card.features for alias in (each.aliases or (each.name,))
    } | {card.target.column, card.time.column or "target"} == set(held)


def test_it_says_what_each_column_is_and_what_is_left_out(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = 400
    text = table(
        rows,
        **{
            "as of": dates(),
            "customer id": [f"C{row:05}" for row in range(rows)],
            "country": ["PT"] * rows,
            "nothing": [""] * rows,
            "fee": [f"{value:.2f}".replace(".", ",") for value in random.uniform(1, 90, rows)],
            "visits": [str(v) if v else "NA" for v in random.integers(0, 9, rows)],
            "days": random.choice([-1, 3, 40, 80], rows),
            "tariff": random.choice(["a", "b", "unknown"], rows),
        },
    )
    found = draft_card(write(tmp_path, text, "Gym members.csv"))
    card = load_card(found.path)
    assert found.path == tmp_path / "gym_members.yaml"
    assert (card.separators, card.decimal) == ((";",), ",")
    assert (card.target.column, card.target.positive) == ("churned", "yes")
    assert (card.time.kind, card.time.column, card.time.format) == ("date", "as of", "%Y-%m-%d")
    assert card.time.history_until == "2023-07"
    assert set(card.left_out) == {"customer id", "country", "nothing"}
    assert card.left_out["country"] == "always 'PT'"
    assert "400 different values" in card.left_out["customer id"]
    assert card.feature("visits").kind == "number"
    assert card.feature("visits").missing == ("NA",)
    assert card.feature("fee").integer is False
    assert card.feature("age").integer is True
    assert "features.days: does -1" in keys(found), "asked, not decided"
    assert card.feature("days").missing == ()
    assert "features.tariff: does 'unknown'" in keys(found)
    assert card.feature("tariff").missing == ()
    told = draft_text(found)
    assert "drafted from all 400 rows" in told
    assert f"make demo CARD='{found.path}'" in told


def test_what_tells_the_answer_alone_is_left_out(tmp_path: Path) -> None:
    text = table(as_of=dates())
    lines = text.splitlines()
    lines[0] += ";closing_balance"
    lines[1:] = [
        f"{line};{9 if line.endswith('yes') else row % 5}" for row, line in enumerate(lines[1:])
    ]
    found = draft_card(write(tmp_path, "\n".join(lines)))
    assert "it tells the answer" in load_card(found.path).left_out["closing_balance"]
    assert "left_out.closing_balance" in keys(found)


@pytest.mark.parametrize(
    ("answers", "column", "positive"),
    [
        (("Attrited Customer", "Existing Customer"), "Attrition_Flag", "Attrited Customer"),
        (("1", "0"), "exited", "1"),
        (("true", "false"), "y", "true"),
        (("bad luck", "all well"), "way_it_went", "bad luck"),
    ],
)
def test_the_answer_and_its_yes_are_found(
    tmp_path: Path, answers: tuple[str, str], column: str, positive: str
) -> None:
    lines = [f"sex,amount,{column}"]
    lines += [f"{'fm'[row % 2]},{row % 13},{answers[row % 5 > 0]}" for row in range(60)]
    card = load_card(draft_card(write(tmp_path, "\n".join(lines))).path)
    assert (card.target.column, card.target.positive) == (column, positive)


def test_a_file_without_time_is_dealt_over_months_and_the_person_is_asked(tmp_path: Path) -> None:
    found = draft_card(write(tmp_path, table(4000)))
    card = load_card(found.path)
    assert card.time.kind == "row_order"
    assert card.time.period_column == "period"
    assert "add a column `period`" in keys(found)
    periods = parse_csv((tmp_path / "file.csv").read_bytes(), card, "file.csv")["period"]
    assert periods.is_monotonic_increasing
    assert periods.nunique() == 12


def test_year_and_month_in_two_columns_are_pointed_out(tmp_path: Path) -> None:
    found = draft_card(write(tmp_path, table(year=[2023] * 200 + [2024] * 200, month=[3] * 400)))
    assert "year and month seem to tell it" in keys(found)


def test_grouped_digits_are_asked_about_before_they_are_lost(tmp_path: Path) -> None:
    amounts = [f"{1 + row % 9}.{row:03d},{row % 100:02d}" for row in range(400)]
    found = draft_card(write(tmp_path, table(amount=amounts)))
    assert "amount" in load_card(found.path).left_out
    assert "thousands" in keys(found)


@pytest.mark.parametrize("name", ["null", "yes", "on"])
def test_a_name_that_yaml_would_read_otherwise_is_kept(tmp_path: Path, name: str) -> None:
    assert load_card(draft_card(write(tmp_path, table(), f"{name}.csv")).path).name == name


def test_names_of_months_in_order_tell_the_year(tmp_path: Path) -> None:
    months = [["nov", "dec", "jan", "feb"][row // 100] for row in range(400)]
    found = draft_card(write(tmp_path, table(month=months)))
    card = load_card(found.path)
    assert (card.time.kind, card.time.start, card.time.end) == ("month_order", "2020-11", "2021-02")
    assert "the year is not in the file" in keys(found)


def test_a_date_that_can_be_read_two_ways_is_asked_about(tmp_path: Path) -> None:
    days = [f"{1 + row % 9:02}/{1 + row // 40:02}/2023" for row in range(400)]
    assert "may be read as %d/%m/%Y (written) or as %m/%d/%Y" in keys(
        draft_card(write(tmp_path, table(day=days)))
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "found no text"),
        ("<html><body>", "a web page"),
        ("a,b,churned\n", "no row of data"),
        ("a\n1\n2\n", "found one column, 'a', by every separator"),
        ("a:b:c\n1:2:3\n", "found one column"),
        ("1,2,yes\n3,4,no\n", "there is no header"),
        ("a,a,churned\n1,2,yes\n3,4,no\n", "found the column 'a' more than once"),
        ("a,b,churned\n1,2,yes\n1,2,3,no\n", "row 2 (line 3): found 4 fields, expected 3"),
        ("a,b\n1,2\n2,3\n3,4\n", "no column with exactly two values"),
        ("id,churned\n1,yes\n2,no\n", "found no column to tell 'churned' from"),
        ('a,b,churned\n1,2,yes\n"1,2,no\n', "expected quotes in pairs"),
        ("stadt,y\nKöln,yes\nBonn,no\n".encode("latin-1"), "iconv -f cp1252 -t utf-8"),
        ("a,y\nx,yes\n".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
        (b"a,y\n\0,yes\n", "zero byte"),
        (b"a" * (1 << 21), "is longer than"),
    ],
)
def test_what_cannot_be_drafted_is_told_with_the_way_out_and_nothing_is_written(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as fault:
        draft_card(path)
    assert said in str(fault.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_handful_of_rows_gets_a_card_and_is_told_that_no_training_takes_it(
    tmp_path: Path,
) -> None:
    lines = ["corporation,lastmonth_activity,number_of_employees,exited"]
    lines += [f"Firm {row},{row * 7 % 50},{row * 3 + 2},{int(row % 4 == 0)}" for row in range(26)]
    found = draft_card(write(tmp_path, "\n".join(lines)))
    assert "corporation" in load_card(found.path).left_out
    assert "the file: found 26 rows" in keys(found)
    assert "bring more rows" in keys(found)


def test_a_card_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path, table(day=dates()))
    first = draft_card(path).path.read_text()
    with pytest.raises(CardError, match="is there already and is not overwritten: give another"):
        draft_card(path)
    assert (tmp_path / "file.yaml").read_text() == first
    assert draft_card(path, "other").path.name == "other.yaml"
    with pytest.raises(CardError, match="is there already"):
        drafting._write_new(tmp_path / "file.yaml", "late")
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "file.csv",
        "file.yaml",
        "other.yaml",
    ]


def test_a_file_that_does_not_fit_yet_is_drafted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = table(day=dates()).replace("yes\n", "\n", 1)
    assert main([str(write(tmp_path, text))]) == 1
    told = capsys.readouterr().out
    assert "The card does not read file.csv yet" in told
    assert "column 'churned': found nothing, expected 'yes' or 'no'" in told
    assert main([str(tmp_path / "none.csv")]) == 2
    assert "no such file" in capsys.readouterr().out


def test_packed_files_are_read_as_they_are(tmp_path: Path) -> None:
    text = table(day=dates()).encode()
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        archive.writestr("inner/data.csv", text)
    packed = [tmp_path / "zipped.zip", write(tmp_path, gzip.compress(text), "packed.csv.gz")]
    for path in packed:
        assert sniff(path).total == 400
        assert load_card(draft_card(path).path).target.column == "churned"


def test_a_long_file_is_sampled_evenly_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sniffing, "MOST_ROWS", 1000)
    text = table(400, day=dates())
    header, _, body = text.partition("\n")
    path = write(tmp_path, header + "\n" + body * 100)
    tracemalloc.start()
    found = sniff(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.total, found.every, len(found.rows)) == (40_000, 64, 625)
    assert peak < 0.8e6 < path.stat().st_size
    told = draft_text(draft_card(path))
    assert "625 of 40,000 rows (every 64th)" in told
