"""The web server that alerts come to: `POST /alert`, `GET /health`, `GET /metrics`.

It thinks of nothing itself.

    gunicorn 'mlops.alerting.listener:create_app()' --workers 1 --threads 4

An alert is stored before its sender is answered; what it leads to is decided afterwards, by a
thread (`Starter`) that also looks by itself every few seconds, so that an alert that had to wait is
not forgotten. The rules of the decision are in `alerts`, the books in `retrains`. A second thread
tells a webhook what retrains came to (`notices`), if there is one.
"""

from __future__ import annotations

import hmac
import logging
import os
import threading
import time
from collections import Counter
from typing import Any

import psycopg2
from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from mlops.alerting.alerts import (
    AlertBodyError,
    AlertLog,
    decide_waiting,
    log_decision,
    parse_notification,
    store_alerts,
    waiting_count,
)
from mlops.alerting.notices import Teller
from mlops.alerting.retrains import Ages, Trigger, unfinished_retrain
from mlops.alerting.rules import load_titles, provisioning_environment
from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.orchestration import mage
from mlops.settings import Settings, get_settings

logger = logging.getLogger("gunicorn.error")  # into the server's own log

LARGEST_BODY = 1_000_000
"""Bytes. Grafana's body about a thousand alerts is half of it."""

LOOK_EVERY_S = 3.0

SAY_REFUSED_EVERY_S = 10.0
"""The log of decisions rotates: whoever may not come in must not push out what it holds."""


