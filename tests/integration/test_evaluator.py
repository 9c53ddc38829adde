"""The alert evaluator on a real Postgres: the shipped rule, its SQL, its states, what it posts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests
import yaml
from pydantic import SecretStr

from mlops.alerting.evaluator import Evaluator, QueryError, hand_over, main, to_samples
from mlops.alerting.rules import RULES_FOLDER, load_provisioning, provisioning_environment
from mlops.database import connect
from mlops.settings import ROOT, Settings
from tests.fixtures.alerts import copy_drift_rule, shipped_rule
from tests.fixtures.waiting import await_

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Listener:
    """Stands in for the contact point: keeps what it is sent, and answers as told."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answer: int | None = 202

    def post(self, url: str, json: dict[str, Any], **options: Any) -> requests.Response:
        if self.answer is None:
            raise requests.ConnectionError("refused")
        self.bodies.append(json)
        response = requests.Response()
        response.status_code = self.answer
        response._content = b"{}"
        return response

    @property
    def told(self) -> list[tuple[str, str]]:
        """Return (status, period) of every alert of every body."""
        return [
            (alert["status"], alert["labels"]["period"])
            for body in self.bodies
            for alert in body["alerts"]
        ]


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def start(database: Settings, listener: Listener) -> Callable[[], Evaluator]:
    """Return a function that starts an evaluator, as a restart does."""
    provisioning = load_provisioning(provisioning_environment(database))
    return lambda: Evaluator(provisioning, database, listener.post)


