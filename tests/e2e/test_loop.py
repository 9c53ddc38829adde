"""The loop on the real stack: all pipelines through Mage, an alert, a retrain, a new version.

One demo runs for the module; the tests look at what it left behind.
"""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extras import RealDictCursor

from mlops.alerting.alerts import alert_key
from mlops.database import database_url
from mlops.orchestration.mage import PIPELINES
from mlops.reporting.library import card_path
from mlops.serving.client import PredictClient
from mlops.settings import Settings
from tests.fixtures.stack import run_stack
from tests.fixtures.waiting import await_

pytestmark = pytest.mark.timeout(1500)  # above every limit of run_stack, so that these speak first


def rows_of(settings: Settings, query: str, database: str = "mlops") -> list[dict[str, Any]]:
    connection = psycopg2.connect(database_url(database, settings=settings))
    try:
        with connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(query)
            return [dict(row) for row in cursor.fetchall()]
    finally:
        connection.close()


@pytest.fixture(scope="module")
def demo(stack: Settings) -> dict[str, Any]:
    """The facts of one demo run on the stack, with its exit code and what it printed."""
    result = run_stack(stack, "demo", timeout=800)
    facts = json.loads((stack.state_dir / "demo.json").read_text())
    return {**facts, "exit_code": result.returncode, "printed": result.stdout}


def test_demo_closes_the_loop_and_says_so(demo: dict[str, Any]) -> None:
    assert demo["exit_code"] == 0, demo["printed"]
    assert "loop: closed" in demo["printed"].splitlines()
    assert demo["closed"] is True
    assert demo["outcome"] == "promoted"
    assert demo["source"] == "file"
    assert demo["production_after"] != demo["production_before"]
    assert demo["challenger_auc"] > demo["champion_auc"]
    assert demo["rows"] > 0
    assert demo["seconds"] >= sum(demo["stages"].values()) - 1


