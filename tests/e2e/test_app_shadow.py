"""Page *Shadow* in a browser, against the embedded Postgres."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from mlops.dataset.card import load_card
from mlops.registry.shadows import stop_shadow
from mlops.serving.comparison import compare_shadow
from mlops.settings import Settings
from tests.e2e.test_app_pages import CHROMIUM, app, browser, choose, open_page  # noqa: F401
from tests.fixtures.predict import make_payload
from tests.fixtures.shadow import begin, database_of, label_all, log, score

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


def follow(settings: Settings) -> None:
    score(settings, CARD)
    with database_of(settings) as connection:
        compare_shadow(connection, CARD, "2", settings)


def test_it_says_how_somebody_comes_into_shadow(
    database: Settings,
    open_page: OpenPage,  # noqa: F811
) -> None:
    page = open_page("shadow")
    expect(page.get_by_test_id("stAlert")).to_contain_text("Nobody is in shadow")
    expect(page.get_by_test_id("stAlert")).to_contain_text("make shadow VERSION=7")


def test_it_shows_who_is_in_shadow_and_what_it_would_decide_otherwise(
    database: Settings,
    open_page: OpenPage,  # noqa: F811
) -> None:
    make_payload(database.payloads_dir, "1", seed=1)
    begin(database, CARD, reason="not above the champion's")
    label_all(database, log(database, CARD, 200, champion=None, seed=6))
    log(database, CARD, 100, champion=None, period="2009-04-01", seed=7)
    follow(database)
    page = open_page("shadow")
    named = page.get_by_test_id("stMetric")
    expect(named.filter(has_text="In shadow")).to_contain_text("Version 2")
    expect(named.filter(has_text="Rows scored")).to_contain_text("300")
    expect(named.filter(has_text="difference in 2009-03")).to_contain_text("200 labelled rows")
    expect(page.get_by_text("not above the champion's")).to_be_visible()
    expect(page.get_by_text("make promote VERSION=2")).to_be_visible()
    drawn = page.get_by_test_id("stPlotlyChart")
    expect(drawn).to_have_count(3)
    expect(drawn.nth(0)).to_contain_text("version 2, in shadow")
    expect(drawn.nth(2)).to_contain_text("Version 1, which answered")
    expect(page.get_by_text(re.compile(r"of 100 rows: \d+ would become a yes"))).to_be_visible()
    cells = page.locator("canvas td")  # what tables hold for screen readers
    expect(cells.filter(has_text=re.compile("^2009-04")).first).to_be_attached()

    page.get_by_test_id("stButtonGroup").get_by_text("Profit").click()
    expect(drawn.nth(0)).to_contain_text("Euros per 1,000 rows")
    choose(page, page.get_by_role("combobox"), "2009-03, answered by version 1")
    expect(page.get_by_text(re.compile("Labels have come of"))).to_be_visible()


def test_a_shadow_that_is_over_can_still_be_looked_at(
    database: Settings,
    open_page: OpenPage,  # noqa: F811
) -> None:
    begin(database, CARD)
    log(database, CARD, 40, champion=None)
    follow(database)
    with database_of(database) as connection:
        stop_shadow(connection, CARD)
    page = open_page("shadow")
    expect(page.get_by_test_id("stAlert")).to_contain_text("Nobody is in shadow")
    expect(page.get_by_text("Its shadow is over: stopped by a person.")).to_be_visible()
    expect(page.get_by_text("the payload of one of them")).to_be_visible()
    expect(page.get_by_text("Shown once labels have come")).to_be_visible()
