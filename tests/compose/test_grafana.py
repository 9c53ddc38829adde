"""Grafana as the files of `grafana/` make it: data sources, dashboards, contact point, alert rule.

Skipped where its image cannot be had: the evaluator then watches the rules, and the files are held
by the unit and integration tests. Written after the documentation of Grafana's HTTP API (versions
11 and 12: data source health, queries, search, alerting provisioning) and of its rules API, which
answers in Prometheus' format. It has not run against a Grafana yet.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from mlops.monitoring.dashboards import DASHBOARDS_FOLDER, Dashboard, load_dashboard
from mlops.settings import ROOT
from tests.compose.conftest import Loop
from tests.compose.engine import Stack

PROVISIONING = ROOT / "grafana" / "provisioning"
DASHBOARDS = sorted(DASHBOARDS_FOLDER.glob("*.json"))
SOURCES = ("mlops", "mlflow", "mage")

HARMLESS = ("context canceled",)
"""What Grafana logs as an error where nothing is wrong: somebody has closed a page."""


@pytest.fixture(scope="module")
def grafana(stack: Stack, loop: Loop) -> Stack:
    """The stack with a Grafana and a loop behind it."""
    if stack.watcher != "grafana":
        pytest.skip(stack.left_out["grafana"])
    return stack


def provisioned(kind: str) -> list[Any]:
    """Return what the alerting files define of `kind`."""
    files = sorted((PROVISIONING / "alerting").glob("*.yaml"))
    read = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files]
    return [each for content in read for each in content.get(kind, [])]


def test_nothing_went_wrong_while_grafana_read_its_files(grafana: Stack) -> None:
    log = grafana.compose("logs", "--no-color", "grafana").stdout.splitlines()
    faults = [
        line
        for line in log
        if re.search(r'\blevel=(error|eror|crit|critical)\b|"level":"error"', line)
        and not any(text in line for text in HARMLESS)
    ]
    assert not faults, "\n".join(faults)
    assert any("level=info" in line for line in log), "another log format: nothing was looked at"


def test_grafana_is_not_open_to_anybody(grafana: Stack) -> None:
    url = f"http://127.0.0.1:{grafana.settings.grafana_port}/api/search"
    assert requests.get(url, timeout=30).status_code == 401
    assert requests.get(url, auth=("admin", "admin"), timeout=30).status_code == 401


@pytest.mark.parametrize("uid", SOURCES)
def test_data_source_is_healthy(grafana: Stack, uid: str) -> None:
    source = grafana.grafana(f"/api/datasources/uid/{uid}")
    assert source["readOnly"] is True
    assert source["user"] == "grafana"
    assert "password" not in source
    health = grafana.grafana(f"/api/datasources/uid/{uid}/health")
    assert health["status"] == "OK", health


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_is_there_and_nobody_can_change_it(grafana: Stack, path: Path) -> None:
    dashboard = load_dashboard(path)
    found = {each["uid"]: each for each in grafana.grafana("/api/search?type=dash-db")}
    assert found[dashboard.uid]["folderTitle"] == "MLOps"
    assert found[dashboard.uid]["title"] == dashboard.title
    shown = grafana.grafana(f"/api/dashboards/uid/{dashboard.uid}")
    assert shown["meta"]["provisioned"] is True
    assert count_panels(shown["dashboard"]["panels"]) == len(dashboard.panels)


def count_panels(panels: list[dict[str, Any]]) -> int:
    """Return how many panels there are, rows not counted but what is folded into them."""
    return sum(
        count_panels(panel.get("panels", [])) if panel["type"] == "row" else 1 for panel in panels
    )


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafana_runs_the_query_of_each_panel(grafana: Stack, loop: Loop, path: Path) -> None:
    """By the route of the panels themselves: the page fills in variables, the server macros."""
    now_ms = int(time.time() * 1000)
    asked = with_rows = 0
    dashboard = load_dashboard(path)
    for panel in dashboard.panels:
        if panel.sql is None:
            continue
        query = {
            "refId": "A",
            "datasource": {"uid": panel.database},
            "rawSql": filled_in(panel.sql, choices(dashboard, loop)),
            "format": panel.format,
        }
        answer = requests.post(
            f"http://127.0.0.1:{grafana.settings.grafana_port}/api/ds/query",
            auth=("admin", grafana.settings.secret("grafana_admin_password")),
            json={"queries": [query], "from": str(now_ms - 86_400_000), "to": str(now_ms)},
            timeout=60,
        )
        result = answer.json()["results"]["A"]
        assert answer.ok, f"{panel.title}: {result}"
        assert "error" not in result, f"{panel.title}: {result}"
        asked += 1
        with_rows += any(any(frame["data"]["values"]) for frame in result.get("frames") or [])
    # After a loop most of them have something to show.
    assert with_rows > asked / 2


def filled_in(sql: str, chosen: dict[str, list[str]]) -> str:
    """Return the query with its variables, all of format sqlstring, as quoted literals."""

    def literals(found: re.Match[str]) -> str:
        return ",".join("'" + value.replace("'", "''") + "'" for value in chosen[found["name"]])

    return re.sub(r"\$\{(?P<name>\w+):sqlstring\}", literals, sql)


def choices(dashboard: Dashboard, loop: Loop) -> dict[str, list[str]]:
    """Return what a person would choose: the versions of the loop, and the months it played."""
    versions = [loop.facts["production_before"], loop.facts["production_after"]]
    known = {"version": versions, "period": [loop.facts["alert"]["period"]]}
    return {variable.name: known[variable.name] for variable in dashboard.variables}


def test_rules_are_read_and_evaluated_without_a_fault(grafana: Stack) -> None:
    groups = grafana.grafana("/api/prometheus/grafana/api/v1/rules")["data"]["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    wanted = {rule["title"] for group in provisioned("groups") for rule in group["rules"]}
    assert rules.keys() == wanted
    for name, rule in rules.items():
        assert rule["health"] in ("ok", "nodata"), f"{name}: {rule}"  # no rows: nothing drifts
        assert not rule.get("lastError"), f"{name}: {rule}"
    assert {group["file"] for group in groups} == {
        group["folder"] for group in provisioned("groups")
    }


def test_contact_point_is_there_and_does_not_show_its_token(grafana: Stack) -> None:
    points = grafana.grafana("/api/v1/provisioning/contact-points")
    for point in provisioned("contactPoints"):
        for receiver in point["receivers"]:
            (found,) = [each for each in points if each["uid"] == receiver["uid"]]
            assert found["name"] == point["name"]
            assert found["type"] == receiver["type"]
            assert found["provenance"] == "file"
            assert found["settings"]["url"] == "http://listener:6790/alert"
    token = grafana.settings.secret("webhook_token")
    assert token not in str(points)


def test_rule_fired_after_the_drifted_month(grafana: Stack, loop: Loop) -> None:
    assert "firing" in loop.rule_states


def test_listener_took_the_alert_as_grafana_told_it(grafana: Stack, loop: Loop) -> None:
    """The very body: what Grafana writes, and the evaluator does not, shows who has posted it."""
    alert = loop.facts["alert"]
    (stored,) = grafana.rows(
        "SELECT body FROM ops.alerts WHERE fingerprint = %s AND starts_at = %s",
        alert["fingerprint"],
        alert["starts_at"],
    )
    body = stored["body"]
    assert body["labels"]["alertname"] == alert["rule"]
    assert body["labels"]["grafana_folder"] == "Model alerts"
    assert body["labels"]["period"] == alert["period"]
    assert body["values"]["B"] == pytest.approx(alert["value"])
    assert body["generatorURL"].startswith(f"http://127.0.0.1:{grafana.settings.grafana_port}/")
    assert not grafana.rows(
        "SELECT 1 FROM ops.alert_states"
    )  # the evaluator keeps its states there
