"""An alert's states over time, with the clock in the test's hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from mlops.alerting.notification import group_alerts, notification_body
from mlops.alerting.rules import Rule, Webhook, load_provisioning
from mlops.alerting.states import AlertState, Sample, advance, alert_labels, fingerprint
from tests.fixtures.alerts import shipped_rule

ENVIRONMENT = {"MLOPS_LISTENER_URL": "http://127.0.0.1:1", "MLOPS_WEBHOOK_TOKEN": "t"}
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
MARCH = {"model_version": "1", "period": "2009-03"}
APRIL = {"model_version": "1", "period": "2009-04"}


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture
def rule() -> Rule:
    shipped = shipped_rule(ENVIRONMENT)
    return replace(
        shipped,
        interval=timedelta(seconds=10),
        lasting=timedelta(seconds=20),
        group_wait=timedelta(seconds=1),
        group_interval=timedelta(seconds=30),
        repeat_interval=timedelta(hours=1),
    )


def drift(value: float, labels: dict[str, str] = MARCH) -> Sample:
    return Sample(labels, value)


def play(rule: Rule, *evaluations: Sequence[Sample] | None) -> list[AlertState]:
    states: list[AlertState] = []
    for i, samples in enumerate(evaluations):
        states = advance(rule, states, samples, at(10 * i))
    return states


def test_an_alert_is_pending_for_as_long_as_the_rule_asks_and_then_fires(rule: Rule) -> None:
    history = [play(rule, *[[drift(0.2)]] * n)[0] for n in (1, 2, 3, 4)]
    assert [state.state for state in history] == ["pending", "pending", "firing", "firing"]
    assert {state.active_at for state in history} == {at(0)}
    assert history[-1].fired_at == at(20)


def test_a_breach_that_ends_early_never_fires_and_begins_anew(rule: Rule) -> None:
    (state,) = play(rule, [drift(0.2)], [drift(0.05)], [drift(0.2)])
    assert (state.state, state.active_at) == ("pending", at(20))


def test_the_threshold_itself_is_no_breach(rule: Rule) -> None:
    (state,) = play(rule, [drift(0.1)])
    assert state.state == "normal"


def test_without_a_duration_it_fires_at_once(rule: Rule) -> None:
    (state,) = play(replace(rule, lasting=timedelta(0)), [drift(0.2)])
    assert (state.state, state.fired_at) == ("firing", at(0))


def test_every_label_set_has_its_own_state(rule: Rule) -> None:
    states = play(rule, *[[drift(0.2), drift(0.05, APRIL)]] * 3)
    assert {s.labels["period"]: s.state for s in states} == {
        "2009-03": "firing",
        "2009-04": "normal",
    }


def test_it_resolves_when_the_value_is_back(rule: Rule) -> None:
    (state,) = play(rule, *[[drift(0.2)]] * 3, [drift(0.05)])
    assert (state.state, state.resolved_at, state.fired_at) == ("resolved", at(30), at(20))


def test_a_label_set_that_disappears_is_resolved_after_two_intervals(rule: Rule) -> None:
    others = [drift(0.05, APRIL)]
    for missing, expected in ((1, "firing"), (2, "resolved")):
        states = play(rule, *[[drift(0.2)]] * 3, *[others] * missing)
        march = next(state for state in states if state.labels["period"] == "2009-03")
        assert march.state == expected


def test_no_rows_resolve_everything_at_once_where_the_rule_says_ok(rule: Rule) -> None:
    (state,) = play(rule, *[[drift(0.2)]] * 3, [])
    assert state.state == "resolved"


def test_a_failed_query_changes_nothing_where_the_rule_says_keep_last(rule: Rule) -> None:
    (state,) = play(rule, *[[drift(0.2)]] * 3, *[None] * 5)
    assert (state.state, state.fired_at, state.evaluated_at) == ("firing", at(20), at(70))


def test_the_rule_decides_what_errors_and_no_data_mean(rule: Rule) -> None:
    firing = [[drift(0.2)]] * 3
    assert play(replace(rule, error_state="OK"), *firing, None)[0].state == "resolved"
    assert play(replace(rule, no_data_state="KeepLast"), *firing, [])[0].state == "firing"
    (blind,) = play(replace(rule, no_data_state="Alerting"), [], [], [])
    assert blind.state == "firing"
    assert blind.labels == alert_labels(rule, {})


def test_a_resolution_that_nobody_heard_of_is_kept_until_it_is_told(rule: Rule) -> None:
    told = replace(play(rule, *[[drift(0.2)]] * 3)[0], last_sent_at=at(21))
    states = advance(rule, [told], [], at(30))
    states = advance(rule, states, [drift(0.3)], at(40))
    states = advance(rule, states, [], at(50))
    assert [state.state for state in states] == ["resolved"]
    heard = [replace(states[0], last_sent_at=at(51))]
    assert advance(rule, heard, [], at(60)) == []
    (again,) = advance(rule, heard, [drift(0.3)], at(60))
    assert (again.state, again.active_at, again.last_sent_at) == ("pending", at(60), None)


def test_the_fingerprint_depends_on_the_labels_and_nothing_else() -> None:
    assert fingerprint({"a": "1", "b": "2"}) == fingerprint({"b": "2", "a": "1"})
    assert fingerprint({"a": "1", "b": "2"}) != fingerprint({"a": "12", "b": ""})
    assert fingerprint(MARCH) == "a985a2d444639d3f"


# When it is told


@pytest.fixture
def webhooks() -> dict[str, Webhook]:
    return load_provisioning(ENVIRONMENT).webhooks


def due(rule: Rule, states: list[AlertState], webhooks: dict[str, Webhook], now: datetime) -> bool:
    return any(g.is_due(now) for g in group_alerts({rule.uid: rule}, states, webhooks))


def test_the_first_notification_waits_for_the_group(
    rule: Rule, webhooks: dict[str, Webhook]
) -> None:
    states = play(rule, *[[drift(0.2)]] * 3)
    assert not due(rule, states, webhooks, at(20))
    assert due(rule, states, webhooks, at(21))


def test_pending_alerts_are_told_to_nobody(rule: Rule, webhooks: dict[str, Webhook]) -> None:
    assert group_alerts({rule.uid: rule}, play(rule, [drift(0.2)]), webhooks) == []


def test_a_told_alert_is_repeated_only_after_the_repeat_interval(
    rule: Rule, webhooks: dict[str, Webhook]
) -> None:
    states = [replace(s, last_sent_at=at(21)) for s in play(rule, *[[drift(0.2)]] * 3)]
    assert not due(rule, states, webhooks, at(3620))
    assert due(rule, states, webhooks, at(3621))


def test_a_new_alert_of_a_told_group_waits_for_the_group_interval(
    rule: Rule, webhooks: dict[str, Webhook]
) -> None:
    told = [replace(s, last_sent_at=at(21)) for s in play(rule, *[[drift(0.2)]] * 3)]
    new = play(replace(rule, lasting=timedelta(0)), [drift(0.2, APRIL)])
    assert not due(rule, told + new, webhooks, at(50))
    assert due(rule, told + new, webhooks, at(51))


def test_an_alert_that_ended_before_it_was_told_is_never_told(
    rule: Rule, webhooks: dict[str, Webhook]
) -> None:
    states = play(rule, *[[drift(0.2)]] * 3, [])
    assert group_alerts({rule.uid: rule}, states, webhooks) == []


def test_no_resolution_is_told_where_the_contact_point_wants_none(
    rule: Rule, webhooks: dict[str, Webhook]
) -> None:
    told = replace(play(rule, *[[drift(0.2)]] * 3)[0], last_sent_at=at(21))
    ended = advance(rule, [told], [], at(30))
    silent = {name: replace(each, send_resolved=False) for name, each in webhooks.items()}
    assert group_alerts({rule.uid: rule}, ended, silent) == []
    assert len(group_alerts({rule.uid: rule}, ended, webhooks)) == 1


def test_the_body_has_every_key_that_grafana_posts(
    rule: Rule, webhooks: dict[str, Webhook]
) -> None:
    states = play(rule, *[[drift(0.2), drift(0.3, APRIL)]] * 3)
    ended = replace(states[0], state="resolved", resolved_at=at(40), last_sent_at=at(21))
    (group,) = group_alerts({rule.uid: rule}, [ended, states[1]], webhooks)
    body = notification_body(group, "http://localhost:3000/")
    assert set(body) == {
        *("receiver", "status", "orgId", "version", "groupKey", "truncatedAlerts", "title"),
        *("state", "message", "externalURL", "groupLabels", "commonLabels", "commonAnnotations"),
        "alerts",
    }
    assert (body["status"], body["state"], body["version"]) == ("firing", "alerting", "1")
    assert body["title"].startswith("[FIRING:1, RESOLVED:1] Prediction drift")
    assert body["groupLabels"] == {"alertname": rule.title, "grafana_folder": rule.folder}
    assert body["commonLabels"]["model_version"] == "1"
    assert "period" not in body["commonLabels"]
    resolved, firing = sorted(body["alerts"], key=lambda alert: alert["labels"]["period"])
    assert set(firing) == {
        *("status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint"),
        *("silenceURL", "dashboardURL", "panelURL", "values", "valueString", "orgId"),
    }
    assert (firing["startsAt"], firing["endsAt"]) == (
        "2026-01-01T00:00:20Z",
        "0001-01-01T00:00:00Z",
    )
    assert firing["values"] == {"B": 0.3, "C": 1}
    assert (resolved["status"], resolved["endsAt"]) == ("resolved", "2026-01-01T00:00:40Z")
    assert "2009-04" in firing["annotations"]["summary"]
