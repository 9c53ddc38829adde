"""Page *Reports* in a browser: one report in its frame, and addresses that ask for more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from mlops.database import connect
from mlops.reporting.library import write_bytes, write_page
from mlops.settings import Settings
from tests.e2e.test_app_pages import App, browser, pytestmark, running_app  # noqa: F401

PATIENCE_MS = 30_000
SUMMARY = (
    '<!DOCTYPE html><html lang="en"><head><meta name="generator" content="mlops"></head><body>'
    "<h1>{}</h1><script>document.body.innerHTML = 'a script ran'</script></body></html>"
)


@pytest.fixture(scope="module")
def app(postgres: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("reports")
    reports = folder / "reports"
    write_page(folder / "secret.html", "top secret")
    write_page(reports / "3" / "2009-03.html", SUMMARY.format("March"))
    write_page(reports / "3" / "2009-03.evidently.html",
               '<p id="e">none</p><script src="../assets/evidently-1.js"></script>')  # fmt: skip
    write_page(
        reports / "assets" / "evidently-1.js",
        "document.getElementById('e').textContent = 'Evidently drew this';"
        "try { parent.document.title = 'reached' } catch (error) {}",
    )
    write_page(reports / "retrains" / "r1.html", SUMMARY.format("Retrain"))
    for version in ("2", "3"):
        write_page(reports / "cards" / f"{version}.html", SUMMARY.format(f"Card {version}"))
    write_bytes(reports / "cards" / "3.pdf", b"%PDF-1.7 a card")
    settings = postgres.model_copy(update={"reports_dir": reports})
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.retrains (id, card, cause, finished_at, outcome, challenger)"
            " VALUES ('r1', 'bank_marketing', 'test', now(), 'kept_champion', '4')"
            " ON CONFLICT DO NOTHING"
        )
    with running_app(settings, folder) as app:
        yield app
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM ops.retrains WHERE id = 'r1'")


@pytest.fixture
def page(browser) -> Iterator[Page]:  # noqa: F811
    context = browser.new_context(viewport={"width": 1440, "height": 1200})
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    yield context.new_page()
    context.close()


def shown(page: Page):
    """The report in its two frames: the app's, and the sandboxed one in it."""
    return page.frame_locator("iframe").frame_locator("iframe")


def test_the_report_that_an_address_names_is_shown_without_its_scripts(app: App, page: Page):
    page.goto(f"{app.settings.streamlit_url}/reports?version=3&period=2009-03")
    expect(page.get_by_role("heading", name="2009-03, version 3")).to_be_visible()
    expect(shown(page).get_by_role("heading", name="March")).to_be_visible()
    expect(shown(page).get_by_text("a script ran")).to_have_count(0)


def test_evidentlys_page_is_drawn_by_its_script_and_reaches_nothing(app: App, page: Page):
    page.goto(f"{app.settings.streamlit_url}/reports?version=3&period=2009-03")
    page.get_by_text("Evidently", exact=True).click()
    expect(shown(page).get_by_text("Evidently drew this")).to_be_visible()
    assert page.title() != "reached"
    assert [frame.evaluate("document.title") for frame in page.frames].count("reached") == 0


def test_a_notices_link_leads_to_its_retrain(app: App, page: Page):
    page.goto(f"{app.settings.streamlit_url}/reports?retrain=r1")
    expect(page.get_by_role("heading", name="Retrain r1")).to_be_visible()
    expect(shown(page).get_by_role("heading", name="Retrain")).to_be_visible()


def test_the_card_of_a_version_is_shown_and_goes_along_as_a_pdf(app: App, page: Page):
    page.goto(f"{app.settings.streamlit_url}/model-card")
    expect(shown(page).get_by_role("heading", name="Card 3")).to_be_visible()
    expect(shown(page).get_by_text("a script ran")).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as PDF").click()
    assert download.value.suggested_filename == "model-card-3.pdf"
    assert download.value.path().read_bytes().startswith(b"%PDF")
    page.goto(f"{app.settings.streamlit_url}/model-card?version=2")
    expect(shown(page).get_by_role("heading", name="Card 2")).to_be_visible()
    page.goto(f"{app.settings.streamlit_url}/reports?version=3")
    expect(page.get_by_role("heading", name="Model card of version 3")).to_be_visible()


@pytest.mark.parametrize(
    "asked",
    [
        "retrain=../secret", "retrain=..%2F..%2Fsecret", "retrain=%2Fetc%2Fpasswd",
        "version=..&period=secret", "version=3&period=../../secret", "retrain=r1%00",
    ],
)  # fmt: skip
def test_an_address_that_asks_for_another_file_gets_none(app: App, page: Page, asked: str):
    page.goto(f"{app.settings.streamlit_url}/reports?{asked}")
    expect(page.get_by_text("The report that the address names is not there")).to_be_visible()
    expect(shown(page).locator("h1")).to_be_visible()
    assert not [frame for frame in page.frames if "top secret" in frame.content()]
