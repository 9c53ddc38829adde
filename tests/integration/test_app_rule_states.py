"""The alert list of the app: rules of the files, states of whoever watches."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from mlops.alerting.evaluator import Evaluator
from mlops.alerting.heartbeat import beat
from mlops.alerting.rules import (
    RULES_FOLDER,
    UnsupportedRuleError,
    load_provisioning,
    provisioning_environment,
)
from mlops.app.rule_states import NOT_EVALUATED, RuleState, evaluator_watches, read_rule_states
from mlops.database import connect
from mlops.settings import Settings
from tests.fixtures.alerts import copy_drift_rule

NOON = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
LABELS = {"alertname": "Prediction drift", "model_version": "1", "period": "2009-04"}


def write_states(settings: Settings) -> None:
    """Write one alert as the evaluator notes it, and another as the listener got it."""
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.alert_states (rule_uid, fingerprint, labels, state, value, active_at)"
            " VALUES ('prediction_drift', 'a', %s, 'pending', 0.23, %s),"
            " ('prediction_drift', 'b', '{}', 'normal', 0.01, NULL)",
            (json.dumps(LABELS), NOON),
        )
        cursor.execute(
            "INSERT INTO ops.alerts (fingerprint, starts_at, status, rule, body)"
            " VALUES ('a', %s, 'firing', 'Prediction drift', %s),"
            " ('b', %s, 'resolved', 'Prediction drift', '{}'),"
            " ('c', %s, 'firing', 'TestAlert', '{}')",
            (NOON, json.dumps({"labels": LABELS}), NOON, NOON),
        )


def of_drift(rules: list[RuleState]) -> RuleState:
    return next(rule for rule in rules if rule.title == "Prediction drift")


def test_states_are_those_of_whoever_watches(database: Settings) -> None:
    write_states(database)
    with connect(role="grafana", settings=database) as connection:
        evaluated = of_drift(read_rule_states(connection, evaluator_watches=True))
        received = of_drift(read_rule_states(connection, evaluator_watches=False))
    assert (evaluated.title, evaluated.condition) == ("Prediction drift", "above 0.1 for 10 s")
    assert evaluated.state == "pending"
    (alert,) = evaluated.alerts
    assert (alert.labels, alert.state, alert.value, alert.since) == (
        "period 2009-04, model version 1",
        "pending",
        0.23,
        NOON,
    )
    assert received.state == "firing"
    assert [(alert.state, alert.value) for alert in received.alerts] == [("firing", None)]


def watches(settings: Settings, folder: Path = RULES_FOLDER) -> bool:
    with connect(role="grafana", settings=settings) as connection:
        return evaluator_watches(connection, settings, folder)


def evaluate(settings: Settings, at: datetime, folder: Path = RULES_FOLDER) -> None:
    """Let an evaluator look once, as one in another container does: without a heartbeat here."""
    provisioning = load_provisioning(provisioning_environment(settings), folder)
    evaluator = Evaluator(provisioning, settings)
    evaluator.tick(at)
    assert (evaluator.away, evaluator.states) == (set(), [])


def test_the_evaluator_watches_where_its_heartbeat_is_fresh(database: Settings) -> None:
    assert not watches(database)
    database.state_dir.mkdir()
    beat(database, [])
    assert watches(database)


def test_the_evaluator_watches_though_no_alert_has_a_state(database: Settings) -> None:
    now = datetime.now(timezone.utc)
    evaluate(database, now - timedelta(minutes=2))
    assert not watches(database)
    evaluate(database, now)
    assert watches(database)


def test_a_rule_that_is_evaluated_seldom_is_watched_all_the_same(
    database: Settings, tmp_path: Path
) -> None:
    folder = copy_drift_rule(tmp_path / "rules")
    path = folder / "prediction_drift.yaml"
    path.write_text(path.read_text().replace("    interval: 10s", "    interval: 1m", 1))
    now = datetime.now(timezone.utc)
    evaluate(database, now - timedelta(seconds=59), folder)
    assert watches(database, folder)
    evaluate(database, now - timedelta(minutes=2), folder)
    assert not watches(database, folder)


def state_of(settings: Settings, evaluator: bool, grafana: bool = False) -> str:
    with connect(role="grafana", settings=settings) as connection:
        rules = read_rule_states(connection, evaluator, grafana)
    assert {rule.alerts for rule in rules} == {()}
    (state,) = {rule.state for rule in rules}  # of each rule the same
    return state


def test_a_rule_without_an_alert_is_normal_only_if_somebody_evaluates_it(
    database: Settings,
) -> None:
    assert state_of(database, evaluator=True) == NOT_EVALUATED  # added since the evaluator started
    assert state_of(database, evaluator=False) == NOT_EVALUATED
    assert state_of(database, evaluator=False, grafana=True) == "normal"
    evaluate(database, datetime.now(timezone.utc), RULES_FOLDER)
    assert state_of(database, evaluator=True) == "normal"
    evaluate(database, datetime.now(timezone.utc) - timedelta(minutes=2), RULES_FOLDER)
    assert state_of(database, evaluator=True) == NOT_EVALUATED


def test_rules_that_only_grafana_evaluates_are_listed_by_title(
    database: Settings, tmp_path: Path
) -> None:
    write_states(database)
    folder = copy_drift_rule(tmp_path / "rules")
    path = folder / "prediction_drift.yaml"
    path.write_text(path.read_text().replace("reducer: last", "reducer: mean"))
    with connect(role="grafana", settings=database) as connection:
        (rule,) = read_rule_states(connection, evaluator_watches=False, folder=folder)
        assert (rule.title, rule.condition, rule.state) == ("Prediction drift", "", "firing")
        path.write_text("groups: [{rules: 1}]")
        with pytest.raises(UnsupportedRuleError, match="prediction_drift"):
            read_rule_states(connection, evaluator_watches=False, folder=folder)
