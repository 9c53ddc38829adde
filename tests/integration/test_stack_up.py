"""`up` on a stack that runs already, or whose state is another card's: with Postgres alone."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from mlops.alerting.heartbeat import beat, heartbeat_complaint
from mlops.database import connect, database_url
from mlops.settings import Settings
from mlops.stack import __main__ as command_line
from mlops.stack import checks, processes
from mlops.stack.services import Service, services
from tests.fixtures.postgres import make_settings

INGESTED = (
    "INSERT INTO ops.ingested_files (sha256, card, source, origin, rows, bytes)"
    " VALUES (repeat('0', 64), %s, 'file.csv', 'file', 1, 1)"
)


def only_postgres(settings: Settings) -> list[Service]:
    return [each for each in services(settings) if each.name == "postgres"]


def use(settings: Settings, patch: pytest.MonkeyPatch) -> None:
    for name, value in settings.environment().items():
        patch.setenv(name, value)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    # Not pytest's own temporary folder: root's Postgres runs as another user, which that keeps out.
    folder = Path(tempfile.mkdtemp(prefix="mlops-up-"))
    found = make_settings(folder)
    use(found, monkeypatch)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # the command line sets them: undone afterwards
    monkeypatch.setattr(command_line, "ensure_secrets", list)
    monkeypatch.setattr(command_line, "services", only_postgres)
    yield found
    command_line.main(["down"])
    assert processes.leftovers(found) == []
    shutil.rmtree(folder)


def pid_of_postgres(settings: Settings) -> int | None:
    return processes.states(settings)["postgres"].pid


def test_up_again_keeps_what_runs_and_takes_over_changed_settings(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["up"]) == 0
    first = pid_of_postgres(settings)
    beat(settings, set())
    assert command_line.main(["up"]) == 0
    assert heartbeat_complaint(settings) is None
    assert pid_of_postgres(settings) == first
    assert "settings have changed" not in capsys.readouterr().out

    changed = settings.model_copy(
        update={"data": "https://example.org/bank.zip", "postgres_password": None}
    )
    monkeypatch.setenv("MLOPS_POSTGRES_PASSWORD", "another one")
    use(changed, monkeypatch)
    assert command_line.main(["up"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [each for each in lines if "settings have changed" in each]
    assert line == (
        "settings have changed since the start (MLOPS_DATA, MLOPS_POSTGRES_PASSWORD): restarting"
    )
    assert pid_of_postgres(settings) not in (first, None)
    assert heartbeat_complaint(settings), "the old evaluator's heartbeat counts for the new one"
    supervisor = processes.psutil.Process(processes.supervisor_pid(settings))
    assert supervisor.environ()["MLOPS_DATA"] == "https://example.org/bank.zip"


def test_wrong_new_settings_leave_the_running_stack_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["up"]) == 0
    first = pid_of_postgres(settings)
    monkeypatch.setenv("MLOPS_DATA", "/no/such/file.zip")
    assert command_line.main(["up"]) == 2
    assert "there is no file /no/such/file.zip" in capsys.readouterr().out
    assert pid_of_postgres(settings) == first


def test_a_new_port_that_is_taken_leaves_the_running_stack_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["up"]) == 0
    first = pid_of_postgres(settings)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setenv("MLOPS_POSTGRES_PORT", str(taken))
        assert command_line.main(["up"]) == 2
        printed = capsys.readouterr().out
        assert f"port {taken} (postgres) is in use" in printed
        assert "restarting" not in printed
        assert pid_of_postgres(settings) == first
    command_line.main(["status"])
    assert (
        "settings have changed since the start (MLOPS_POSTGRES_PORT): `make up` takes them over"
        in capsys.readouterr().out
    )


def test_a_database_of_another_card_is_refused_and_nothing_is_left_running(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["up"]) == 0
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(INGESTED, (settings.card,))
    assert checks.card_problems(settings) == []
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE ops.ingested_files SET card = 'churn'")
    capsys.readouterr()
    for running in (True, False):
        if not running:
            assert command_line.main(["down"]) == 0
        assert command_line.main(["up"]) == 2
        printed = capsys.readouterr().out
        assert "this state belongs to card churn, not to bank_marketing" in printed
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(database_url(settings=settings))


def test_a_demo_whose_stack_does_not_come_up_leaves_no_older_success(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.state_dir.mkdir()
    facts = settings.state_dir / "demo.json"
    facts.write_text('{"closed": true}')
    monkeypatch.setattr(command_line, "run_up", lambda options: command_line.FAILED)
    assert command_line.main(["demo"]) == command_line.FAILED
    found = json.loads(facts.read_text())
    assert found["closed"] is False
    assert "did not come up" in found["error"]
