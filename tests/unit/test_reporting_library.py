"""Where reports lie, that no name of a person becomes a path, and what is deleted when."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mlops.reporting.library import (
    KEPT_OF_CHAMPION,
    ReportError,
    card_path,
    find_report,
    list_reports,
    month_path,
    prune,
    read_page,
    retrain_path,
    write_page,
)
from mlops.settings import Settings

HOSTILE = [
    "../1",
    "..",
    "1/../../etc",
    "/etc/passwd",
    "1\x00",
    "",
    "1 ",
    "\uff0e\uff0e/1",
    "%2e%2e",
    "-1",
]


def make(folder: Path, *names: str, size: int = 1000, days_old: float = 0) -> None:
    for name in names:
        path = write_page(folder / name, "x" * size)
        then = time.time() - days_old * 86_400
        os.utime(path, (then, then))


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def bounds(folder: Path, months: int = 24, mb: int = 200) -> Settings:
    return Settings(
        _env_file=None, reports_dir=folder, reports_keep_months=months, reports_max_mb=mb
    )


def test_a_card_is_listed_with_its_pdf_kept_with_its_champion_and_deleted_whole(
    tmp_path: Path,
) -> None:
    make(tmp_path, "cards/3.html", "cards/3.pdf", "cards/4.html", "cards/4.pdf", days_old=900)
    make(tmp_path, "cards/x.html", "cards/5.pdf", "3/2009-03.html")
    cards = [report for report in list_reports(tmp_path) if report.kind == "card"]
    assert sorted(report.version or "" for report in cards) == ["3", "4"]
    assert {report.bytes for report in cards} == {2000}
    assert find_report(tmp_path, version="3", period=None).kind == "card"
    prune(bounds(tmp_path), champion="4")
    assert left(tmp_path) == {
        *("cards/4.html", "cards/4.pdf", "cards/x.html", "cards/5.pdf", "3/2009-03.html")
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_of_no_version_has_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReportError):
        card_path(tmp_path, name)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_are_none_give_no_path(tmp_path: Path, name: str) -> None:
    for ask in (
        lambda: month_path(tmp_path, name, "2009-03"),
        lambda: month_path(tmp_path, "3", name),
    ):
        with pytest.raises(ReportError):
            ask()
    if name != "-1":
        with pytest.raises(ReportError):
            retrain_path(tmp_path, name)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_asked_for_is_compared_with_what_is_there(tmp_path: Path, name: str) -> None:
    reports = tmp_path / "reports"
    make(reports, "1/2009-03.html", "retrains/r1.html")
    make(tmp_path, "1/2009-03.html", "etc/2009-03.html")
    for asked in ({"retrain": name}, {"version": name, "period": "2009-03"}):
        with pytest.raises(ReportError, match="there is no report"):
            find_report(reports, **asked)


def test_reports_are_listed_the_latest_first_with_their_detail(tmp_path: Path) -> None:
    make(tmp_path, "3/2009-03.html", "3/2009-03.evidently.html", days_old=2)
    make(tmp_path, "retrains/20260101T000000Z-1a2b3c.html", days_old=1)
    make(tmp_path, "12/2009-04.html")
    make(tmp_path, "replay.html", "3/notes.html", "3/.2009-05.html.77", "old/2009-03.html")
    found = list_reports(tmp_path)
    assert [(each.kind, each.version, each.period, each.retrain) for each in found] == [
        ("month", "12", "2009-04", None),
        ("retrain", None, None, "20260101T000000Z-1a2b3c"),
        ("month", "3", "2009-03", None),
    ]
    assert found[2].detail == tmp_path / "3" / "2009-03.evidently.html"
    assert found[2].bytes == 2000
    assert find_report(tmp_path, version="3", period="2009-03") == found[2]
    assert find_report(tmp_path, retrain="20260101T000000Z-1a2b3c") == found[1]


def test_a_folder_that_is_not_there_holds_no_reports(tmp_path: Path) -> None:
    assert list_reports(tmp_path / "none") == []
    assert prune(bounds(tmp_path / "none")) == []


def test_a_link_is_no_report_and_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    reports = tmp_path / "reports"
    (reports / "1").mkdir(parents=True)
    (reports / "1" / "2009-03.html").symlink_to(secret)
    (reports / "2").symlink_to(tmp_path)
    assert list_reports(reports) == []
    with pytest.raises(ReportError, match="cannot be read"):
        read_page(reports / "1" / "2009-03.html")


def test_a_page_is_read_with_its_assets_in_it(tmp_path: Path) -> None:
    make(tmp_path, "assets/evidently-1.js")
    (tmp_path / "assets" / "evidently-1.js").write_text("draw('</script>')")
    page = write_page(
        tmp_path / "1" / "2009-03.evidently.html",
        '<script src="../assets/evidently-1.js"></script>',
    )
    assert read_page(page) == "<script>draw('<\\/script>')</script>"


def test_an_asset_outside_the_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "secret.js").write_text("secret")
    hostile = '<script src="../assets/../../secret.js"></script>'
    page = write_page(tmp_path / "reports" / "1" / "2009-03.html", hostile)
    assert read_page(page) == hostile


def test_of_each_version_the_latest_months_are_kept(tmp_path: Path) -> None:
    make(tmp_path, *(f"1/2009-0{month}.html" for month in range(1, 6)), "1/2009-01.evidently.html")
    make(tmp_path, "2/2008-01.html", "retrains/new.html", days_old=10)
    make(tmp_path, "retrains/old.html", days_old=70)
    make(tmp_path, "replay.html", "1/notes.txt", days_old=900)
    prune(bounds(tmp_path, months=2))
    assert left(tmp_path) == {
        *("1/2009-04.html", "1/2009-05.html", "2/2008-01.html"),
        *("retrains/new.html", "replay.html", "1/notes.txt"),
    }


def test_an_emptied_version_leaves_no_folder(tmp_path: Path) -> None:
    make(tmp_path, "1/2009-01.html", size=12_000_000)
    make(tmp_path, "2/2009-02.html")
    prune(bounds(tmp_path, mb=10), champion="2")
    assert not (tmp_path / "1").exists()


def test_beyond_the_size_the_oldest_of_retired_versions_go_first(tmp_path: Path) -> None:
    size = 2_000_000
    make(tmp_path, "1/2009-02.html", "2/2009-01.html", "2/2009-04.html", size=size)
    make(tmp_path, "retrains/a.html", size=size, days_old=3)
    make(tmp_path, "retrains/b.html", size=size)
    champion = [f"3/2009-{month:02d}.html" for month in range(1, KEPT_OF_CHAMPION + 3)]
    make(tmp_path, *champion, size=100_000)
    settings = bounds(tmp_path, mb=10)
    assert prune(settings, champion="3") == [tmp_path / "2/2009-01.html"]
    make(tmp_path, "retrains/c.html", size=9_000_000)
    prune(settings, champion="3")
    # Months of retired versions, then retrains, oldest first.
    assert left(tmp_path) == {*champion, "retrains/c.html"}
    make(tmp_path, "retrains/c.html", size=20_000_000)
    prune(settings, champion="3")
    assert left(tmp_path) == set(champion)


def test_the_latest_months_of_the_champion_are_never_deleted(tmp_path: Path) -> None:
    champion = [f"3/2009-{month:02d}.html" for month in range(1, 13)]
    make(tmp_path, *champion, size=11_000_000)
    make(tmp_path, "4/2009-12.html", size=11_000_000)
    prune(bounds(tmp_path, months=1, mb=10), champion="3")
    assert left(tmp_path) == set(champion[-KEPT_OF_CHAMPION:])


def test_a_report_is_replaced_as_a_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    path = month_path(tmp_path, "3", "2009-03")
    write_page(path, "one")
    assert write_page(path, "two").read_text() == "two"
    assert left(tmp_path) == {"3/2009-03.html"}
