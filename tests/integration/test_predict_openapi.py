"""What /openapi.json says holds, tried by schemathesis; /docs shows it and loads nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator

from mlops.serving.payload import TEMPLATES
from predictor.limits import Limits
from predictor.openapi import CODES, describe
from predictor.page import docs_page
from tests.fixtures.postgres import make_settings
from tests.fixtures.predict import PredictServer, make_payload

KEY = "open sesame"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Of a file a schema says no more than that it is bytes, so a valid one may well be refused.
CONFIGURATION = """
[[operations]]
include-path = "/predict/batch"
checks.positive_data_acceptance.enabled = false
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictServer]:
    """The API with a key."""
    settings = make_settings(tmp_path_factory.mktemp("guarded"), predict_workers=1)
    make_payload(settings.payloads_dir, "1")
    server = PredictServer(
        settings, logged=False, payload="1", extra={"MLOPS_PREDICT_API_KEY": KEY}
    )
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def document(lone_api: PredictServer) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{lone_api.url}/openapi.json", timeout=10).json()
    return found


def run_schemathesis(server: PredictServer, folder: Path, *options: str) -> None:
    configuration = folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    before = server.workers()
    done = subprocess.run(
        [
            *[sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration)],
            *["run", f"{server.url}/openapi.json", "--no-color", "--continue-on-failure"],
            *["--generation-deterministic", *options],
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # All but /openapi.json, which it has read.
    assert "8 selected / 8 total" in done.stdout, done.stdout
    assert server.workers() == before


def test_every_operation_does_what_the_document_says(
    lone_api: PredictServer, tmp_path: Path
) -> None:
    run_schemathesis(lone_api, tmp_path, "--phases", "examples,fuzzing", "--max-examples", "30")


def test_every_operation_holds_each_bound_of_the_document(
    lone_api: PredictServer, tmp_path: Path
) -> None:
    # Where it combines optional headers it takes "0" for a month (4.32), against its own pattern.
    run_schemathesis(
        lone_api, tmp_path, "--phases", "coverage", "--exclude-checks", "positive_data_acceptance"
    )


def test_every_operation_does_so_with_a_key(guarded: PredictServer, tmp_path: Path) -> None:
    key = f"Authorization: Bearer {KEY}"
    run_schemathesis(guarded, tmp_path, "-H", key, "--phases", "fuzzing", "--max-examples", "1")


def test_document_bounds_what_is_refused_and_no_more(document: dict[str, Any]) -> None:
    record = document["components"]["schemas"]["Record"]
    validator = Draft202012Validator(record)
    typical = record["examples"][0]
    assert set(typical) == set(record["properties"]) == set(record["required"])
    for unusual in ({"age": 4000}, {"job": "astronaut"}, {"pdays": "-1"}, {"age": None}):
        assert validator.is_valid(typical | unusual), unusual
    for wrong in (
        {"age": "40"}, {"age": 40.5}, {"age": 1e39}, {"job": 3}, {"job": "x" * 257}, {"more": 1}
    ):  # fmt: skip
        assert not validator.is_valid(typical | wrong), wrong
    age, job = record["properties"]["age"], record["properties"]["job"]
    assert age["x-unit"] == "years"
    assert {"minimum", "maximum", "median"} == set(age["x-training"])
    assert job["x-training"]["values"] == ["blue", "green", "red"]
    assert "unknown" in job["x-missing"]


def test_document_names_every_address_of_the_app(document: dict[str, Any]) -> None:
    source = (TEMPLATES / "predict.py").read_text()
    routes = set(re.findall(r'@app\.(get|post)\("([^"]+)"\)', source))
    found = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert found == routes


def test_document_names_every_code_of_an_error() -> None:
    texts = [path.read_text() for path in TEMPLATES.rglob("*.py") if path.name != "openapi.py"]
    call = r'(?:RequestError|error_json|BrokenFile|refused)\(\s*"([a-z_]+)"'
    assert {code for text in texts for code in re.findall(call, text)} <= set(CODES)


def test_document_asks_for_a_key_only_if_one_is_set(
    document: dict[str, Any], guarded: PredictServer
) -> None:
    assert "security" not in document
    assert "securitySchemes" not in document["components"]
    assert "401" not in document["paths"]["/predict"]["post"]["responses"]
    refused = requests.get(f"{guarded.url}/openapi.json", timeout=10)
    assert refused.status_code == 401
    key = {"Authorization": f"Bearer {KEY}"}
    asking = requests.get(f"{guarded.url}/openapi.json", headers=key, timeout=10).json()
    assert asking["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "401" in asking["paths"]["/predict"]["post"]["responses"]
    for path in ("/health", "/ready", "/metrics"):
        assert asking["paths"][path]["get"]["security"] == []


def test_page_escapes_all_that_a_card_may_say() -> None:
    evil = "<script>alert(1)</script>'\"&"
    card = {
        "model": evil, "version": evil, "title": evil, "description": evil, "threshold": 0.5,
        "target": {"name": evil, "positive": evil, "negative": "no", "question": evil},
        "missing": [evil], "reference": {evil: evil, "n": 1},
        "inputs": [
            {"name": evil, "kind": "category", "description": evil, "values": [evil],
             "missing": [evil]},
            {"name": "n", "kind": "number", "description": evil, "unit": evil, "min": 0, "max": 1},
        ],
    }  # fmt: skip
    page = docs_page(describe(card, Limits({"MLOPS_PREDICT_API_KEY": "x"}))).decode()
    assert "<script>alert" not in page
    assert "'\"&" not in page
    assert page.count("<script>") == 1


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_loads_nothing_else_and_answers(lone_api: PredictServer, scheme: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
            asked: list[str] = []
            complaints: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(f"{lone_api.url}/docs")
            page.click("#send")
            # Not wait_for_function: the page's policy forbids the eval that it polls with.
            expect(page.locator("#fact")).to_contain_text(" ms", timeout=20_000)
            assert '"probability"' in page.inner_text("#answer")
            assert page.inner_text("#fact").startswith("200 ")
            page.fill("#body", '{"age": "old"}')
            page.click("#send")
            expect(page.locator("#fact")).to_have_class("refused", timeout=20_000)
            assert '"wrong_type"' in page.inner_text("#answer")
            assert set(asked) == {f"{lone_api.url}/docs", f"{lone_api.url}/predict"}
            # A browser notes every answer of 4xx itself.
            assert [each for each in complaints if "status of 422" not in each] == []
            width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert width[0] <= width[1]
        finally:
            browser.close()
