"""Labels that come as a file: checked whole, delivered at once, counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.dataset.errors import DataError
from mlops.serving import labels
from mlops.settings import Settings

CARD = load_card("bank_marketing")


def written(folder: Path, *lines: str, header: str = "request_id,row,label") -> Path:
    path = folder / "answers.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def logged(settings: Settings) -> list[tuple[str, int, int | None]]:
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT request_id, row, label FROM serving.predictions ORDER BY 1, 2")
        return cursor.fetchall()


@pytest.fixture
def answered(database: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A database with two answered requests, of two rows and of one; the settings name it."""
    with connect(settings=database) as connection, connection.cursor() as cursor:
        for name, row in (("a", 0), ("a", 1), ("b", 0)):
            cursor.execute(
                "INSERT INTO serving.predictions (request_id, row, made_at, period, model_version,"
                " features, probability) VALUES (%s, %s, now(), '2026-01-01', '1', '{}', 0.5)",
                (name, row),
            )
    monkeypatch.setattr(labels, "get_settings", lambda: database)
    monkeypatch.setattr(labels, "connect", lambda: connect(settings=database))
    return database


def test_labels_of_a_file_are_delivered_and_counted(
    answered: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "a,0,1", "a,1,no", "a,7,1", "c,0,1")
    for _ in range(2):
        assert labels.main([str(path)]) == 0
        said = capsys.readouterr().out
        assert "2 of 4 labels matched a logged row; 1 request ids are not in the log" in said
    assert logged(answered) == [("a", 0, 1), ("a", 1, 0), ("b", 0, None)]


def test_a_file_with_a_fault_delivers_nothing(
    answered: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "a,0,1", "b,0,maybe")
    assert labels.main([str(path)]) == 1
    said = capsys.readouterr().err
    assert str(path) in said
    assert "row 2, column label: found 'maybe', expected one of 'no', 'yes', '0', '1'" in said
    assert {label for _, _, label in logged(answered)} == {None}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,first,1"], "row 1, column row: found 'first', expected a number from 0"),
        (["a,-1,1"], "row 1, column row: found '-1'"),
        ([",0,1"], "row 1, column request_id: found nothing"),
        (["a,0"], "row 1, column label: found ''"),
        (["a,0,1", "a,0,0"], "row 2, column label: found '0', expected what an earlier line"),
        ([], "found no row"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels.read_labels(written(tmp_path, *lines), CARD)


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="header: found id, label, expected request_id, row, label"):
        labels.read_labels(written(tmp_path, "a,1", header="id,label"), CARD)
    with pytest.raises(DataError, match="cannot be read"):
        labels.read_labels(tmp_path / "none.csv", CARD)
