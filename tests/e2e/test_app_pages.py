"""The Streamlit pages in a browser, against the real API and the embedded Postgres."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from mlops.database import connect
from mlops.serving.client import PredictClient
from mlops.serving.payload import remove_current, switch_current
from mlops.settings import ROOT, Settings
from tests.fixtures.postgres import free_ports, make_settings
from tests.fixtures.predict import PredictServer, make_payload
from tests.fixtures.prometheus import Prometheus, program
from tests.fixtures.waiting import await_

CHROMIUM = Path("/usr/bin/chromium")
STREAMLIT = ROOT / ".venv-services" / "bin" / "streamlit"
PATIENCE_MS = 30_000

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM.exists(),
        reason=f"SKIPPED LOUDLY: no {CHROMIUM} (Debian: apt-get install chromium fonts-dejavu)",
    ),
]


def environment(settings: Settings) -> dict[str, str]:
    """Return an environment in which a process finds exactly `settings`."""
    named = {name: value for name, value in os.environ.items() if not name.startswith("MLOPS_")}
    for name in settings.model_dump(exclude_none=True):
        value = getattr(settings, name)
        shown = value.get_secret_value() if hasattr(value, "get_secret_value") else value
        named[f"MLOPS_{name.upper()}"] = str(shown)
    return named | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
            ],
        )
        yield browser
        browser.close()


@dataclass(frozen=True)
class App:
    """A running Streamlit: the settings that it was started with, and what it has written."""

    settings: Settings
    output: Path


@contextmanager
def running_app(settings: Settings, folder: Path, root: Path = ROOT) -> Iterator[App]:
    """Run Streamlit as the stack does, until the block ends; `root` is where the project lies."""
    output = folder / "streamlit.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [
                str(STREAMLIT),
                "run",
                "mlops/app/Home.py",
                f"--server.port={settings.streamlit_port}",
                f"--server.address={settings.host}",
            ],
            cwd=root,
            env=environment(settings) | {"PYTHONPATH": str(root)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def healthy() -> bool:
        assert process.poll() is None, output.read_text()
        try:
            return requests.get(f"{settings.streamlit_url}/_stcore/health", timeout=2).ok
        except requests.ConnectionError:
            return False

    try:
        await_(healthy, 60, "Streamlit is healthy")
        yield App(settings, output)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def app(postgres: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Streamlit, on the ports of the test's API and Postgres."""
    folder = tmp_path_factory.mktemp("app")
    settings = postgres.model_copy(update={"payloads_dir": folder / "payloads"})
    with running_app(settings, folder) as app:
        yield app


@pytest.fixture
def open_page(app: App, database: Settings, browser: Browser) -> Iterator[Callable[[str], Page]]:
    """Return what opens a path of the app; afterwards no page may have raised anything."""
    assert database.postgres_port == app.settings.postgres_port
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)

    def open_path(path: str) -> Page:
        page = context.new_page()
        page.goto(f"{app.settings.streamlit_url}/{path}")
        return page

    yield open_path
    context.close()
    assert "Traceback" not in app.output.read_text()


def submit(page: Page) -> None:
    page.get_by_role("button", name="Predict").click()


def answer_of(page: Page, version: str) -> str:
    """Return the answer that the page shows as given by `version`, once it is there."""
    metric = page.get_by_test_id("stMetric").filter(has_text=f"Answer of version {version}")
    return metric.get_by_test_id("stMetricValue").inner_text()


def test_form_is_the_models_and_the_answer_is_the_apis(
    predict_server: PredictServer, database: Settings, open_page: Callable[[str], Page]
) -> None:
    model = requests.get(f"{predict_server.url}/model", timeout=10).json()
    page = open_page("")
    expect(page.get_by_role("heading", name=model["target"]["question"])).to_be_visible()
    inputs = page.locator("[data-testid=stNumberInput], [data-testid=stSelectbox]")
    expect(inputs).to_have_count(len(model["inputs"]))

    number = next(entry for entry in model["inputs"] if entry["kind"] == "number")
    label = number["name"].capitalize()
    page.get_by_role("spinbutton", name=label).fill(str(number["max"] + 1000))
    submit(page)
    assert answer_of(page, "1") in {model["target"]["positive"], model["target"]["negative"]}
    expect(page.get_by_test_id("stPlotlyChart").first).to_contain_text("threshold 50.0%")
    expect(page.get_by_role("heading", name="Why this score")).to_be_visible()
    why = page.get_by_test_id("stPlotlyChart").last
    for words in ("Reference customer", f"{number['name']} = {number['max'] + 1000:,.0f}"):
        expect(why).to_contain_text(words)
    expect(page.get_by_test_id("stAlert")).to_contain_text(f"{number['name']} lay between")

    def logged() -> list[tuple[object, ...]]:
        with connect(settings=database) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT purpose, model_version, warnings, features ->> %s FROM serving.predictions",
                (number["name"],),
            )
            return cursor.fetchall()

    rows = await_(logged, 20, "the prediction is logged")
    assert [row[:3] for row in rows] == [("live", "1", 1)]
    assert float(str(rows[0][3])) == number["max"] + 1000


