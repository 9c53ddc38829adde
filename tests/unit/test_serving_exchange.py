"""Which files of the inbox count as finished, and which names are free for results."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from mlops.serving import exchange
from mlops.serving.exchange import ExchangeError, ending, finished, free_path, look, make_folders
from mlops.settings import Settings
from tests.fixtures.postgres import make_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = make_settings(tmp_path)
    make_folders(made)
    return made


@pytest.fixture
def inbox(settings: Settings) -> Path:
    return settings.exchange_dir / "inbox"


def test_only_whole_files_of_people_are_seen(settings: Settings, inbox: Path) -> None:
    for name in ("rows.csv", "two words.ndjson", "line\nbreak.csv", "größe.parquet", "notes.txt"):
        (inbox / name).touch()
    for name in (".rows.csv", "rows.csv.part", "rows.CSV.TMP", "rows.csv~", "x.crdownload"):
        (inbox / name).touch()
    (inbox / "folder.csv").mkdir()
    (inbox / "link.csv").symlink_to("/etc/passwd")
    os.mkfifo(inbox / "pipe.csv")
    seen = {each.path.name for each in look(settings)}
    assert seen == {
        "rows.csv",
        "two words.ndjson",
        "line\nbreak.csv",
        "größe.parquet",
        "notes.txt",
    }


def test_a_name_that_is_no_text_has_one_that_can_be_stored(settings: Settings, inbox: Path) -> None:
    path = os.fsencode(inbox) + b"/caf\xe9.csv"
    os.close(os.open(path, os.O_CREAT))
    (seen,) = look(settings)
    assert seen.name == "caf\\xe9.csv"
    assert os.fsencode(seen.path) == path


def test_without_an_inbox_nothing_waits(tmp_path: Path) -> None:
    assert look(make_settings(tmp_path)) == []


def test_what_was_just_put_there_is_finished_and_what_grows_is_not(
    settings: Settings, inbox: Path
) -> None:
    (inbox / "whole.csv").write_text("age\n40\n")
    os.utime(inbox / "whole.csv", (2e9, 2e9))  # dated in the future by whoever packed it
    stop = threading.Event()

    def grow() -> None:
        with (inbox / "growing.csv").open("a") as file:
            while not stop.is_set():
                file.write("40\n")
                file.flush()
                time.sleep(0.02)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        while not (inbox / "growing.csv").exists():
            time.sleep(0.01)
        assert [each.name for each in finished(settings)] == ["whole.csv"]
    finally:
        stop.set()
        writer.join()
    assert {each.name for each in finished(settings)} == {"whole.csv", "growing.csv"}


def test_a_changed_file_is_not_as_it_was_even_with_its_old_date(
    settings: Settings, inbox: Path
) -> None:
    path = inbox / "rows.csv"
    path.write_text("age\n40\n")
    (seen,) = look(settings)
    assert exchange.still(seen) is True
    path.write_text("age\n41\n")
    os.utime(path, ns=(seen.mark[2], seen.mark[2]))
    assert exchange.still(seen) is False
    path.unlink()
    assert exchange.still(seen) is None


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("a.csv", ".csv"),
        ("a.CSV.gz", ".CSV.gz"),
        ("a.b.ndjson", ".ndjson"),
        ("a.gz", ""),
        ("a", ""),
    ],
)
def test_the_ending_tells_the_format(name: str, end: str) -> None:
    assert ending(name) == end


def test_a_taken_name_gets_a_number_before_its_ending(tmp_path: Path) -> None:
    assert free_path(tmp_path, "a.csv.gz").name == "a.csv.gz"
    (tmp_path / "a.csv.gz").touch()
    assert free_path(tmp_path, "a.csv.gz").name == "a-2.csv.gz"
    (tmp_path / "a-2.csv.gz.rejected.ndjson").touch()
    assert free_path(tmp_path, "a.csv.gz", ".rejected.ndjson").name == "a-3.csv.gz"
    (tmp_path / "gone.txt").symlink_to("nowhere")
    assert free_path(tmp_path, "gone.txt").name == "gone-2.txt"


def test_the_longest_names_leave_room_for_what_is_put_behind_them(tmp_path: Path) -> None:
    name = "ä" * 125 + ".csv"
    for _ in range(2):
        path = free_path(tmp_path, name, exchange.REJECTED_ROWS)
        path.touch()
        Path(f"{path}{exchange.REJECTED_ROWS}").touch()
        assert path.name.endswith(".csv")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    settings.exchange_dir.write_text("a file")
    with pytest.raises(ExchangeError, match="inbox cannot be made"):
        make_folders(settings)