def test_a_file_put_into_the_inbox_is_scored_by_itself(
    stack: Settings, demo: dict[str, Any]
) -> None:
    with PredictClient(stack.predict_url) as client:
        record = client.model()["reference"]
    with (stack.exchange_dir / "inbox" / ".customers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, record)
        writer.writeheader()
        writer.writerows([record] * 50)
    Path(file.name).rename(stack.exchange_dir / "inbox" / "customers.csv")
    result = stack.exchange_dir / "outbox" / "customers.csv"
    await_(result.exists, 60, "the file is scored")
    with result.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    assert {row["decision"] for row in rows} <= {"yes", "no"}
    ended = (
        "SELECT * FROM pipeline_run"
        " WHERE pipeline_uuid = 'score' AND lower(status::text) = 'completed'"
    )
    await_(lambda: rows_of(stack, ended, "mage"), 20, "Mage shows the run")
    (known,) = rows_of(stack, "SELECT * FROM ops.scored_files")
    assert (known["status"], known["predictions"]) == ("success", "outbox/customers.csv")


def test_every_pipeline_ran_to_its_end_in_mage(stack: Settings, demo: dict[str, Any]) -> None:
    runs: list[dict[str, Any]] = []
    by_persons = {"promote", "rollback", "release", "shadow"}  # each has a test of its own

    def all_completed() -> bool:
        query = "SELECT pipeline_uuid, status::text FROM pipeline_run"
        runs[:] = rows_of(stack, query, "mage")
        completed = {run["pipeline_uuid"] for run in runs if run["status"].lower() == "completed"}
        return completed >= set(PIPELINES) - by_persons

    # Evidence of what is staged is written beside the loop.
    await_(all_completed, 300, lambda: str(runs))


def test_candidates_were_searched_and_blended(stack: Settings, demo: dict[str, Any]) -> None:
    for training in rows_of(stack, "SELECT leaderboard FROM ops.trainings"):
        states = {each["candidate"]: each["status"] for each in training["leaderboard"]}
        assert states["Ensemble"] == "finished", training["leaderboard"]
        metrics = {each["candidate"]: each["metrics"] for each in training["leaderboard"]}
        assert metrics["XGBClassifier"]["search_trials"] == 2


def test_what_is_in_production_gets_its_model_card(stack: Settings, demo: dict[str, Any]) -> None:
    card = card_path(stack.reports_dir, demo["production_after"])
    await_(card.exists, 120, f"{card}, after the retrain has ended")
    assert f"version {demo['production_after']}</h1>" in card.read_text()
    assert card.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_new_version_answers_and_is_the_only_one_in_production(
    stack: Settings, demo: dict[str, Any]
) -> None:
    served = PredictClient(stack.predict_url).model()["version"]
    champions = rows_of(stack, "SELECT model_version FROM ops.deployments WHERE retired_at IS NULL")
    assert [row["model_version"] for row in champions] == [served] == [demo["production_after"]]


def test_one_retrain_is_on_record_with_its_alert_and_scores(
    stack: Settings, demo: dict[str, Any]
) -> None:
    retrains = rows_of(stack, "SELECT * FROM ops.retrains")
    promoted = [row for row in retrains if row["outcome"] == "promoted"]
    assert len(promoted) == 1
    alert = demo["alert"]
    assert promoted[0]["alert"] == alert_key(
        alert["fingerprint"], datetime.fromisoformat(alert["starts_at"])
    )
    assert promoted[0]["challenger"] == demo["production_after"]
    assert promoted[0]["champion"] == demo["production_before"]
    assert promoted[0]["challenger_score"] == pytest.approx(demo["challenger_auc"])


def test_every_simulated_request_is_logged_and_labelled(
    stack: Settings, demo: dict[str, Any]
) -> None:
    (found,) = rows_of(
        stack,
        "SELECT count(*) AS rows, count(label) AS labelled, count(DISTINCT request_id) AS requests"
        " FROM serving.predictions WHERE purpose = 'simulation'",
    )
    (played,) = rows_of(
        stack,
        "SELECT count(*) AS rows FROM data.bank_marketing WHERE period IN"
        " (SELECT DISTINCT period FROM serving.predictions WHERE purpose = 'simulation')",
    )
    assert found["rows"] == found["labelled"] == found["requests"] == played["rows"] > 0


def test_drift_above_the_threshold_is_stored_for_the_champion(
    stack: Settings, demo: dict[str, Any]
) -> None:
    months = rows_of(stack, "SELECT * FROM grafana.evidently_metrics")
    of_champion = [row for row in months if row["model_version"] == demo["production_before"]]
    assert max(row["prediction_drift"] for row in of_champion) > stack.prediction_drift_threshold
    assert all(row["row_count"] > 0 and row["roc_auc"] is not None for row in of_champion)
    reports = list(stack.reports_dir.rglob("*.html"))
    assert len(reports) >= len(of_champion)


def test_exactly_one_alert_started_each_retrain(stack: Settings, demo: dict[str, Any]) -> None:
    """Months that alarm together are answered by one retrain: the others only join it."""
    alerts = rows_of(stack, "SELECT * FROM ops.alerts")
    started = [alert["retrain"] for alert in alerts if alert["decision"] == "retrain"]
    retrains = [row["id"] for row in rows_of(stack, "SELECT id FROM ops.retrains")]
    assert sorted(started) == sorted(retrains)


def test_demo_closes_again_on_the_running_stack(stack: Settings, demo: dict[str, Any]) -> None:
    again = run_stack(stack, "demo", timeout=800)
    facts = json.loads((stack.state_dir / "demo.json").read_text())
    assert again.returncode == 0, again.stdout
    assert facts["closed"] is True
    assert int(facts["production_after"]) > int(demo["production_after"])
    # The same file twice is no new data.
    assert len(rows_of(stack, "SELECT sha256 FROM ops.ingested_files")) == 1
