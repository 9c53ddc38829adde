"""Grafana or the evaluator under the real supervisor, beside a real Postgres.

Grafana is a stand-in (tests/fixtures/grafana_standin.py): it answers as one, and evaluates nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops.database import connect
from mlops.settings import Settings
from mlops.stack import __main__ as command_line
from mlops.stack import processes
from tests.fixtures.grafana_standin import make_home
from tests.fixtures.stack import few_services

WATCHED = (
    "INSERT INTO ops.alert_states (rule_uid, fingerprint, labels, state) VALUES"
    " ('another', 'aa', '{}', 'firing');"
    " INSERT INTO ops.alerts (fingerprint, starts_at, status, rule, body) VALUES"
    " ('aa', now(), 'firing', 'Prediction drift', '{}'),"
    " ('bb', now(), 'firing', 'Prediction drift', '{}')"
)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    def values(folder: Path) -> dict[str, Any]:
        home = make_home(folder / "opt")
        return {"grafana": "auto", "grafana_home": home, "cache_dir": folder / "cache"}

    with few_services(monkeypatch, ("postgres", "grafana", "evaluator"), values) as settings:
        yield settings


def running(settings: Settings) -> set[str]:
    return {name for name, each in processes.states(settings).items() if each.pid}


def test_grafana_runs_in_place_of_the_evaluator_until_it_is_switched_off(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_GRAFANA", "off")
    assert command_line.main(["up"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "Grafana: off (MLOPS_GRAFANA): the alert evaluator watches the rules"
    assert running(settings) == {"postgres", "evaluator"}
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(WATCHED)  # aa is the evaluator's, bb is not
    assert command_line.main(["down"]) == 0

    monkeypatch.setenv("MLOPS_GRAFANA", "auto")
    assert command_line.main(["check"]) == 0
    assert command_line.main(["up"]) == 0
    printed = capsys.readouterr().out
    assert f"Grafana: 12.4.2 of {settings.grafana_home} watches the rules\n" in printed
    assert settings.grafana_url in printed
    assert "MLOPS_GRAFANA_ADMIN_PASSWORD" in printed
    assert running(settings) == {"postgres", "grafana"}
    assert command_line.main(["status"]) == 0
    status = capsys.readouterr().out
    assert "grafana" in status
    assert "evaluator" not in status

    # What the evaluator has told is over: nobody else would ever say so.
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ops.alert_states")
        assert cursor.fetchone() == (0,)
        cursor.execute("SELECT fingerprint, status FROM ops.alerts ORDER BY fingerprint")
        assert cursor.fetchall() == [("aa", "resolved"), ("bb", "firing")]

    started = json.loads((settings.state_dir / "grafana" / "started.json").read_text())
    assert started["arguments"][:3] == ["server", "--homepath", str(settings.grafana_home)]
    assert started["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == settings.secret(
        "grafana_admin_password"
    )
    assert settings.secret("postgres_password") not in started["environment"].values()

    # One that has gone since does not count: what runs goes on, and nothing is decided anew.
    pid = processes.states(settings)["grafana"].pid
    assert settings.grafana_home
    settings.grafana_home.rename(settings.grafana_home.with_name("elsewhere"))
    assert command_line.main(["up"]) == 0
    assert "watches the rules" not in capsys.readouterr().out
    assert processes.states(settings)["grafana"].pid == pid