def test_a_payload_of_before_explanations_answers_without_one(
    database: Settings, open_page: Callable[[str], Page]
) -> None:
    code = make_payload(database.payloads_dir, "1") / "predict.py"
    routes = code.read_text(encoding="utf-8")
    assert routes.count('"/explain"') == 1
    code.write_text(routes.replace('"/explain"', '"/not-yet"'), encoding="utf-8")
    switch_current(database.payloads_dir, "1")
    server = PredictServer(database)
    try:
        server.start()
        page = open_page("")
        submit(page)
        assert answer_of(page, "1")
        expect(page.get_by_text("The request and the answer, as JSON")).to_be_visible()
        expect(page.get_by_test_id("stPlotlyChart")).to_have_count(1)
        expect(page.get_by_text("Why this score")).to_have_count(0)
        expect(page.get_by_test_id("stException")).to_have_count(0)
    finally:
        server.stop()


def choose(page: Page, box: Locator, name: str) -> None:
    """Choose an option of a box; once more where a rerun has closed the list in between."""

    def chosen() -> bool:
        with suppress(PlaywrightTimeoutError):
            box.click(timeout=5_000)
            page.get_by_role("option", name=name).click(timeout=5_000)
        return box.input_value() == name

    await_(chosen, 60, f"{name} is chosen")


def test_a_version_deployed_meanwhile_answers_what_was_filled_in(
    predict_server: PredictServer, database: Settings, open_page: Callable[[str], Page]
) -> None:
    page = open_page("")
    expect(page.get_by_text("Version 1 · LogisticRegression")).to_be_visible()
    number = page.get_by_role("spinbutton").first
    number.fill("77")
    category = page.get_by_role("combobox").first
    choose(page, category, "blue")
    make_payload(database.payloads_dir, "2", seed=1)
    switch_current(database.payloads_dir, "2")
    with PredictClient(predict_server.url) as client:
        client.wait_for_version("2", database.predict_workers, timeout=30)
    submit(page)
    expect(page.get_by_text("Version 2 · LogisticRegression")).to_be_visible()
    assert answer_of(page, "2")
    expect(number).to_have_value("77")
    expect(category).to_have_value("blue")


def test_without_a_model_the_page_says_how_to_get_one(open_page: Callable[[str], Page]) -> None:
    page = open_page("")
    expect(page.get_by_test_id("stAlert")).to_contain_text("No model is deployed yet. make demo")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_page_survives_the_api_and_comes_back_with_it(
    predict_server: PredictServer, app: App, open_page: Callable[[str], Page]
) -> None:
    make_payload(app.settings.payloads_dir, "1")
    switch_current(app.settings.payloads_dir, "1")
    page = open_page("")
    number = page.get_by_role("spinbutton").first
    number.fill("77")
    predict_server.stop()
    submit(page)
    expect(page.get_by_test_id("stAlert")).to_contain_text(
        f"does not answer at {predict_server.url}"
    )
    remove_current(app.settings.payloads_dir)
    predict_server.start()
    page.get_by_role("button", name="Try again").click()
    expect(number).to_have_value("77")
    submit(page)
    assert answer_of(page, "1")
    page.get_by_role("link", name="Models").click()
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    page.get_by_role("link", name="Try it").click()
    expect(number).to_have_value("77")


def test_models_page_says_what_to_do_before_anything_has_happened(
    open_page: Callable[[str], Page],
) -> None:
    page = open_page("models")
    expect(page.get_by_text("No training yet: run make demo")).to_be_visible()
    for words in ("No month measured yet", "Nothing was deployed", "No retrain yet", "No alert"):
        expect(page.get_by_text(words)).to_be_visible()


