"""The web server that alerts come to: `POST /alert`, `GET /health`. It thinks of nothing itself.

    gunicorn 'mlops.alerting.listener:create_app()' --workers 1 --threads 4

An alert is stored before its sender is answered; what it leads to is decided afterwards, by a
thread (`Starter`) that also looks by itself every few seconds, so that an alert that had to wait is
not forgotten. The rules of the decision are in `alerts`, the books in `retrains`.
"""

from __future__ import annotations

import hmac
import logging
import os
import threading
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
from mlops.alerting.retrains import Trigger, unfinished_retrain
from mlops.alerting.rules import load_titles, provisioning_environment
from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.orchestration import mage
from mlops.settings import Settings, get_settings

logger = logging.getLogger("gunicorn.error")  # into the server's own log

LARGEST_BODY = 1_000_000
"""Bytes. Grafana's body about a thousand alerts is half of it."""

LOOK_EVERY_S = 3.0


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
    refused: Counter[str] = Counter()

    def start(pipeline: str, variables: dict[str, Any]) -> int:
        return start_pipeline(pipeline, variables, settings)

    starter = Starter(settings, trigger or start, log)
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    app.before_request(starter.ensure_running)

    @app.post("/alert")
    def receive() -> tuple[Response, int]:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        given_token = given.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given_token, token):
            refused["unauthorised"] += 1
            log.write("refused", reason="unauthorised", sender=request.remote_addr)
            return _error(401, "unauthorised", "Authorization", "expected the bearer token")
        try:
            received = parse_notification(request.get_data())
        except AlertBodyError as error:
            refused["malformed"] += 1
            log.write("refused", reason=str(error), sender=request.remote_addr)
            return _error(400, "malformed", error.field, str(error))
        try:
            with connect(settings=settings) as connection:
                stored = store_alerts(connection, received)
        except psycopg2.OperationalError as error:
            # Nothing is stored, and Grafana and the evaluator try again what is not answered 2xx.
            logger.error("alerts are not taken: %s", error)
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
        starter.wake()
        return jsonify(received=stored.received, new=stored.new, repeated=stored.repeated), 202

    @app.get("/health")
    def health() -> Response:
        facts: dict[str, Any] = {"waiting": None, "retrain": None, "database": True}
        try:
            with connect(settings=settings) as connection:
                facts["waiting"] = waiting_count(connection)
                facts["retrain"] = unfinished_retrain(connection, starter.card)
        except psycopg2.Error:
            facts["database"] = False
        status = "ok" if facts["database"] and starter.alive else "degraded"
        return jsonify(status=status, starter=starter.alive, refused=dict(refused), **facts)

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> tuple[Response, int]:
        code = error.code or 500
        name = (error.name or "error").lower().replace(" ", "_")
        return _error(code, name, None, error.description or name)

    starter.ensure_running()
    return app


def _error(status: int, code: str, field: str | None, message: str) -> tuple[Response, int]:
    return jsonify(error={"code": code, "field": field, "message": message}), status
