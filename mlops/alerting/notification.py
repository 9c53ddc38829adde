"""When a group of alerts is to be told, and in which words: Grafana's webhook body.

Alerts of one contact point with the same values of `group_by` go out together. Timing is the
Alertmanager's: the first notification `group_wait` after the first alert fires, further ones (a new
alert, a resolved one) `group_interval` apart, and a repeat every `repeat_interval`. Nothing is
posted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from mlops.alerting.rules import Rule, Webhook, render
from mlops.alerting.states import AlertState

_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time: how Grafana writes the end of a firing alert


@dataclass(frozen=True)
class Group:
    """Alerts that one POST tells: the firing ones, and the ended ones still to be told."""

    rule: Rule
    """The rule of its alerts (a title is one rule's), whose notification settings hold."""
    labels: dict[str, str]
    alerts: list[AlertState]

    def is_due(self, now: datetime) -> bool:
        """Return whether the group is to be told at `now`."""
        firing = [alert for alert in self.alerts if alert.state == "firing"]
        news = any(alert.last_sent_at is None for alert in firing) or len(firing) < len(self.alerts)
        sent = [alert.last_sent_at for alert in self.alerts if alert.last_sent_at is not None]
        if not sent:
            first = min(alert.fired_at or now for alert in firing)
            return now >= first + self.rule.group_wait
        wait = self.rule.group_interval if news else self.rule.repeat_interval
        return now >= max(sent) + wait


def group_alerts(
    rules: Mapping[str, Rule], states: Iterable[AlertState], webhooks: Mapping[str, Webhook]
) -> list[Group]:
    """Return the groups that have anything to tell, now or later."""
    groups: dict[tuple[Any, ...], Group] = {}
    for state in sorted(states, key=lambda s: (s.rule_uid, s.fired_at or s.evaluated_at)):
        rule = rules[state.rule_uid]
        tells_end = state.untold and webhooks[rule.receiver].send_resolved
        if state.state != "firing" and not tells_end:
            continue
        labels = {name: state.labels[name] for name in rule.group_by if name in state.labels}
        key = (rule.uid, *sorted(labels.items()))
        groups.setdefault(key, Group(rule, labels, [])).alerts.append(state)
    return list(groups.values())


def notification_body(group: Group, external_url: str) -> dict[str, Any]:
    """Return the JSON that Grafana would post about `group`."""
    rule = group.rule
    alerts = [_alert(rule, state, external_url) for state in group.alerts]
    firing = sum(alert["status"] == "firing" for alert in alerts)
    resolved = len(alerts) - firing
    common_labels = _common([alert["labels"] for alert in alerts])
    counts = [f"FIRING:{firing}"] * bool(firing) + [f"RESOLVED:{resolved}"] * bool(resolved)
    others = " ".join(
        value for name, value in sorted(common_labels.items()) if name not in group.labels
    )
    title = f"[{', '.join(counts)}] {' '.join(group.labels.values())}"
    return {
        "receiver": rule.receiver,
        "status": "firing" if firing else "resolved",
        "orgId": 1,
        "alerts": alerts,
        "groupLabels": group.labels,
        "commonLabels": common_labels,
        "commonAnnotations": _common([alert["annotations"] for alert in alerts]),
        "externalURL": external_url,
        "version": "1",
        "groupKey": "{}:{"
        + ", ".join(f'{name}="{value}"' for name, value in sorted(group.labels.items()))
        + "}",
        "truncatedAlerts": 0,
        "title": f"{title} ({others})" if others else title,
        "state": "alerting" if firing else "ok",
        "message": "\n\n".join(_paragraph(alert) for alert in alerts),
    }


def _alert(rule: Rule, state: AlertState, external_url: str) -> dict[str, Any]:
    firing = state.state == "firing"
    values = {} if state.value is None else {rule.reduced: state.value}
    values[rule.compared] = float(firing)
    return {
        "status": state.state,
        "labels": state.labels,
        "annotations": {
            name: render(text, state.labels, values) for name, text in rule.annotations.items()
        },
        "startsAt": _time(state.fired_at),
        "endsAt": _NEVER if firing else _time(state.resolved_at),
        "generatorURL": f"{external_url}alerting/grafana/{rule.uid}/view",
        "fingerprint": state.fingerprint,
        "silenceURL": "",
        "dashboardURL": "",
        "panelURL": "",
        "values": values,
        "valueString": ", ".join(
            f"[ var='{name}' labels={{}} value={value:g} ]" for name, value in values.items()
        ),
        "orgId": 1,
    }


def _common(dicts: list[dict[str, str]]) -> dict[str, str]:
    first, *others = dicts
    return {
        name: value for name, value in first.items() if all(d.get(name) == value for d in others)
    }


def _paragraph(alert: Mapping[str, Any]) -> str:
    labels = "\n".join(f" - {name} = {value}" for name, value in sorted(alert["labels"].items()))
    summary = alert["annotations"].get("summary", alert["labels"]["alertname"])
    return f"**{alert['status'].capitalize()}**\n{summary}\nLabels:\n{labels}"


def _time(moment: datetime | None) -> str:
    if moment is None:
        return _NEVER
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
