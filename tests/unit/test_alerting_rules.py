"""The alert files: ours says what the settings say, and nothing unknown is let through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops.alerting.alerts import RETRAINING_RULES
from mlops.alerting.rules import (
    RULES_FOLDER,
    Rule,
    UnsupportedRuleError,
    expand,
    load_provisioning,
    load_titles,
    render,
)
from mlops.settings import Settings
from tests.fixtures.alerts import copy_drift_rule, shipped_rule

ENVIRONMENT = {"MLOPS_LISTENER_URL": "http://127.0.0.1:1", "MLOPS_WEBHOOK_TOKEN": "to$ken"}
RULE_FILE = "prediction_drift.yaml"
SETTINGS = Settings(_env_file=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_drift_rule(tmp_path / "alerting")


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the rule of the shipped file."""
    path = folder / RULE_FILE
    content = yaml.safe_load(path.read_text())
    edit(content["groups"][0]["rules"][0])
    path.write_text(yaml.safe_dump(content))


def refusal(folder: Path) -> str:
    with pytest.raises(UnsupportedRuleError) as refused:
        load_provisioning(ENVIRONMENT, folder)
    return str(refused.value)


@pytest.mark.parametrize(
    ("uid", "threshold", "counted"),
    [
        ("prediction_drift", SETTINGS.prediction_drift_threshold, "row_count"),
        ("performance_loss", 1, "labelled_count"),  # margins, of which there are two
        ("missing_data", SETTINGS.missing_margin, "row_count"),
        ("data_drift", SETTINGS.drifted_columns_threshold, "row_count"),
    ],
)
def test_a_shipped_rule_uses_the_figures_of_the_settings(
    uid: str, threshold: float, counted: str
) -> None:
    rule = shipped_rule(ENVIRONMENT, uid)
    assert (rule.comparison, rule.threshold) == ("gt", threshold)
    assert f"WHERE {counted} >= {SETTINGS.drift_min_rows}\n" in rule.sql
    assert (rule.no_data_state, rule.error_state) == ("OK", "KeepLast")


def test_the_margins_of_performance_are_those_of_the_settings() -> None:
    rule = shipped_rule(ENVIRONMENT, "performance_loss")
    assert f"roc_auc_loss / {SETTINGS.auc_loss_margin:g}," in rule.sql
    assert f"abs(calibration_gap) / {SETTINGS.calibration_margin:g}," in rule.sql
    said = rule.annotations["description"]
    assert f"ROC AUC {SETTINGS.auc_loss_margin:g} below validation" in said
    assert f"mean score {SETTINGS.calibration_margin:g} beside" in said


def test_every_rule_is_known_by_what_becomes_of_it() -> None:
    titles = {rule.title for rule in load_provisioning(ENVIRONMENT).rules}
    assert titles > RETRAINING_RULES
    noted = titles - RETRAINING_RULES
    assert noted == {"Missing data", "Data drift"}
    for rule in load_provisioning(ENVIRONMENT).rules:
        retrains = "starts the pipeline retrain" in rule.annotations["description"]
        assert retrains == (rule.title in RETRAINING_RULES)


@pytest.mark.parametrize("rule", load_provisioning(ENVIRONMENT).rules, ids=lambda rule: rule.uid)
def test_a_pending_alert_can_be_seen_and_a_firing_one_comes_soon(rule: Rule) -> None:
    assert rule.lasting >= rule.interval
    assert rule.interval + rule.lasting + rule.group_wait <= timedelta(seconds=30)
    assert rule.group_interval <= rule.repeat_interval


def test_the_contact_point_is_the_listener_with_its_token() -> None:
    (webhook,) = load_provisioning(ENVIRONMENT).webhooks.values()
    assert webhook.url == "http://127.0.0.1:1/alert"
    assert webhook.token == "to$ken"
    assert webhook.send_resolved
    assert "to$ken" not in repr(webhook)
    assert "to$ken" not in webhook.url


def test_no_token_stands_in_the_files() -> None:
    content = yaml.safe_load((RULES_FOLDER / "contact_points.yaml").read_text())
    settings = content["contactPoints"][0]["receivers"][0]["settings"]
    assert settings["authorization_credentials"] == "$MLOPS_WEBHOOK_TOKEN"


def set_step(index: int, **keys: Any) -> Callable[[dict[str, Any]], None]:
    return lambda rule: rule["data"][index]["model"].update(keys)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (set_step(2, type="math"), "C.type"),
        (set_step(2, type="classic_conditions"), "C.type"),
        (set_step(1, reducer="mean"), "B.reducer"),
        (set_step(1, settings={"mode": "replaceNN", "replaceWithValue": 0}), "B.settings.mode"),
        (
            set_step(2, conditions=[{"evaluator": {"type": "within_range", "params": [0, 1]}}]),
            "evaluator.type",
        ),
        (
            set_step(
                2,
                conditions=[
                    {
                        "evaluator": {"type": "gt", "params": [0.1]},
                        "unloadEvaluator": {"type": "lt", "params": [0.05]},
                    }
                ],
            ),
            "unloadEvaluator",
        ),
        (set_step(0, format="table"), "A.format"),
        (set_step(0, rawSql="SELECT 1 WHERE $__timeFilter(t)"), "macros"),
        (set_step(0, hide=True), "A.hide"),
        (lambda rule: rule["data"][0].update(datasourceUid="other"), "'other'"),
        (lambda rule: rule.update(keep_firing_for="5m"), "keep_firing_for"),
        (lambda rule: rule.update({"for": "soon"}), "'soon'"),
        (lambda rule: rule.update(noDataState="NoData"), "noDataState"),
        (lambda rule: rule.pop("execErrState"), "execErrState: missing"),
        (lambda rule: rule.update(condition="D"), "'D'"),
        (lambda rule: rule["data"].pop(1), "2 steps"),
        (lambda rule: rule["labels"].update(team="{{ $labels.period }}"), "labels.team"),
        (lambda rule: rule["annotations"].update(x="{{ humanize 1 }}"), "annotations.x"),
        (lambda rule: rule["notification_settings"].update(mute_time_intervals=["x"]), "mute_time"),
        (lambda rule: rule["notification_settings"].update(receiver="mail"), "'mail'"),
        (lambda rule: rule.pop("notification_settings"), "notification_settings: missing"),
        (lambda rule: rule["labels"].update(x="$NOBODY"), "$NOBODY"),
    ],
)
def test_what_the_evaluator_does_not_know_is_refused_by_file_and_place(
    folder: Path, edit: Callable[[dict[str, Any]], None], named: str
) -> None:
    change(folder, edit)
    said = refusal(folder)
    assert str(folder / RULE_FILE) in said
    assert named in said


