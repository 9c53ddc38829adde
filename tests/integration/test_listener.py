"""The listener as it is served: gunicorn from the services' environment, a real Postgres behind it.

Mage is stood in for by a small HTTP server, which knows the one call that starts a pipeline, and by
two tables in its database; the end-to-end test runs the real one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from mlops.alerting.evaluator import Evaluator
from mlops.alerting.rules import load_provisioning, provisioning_environment
from mlops.database import connect
from mlops.orchestration.server import PROJECT
from mlops.settings import ROOT, Settings
from tests.fixtures.alerts import RULE, alert, notification
from tests.fixtures.postgres import free_ports
from tests.fixtures.waiting import await_


class Mage:
    """What the listener sees of Mage: triggers in a table, and an API that starts a run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.started: list[dict[str, Any]] = []
        self.asked = threading.Event()
        self.release = threading.Event()
        self.release.set()
        self._server: ThreadingHTTPServer | None = None

    def execute(self, statement: str, *values: Any) -> None:
        with connect("mage", settings=self.settings) as connection:
            connection.cursor().execute(statement, values)

    def start(self) -> None:
        mage = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                mage.asked.set()
                mage.release.wait(30)
                token = mage.settings.secret("mage_trigger_token")
                assert self.headers["Authorization"] == f"Bearer {token}"
                variables = json.loads(content)["pipeline_run"]["variables"]
                mage.started.append(variables)
                mage.execute(
                    "INSERT INTO pipeline_run (id, pipeline_uuid, variables)"
                    " VALUES (%s, 'retrain', %s)",
                    len(mage.started),
                    json.dumps(variables),
                )
                answer = json.dumps({"pipeline_run": {"id": len(mage.started)}}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: Any) -> None:
                pass

        address = (self.settings.host, self.settings.mage_port)
        self._server = ThreadingHTTPServer(address, Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.fixture
def settings(database: Settings) -> Settings:
    listener_port, mage_port = free_ports(2)
    with connect(settings=database) as connection:
        connection.cursor().execute(
            "INSERT INTO ops.deployments (card, model_version, cause)"
            " VALUES ('bank_marketing', '1', 'test')"
        )
    return database.model_copy(
        update={"listener_port": listener_port, "mage_port": mage_port, "retrain_cool_down_s": 0}
    )


@pytest.fixture
def mage(settings: Settings) -> Iterator[Mage]:
    mage = Mage(settings)
    mage.execute("DROP TABLE IF EXISTS pipeline_schedule, pipeline_run")
    mage.execute(
        "CREATE TABLE pipeline_schedule"
        " (id integer, pipeline_uuid text, name text, schedule_type text, repo_path text)"
    )
    mage.execute("CREATE TABLE pipeline_run (id integer, pipeline_uuid text, variables json)")
    mage.execute(
        "INSERT INTO pipeline_schedule VALUES (1, 'retrain', 'api', 'API', %s)", str(PROJECT)
    )
    mage.start()
    yield mage
    mage.stop()
    mage.execute("DROP TABLE pipeline_schedule, pipeline_run")


class Listener:
    """A running listener, and what can be asked of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = settings.listener_url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = ROOT / ".venv-services" / "bin" / "python"
        if not program.is_file():
            pytest.fail(f"{program} is missing: run `make setup`, which makes both environments")
        command = [
            *[str(program), "-m", "gunicorn", "mlops.alerting.listener:create_app()"],
            *["--bind", f"{self.settings.host}:{self.settings.listener_port}"],
            *["--workers", "1", "--threads", "4", "--no-control-socket"],
        ]
        self.settings.state_dir.mkdir(parents=True, exist_ok=True)
        self.output = self.settings.state_dir / "listener.out"
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **self.settings.environment()},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        await_(lambda: self.health() is not None, 60, lambda: self.output.read_text())

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, how)
            self._process.wait(20)
            self._process = None

    def health(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = requests.get(f"{self.url}/health", timeout=10).json()
        except requests.ConnectionError:
            return None
        return found

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def metrics(self) -> dict[str, float]:
        """What Prometheus would read, by name and labels."""
        text = requests.get(f"{self.url}/metrics", timeout=10).text
        return {
            sample.name + _labels_of(sample.labels): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def post(
        self, content: Any, token: str | None = None, scheme: str = "Bearer"
    ) -> requests.Response:
        token = self.settings.secret("webhook_token") if token is None else token
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        return requests.post(
            f"{self.url}/alert",
            data=data,
            headers={"Authorization": f"{scheme} {token}"},
            timeout=30,
        )

    @property
    def log(self) -> list[dict[str, Any]]:
        path: Path = self.settings.state_dir / "logs" / "alerts.log"
        return [json.loads(line) for line in path.read_text().splitlines()]


def _labels_of(labels: dict[str, str]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


@pytest.fixture
def listener(settings: Settings, mage: Mage) -> Iterator[Listener]:
    listener = Listener(settings)
    listener.start()
    yield listener
    listener.stop()


def rows(settings: Settings, statement: str) -> list[tuple[Any, ...]]:
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def decisions(settings: Settings) -> list[tuple[Any, ...]]:
    return rows(settings, "SELECT decision FROM ops.alerts WHERE handled_at IS NOT NULL")


def body(rule: str = RULE, fingerprint: str = "c0ffee", status: str = "firing") -> dict[str, Any]:
    """Return the body that Grafana posts about one alert."""
    return notification(alert(rule, fingerprint, status))


def test_an_alert_is_stored_answered_and_starts_the_pipeline(
    listener: Listener, mage: Mage, settings: Settings
) -> None:
    mage.release.clear()
    try:
        began = time.monotonic()
        response = listener.post(body())
        assert time.monotonic() - began < 5
        assert response.status_code == 202
        assert response.json() == {"received": 1, "new": 1, "repeated": 0}
        assert rows(settings, "SELECT rule, status FROM ops.alerts") == [(RULE, "firing")]
        assert mage.started == []  # answered before Mage was done
    finally:
        mage.release.set()
    await_(lambda: decisions(settings))
    ((retrain_id, finished),) = rows(settings, "SELECT id, finished_at FROM ops.retrains")
    assert [each["retrain_id"] for each in mage.started] == [retrain_id]
    assert finished is None
    assert listener.health() == {
        "status": "ok",
        "database": True,
        "starter": True,
        "waiting": 0,
        "retrain": retrain_id,
        "refused": {},
    }
    await_(lambda: [line["event"] for line in listener.log] == ["received", "decided"])


def test_a_storm_of_the_same_alert_starts_one_retrain(
    listener: Listener, mage: Mage, settings: Settings
) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: listener.post(body()), range(120)))
    assert {answer.status_code for answer in answers} == {202}
    assert sum(answer.json()["new"] for answer in answers) == 1
    await_(lambda: decisions(settings))
    assert rows(settings, "SELECT repeats FROM ops.alerts") == [(119,)]
    assert len(mage.started) == 1
    assert len(rows(settings, "SELECT 1 FROM ops.retrains")) == 1


def test_a_storm_of_different_alerts_starts_one_retrain_at_a_time(
    listener: Listener, mage: Mage, settings: Settings
) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda i: listener.post(body(fingerprint=f"{i:x}")), range(60))
        assert {answer.status_code for answer in answers} == {202}
    await_(lambda: mage.started)
    await_(
        lambda: (
            rows(
                settings,
                "SELECT count(*) FROM ops.alerts WHERE handled_at IS NULL AND decision IS NULL",
            )
            == [(0,)]
        )
    )
    assert len(mage.started) == 1
    assert len(rows(settings, "SELECT 1 FROM ops.retrains")) == 1


def test_a_storm_of_a_thousand_webhooks_of_all_kinds_starts_one_retrain(
    listener: Listener, mage: Mage, settings: Settings
) -> None:
    """Forged, malformed, repeated, told over before they are told: at once, in any order."""
    real = [notification(alert(fingerprint=f"{month:x}")) for month in range(3)]
    over_first = [body(fingerprint=f"dead{i:x}", status="resolved") for i in range(100)]
    late = [body(fingerprint=f"dead{i:x}") for i in range(100)]
    malformed: list[Any] = [
        b"\xff",
        {"status": "firing", "alerts": []},
        {**body(), "status": "sad"},
        b"[" * 1000,
    ]
    jobs: list[tuple[str, Any, str | None]] = [
        *[("repeated", each, None) for each in real * 150],
        *[("forged", real[0], "forged")] * 250,
        *[("malformed", each, None) for each in malformed * 25],
    ]
    random.Random(7).shuffle(jobs)
    # Each is told over before it is told at all.
    jobs = [*[("over", each, None) for each in over_first], *jobs]
    jobs += [("late", each, None) for each in late]
    assert len(jobs) == 1000
    process = psutil.Process(listener.pid)
    listener.health()
    before = memory_of(process)
    waits: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            began = time.monotonic()
            assert listener.health() is not None
            waits.append(time.monotonic() - began)

    with ThreadPoolExecutor(1) as watching, ThreadPoolExecutor(16) as pool:
        watched = watching.submit(watch)
        over = list(pool.map(lambda job: listener.post(job[1], job[2]), jobs[:100]))
        rest = list(pool.map(lambda job: listener.post(job[1], job[2]), jobs[100:]))
        done.set()
        watched.result()
    status = {"repeated": 202, "over": 202, "late": 202, "forged": 401, "malformed": 400}
    answers = [answer.status_code for answer in [*over, *rest]]
    assert answers == [status[kind] for kind, *_ in jobs]

    await_(lambda: rows(settings, "SELECT 1 FROM ops.alerts WHERE handled_at IS NULL") == [])
    assert len(mage.started) == 1
    assert len(rows(settings, "SELECT 1 FROM ops.retrains")) == 1
    assert sorted(decisions(settings)) == [
        *[("joined",)] * 2,
        *[("resolved",)] * 100,
        *[("retrain",)],
    ]
    health = listener.health()
    assert health is not None
    assert health["refused"] == {"unauthorised": 250, "malformed": 100}
    metrics = listener.metrics()
    assert metrics['listener_notifications_total{outcome="unauthorised"}'] == 250
    assert metrics['listener_notifications_total{outcome="malformed"}'] == 100
    assert metrics['listener_notifications_total{outcome="taken"}'] == 650
    assert metrics['listener_alerts_total{kind="new"}'] == 103
    assert metrics['listener_alerts_total{kind="repeated"}'] == 547
    assert metrics["listener_alerts_waiting"] == 0
    # Those that may not come in push nothing out of the log of decisions.
    refused = [line for line in listener.log if line["event"] == "refused"]
    assert 2 <= len(refused) < 40
    assert max(waits) < 5, f"health took {max(waits):.1f} s, on average {sum(waits) / len(waits)}"
    assert memory_of(process) < before + 50_000_000


def memory_of(process: psutil.Process) -> int:
    """Return the memory of a server and its workers that is theirs alone, in bytes."""
    family = [process, *process.children(recursive=True)]
    return sum(each.memory_full_info().uss for each in family)


def test_metrics_say_that_the_database_is_away(settings: Settings, mage: Mage) -> None:
    (nobody,) = free_ports(1)
    listener = Listener(settings.model_copy(update={"postgres_port": nobody}))
    listener.start()
    try:
        assert listener.post(body()).status_code == 503
        metrics = listener.metrics()
        assert metrics["listener_database_up"] == 0
        assert metrics['listener_notifications_total{outcome="unavailable"}'] == 1
        assert "listener_alerts_waiting" not in metrics
    finally:
        listener.stop()


@pytest.mark.parametrize("rule", ["TestAlert", "DatasourceNoData", "DatasourceError"])
def test_grafanas_own_alerts_start_nothing(
    listener: Listener, mage: Mage, settings: Settings, rule: str
) -> None:
    assert listener.post(body(rule)).status_code == 202
    await_(lambda: decisions(settings))
    assert decisions(settings) == [("ignored",)]
    assert mage.started == []


def test_without_the_token_nothing_is_taken(listener: Listener, settings: Settings) -> None:
    token = settings.secret("webhook_token")
    forged = [
        *[listener.post(body(), token="forged"), listener.post(body(), token="")],
        *[listener.post(body(), token=token[:-1]), listener.post(body(), scheme="Basic")],
        listener.post(body(), token="tökén".encode().decode("latin-1")),
        requests.post(f"{listener.url}/alert", json=body(), timeout=10),
        requests.post(f"{listener.url}/alert?token={token}", json=body(), timeout=10),
    ]
    assert {answer.status_code for answer in forged} == {401}
    assert rows(settings, "SELECT 1 FROM ops.alerts") == []
    health = listener.health()
    assert health is not None
    assert health["refused"] == {"unauthorised": len(forged)}
    assert token not in listener.output.read_text()


def test_what_is_no_notification_is_refused_by_field(
    listener: Listener, settings: Settings
) -> None:
    wrong = body()
    wrong["alerts"][0]["startsAt"] = "yesterday"
    refused = {
        "alerts[0].startsAt": wrong,
        "body": b"\xff",
        "alerts": {"status": "firing", "alerts": []},
        "status": {**body(), "status": "sad"},
    }
    for field, content in refused.items():
        response = listener.post(content)
        assert response.status_code == 400
        assert response.json()["error"]["field"] == field
    half = body()
    half["alerts"].append({**half["alerts"][0], "fingerprint": "no hex"})
    assert listener.post(half).status_code == 400
    assert rows(settings, "SELECT 1 FROM ops.alerts") == []


def test_a_body_that_is_too_large_is_refused(listener: Listener) -> None:
    response = listener.post(b" " * 1_100_000)
    assert response.status_code == 413
    assert response.json()["error"]["code"]


def test_other_paths_and_methods_answer_in_json(listener: Listener) -> None:
    assert requests.get(f"{listener.url}/alert", timeout=10).status_code == 405
    answer = requests.post(f"{listener.url}/", timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_an_alert_waits_for_mage_through_a_kill_of_the_listener(
    listener: Listener, mage: Mage, settings: Settings
) -> None:
    mage.stop()
    assert listener.post(body()).status_code == 202
    await_(lambda: rows(settings, "SELECT 1 FROM ops.alerts WHERE decision LIKE 'waits: %'"))
    assert rows(settings, "SELECT 1 FROM ops.retrains") == []
    listener.stop(signal.SIGKILL)
    mage.start()
    listener.start()  # and no further alert wakes it
    await_(lambda: decisions(settings))
    assert decisions(settings) == [("retrain",)]
    assert len(mage.started) == 1


def test_a_run_that_mage_took_before_the_kill_is_not_started_twice(
    listener: Listener, mage: Mage, settings: Settings
) -> None:
    mage.release.clear()
    listener.post(body())
    assert mage.asked.wait(20)
    listener.stop(signal.SIGKILL)
    mage.release.set()
    await_(lambda: mage.started)
    listener.start()
    await_(lambda: decisions(settings))
    assert decisions(settings) == [("retrain",)]
    assert len(mage.started) == 1


def test_without_postgres_the_sender_is_told_to_come_again(settings: Settings, mage: Mage) -> None:
    (nobody,) = free_ports(1)
    listener = Listener(settings.model_copy(update={"postgres_port": nobody}))
    listener.start()
    try:
        assert listener.post(body()).status_code == 503
        health = listener.health()
        assert health is not None
        assert (health["status"], health["database"]) == ("degraded", False)
    finally:
        listener.stop()


def test_the_evaluators_own_post_is_taken(
    listener: Listener, mage: Mage, settings: Settings
) -> None:
    from datetime import datetime, timedelta, timezone

    with connect(settings=settings) as connection:
        connection.cursor().execute(
            "INSERT INTO grafana.evidently_metrics"
            " (model_version, period, row_count, prediction_drift, prediction_drift_noise)"
            " VALUES ('1', '2009-03-01', 258, 0.55, 0.16)"
        )
    evaluator = Evaluator(load_provisioning(provisioning_environment(settings)), settings)
    start = datetime.now(timezone.utc)
    for second in range(0, 25, 5):
        evaluator.tick(start + timedelta(seconds=second))
    await_(lambda: decisions(settings))
    ((cause, alert),) = rows(settings, "SELECT cause, alert FROM ops.retrains")
    assert cause == "alert: Prediction drift (version 1, 2009-03)"
    assert alert.startswith(evaluator.states[0].fingerprint)
    assert len(mage.started) == 1


def test_a_lock_on_the_alerts_ends_in_no_loss(
    listener: Listener, mage: Mage, settings: Settings
) -> None:
    """While a migration holds the table, the sender waits; afterwards all is there."""
    with psycopg2.connect(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user="mlops",
        password=settings.secret("postgres_password"),
        dbname="mlops",
    ) as blocker:
        blocker.cursor().execute("LOCK TABLE ops.alerts IN EXCLUSIVE MODE")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(listener.post, body())
            await_(
                lambda: rows(
                    settings,
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND query LIKE 'INSERT INTO ops.alerts%'",
                )
            )
            blocker.rollback()
            assert answer.result().status_code == 202
    blocker.close()
    await_(lambda: decisions(settings))
    assert len(mage.started) == 1