def execute(settings: Settings, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def deploy(settings: Settings, version: str) -> None:
    execute(settings, "UPDATE ops.deployments SET retired_at = now() WHERE retired_at IS NULL")
    execute(
        settings,
        "INSERT INTO ops.deployments (card, model_version, cause) VALUES ('bank', %s, 'test')",
        version,
    )


def month(
    settings: Settings,
    period: str,
    drift: float | None,
    rows: int = 1000,
    noise: float | None = 0.05,
    version: str = "1",
) -> None:
    execute(
        settings,
        "INSERT INTO grafana.evidently_metrics"
        " (model_version, period, row_count, prediction_drift, prediction_drift_noise)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (model_version, period) DO UPDATE"
        " SET prediction_drift = excluded.prediction_drift, update_time = clock_timestamp()",
        *(version, f"{period}-01", rows, drift, noise),
    )


def play(evaluator: Evaluator, first: int, last: int) -> None:
    """Let the evaluator look at the clock every second from `first` to `last`."""
    for second in range(first, last + 1):
        evaluator.tick(START + timedelta(seconds=second))


def firing_periods(evaluator: Evaluator) -> list[str]:
    return sorted(s.labels["period"] for s in evaluator.states if s.state == "firing")


def test_drift_is_pending_then_firing_then_told_and_resolved(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.55)
    evaluator = start()
    play(evaluator, 0, 0)
    stored = execute(database, "SELECT state, value, labels FROM ops.alert_states")
    assert [row[:2] for row in stored] == [("pending", 0.55)]
    assert stored[0][2]["model_version"] == "1"
    play(evaluator, 1, 60)
    assert listener.told == [("firing", "2009-03")]
    assert execute(database, "SELECT state FROM ops.alert_states") == [("firing",)]
    month(database, "2009-03", 0.04)
    play(evaluator, 61, 120)
    assert listener.told == [("firing", "2009-03"), ("resolved", "2009-03")]
    first, last = (body["alerts"][0] for body in listener.bodies)
    assert first["startsAt"] == last["startsAt"]
    assert last["endsAt"] > last["startsAt"]
    assert listener.bodies[1]["state"] == "ok"


def test_a_clock_that_is_put_back_neither_blinds_nor_repeats(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    """An hour: without knowing it, the evaluator would not look before the hour is over."""
    hour = 3600
    deploy(database, "1")
    evaluator = start()
    play(evaluator, hour, hour + 5)
    month(database, "2009-03", 0.55)
    play(evaluator, 6, 60)
    assert listener.told == [("firing", "2009-03")]
    # Told, it is the same alert after another jump, there and back.
    play(evaluator, hour + 61, hour + 100)
    play(evaluator, 101, 160)
    assert listener.told == [("firing", "2009-03")]
    month(database, "2009-03", 0.04)
    play(evaluator, 161, 200)
    assert listener.told == [("firing", "2009-03"), ("resolved", "2009-03")]


def test_an_alert_of_before_the_clock_was_put_back_is_told_without_waiting_for_it(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    """It was pending, or its end was untold, and the evaluator starts anew after the jump."""
    hour = 3600
    deploy(database, "1")
    month(database, "2009-03", 0.55)
    play(start(), hour, hour + 5)
    evaluator = start()
    play(evaluator, 6, 60)
    assert listener.told == [("firing", "2009-03")]
    play(evaluator, hour, hour + 20)
    month(database, "2009-03", 0.04)
    listener.answer = None
    play(evaluator, hour + 21, hour + 60)
    listener.answer = 202
    play(start(), 61, 120)
    assert listener.told == [("firing", "2009-03"), ("resolved", "2009-03")]


def test_a_clock_that_jumps_ahead_costs_nothing(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.55)
    evaluator = start()
    play(evaluator, 0, 60)
    play(evaluator, 3600, 3660)
    assert listener.told == [("firing", "2009-03")]
    month(database, "2009-03", 0.04)
    play(evaluator, 3661, 3700)
    assert listener.told == [("firing", "2009-03"), ("resolved", "2009-03")]


def test_a_restart_neither_forgets_an_alert_nor_repeats_it(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.55)
    play(start(), 0, 5)
    play(start(), 6, 10)  # pending since 0: it fires at 10 all the same
    assert listener.told == []
    play(start(), 11, 200)
    assert listener.told == [("firing", "2009-03")]
    began = listener.bodies[0]["alerts"][0]["startsAt"]
    execute(database, "UPDATE ops.deployments SET retired_at = now()")
    play(start(), 201, 230)
    assert listener.told[1:] == [("resolved", "2009-03")]
    assert listener.bodies[1]["alerts"][0]["startsAt"] == began
    play(start(), 231, 300)
    assert len(listener.bodies) == 2


def test_an_alert_is_told_again_until_the_listener_takes_it(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.55)
    listener.answer = None
    evaluator = start()
    play(evaluator, 0, 40)
    listener.answer = 503
    play(evaluator, 41, 60)
    assert execute(database, "SELECT last_sent_at FROM ops.alert_states") == [(None,)]
    attempts = len(listener.bodies)
    assert 1 <= attempts <= 3  # not every second
    listener.answer = 202
    play(evaluator, 61, 100)
    assert len(listener.bodies) == attempts + 1


def test_a_listener_that_nobody_waits_for_is_not_away(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    """The alert ended before anybody heard of it, so no later post clears the complaint."""
    deploy(database, "1")
    month(database, "2009-03", 0.55)
    listener.answer = None
    evaluator = start()
    play(evaluator, 0, 40)
    assert len(evaluator.away) == 1
    month(database, "2009-03", 0.04)
    play(evaluator, 41, 80)
    assert evaluator.away == set()


def test_a_new_month_in_drift_is_a_new_alert(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.55)
    evaluator = start()
    play(evaluator, 0, 30)
    month(database, "2009-04", 0.3)
    play(evaluator, 31, 80)
    assert listener.told[0] == ("firing", "2009-03")
    assert ("firing", "2009-04") in listener.told
    assert len({alert["fingerprint"] for b in listener.bodies for alert in b["alerts"]}) == 2


def test_only_months_with_enough_rows_beyond_chance_of_the_champion_alarm(
    database: Settings, start: Callable[[], Evaluator]
) -> None:
    deploy(database, "1")
    deploy(database, "2")
    month(database, "2009-03", 0.9, version="1")
    month(database, "2009-03", 0.2, version="2")
    month(database, "2009-04", 0.9, rows=199, version="2")
    month(database, "2009-05", 0.15, noise=0.16, version="2")
    month(database, "2009-06", None, version="2")
    month(database, "2009-07", 0.1, version="2")
    evaluator = start()
    play(evaluator, 0, 20)
    assert firing_periods(evaluator) == ["2009-03"]
    assert {s.labels["model_version"] for s in evaluator.states} == {"2"}


def test_only_the_latest_three_months_alarm(
    database: Settings, start: Callable[[], Evaluator]
) -> None:
    deploy(database, "1")
    for period in ("2009-03", "2009-04", "2009-05", "2009-06"):
        month(database, period, 0.5)
    evaluator = start()
    play(evaluator, 0, 20)
    assert firing_periods(evaluator) == ["2009-04", "2009-05", "2009-06"]


def test_a_promotion_resolves_the_alerts_of_the_version_before(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.5, version="1")
    evaluator = start()
    play(evaluator, 0, 20)
    deploy(database, "2")
    month(database, "2009-04", 0.01, version="2")
    play(evaluator, 21, 60)
    assert listener.told == [("firing", "2009-03"), ("resolved", "2009-03")]


def test_a_failing_query_keeps_the_last_state(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.5)
    evaluator = start()
    play(evaluator, 0, 20)
    execute(database, "REVOKE SELECT ON grafana.evidently_metrics FROM grafana")
    try:
        play(evaluator, 21, 80)
        assert firing_periods(evaluator) == ["2009-03"]
    finally:
        execute(database, "GRANT SELECT ON grafana.evidently_metrics TO grafana")
    play(evaluator, 81, 120)
    assert listener.told == [("firing", "2009-03")]


def test_postgres_away_costs_time_and_no_alert(
    database: Settings, start: Callable[[], Evaluator], listener: Listener
) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.5)
    evaluator = start()
    play(evaluator, 0, 5)
    reachable = evaluator.settings
    evaluator.settings = reachable.model_copy(update={"postgres_port": reachable.mage_port})
    play(evaluator, 6, 30)
    assert listener.told == []
    evaluator.settings = reachable
    play(evaluator, 31, 45)
    assert listener.told == [("firing", "2009-03")]


def test_a_rules_query_can_write_nothing(database: Settings, tmp_path: Path) -> None:
    folder = copy_drift_rule(tmp_path / "alerting")
    path = folder / "prediction_drift.yaml"
    content = yaml.safe_load(path.read_text())
    query = content["groups"][0]["rules"][0]["data"][0]["model"]
    query["rawSql"] = "CREATE TEMPORARY TABLE written (a int)"
    path.write_text(yaml.safe_dump(content))
    provisioning = load_provisioning(provisioning_environment(database), folder)
    with pytest.raises(QueryError, match=r"read-only|permission denied"):
        Evaluator(provisioning, database)._query(provisioning.rules[0])


@pytest.mark.parametrize(
    ("names", "row", "said"),
    [
        (["value"], (1.0,), "named time"),
        (["time", "a", "b"], (START, 1.0, 2.0), "two numbers"),
        (["time", "value"], ("2009", 1.0), "timestamptz"),
        (["time", "value", "on"], (START, 1.0, True), "bool"),
    ],
)
def test_a_result_that_is_no_time_series_is_an_error(
    database: Settings, names: list[str], row: tuple[Any, ...], said: str
) -> None:
    rule = shipped_rule(provisioning_environment(database))
    with pytest.raises(QueryError, match=said):
        to_samples(rule, names, [row])


RULE_UIDS = {path.stem for path in RULES_FOLDER.glob("*.yaml")} - {"contact_points"}


def evaluations(settings: Settings) -> dict[str, datetime]:
    return {
        uid: at.astimezone(timezone.utc)
        for uid, at in execute(settings, "SELECT rule_uid, evaluated_at FROM ops.evaluations")
    }


def test_each_evaluation_of_a_rule_is_recorded(
    database: Settings, start: Callable[[], Evaluator]
) -> None:
    execute(
        database,
        "INSERT INTO ops.evaluations (rule_uid, evaluated_at) VALUES ('taken_away', %s)",
        START,
    )
    evaluator = start()
    play(evaluator, 0, 9)  # one evaluation, without any alert
    assert evaluations(database) == dict.fromkeys(RULE_UIDS, START)
    play(evaluator, 10, 19)
    assert evaluations(database) == dict.fromkeys(RULE_UIDS, START + timedelta(seconds=10))


def test_an_evaluation_that_cannot_be_recorded_keeps_the_states_as_they_were(
    database: Settings, start: Callable[[], Evaluator]
) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.55)
    evaluator = start()
    execute(database, "ALTER TABLE ops.evaluations ADD CONSTRAINT closed CHECK (false)")
    try:
        play(evaluator, 0, 0)
        assert evaluator.away == {"Postgres"}
        assert execute(database, "SELECT 1 FROM ops.alert_states") == []
    finally:
        execute(database, "ALTER TABLE ops.evaluations DROP CONSTRAINT closed")
    play(evaluator, 1, 1)
    assert evaluator.away == set()
    assert execute(database, "SELECT state FROM ops.alert_states") == [("pending",)]


def test_a_hand_over_forgets_states_and_evaluations_and_ends_what_fires(
    database: Settings, start: Callable[[], Evaluator]
) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.55)
    evaluator = start()
    play(evaluator, 0, 20)
    (state,) = evaluator.states
    for fingerprint in (state.fingerprint, "another's"):
        execute(
            database,
            "INSERT INTO ops.alerts (fingerprint, starts_at, status, rule, body)"
            " VALUES (%s, %s, 'firing', 'Prediction drift', '{}')",
            fingerprint,
            START,
        )
    done = subprocess.run(
        [sys.executable, "-m", "mlops.alerting.evaluator", "--hand-over"],
        cwd=ROOT,
        env={**os.environ, **database.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "handed over to Grafana: the states of 1 alerts are forgotten\n"
    assert dict(execute(database, "SELECT fingerprint, status FROM ops.alerts")) == {
        state.fingerprint: "resolved",
        "another's": "firing",
    }
    assert execute(database, "SELECT 1 FROM ops.alert_states") == []
    assert evaluations(database) == {}
    with connect(settings=database) as connection:
        assert hand_over(connection) == 0  # once more does no harm


def test_a_hand_over_says_that_postgres_is_away(
    database: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = database.model_copy(update={"postgres_port": database.mage_port})
    monkeypatch.setattr("mlops.alerting.evaluator.get_settings", lambda: away)
    assert main(["--hand-over"]) == 1
    assert f"port {database.mage_port}" in capsys.readouterr().err


def test_a_series_is_reduced_to_its_last_value_and_nulls_are_dropped(database: Settings) -> None:
    rule = shipped_rule(provisioning_environment(database))
    rows = [
        (START, 0.5, "a"),
        (START + timedelta(1), 0.2, "a"),
        (START + timedelta(2), None, "a"),
        (START, float("nan"), "b"),
    ]
    samples = to_samples(rule, ["time", "value", "name"], rows)
    assert [(dict(s.labels), s.value) for s in samples] == [({"name": "a"}, 0.2)]


def spawn(settings: Settings) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlops.alerting.evaluator"],
        cwd=ROOT,
        env={**os.environ, **settings.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_the_process_evaluates_and_ends_cleanly_on_sigterm(database: Settings) -> None:
    deploy(database, "1")
    month(database, "2009-03", 0.5)
    process = spawn(database)
    try:
        await_(
            lambda: (
                process.poll() is not None or execute(database, "SELECT 1 FROM ops.alert_states")
            ),
            timeout=30,
        )
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=15)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0
    assert "stopped" in output
    assert database.secret("webhook_token") not in output


@pytest.mark.parametrize("token", [None, SecretStr("")])
def test_without_a_token_it_says_which_secret_is_missing(
    database: Settings,
    token: SecretStr | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without = database.model_copy(update={"webhook_token": token})
    monkeypatch.setattr("mlops.alerting.evaluator.get_settings", lambda: without)
    monkeypatch.setattr("mlops.alerting.evaluator.signal.signal", lambda *_: None)
    assert main([]) == 2
    assert "MLOPS_WEBHOOK_TOKEN is not set" in caplog.text


def test_the_statement_timeout_ends_a_query_that_hangs(
    database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    provisioning = load_provisioning(provisioning_environment(database))
    monkeypatch.setattr("mlops.alerting.evaluator.STATEMENT_TIMEOUT_S", 1)
    evaluator = Evaluator(provisioning, database)
    with psycopg2.connect(
        host=database.postgres_host,
        port=database.postgres_port,
        user="mlops",
        password=database.secret("postgres_password"),
        dbname="mlops",
    ) as blocker:
        blocker.cursor().execute("LOCK TABLE grafana.evidently_metrics")
        with pytest.raises(QueryError, match="timeout"):
            evaluator._query(provisioning.rules[0])
    blocker.close()