@pytest.mark.parametrize("key", ["policies", "templates", "muteTimes"])
def test_a_file_of_another_kind_is_refused(folder: Path, key: str) -> None:
    (folder / "other.yaml").write_text(yaml.safe_dump({"apiVersion": 1, key: [{}]}))
    said = refusal(folder)
    assert str(folder / "other.yaml") in said
    assert key in said


def test_a_contact_point_of_another_kind_is_refused(folder: Path) -> None:
    path = folder / "contact_points.yaml"
    content = yaml.safe_load(path.read_text())
    receiver = content["contactPoints"][0]["receivers"][0]
    receiver["settings"]["hmacConfig"] = {"secret": "x"}
    path.write_text(yaml.safe_dump(content))
    assert "hmacConfig" in refusal(folder)
    receiver["settings"].pop("hmacConfig")
    receiver["type"] = "email"
    path.write_text(yaml.safe_dump(content))
    assert "type" in refusal(folder)


@pytest.mark.parametrize("text", ["groups: [", "- 1\n", "apiVersion: 2\n"])
def test_a_broken_file_is_refused_by_name(folder: Path, text: str) -> None:
    (folder / "broken.yaml").write_text(text)
    assert "broken.yaml" in refusal(folder)


def test_an_interval_that_grafana_would_not_start_with_is_refused(folder: Path) -> None:
    path = folder / RULE_FILE
    path.write_text(
        path.read_text().replace("interval: 10s\n    rules", "interval: 15s\n    rules")
    )
    assert "multiple of 10s" in refusal(folder)


def test_files_add_up_and_a_uid_is_used_once(folder: Path) -> None:
    content = yaml.safe_load((folder / RULE_FILE).read_text())
    (folder / "second.yaml").write_text(yaml.safe_dump(content))
    assert "uid 'prediction_drift'" in refusal(folder)
    second = copy.deepcopy(content)
    second["groups"][0]["rules"][0].update(uid="other", title="Other")
    (folder / "second.yaml").write_text(yaml.safe_dump(second))
    assert [rule.title for rule in load_provisioning(ENVIRONMENT, folder).rules] == [
        "Prediction drift",
        "Other",
    ]
    assert load_titles(folder, ENVIRONMENT) == {"Prediction drift", "Other"}


def test_a_paused_rule_is_not_evaluated(folder: Path) -> None:
    change(folder, lambda rule: rule.update(isPaused=True))
    assert "no alert rule" in refusal(folder)


def test_titles_are_read_where_only_grafana_could_evaluate(folder: Path) -> None:
    change(folder, set_step(2, type="math"))
    assert load_titles(folder, ENVIRONMENT) == {"Prediction drift"}


def test_titles_are_those_that_alerts_will_have(folder: Path) -> None:
    change(folder, lambda rule: rule.update(title="Drift in $$ of ${MLOPS_LISTENER_URL}"))
    title = "Drift in $ of http://127.0.0.1:1"
    assert load_titles(folder, ENVIRONMENT) == {title}
    assert [rule.title for rule in load_provisioning(ENVIRONMENT, folder).rules] == [title]
    with pytest.raises(UnsupportedRuleError, match=rf"{RULE_FILE}: .*MLOPS_LISTENER_URL"):
        load_titles(folder, {})


def test_a_paused_rule_starts_nothing(folder: Path) -> None:
    change(folder, lambda rule: rule.update(isPaused=True))
    assert load_titles(folder, ENVIRONMENT) == set()


@pytest.mark.parametrize("rules", [None, "Drift", [None], [{"title": 1}]])
def test_titles_that_cannot_be_read_are_refused_by_file(folder: Path, rules: Any) -> None:
    (folder / RULE_FILE).write_text(yaml.safe_dump({"apiVersion": 1, "groups": [{"rules": rules}]}))
    with pytest.raises(UnsupportedRuleError, match=RULE_FILE):
        load_titles(folder, ENVIRONMENT)
    assert RULE_FILE in refusal(folder)


def test_a_dollar_is_expanded_as_grafana_does() -> None:
    assert expand("$A ${A}b $$A", {"A": "1"}) == "1 1b $A"
    with pytest.raises(ValueError, match=r"\$\$"):
        expand("5 $ a", {})


def test_annotations_are_filled_from_labels_and_values() -> None:
    text = "{{ $labels.period }}: {{$values.B.Value}}, {{ $labels.none }}"
    assert render(text, {"period": "2009-03"}, {"B": 0.25}) == "2009-03: 0.25, [no value]"
