"""How an alert's state moves on, as in Grafana: pure functions of a rule, what is known and a time.

A state belongs to one label set of one rule: normal → pending (the threshold is passed) → firing
(it has been passed for as long as `for` asks) → resolved (it is not passed any more, or the label
set has been missing for two intervals) → normal. Nothing here reads a clock, a table or a query.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from mlops.alerting.rules import Rule

MISSING_INTERVALS = 2
"""Evaluations without a label set after which its alert is resolved; Grafana's default."""


@dataclass(frozen=True)
class Sample:
    """What the rule's query says now about one label set: the value after reduction."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class AlertState:
    """One row of `ops.alert_states`. `labels` are the alert's complete labels."""

    rule_uid: str
    fingerprint: str
    labels: dict[str, str]
    state: Literal["normal", "pending", "firing", "resolved"]
    evaluated_at: datetime
    """When its label set was last seen."""
    value: float | None = None
    active_at: datetime | None = None
    fired_at: datetime | None = None
    resolved_at: datetime | None = None
    last_sent_at: datetime | None = None

    @property
    def untold(self) -> bool:
        """Whether somebody heard that it fires and has yet to hear that it is over."""
        return (
            self.state == "resolved"
            and self.last_sent_at is not None
            and self.resolved_at is not None
            and self.last_sent_at < self.resolved_at
        )


def settled(state: AlertState, now: datetime) -> AlertState:
    """Return `state` without a time later than `now`, once the clock has been put back.

    Else nothing would be evaluated, fire or be told until the clock has come there again. When an
    alert began stays as it was told: it would be another one. The order of telling and resolving
    stays too.
    """
    times = [state.evaluated_at, state.active_at, state.last_sent_at, state.resolved_at]
    if not any(moment is not None and moment > now for moment in [*times, state.fired_at]):
        return state

    def at_most(moment: datetime | None, limit: datetime) -> datetime | None:
        return None if moment is None else min(moment, limit)

    told_before_end = state.untold
    state = replace(
        state,
        evaluated_at=min(state.evaluated_at, now),
        active_at=at_most(state.active_at, now),
        fired_at=state.fired_at if state.last_sent_at else at_most(state.fired_at, now),
        resolved_at=at_most(state.resolved_at, now),
        last_sent_at=at_most(state.last_sent_at, now),
    )
    if told_before_end and not state.untold and state.resolved_at is not None:
        state = replace(state, last_sent_at=state.resolved_at - timedelta(microseconds=1))
    return state


def alert_labels(rule: Rule, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of the alert about the label set `labels`."""
    return {**labels, **rule.labels, "alertname": rule.title, "grafana_folder": rule.folder}


def fingerprint(labels: Mapping[str, str]) -> str:
    """Return 16 hex digits that are the same for the same labels, on any machine at any time."""
    text = json.dumps(sorted(labels.items()), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def advance(
    rule: Rule, known: Iterable[AlertState], samples: Iterable[Sample] | None, now: datetime
) -> list[AlertState]:
    """Return the states of `rule` after an evaluation at `now`; what is not in it may be forgotten.

    `samples` is None if the query failed, empty if it returned nothing: the rule's own settings for
    errors and for no data say what then holds for all its alerts.
    """
    states = {state.fingerprint: state for state in known}
    if samples is None:
        return _advance_all(rule, states, rule.error_state, now)
    samples = list(samples)
    if not samples:
        return _advance_all(rule, states, rule.no_data_state, now)
    advanced = {}
    for sample in samples:
        labels = alert_labels(rule, sample.labels)
        key = fingerprint(labels)
        state = states.pop(key, None) or _new(rule, labels, now)
        breached = rule.breached_by(sample.value)
        advanced[key] = _step(rule, state, breached, sample.value, now)
    for key, state in states.items():
        if now - state.evaluated_at < MISSING_INTERVALS * rule.interval:
            advanced[key] = state
        elif (over := _end(state, now)) is not None:
            advanced[key] = over
    return list(advanced.values())


def _advance_all(
    rule: Rule, states: dict[str, AlertState], setting: str, now: datetime
) -> list[AlertState]:
    """Apply what the rule says about errors or no data to all its alerts."""
    if setting == "KeepLast":
        return [replace(state, evaluated_at=now) for state in states.values()]
    if setting == "OK":
        over = (_end(state, now) for state in states.values())
        return [state for state in over if state is not None]
    if not states:
        labels = alert_labels(rule, {})
        states = {fingerprint(labels): _new(rule, labels, now)}
    return [_step(rule, state, True, state.value, now) for state in states.values()]


def _new(rule: Rule, labels: dict[str, str], now: datetime) -> AlertState:
    return AlertState(rule.uid, fingerprint(labels), labels, "normal", evaluated_at=now)


def _step(
    rule: Rule, state: AlertState, breached: bool, value: float | None, now: datetime
) -> AlertState:
    state = replace(state, value=value, evaluated_at=now)
    if state.untold:
        # A new episode waits until the end of the last one has been told, or that would be lost.
        return state
    if not breached:
        if state.state == "firing":
            return replace(state, state="resolved", resolved_at=now)
        if state.state == "normal":
            return state
        return replace(_new(rule, state.labels, now), value=value)
    if state.state == "firing":
        return state
    if state.state != "pending":
        state = replace(
            state,
            state="pending",
            active_at=now,
            fired_at=None,
            resolved_at=None,
            last_sent_at=None,
        )
    if state.active_at is not None and now - state.active_at >= rule.lasting:
        state = replace(state, state="firing", fired_at=now)
    return state


def _end(state: AlertState, now: datetime) -> AlertState | None:
    """Return the state of a label set that is no more, or None once nobody has to hear of it."""
    if state.untold:
        return state
    if state.state == "firing":
        return replace(state, state="resolved", resolved_at=now, evaluated_at=now)
    return None
