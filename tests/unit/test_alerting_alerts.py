"""Notification bodies: what is read from one, and that none of them can do harm."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from mlops.alerting.alerts import AlertBodyError, parse_notification
from tests.fixtures.alerts import alert, notification


def body(**changes: Any) -> dict[str, Any]:
    """Return Grafana's body with one alert, of which some keys are changed."""
    return notification({**alert(), **changes})


def test_grafanas_own_body_is_read() -> None:
    (received,) = parse_notification(json.dumps(body()))
    assert received.key == "c0ffee/2026-01-01T00:00:00+00:00"
    assert received.alert.values == {"B": 0.23, "C": 1}
    assert received.body["endsAt"] == "0001-01-01T00:00:00Z"


def test_values_may_be_null() -> None:
    (received,) = parse_notification(json.dumps(body(values=None)))
    assert received.alert.values is None


def test_one_moment_written_in_two_zones_is_one_alert() -> None:
    (utc,) = parse_notification(json.dumps(body()))
    (elsewhere,) = parse_notification(json.dumps(body(startsAt="2026-01-01T05:30:00+05:30")))
    assert utc.key == elsewhere.key
    assert elsewhere.alert.startsAt == datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"status": "sad"}, "alerts[0].status"),
        ({"labels": {"period": "2009-03"}}, "alerts[0].labels"),
        ({"labels": {"alertname": 1}}, "alerts[0].labels.alertname"),
        ({"startsAt": "yesterday"}, "alerts[0].startsAt"),
        ({"startsAt": "2026-01-01T00:00:00"}, "alerts[0].startsAt"),
        ({"startsAt": "0001-01-01T00:00:00+05:00"}, "alerts[0].startsAt"),
        ({"startsAt": "9999-12-31T23:59:59-05:00"}, "alerts[0].startsAt"),
        ({"fingerprint": "; DROP TABLE"}, "alerts[0].fingerprint"),
        ({"values": {"B": "much"}}, "alerts[0].values.B"),
        ({"labels": {"alertname": "a\u0000b"}}, "alerts[0]"),
        ({"valueString": "\ud800"}, "alerts[0]"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(AlertBodyError) as refused:
        parse_notification(json.dumps(body(**changes)))
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "body"),
        ("[]", "body"),
        (b"\xff\xfe\x00", "body"),
        ("[" * 100_000, "body"),
        ('{"status": "firing"}', "alerts"),
        ('{"status": "firing", "alerts": []}', "alerts"),
        ('{"status": "firing", "alerts": [1]}', "alerts[0]"),
        (json.dumps(body()).replace("0.23", "NaN"), "body"),
        (json.dumps(body()).replace("0.23", "1e999"), "alerts[0]"),
        (json.dumps(body()).replace("0.23", "9" * 5000), "body"),
    ],
)
def test_what_is_no_notification_is_refused_and_never_an_accident(
    text: str | bytes, field: str
) -> None:
    with pytest.raises(AlertBodyError) as refused:
        parse_notification(text)
    assert refused.value.field == field
