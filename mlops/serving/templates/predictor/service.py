"""What one worker holds: the model that answers, the log, and the watch over `payloads/current`."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from predictor import metrics
from predictor.errors import LogUnavailable, PayloadError, RequestError
from predictor.explain import explain
from predictor.incoming import note_scored, read_headers, read_json
from predictor.limits import Arrivals, Limits
from predictor.lists import read_and_score
from predictor.model import Model, code_digest
from predictor.observer import Environment
from predictor.openapi import describe
from predictor.prediction_log import PredictionLog, format_lines, locked, open_log

WATCH_SECONDS = 0.25
RETRY_SECONDS = 5.0
CHECK_SECONDS = 60.0

logger = logging.getLogger("predict")


class Service:
    """What one worker holds: the model that answers, the log, and the watch over the link."""

    def __init__(self, link: Path, environment: dict[str, str]) -> None:
        self.link = link
        self.environment = environment
        self.limits = Limits(environment)
        self.model: Model | None = None
        self.load_error: str | None = None
        self.log: PredictionLog | None = None
        self.workers = 1
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self._seen: tuple[Any, ...] | None = None
        self._retry_at = 0.0
        self._last_good: Callable[[Path], None] = lambda folder: None
        self._own_code = code_digest(Path(__file__).resolve().parents[1])
        self._reload_lock: int | None = None

    def load(self) -> None:
        """Load the payload that the link names; raises PayloadError."""
        self._seen = self._look()
        self.model = Model(self.link.resolve(strict=True))
        metrics.model_loaded(self.model.card)
        self._last_good(self.model.folder)

    def start(
        self,
        workers: int = 1,
        fallback: Path | None = None,
        last_good: Any = None,
        arrivals: Arrivals | None = None,
    ) -> None:
        """Start logging and watching. A worker that finds a broken payload takes the `fallback`.

        `arrivals` are what the workers share about their clients' rates.
        """
        self.limits.share(arrivals)
        self.workers = workers
        self._last_good = last_good or self._last_good
        try:
            self.load()
        except (PayloadError, OSError) as fault:
            if fallback is None or not self.link.is_symlink():
                raise
            self._failed(fault)
            self.model = Model(fallback)
            metrics.model_loaded(self.model.card)
        self.log = open_log(self.environment)
        if self.link.is_symlink():
            self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
            self._watcher.start()

    def stop(self) -> None:
        """Stop watching, and ship what is in the log."""
        self._stop.set()
        if self.log is not None:
            self.log.close()

    def _look(self) -> tuple[Any, ...] | None:
        """Return what tells one payload from another, a replaced one of the same name included."""
        try:
            stat = (self.link / "model.json").stat()
            target = str(self.link.readlink() if self.link.is_symlink() else self.link)
        except OSError:
            return None
        return (target, stat.st_ino, stat.st_mtime_ns)

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_SECONDS):
            seen = self._look()
            retry = self.load_error is not None and time.monotonic() >= self._retry_at
            if seen == self._seen and not retry:
                continue
            self._seen = seen
            try:
                self._take(self.link.resolve(strict=True))
                self.load_error = None
            except Exception as fault:  # the old model goes on answering, whatever it was
                self._failed(fault)

    def _take(self, folder: Path) -> None:
        new = Model(folder)
        if new.code != self._own_code:
            self._ask_for_new_workers(folder)
            return
        old, self.model = self.model, new
        metrics.model_loaded(new.card)
        self._last_good(folder)
        logger.info("version %s answers, it was %s", new.version, old.version if old else None)

    def _ask_for_new_workers(self, folder: Path) -> None:
        """Have gunicorn replace its workers, once the new code has proved that it runs."""
        check = subprocess.run(
            [sys.executable, "-B", str(folder / "predict.py")],
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
            env={k: v for k, v in os.environ.items() if k != metrics.FOLDER_VARIABLE},
        )
        if check.returncode != 0:
            last = (check.stderr.strip().splitlines() or ["no message"])[-1]
            raise PayloadError(f"its predict.py does not run: {last}")
        # One of the workers asks, whoever has the lock: a second SIGHUP would replace the new
        # workers at once. The lock goes when this worker goes.
        if self._reload_lock is not None:
            os.close(self._reload_lock)
        self._reload_lock = os.open(folder / "predict.py", os.O_RDONLY)
        if locked(self._reload_lock):
            logger.info("%s brings new code: reloading gunicorn", folder.name)
            os.kill(os.getppid(), signal.SIGHUP)

    def _failed(self, fault: Exception) -> None:
        metrics.model_failed()
        name = (self.link.readlink() if self.link.is_symlink() else self.link).name
        error = f"{name}: {fault}"
        if error != self.load_error:
            logger.error("payload %s cannot be loaded, the old one goes on", error)
        self.load_error = error
        self._retry_at = time.monotonic() + RETRY_SECONDS

    # What the routes answer

    def health(self) -> dict[str, Any]:
        log: dict[str, Any] = {"enabled": self.log is not None, "pending": 0}
        if self.log is not None:
            log |= {
                "pending": self.log.pending(),
                "rejected": self.log.rejected(),
                "error": self.log.error,
            }
        return {
            "status": "ok" if self.load_error is None else "degraded",
            "version": self.loaded().version,
            "pid": os.getpid(),
            "workers": self.workers,
            "load_error": self.load_error,
            "log": log,
        }

    def ready(self) -> tuple[dict[str, Any], int]:
        """Return whether requests may be sent here, and the status that says so."""
        version = self.loaded().version
        if self.log is not None and (reason := self.log.full()):
            return {"ready": False, "version": version, "reason": reason}, 503
        return {"ready": True, "version": version}, 200

    def exposition(self) -> bytes:
        """Return what Prometheus reads: of all workers."""
        return metrics.exposition(self.log.measured() if self.log is not None else None)

    def predict(self, environ: Environment) -> dict[str, Any]:
        model = self.loaded()  # one reference for the whole request: a swap does not touch it
        request_id, period, purpose = read_headers(environ)
        body = read_json(environ, self.limits)
        records = body if isinstance(body, list) else [body]
        if not records:
            raise RequestError(
                "empty", f"the list holds no record, expected 1 to {self.limits.max_records}"
            )
        if len(records) > self.limits.max_records:
            raise RequestError(
                "too_many_records",
                f"the list holds {len(records)} records, expected 1 to {self.limits.max_records}",
                status=413,
            )
        read, probabilities = read_and_score(model, records)
        if self.log is not None:
            try:
                lines = format_lines(
                    request_id,
                    datetime.now(timezone.utc).isoformat(),
                    period,
                    purpose,
                    model.version,
                    [
                        (record, probability, len(warnings))
                        for (record, warnings), probability in zip(read, probabilities, strict=True)
                    ],
                )
                self.log.append(lines, len(read))
            except LogUnavailable as fault:
                # The one answer in 5xx: unlogged predictions would blind the monitor.
                raise RequestError(
                    "log_unavailable", f"not answered: {fault}", status=503, retry_after=10
                ) from fault
        note_scored(environ, model.version, len(read))
        metrics.count_inputs(model.unusual_kinds, read)
        return {
            "request_id": request_id,
            "version": model.version,
            "predictions": [
                {
                    "probability": probability,
                    "decision": model.decisions[probability >= model.threshold],
                    "warnings": warnings,
                }
                for (_, warnings), probability in zip(read, probabilities, strict=True)
            ],
        }

    def explain(self, environ: Environment) -> dict[str, Any]:
        """Return the contributions to the score of one record; it is not logged."""
        model = self.loaded()
        request_id, _, _ = read_headers(environ)
        return {
            "request_id": request_id,
            "version": model.version,
            **explain(model, read_json(environ, self.limits)),
        }

    def loaded(self) -> Model:
        assert self.model is not None, "start() loads a model or raises"
        return self.model

    def card(self) -> bytes:
        return self.loaded().card_json

    def description(self) -> dict[str, Any]:
        """Return the API as OpenAPI, while the loaded model answers."""
        return describe(self.loaded().card, self.limits)
