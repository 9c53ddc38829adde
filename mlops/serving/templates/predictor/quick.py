"""The way of `POST /predict` past Flask, whose routing and objects cost more than the model.

Of a request's time in the application Flask took 45 %, the model 25 % (docs/performance.md). Every
other address goes by Flask; both ways end in the same `Service`, and say errors alike.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import orjson

from predictor import observer
from predictor.errors import RequestError, internal_error
from predictor.service import Service

SECURITY_HEADERS = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))
"""Of every answer."""

logger = logging.getLogger("predict")

_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


class QuickPath:
    """A WSGI application around Flask's: answers predictions itself, and hands on all else."""

    def __init__(self, flask: Any, service: Service) -> None:
        self.flask, self.service = flask, service

    def __call__(self, environ: observer.Environment, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/predict" or environ["REQUEST_METHOD"] != "POST":
            return self.flask(environ, start_response)
        try:
            body = orjson.dumps(self.service.predict(environ))
        except Exception as fault:
            if not isinstance(fault, RequestError):
                logger.exception("unexpected fault", extra={"request_id": environ[observer.ID]})
                fault = internal_error()
            return refuse(environ, start_response, fault)
        return _answer(start_response, 200, body)


def refuse(
    environ: observer.Environment, start_response: Any, fault: RequestError
) -> Iterable[bytes]:
    """Answer a request with its error."""
    environ[observer.CODE] = fault.code
    return _answer(start_response, fault.status, fault.body(), fault.headers())


def _answer(
    start_response: Any, status: int, body: bytes, more: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        *SECURITY_HEADERS,
        *more,
    ]
    start_response(_STATUS_LINES[status], headers)
    return [body]
