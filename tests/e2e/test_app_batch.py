"""Page *Batch* in a browser, against the real API and the embedded Postgres."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import FilePayload, Page, expect

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.settings import Settings
from tests.e2e.test_app_pages import CHROMIUM, PATIENCE_MS, app, browser, open_page  # noqa: F401
from tests.fixtures.predict import PredictServer, make_rows
from tests.fixtures.waiting import await_

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        not CHROMIUM.exists(),
        reason=f"SKIPPED LOUDLY: no {CHROMIUM} (Debian: apt-get install chromium fonts-dejavu)",
    ),
]

CARD = load_card("bank_marketing")
OpenPage = Callable[[str], Page]


def upload(page: Page, name: str, content: bytes) -> None:
    chooser = page.get_by_test_id("stFileUploader").locator("input[type=file]")
    chooser.set_input_files(
        FilePayload(name=name, mimeType="application/octet-stream", buffer=content)
    )
    expect(page.get_by_role("button", name="Score")).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Score").click()


def metric(page: Page, label: str) -> str:
    found = page.get_by_test_id("stMetric").filter(has_text=label)
    return found.get_by_test_id("stMetricValue").inner_text(timeout=PATIENCE_MS)


def test_a_file_is_scored_shown_and_downloaded(
    predict_server: PredictServer,
    database: Settings,
    open_page: OpenPage,  # noqa: F811
    tmp_path: Path,
) -> None:
    number = CARD.numbers[0]
    rows = 30_000  # more than a megabyte, which is where servers like to stop
    frame = make_rows(CARD, rows)[CARD.feature_names].astype({number: object})
    frame.loc[9, number] = "forty"
    frame.loc[10, number] = 10_000
    content = frame.to_csv(index=False).encode()
    assert len(content) > 1_200_000
    page = open_page("batch")
    upload(page, "two words.csv", content)
    assert metric(page, "Rows scored") == f"{rows - 1:,}"
    assert metric(page, "Bad rows") == "1"
    assert int(metric(page, "Unusual").replace(",", "")) >= 1
    decided = int(metric(page, "Decided").replace(",", ""))
    expect(page.get_by_test_id("stPlotlyChart")).to_contain_text("threshold 50.0%")
    cells = page.locator("canvas td")  # what tables hold for screen readers
    expect(cells.filter(has_text=re.compile("^11$")).first).to_be_attached()
    expect(cells.filter(has_text=number).first).to_be_attached()

    with page.expect_download() as started:
        page.get_by_role("button", name="Predictions").click()
    assert started.value.suggested_filename == "two words_scored.csv"
    started.value.save_as(tmp_path / "scored.csv")
    scored = pd.read_csv(tmp_path / "scored.csv")
    assert len(scored) == rows - 1
    assert (scored["decision"] == "yes").sum() == decided
    with page.expect_download() as started:
        page.get_by_role("button", name="Bad rows").click()
    started.value.save_as(tmp_path / "bad.ndjson")
    (bad,) = pd.read_json(tmp_path / "bad.ndjson", lines=True).to_dict("records")
    assert (bad["line"], bad["field"]) == (11, number)

    def logged() -> bool:
        with connect(settings=database) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*), count(DISTINCT request_id) FROM serving.predictions")
            return cursor.fetchone() == (rows - 1, 1)

    await_(logged, 20, "each row is logged once")
    page.get_by_role("button", name="Score").click()  # the same upload is the same request
    expect(page.get_by_text("Reading the scores")).to_have_count(0)
    assert metric(page, "Rows scored") == f"{rows - 1:,}"
    assert logged()


def test_the_example_of_the_page_can_be_scored(
    predict_server: PredictServer,
    open_page: OpenPage,  # noqa: F811
) -> None:
    page = open_page("batch")
    page.get_by_text("What the file must look like").click()
    with page.expect_download() as started:
        page.get_by_role("button", name="Example to start from").click()
    upload(page, "example.csv", Path(started.value.path()).read_bytes())
    assert metric(page, "Rows scored") == "5"
    assert metric(page, "Bad rows") == "0"
    expect(page.get_by_role("button", name="Bad rows")).to_have_count(0)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.gz", b"x", "tells no format"),
        ("rows.csv", b"name,colour\nx,red\n", CARD.feature_names[0]),
        ("rows.parquet", b"PAR1", "[Pp]arquet"),
    ],
)
def test_a_file_that_cannot_be_scored_is_named_with_the_reason(
    predict_server: PredictServer,
    open_page: OpenPage,  # noqa: F811
    name: str,
    content: bytes,
    says: str,
) -> None:
    page = open_page("batch")
    upload(page, name, content)
    alert = page.get_by_test_id("stAlert")
    expect(alert).to_contain_text(name, timeout=PATIENCE_MS)
    expect(alert).to_contain_text(re.compile(says))


def test_without_the_api_the_page_says_so_and_lists_the_files_of_the_inbox(
    database: Settings,
    open_page: OpenPage,  # noqa: F811
) -> None:
    with connect(settings=database) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO ops.scored_files (sha256, name, status, request_id, bytes, version, rows,"
            " scored, rejected, predictions, reason, finished_at)"
            " VALUES (%s, %s, %s, 'r', 10, %s, %s, %s, %s, %s, %s, now())",
            [
                ("0" * 64, "day.csv", "success", "3", 100, 98, 2, "outbox/day.csv", None),
                ("1" * 64, "notes.txt", "rejected", *[None] * 5, "the name tells no format"),
            ],
        )
    page = open_page("batch")
    expect(page.get_by_test_id("stAlert")).to_contain_text("does not answer")
    cells = page.locator("canvas td")
    for words in ("day.csv", "outbox/day.csv", "notes.txt", "the name tells no format", "98"):
        expect(cells.filter(has_text=re.compile(f"^{words}$")).first).to_be_attached()