def test_pages_say_that_postgres_is_away(browser: Browser, tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with running_app(settings, tmp_path) as app:
        for path in ("models", "monitoring"):
            page = browser.new_page()
            page.goto(f"{settings.streamlit_url}/{path}")
            alert = page.get_by_test_id("stAlert")
            expect(alert).to_contain_text(
                f"Postgres does not answer at 127.0.0.1:{settings.postgres_port}",
                timeout=PATIENCE_MS,
            )
            expect(alert).to_contain_text("make up")
            page.close()
        assert "Traceback" not in app.output.read_text()


def test_models_page_shows_the_loop_as_postgres_has_it(
    database: Settings, open_page: Callable[[str], Page]
) -> None:
    write_a_closed_loop(database)
    page = open_page("models")
    production = page.get_by_test_id("stMetric").filter(has_text="In production")
    expect(production).to_contain_text("Version 3")
    expect(production).to_contain_text("LogisticRegression")
    firing = page.get_by_test_id("stMetric").filter(has_text="Alerts firing")
    expect(firing.get_by_test_id("stMetricValue")).to_have_text("1")
    charts = page.get_by_test_id("stPlotlyChart")
    expect(charts).to_have_count(5)
    expect(charts.nth(0)).to_contain_text("XGBClassifier")
    expect(charts.nth(0)).to_contain_text("0.612")
    expect(charts.nth(1)).to_contain_text("version 3")
    expect(charts.nth(4)).to_contain_text("Version 1")
    expect(page.get_by_text("Latest: promoted (1 → 3). 0.7 beats 0.6")).to_be_visible()
    expect(page.get_by_text("SVC could not be fitted: it did not converge")).to_be_visible()
    # Tables are drawn on a canvas; what it holds for screen readers has the cells.
    cells = page.locator("canvas td")
    for words in ("production", "failed", "promoted", "period 2009-04, model version 1", "firing"):
        expect(cells.filter(has_text=re.compile(f"^{words}$")).first).to_be_attached()


def test_models_page_shows_what_the_threshold_earns(
    predict_server: PredictServer, database: Settings, open_page: Callable[[str], Page]
) -> None:
    page = open_page("models")
    # The payload has no costs.
    expect(page.get_by_text("50.0%, the best F1 of validation")).to_be_visible()

    folder = make_payload(database.payloads_dir, "2", seed=1)
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    chosen = {"threshold": 0.5, "share": 0.4, "profit": 605.4}
    everybody = {"threshold": 0.1, "share": 1.0, "profit": -780.5}
    model["costs"] = {"contact": 5.0, "success": 50.0, "unit": "euros"}
    model["profit"] = {"per_rows": 1000, "rows": 3472, "chosen": chosen, "all": -780.5}
    model["profit"]["curve"] = [chosen, everybody]
    (folder / "model.json").write_text(json.dumps(model), encoding="utf-8")
    switch_current(database.payloads_dir, "2")
    with PredictClient(predict_server.url) as client:
        client.wait_for_version("2", database.predict_workers, timeout=30)
    page.reload()
    expect(page.get_by_text("which earns 605 euros per 1,000 customers")).to_be_visible()
    expect(page.get_by_text("a contact costs 5 euros")).to_be_visible()
    chart = page.get_by_test_id("stPlotlyChart").first
    for words in ("threshold 50.0%: 605", "contact nobody", "contact all: \u2212780"):
        expect(chart).to_contain_text(words)


def panel(page: Page, title: str) -> Locator:
    """Return the innermost frame that holds the panel's title and what is drawn of it."""
    blocks = page.get_by_test_id("stVerticalBlock")
    return blocks.filter(has=page.get_by_text(title, exact=True)).last


def test_monitoring_page_says_what_to_do_before_anything_has_happened(
    open_page: Callable[[str], Page],
) -> None:
    page = open_page("monitoring")
    expect(page.get_by_role("heading", name="Who asks?")).to_be_visible()
    expect(panel(page, "In production")).to_contain_text("none yet")
    drift = panel(page, "Prediction drift per month")
    expect(drift).to_contain_text("No month measured yet: pipeline monitor measures")
    rules = panel(page, "Alert rules and their state")
    expect(rules).to_contain_text("not evaluated Prediction drift above 0.1 for 10 s")
    expect(rules).to_contain_text("No sign of Grafana or the evaluator")
    # Their tables are there or not, as other tests have had Mage and MLflow run on this server.
    for title in ("Pipeline runs", "Model performance of the latest training"):
        expect(panel(page, title)).to_be_visible()


def test_monitoring_page_draws_the_dashboards_of_grafana(
    database: Settings, open_page: Callable[[str], Page]
) -> None:
    write_a_closed_loop(database)
    with connect(settings=database) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO serving.predictions (request_id, row, made_at, period, model_version,"
            " features, probability) SELECT n::text, 0, now(), '2009-05-01', '3', '{}', 0.5"
            " FROM generate_series(1, 7) AS n"
        )
    page = open_page("monitoring")
    expect(panel(page, "In production")).to_contain_text("v3")
    expect(panel(page, "In production")).to_contain_text("LogisticRegression")
    retrain = panel(page, "Last retrain").locator("b").filter(has_text="promoted")
    expect(retrain).to_have_attribute("style", re.compile("color: #"))
    # The last: while the page is drawn anew, Streamlit keeps the chart of before.
    drift = panel(page, "Prediction drift per month").get_by_test_id("stPlotlyChart").last
    for words in ("2009-04 · v1", "2009-05 · v3", "By chance", "0.100"):
        expect(drift).to_contain_text(words)
    expect(panel(page, "Rows per month").get_by_test_id("stPlotlyChart")).to_contain_text("200")
    expect(panel(page, "Predictions per hour, by version that answered")).to_contain_text(
        "version 3"
    )
    cells = panel(page, "Retrains").locator("canvas td")  # for screen readers: without units
    for words in ("promoted", "v1", "v3", "1200"):
        expect(cells.filter(has_text=re.compile(f"^{words}$")).first).to_be_attached()

    page.get_by_role("combobox", name="Version").click()
    page.get_by_role("option", name="3", exact=True).click()
    expect(drift).not_to_contain_text("2009-04 · v1")
    expect(drift).to_contain_text("2009-04 · v3")

    page.get_by_text("Predict API", exact=True).click()
    expect(panel(page, "In the chosen time")).to_contain_text("Rows7")
    expect(page.get_by_role("heading", name="Who asks?")).to_have_count(0)
    page.get_by_text("Model monitoring", exact=True).click()
    expect(drift).not_to_contain_text("2009-04 · v1")  # what was chosen is kept


def test_monitoring_page_names_what_it_cannot_draw_and_draws_the_rest(
    database: Settings, browser: Browser, tmp_path: Path
) -> None:
    root = tmp_path / "project"
    for folder in ("mlops", "grafana", ".streamlit"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = root / "grafana" / "dashboards" / "model_monitoring.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    by_title = {each["title"]: each for each in content["panels"]}
    by_title["Rows per month"]["type"] = "heatmap"
    by_title["Retrains"]["targets"][0]["rawSql"] = "SELECT <b> FROM nowhere"
    by_title["Last retrain"]["options"]["reduceOptions"]["calcs"] = ["variance"]
    path.write_text(json.dumps(content), encoding="utf-8")
    path.with_name("predict_api.json").write_text("{}", encoding="utf-8")
    write_a_closed_loop(database)
    settings = database.model_copy(update={"streamlit_port": free_ports(1)[0]})
    with running_app(settings, tmp_path, root) as app:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{settings.streamlit_url}/monitoring")
        expect(panel(page, "Rows per month")).to_contain_text(
            "A panel of type “heatmap”, which only Grafana draws", timeout=PATIENCE_MS
        )
        expect(panel(page, "Retrains")).to_contain_text("Not read from database mlops: syntax")
        expect(panel(page, "Last retrain")).to_contain_text("'variance' is not known")
        expect(panel(page, "In production")).to_contain_text("v3")
        expect(page.get_by_test_id("stAlert").first).to_contain_text("predict_api.json: uid")
        page.close()
        assert "Traceback" not in app.output.read_text()


def test_monitoring_page_draws_what_prometheus_has_collected(
    predict_server: PredictServer, browser: Browser, tmp_path: Path
) -> None:
    program()  # skips where there is none
    settings = predict_server.settings.model_copy(
        update={"prometheus": "auto", "streamlit_port": free_ports(1)[0]}
    )
    prometheus = Prometheus(settings)
    try:
        with running_app(settings, tmp_path) as app:
            page = browser.new_page()
            page.set_default_timeout(PATIENCE_MS)
            expect.set_options(timeout=PATIENCE_MS)
            page.goto(f"{settings.streamlit_url}/monitoring")
            page.get_by_text("Predict service", exact=True).click()
            said = page.get_by_test_id("stAlert").filter(has_text="Prometheus")
            expect(said).to_contain_text(
                f"This dashboard needs Prometheus, and none answers at {settings.prometheus_url}"
            )
            expect(said).to_contain_text("MLOPS_PROMETHEUS_HOME")
            expect(page.get_by_text("Requests a second, by status")).to_have_count(0)

            prometheus.start()
            record = predict_server.reference()

            def counted() -> bool:
                predict_server.post([record] * 3)
                query = {"query": "rate(predict_rows_total[1m]) > 0"}
                answer = requests.get(f"{prometheus.url}/api/v1/query", query, timeout=10)
                return bool(answer.json()["data"]["result"])

            await_(counted)
            page.reload()
            page.get_by_text("Predict service", exact=True).click()
            expect(panel(page, "Workers")).to_contain_text("2")
            expect(panel(page, "99th percentile")).to_contain_text("ms")
            by_version = panel(page, "Rows a second, by version")
            expect(by_version.get_by_test_id("stPlotlyChart")).to_contain_text("version 1")
            expect(panel(page, "Refused requests a second, by code")).to_contain_text(
                "Nothing was refused"
            )
            expect(said).to_have_count(0)
            page.close()
            assert "Traceback" not in app.output.read_text()
    finally:
        prometheus.stop()


def write_a_closed_loop(settings: Settings) -> None:
    """Write what the pipelines leave behind: version 1 drifts, an alert, version 3 takes over."""
    start = datetime.now(timezone.utc) - timedelta(hours=1)
    at = [start + timedelta(minutes=10 * step) for step in range(6)]
    card, labels = "bank_marketing", {"model_version": "1", "period": "2009-04"}
    board: list[dict[str, object]] = [
        {
            "candidate": name,
            "status": "finished",
            "version": version,
            "metrics": {"validation_roc_auc": score},
        }
        for name, version, score in (
            ("LogisticRegression", "3", 0.7),
            ("XGBClassifier", "4", 0.612),
        )
    ]
    reason = "it did not converge\n(more lines)"
    board.append({"candidate": "SVC", "status": "failed", "reason": reason, "metrics": {}})
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.trainings (id, card, cause, window_start, window_end, data_digest,"
            " started_at, finished_at, leaderboard)"
            " VALUES ('t', %s, 'retrain', '2008-11-01', '2009-04-01', 'd', %s, %s, %s)",
            (card, at[2], at[3], json.dumps(board)),
        )
        cursor.executemany(
            "INSERT INTO ops.deployments (card, model_version, candidate, cause, deployed_at,"
            " retired_at) VALUES (%s, %s, %s, %s, %s, %s)",
            [
                (card, "1", "XGBClassifier", "first", at[0], at[3]),
                (card, "3", "LogisticRegression", "retrain", at[3], None),
            ],
        )
        cursor.execute(
            "INSERT INTO ops.retrains (id, card, cause, started_at, finished_at, outcome, reason,"
            " champion, challenger, champion_score, challenger_score)"
            " VALUES ('r', %s, 'alert', %s, %s, 'promoted', '0.7 beats 0.6', '1', '3', 0.6, 0.7)",
            (card, at[2], at[4]),
        )
        cursor.executemany(
            "INSERT INTO grafana.evidently_metrics (model_version, period, row_count,"
            " prediction_drift, roc_auc, positive_rate) VALUES (%s, %s, %s, %s, %s, %s)",
            [
                ("1", "2009-03-01", 1197, 0.05, 0.66, 0.16),
                ("1", "2009-04-01", 2270, 0.23, 0.6, 0.17),
                ("3", "2009-04-01", 2270, 0.01, 0.7, 0.17),
                ("3", "2009-05-01", 90, 0.3, None, None),
            ],
        )
        cursor.execute(
            "INSERT INTO ops.alerts (fingerprint, starts_at, status, rule, body, handled_at,"
            " decision, retrain) VALUES ('f', %s, 'firing', 'drift', %s, %s, 'retrain', 'r')",
            (at[2], json.dumps({"labels": labels}), at[2]),
        )
        cursor.execute(
            "INSERT INTO ops.alert_states (rule_uid, fingerprint, labels, state, value)"
            " VALUES ('drift', 'f', %s, 'firing', 0.23)",
            (json.dumps(labels),),
        )
