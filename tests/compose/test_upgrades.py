"""What lives on when containers go, which is all in the volumes; and what does not: old secrets."""

from __future__ import annotations

import secrets
import uuid
from typing import Any

import psycopg2
import pytest
import requests
from pydantic import SecretStr

from mlops.database import database_url
from mlops.orchestration import mage
from mlops.serving.client import PredictClient
from tests.compose.conftest import Loop, run_demo
from tests.compose.engine import Stack
from tests.fixtures.alerts import alert, notification
from tests.fixtures.waiting import await_

MODEL = "bank_marketing"
RUNS = "SELECT id, status::text FROM pipeline_run ORDER BY id"
ROTATED = (
    "postgres_password",
    "grafana_db_password",
    "mlflow_db_password",
    "predict_db_password",
    "mage_trigger_token",
    "webhook_token",
)
"""All but the logins of Mage and Grafana, which count at their first start only."""


def snapshot(stack: Stack) -> dict[str, Any]:
    """What a person would miss."""
    alias = requests.get(
        f"{stack.settings.mlflow_url}/api/2.0/mlflow/registered-models/alias",
        params={"name": MODEL, "alias": "production"},
        timeout=30,
    )
    reports = stack.exec("mage", "find", "/srv/mlops/reports", "-name", "*.html").stdout
    return {
        "served": PredictClient(stack.settings.predict_url).model(),
        "registry": alias.json()["model_version"]["version"],
        "predictions": stack.rows("SELECT request_id, row, label FROM serving.predictions"),
        "retrains": stack.rows("SELECT id, outcome FROM ops.retrains ORDER BY id"),
        "alerts": stack.rows("SELECT fingerprint, starts_at FROM ops.alerts ORDER BY 1, 2"),
        "runs": stack.rows(RUNS, database="mage"),
        "reports": sorted(reports.split()),
    }


def predict_once(stack: Stack) -> str:
    """Have one prediction made, and return its request id."""
    client = PredictClient(stack.settings.predict_url)
    request_id = uuid.uuid4().hex
    client.predict(client.model()["reference"], purpose="test", request_id=request_id)
    return request_id


def is_logged(stack: Stack, request_id: str) -> bool:
    return bool(stack.rows("SELECT 1 FROM serving.predictions WHERE request_id = %s", request_id))


def test_volumes_survive_down_and_up_and_an_older_schema_is_migrated(
    stack: Stack, loop: Loop
) -> None:
    under_way = "SELECT 1 FROM ops.retrains WHERE finished_at IS NULL"
    await_(lambda: not stack.rows(under_way), 300, "no retrain under way")
    before = snapshot(stack)
    assert before["registry"] == before["served"]["version"] == loop_version(stack)
    assert before["predictions"]
    assert before["reports"]
    # As an earlier version of the project would have left the volume.
    stack.rows("ALTER TABLE ops.retrains DROP COLUMN cancelled")
    stack.rows("DROP INDEX serving.predictions_by_time")
    stack.rows("REVOKE SELECT ON serving.predictions FROM grafana")
    last = predict_once(stack)  # perhaps not in Postgres yet
    with stack.report.stage("down"):
        stack.down()
    project = f"label=com.docker.compose.project={stack.name}"
    assert stack.docker("ps", "-a", "-q", "--filter", project).stdout == ""
    with stack.report.stage("up again"):
        stack.up()

    await_(lambda: is_logged(stack, last), 30, "the last prediction before `down` is logged")
    after = snapshot(stack)
    after["predictions"] = [row for row in after["predictions"] if row["request_id"] != last]
    for each in (before, after):
        each["predictions"].sort(key=lambda row: (row["request_id"], row["row"]))
    assert after == before
    assert {row["cancelled"] for row in stack.rows("SELECT cancelled FROM ops.retrains")} == {False}
    assert stack.rows("SELECT to_regclass('serving.predictions_by_time') IS NOT NULL AS there") == [
        {"there": True}
    ]
    assert stack.rows("SELECT count(*) FROM serving.predictions", role="grafana")
    run = mage.trigger_pipeline("monitor", settings=stack.settings)
    assert run > max(row["id"] for row in before["runs"])
    mage.wait_for_run(run, 300, settings=stack.settings)


def loop_version(stack: Stack) -> str:
    (champion,) = stack.rows("SELECT model_version FROM ops.deployments WHERE retired_at IS NULL")
    return str(champion["model_version"])


def post_alert(stack: Stack, token: str, fingerprint: str) -> int:
    """Tell the listener what Grafana's button Test tells it; return how it answers."""
    return requests.post(
        f"{stack.settings.listener_url}/alert",
        json=notification(alert("TestAlert", fingerprint)),
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    ).status_code


def test_changed_secrets_count_after_the_next_up(stack: Stack, loop: Loop) -> None:
    old = stack.settings
    fingerprint = secrets.token_hex(8)
    assert post_alert(stack, old.secret("webhook_token"), fingerprint) == 202
    changed = {name: SecretStr(secrets.token_urlsafe(16)) for name in ROTATED}
    stack.settings = old.model_copy(update=changed)
    with stack.report.stage("up with other secrets"):
        stack.up()

    for role in ("mlops", "grafana", "mlflow", "predict"):
        database = "mlflow" if role == "mlflow" else "mlops"
        psycopg2.connect(database_url(database, role, stack.settings)).close()
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(database_url(database, role, old))
    assert post_alert(stack, old.secret("webhook_token"), fingerprint) == 401
    assert post_alert(stack, stack.settings.secret("webhook_token"), fingerprint) == 202
    request_id = predict_once(stack)
    await_(lambda: is_logged(stack, request_id), 30, "a prediction is logged by the new password")
    with_old_token = stack.settings.model_copy(
        update={"mage_trigger_token": old.mage_trigger_token}
    )
    with pytest.raises(mage.MageError):
        mage.trigger_pipeline("monitor", settings=with_old_token)
    # Every server has found every other again.
    again = run_demo(stack, "demo with other secrets")
    assert int(again.facts["production_after"]) > int(loop.facts["production_after"])
