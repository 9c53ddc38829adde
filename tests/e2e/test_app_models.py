"""Page *Models* in a browser: versions' lives, the gate's pictures, and the buttons."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from mlops.database import connect
from mlops.dataset.card import TARGET, load_card
from mlops.orchestration.server import PROJECT
from mlops.registry.gate import GateDecision, decide, record_decision
from mlops.settings import Settings
from tests.e2e.test_app_pages import (  # noqa: F401
    CHROMIUM,
    PATIENCE_MS,
    app,
    browser,
    open_page,
    running_app,
    write_a_closed_loop,
)
from tests.fixtures.postgres import free_ports
from tests.fixtures.predict import make_rows

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
PICTURES = os.environ.get("PICTURES")


def decisions() -> list[tuple[str, str, GateDecision]]:
    """Return what the gate says of three challengers: better, worse, and bad for some."""
    rows = make_rows(CARD, 1500)
    random = np.random.default_rng(0)
    target = rows[TARGET].to_numpy()
    noise = random.normal(size=len(rows))
    base = float(target.mean())
    settings = Settings(_env_file=None, gate_resamples=300)  # type: ignore[call-arg]

    def scores(signal: Any, other: bool = False) -> Any:
        seen = signal * target + (random.normal(size=len(rows)) if other else noise)
        odds = base / (1 - base) * np.exp(signal * seen - np.square(signal) / 2)
        return odds / (1 + odds)

    column = CARD.slice_columns[3]
    value = rows[column].mode()[0]
    split = np.where(rows[column] == value, 0.1, 3.0)
    return [
        (challenger, champion, decide(ours, theirs, rows, CARD, base, settings))
        for challenger, champion, ours, theirs in (
            ("3", "1", scores(1.5), scores(0.8)),
            ("8", "3", scores(0.8), scores(1.5)),
            ("13", "3", scores(split, other=True), scores(0.8)),
        )
    ]


@pytest.fixture
def loop(database: Settings) -> list[tuple[str, str, GateDecision]]:
    write_a_closed_loop(database)
    found = decisions()
    with connect(settings=database) as connection:
        for challenger, champion, decision in found:
            record_decision(connection, CARD, challenger, champion, decision, "alert", "t")
        with connection.cursor() as cursor:
            cursor.execute("UPDATE ops.deployments SET began = 'gate', retired_by = '3'"
                           " WHERE retired_at IS NOT NULL")  # fmt: skip
    return found


def test_lives_and_decisions_are_shown(
    loop: list[tuple[str, str, GateDecision]],
    open_page: OpenPage,  # noqa: F811
) -> None:
    assert [d.numbers["rule"] for *_, d in loop] == ["better", "not better", "held"]
    page = open_page("models")
    expect(page.get_by_role("heading", name="Versions' lives")).to_be_visible()
    expect(page.get_by_role("heading", name="Gate")).to_be_visible()
    forest = page.get_by_test_id("stPlotlyChart").filter(has_text="3 against 1: better").first
    expect(forest).to_contain_text("13 against 3: loses on a slice")
    expect(forest).to_contain_text("8 against 3: not better")
    # The latest decision is chosen: its reason, and its slices.
    expect(page.get_by_text("held: it loses on")).to_be_visible()
    slices = page.get_by_test_id("stPlotlyChart").filter(has_text="housing =")
    expect(slices).to_have_count(2)
    cells = page.locator("canvas td")
    for words in ("2008-11 to 2009-04", "gate", "better"):
        expect(cells.filter(has_text=words).first).to_be_attached()
    expect(cells.filter(has_text="XGBClassifier").first).to_be_attached()
    # Where nothing is to be asked of Mage, the buttons are there all the same.
    expect(page.get_by_role("button", name="Roll back…")).to_be_enabled()
    if PICTURES:
        page.wait_for_timeout(2000)
        take_pictures(page)


def test_a_decision_without_a_comparison_is_told_and_not_drawn(
    loop: list[tuple[str, str, GateDecision]],
    database: Settings,
    open_page: OpenPage,  # noqa: F811
) -> None:
    numbers = {**loop[0][2].numbers, "rule": "no comparison", "roc_auc": None, "brier": None}
    numbers |= {"champion_roc_auc": None, "champion_brier": None, "slices": []}
    unseen = GateDecision(False, "no comparison: 0 of 250 labelled rows are unseen", numbers)
    with connect(settings=database) as connection:
        record_decision(connection, CARD, "21", "3", unseen, "alert", "t")
    page = open_page("models")
    expect(
        page.get_by_text("without a comparison: version 21. no comparison: 0 of")
    ).to_be_visible()
    forest = page.get_by_test_id("stPlotlyChart").filter(has_text="3 against 1: better").first
    expect(forest).not_to_contain_text("21 against 3")


def take_pictures(page: Page) -> None:
    """Keep the page as a person sees it, in both themes and widths; only for who asks for it."""
    for scheme in ("light", "dark"):
        for width in (1440, 800):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            page.set_viewport_size({"width": width, "height": 4200})
            page.wait_for_timeout(2500)
            page.screenshot(path=f"{PICTURES}/models-{scheme}-{width}.png", full_page=True)


@dataclass
class Mage:
    """In Mage's place: takes triggers with the right token, and ends the runs at once."""

    settings: Settings
    status: str = "completed"
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def take(self, path: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
        if token != f"Bearer {self.settings.secret('mage_trigger_token')}":
            return {"error": {"code": 500, "exception": "wrong token"}}
        number = int(path.split("/")[3])
        with connect("mage", settings=self.settings) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pipeline_uuid FROM pipeline_schedule WHERE id = %s", (number,))
            (pipeline,) = cursor.fetchone() or ("",)
            self.asked.append((pipeline, body["pipeline_run"]["variables"]))
            cursor.execute(
                "INSERT INTO pipeline_run (id, pipeline_uuid, status, variables)"
                " VALUES (%s, %s, %s, '{}')",
                (len(self.asked), pipeline, self.status),
            )
        return {"pipeline_run": {"id": len(self.asked)}}


@pytest.fixture
def mage(database: Settings) -> Iterator[Mage]:
    """Mage's tables as far as its client reads them, and its API at the stack's address."""
    stand_in = Mage(database)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = stand_in.take(self.path, self.headers["Authorization"], body)
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with connect("mage", settings=database) as connection, connection.cursor() as cursor:
        cursor.execute(
            "DROP TABLE IF EXISTS pipeline_schedule, pipeline_run, block_run CASCADE;"
            "CREATE TABLE pipeline_schedule (id int, name text, pipeline_uuid text,"
            " schedule_type text, repo_path text, token text);"
            "CREATE TABLE pipeline_run (id int, pipeline_uuid text, status text, variables json);"
            "CREATE TABLE block_run (id int, pipeline_run_id int, block_uuid text, status text,"
            " started_at timestamptz)"
        )
        for number, name in enumerate(("rollback", "promote", "release")):
            cursor.execute(
                "INSERT INTO pipeline_schedule VALUES (%s, 'api', %s, 'API', %s, 'secret')",
                (number, name, str(PROJECT)),
            )
    server = ThreadingHTTPServer((database.host, database.mage_port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        with connect("mage", settings=database) as connection, connection.cursor() as cursor:
            cursor.execute("DROP TABLE pipeline_schedule, pipeline_run, block_run")


def test_a_person_rolls_back_and_promotes_by_the_pipelines(
    loop: object,
    mage: Mage,
    open_page: OpenPage,  # noqa: F811
) -> None:
    page = open_page("models")
    page.get_by_role("button", name="Roll back…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Version 3 gives way to version 1")
    expect(dialog).to_contain_text("the loop promotes nothing")
    if PICTURES:
        page.wait_for_timeout(1000)
        page.screenshot(path=f"{PICTURES}/models-rollback.png")
    dialog.get_by_label("Who, and why").fill("Ada: calls from the branch")
    dialog.get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("rollback is done (run 1 in Mage)")).to_be_visible()
    cause = "rolled back on page Models: Ada: calls from the branch"
    assert mage.asked == [("rollback", {"version": "3", "cause": cause})]
    expect(dialog).to_be_hidden()

    mage.status = "failed"
    page.get_by_role("button", name="Promote…").click()
    # The version in production is not among those to be promoted.
    chosen = re.compile("^4: XGBClassifier, ROC AUC 0.612 on validation")
    expect(dialog.get_by_role("combobox")).to_have_value(chosen)
    dialog.get_by_role("button", name="Promote").click()
    expect(page.get_by_text("Run 2 of promote ended as failed")).to_be_visible()
    assert mage.asked[1:] == [("promote", {"version": "4", "cause": "promoted on page Models"})]


def test_a_hold_is_told_and_released(
    loop: object,
    mage: Mage,
    database: Settings,
    open_page: OpenPage,  # noqa: F811
) -> None:
    with connect(settings=database) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.holds (card, reason, rolled_from, rolled_to, done_at) VALUES"
            " ('bank_marketing', 'make rollback: from version 3 to 1', '3', '1', now())"
        )
    page = open_page("models")
    told = page.get_by_text("The loop promotes nothing")
    expect(told).to_be_visible()
    expect(page.get_by_text("make rollback: from version 3 to 1")).to_be_visible()
    page.get_by_role("button", name="Release…").click()
    page.get_by_role("dialog").get_by_role("button", name="Release").click()
    expect(page.get_by_text("release is done")).to_be_visible()
    assert mage.asked == [("release", {"cause": "released on page Models"})]


def test_mage_that_is_away_is_said_in_the_dialog(
    loop: object,
    open_page: OpenPage,  # noqa: F811
) -> None:
    page = open_page("models")
    page.get_by_role("button", name="Roll back…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Roll back").click()
    expect(dialog.get_by_text("Mage's database does not answer")).to_be_visible()
    expect(dialog.get_by_text("make rollback")).to_be_visible()


def test_switched_off_the_buttons_say_what_to_run(
    loop: object,
    database: Settings,
    browser: Browser,  # noqa: F811
    tmp_path: Path,
) -> None:
    off = database.model_copy(update={"app_actions": "off", "streamlit_port": free_ports(1)[0]})
    with running_app(off, tmp_path) as other:
        page = browser.new_page()
        page.goto(f"{other.settings.streamlit_url}/models")
        button = page.get_by_role("button", name="Roll back…")
        expect(button).to_be_disabled(timeout=3 * PATIENCE_MS)
        expect(page.get_by_text("Switched off (MLOPS_APP_ACTIONS)")).to_be_visible()
        expect(page.get_by_text("make promote VERSION=…")).to_be_visible()
        page.close()