class Counts:
    """What came in since this process began, counted by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notifications: Counter[str] = Counter()
        self._alerts: Counter[str] = Counter()
        self._said: dict[str, tuple[float, int]] = {}

    def add(self, outcome: str, **alerts: int) -> None:
        """Count a notification by what became of it, and the alerts that it brought."""
        with self._lock:
            self._notifications[outcome] += 1
            self._alerts.update(alerts)

    def refuse(self, outcome: str, now: float) -> int | None:
        """Count a refused one; return how many there were since one was last logged, or None.

        `now` is in seconds, of any clock that does not go back. None: this one is not to be logged.
        """
        with self._lock:
            self._notifications[outcome] += 1
            count = self._notifications[outcome]
            said_at, said = self._said.get(outcome, (None, 0))
            if said_at is not None and now - said_at < SAY_REFUSED_EVERY_S:
                return None
            self._said[outcome] = (now, count)
            return count - said

    @property
    def notifications(self) -> dict[str, int]:
        """Notifications by what became of them."""
        with self._lock:
            return dict(self._notifications)

    @property
    def alerts(self) -> dict[str, int]:
        """Alerts of the taken ones, `new` and `repeated`."""
        with self._lock:
            return dict(self._alerts)


OUTCOMES = ("taken", "unauthorised", "malformed", "unavailable")
REFUSED = ("unauthorised", "malformed")


class Starter:
    """The thread that decides about waiting alerts: at once when woken, else every few seconds."""

    def __init__(self, settings: Settings, trigger: Trigger, log: AlertLog) -> None:
        self.settings = settings
        self.card = load_card(settings.card)
        self._trigger = trigger
        self._log = log
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._said = ""
        self._ages = Ages()

    @property
    def alive(self) -> bool:
        """Whether the thread runs, in this process: a fork leaves threads behind."""
        return self._pid == os.getpid() and self._thread is not None and self._thread.is_alive()

    def ensure_running(self) -> None:
        """Start the thread unless it runs in this very process."""
        if self.alive:
            return
        with self._lock:
            if not self.alive:
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, name="starter", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """Have the waiting alerts looked at now."""
        self.ensure_running()
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            self.look()
            self._wake.wait(LOOK_EVERY_S)

    def look(self) -> None:
        """Decide once. Nothing may end the thread: what went wrong is logged, once."""
        try:
            with connect(settings=self.settings) as connection:
                decide_waiting(
                    connection,
                    self.card,
                    self._trigger,
                    load_titles(environment=provisioning_environment(self.settings)),
                    self.settings,
                    report=lambda decision: log_decision(self._log, decision),
                    ages=self._ages,
                )
            self._said = ""
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if said != self._said:
                logger.exception("alerts wait: %s", said)
            self._said = said


def start_pipeline(pipeline: str, variables: dict[str, Any], settings: Settings) -> int:
    """Start `pipeline` in Mage and return its run's id; a run of the same retrain is not repeated.

    Raises MageError if Mage is away or refuses.
    """
    same = {"retrain_id": variables["retrain_id"]}
    run_id = mage.find_run(pipeline, same, settings)
    return mage.trigger_pipeline(pipeline, variables, settings) if run_id is None else run_id


def create_app(settings: Settings | None = None, trigger: Trigger | None = None) -> Flask:
    """Return the application, its thread started. Raises MissingSecretError without a token."""
    settings = settings or get_settings()
    token = settings.secret("webhook_token").encode()
    log = AlertLog(settings)
    counts = Counts()

    def start(pipeline: str, variables: dict[str, Any]) -> int:
        return start_pipeline(pipeline, variables, settings)

    starter = Starter(settings, trigger or start, log)
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    app.before_request(starter.ensure_running)
    teller = Teller(settings)
    app.before_request(teller.ensure_running)

    def say_refused(outcome: str, reason: str) -> None:
        if (since_last := counts.refuse(outcome, time.monotonic())) is not None:
            log.write("refused", reason=reason, sender=request.remote_addr, count=since_last)

    @app.post("/alert")
    def receive() -> tuple[Response, int]:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        given_token = given.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given_token, token):
            say_refused("unauthorised", "unauthorised")
            return _error(401, "unauthorised", "Authorization", "expected the bearer token")
        try:
            received = parse_notification(request.get_data())
        except AlertBodyError as error:
            say_refused("malformed", str(error))
            return _error(400, "malformed", error.field, str(error))
        try:
            with connect(settings=settings) as connection:
                stored = store_alerts(connection, received)
        except psycopg2.OperationalError as error:
            # Nothing is stored, and Grafana and the evaluator try again what is not answered 2xx.
            logger.error("alerts are not taken: %s", error)
            counts.add("unavailable")
            return _error(503, "unavailable", None, "the database does not answer: send it again")
        for each in received:
            log.write(
                "received",
                alert=each.key,
                rule=each.alert.labels["alertname"],
                status=each.alert.status,
                labels=each.alert.labels,
                values=each.alert.values,
            )
        counts.add("taken", new=stored.new, repeated=stored.repeated)
        starter.wake()
        return jsonify(received=stored.received, new=stored.new, repeated=stored.repeated), 202

    def under_way() -> dict[str, Any]:
        facts: dict[str, Any] = {"waiting": None, "retrain": None, "database": True}
        try:
            with connect(settings=settings) as connection:
                facts["waiting"] = waiting_count(connection)
                facts["retrain"] = unfinished_retrain(connection, starter.card)
        except psycopg2.Error:
            facts["database"] = False
        return facts

    @app.get("/health")
    def health() -> Response:
        facts = under_way()
        status = "ok" if facts["database"] and starter.alive else "degraded"
        refused = {name: n for name, n in counts.notifications.items() if name in REFUSED}
        return jsonify(status=status, starter=starter.alive, refused=refused, **facts)

    @app.get("/metrics")
    def metrics() -> Response:
        text = metrics_text(counts, under_way(), starter.alive)
        return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> tuple[Response, int]:
        code = error.code or 500
        name = (error.name or "error").lower().replace(" ", "_")
        return _error(code, name, None, error.description or name)

    starter.ensure_running()
    teller.ensure_running()
    return app


def metrics_text(counts: Counts, facts: dict[str, Any], starter: bool) -> str:
    """Return the metrics in Prometheus' text format.

    While the database is away, what only it knows is left out.
    """
    notifications, alerts = counts.notifications, counts.alerts
    lines = [
        "# HELP listener_notifications_total Webhooks that came, by what became of them.",
        "# TYPE listener_notifications_total counter",
        *(
            f'listener_notifications_total{{outcome="{name}"}} {notifications.get(name, 0)}'
            for name in OUTCOMES
        ),
        "# HELP listener_alerts_total Alerts of the taken webhooks: new ones, and repeats.",
        "# TYPE listener_alerts_total counter",
        *(
            f'listener_alerts_total{{kind="{name}"}} {alerts.get(name, 0)}'
            for name in ("new", "repeated")
        ),
        "# HELP listener_starter_alive Whether the thread that decides about alerts runs.",
        "# TYPE listener_starter_alive gauge",
        f"listener_starter_alive {int(starter)}",
        "# HELP listener_database_up Whether Postgres answers the listener.",
        "# TYPE listener_database_up gauge",
        f"listener_database_up {int(facts['database'])}",
    ]
    if facts["database"]:
        lines += [
            "# HELP listener_alerts_waiting Alerts about which nothing has been decided yet.",
            "# TYPE listener_alerts_waiting gauge",
            f"listener_alerts_waiting {facts['waiting']}",
            "# HELP listener_retrains_under_way Retrains that are not finished, one at most.",
            "# TYPE listener_retrains_under_way gauge",
            f"listener_retrains_under_way {int(facts['retrain'] is not None)}",
        ]
    return "\n".join(lines) + "\n"


def _error(status: int, code: str, field: str | None, message: str) -> tuple[Response, int]:
    return jsonify(error={"code": code, "field": field, "message": message}), status
