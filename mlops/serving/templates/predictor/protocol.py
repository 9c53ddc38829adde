"""What is answered to requests that are no HTTP, or come too slowly: JSON, as to all others.

They reach no route: gunicorn's parser refuses them, or the worker that takes them in. By itself
gunicorn would answer HTML, and 501 to a transfer coding that it does not know.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

from gunicorn.http import errors as http
from gunicorn.http.unreader import SocketUnreader

from predictor import metrics
from predictor.errors import error_json, internal_error

LEAST_BYTES_A_SECOND = 64 * 1024
"""What a client must send on average, beyond the time that any request may take."""

_SHOWN = 200

# Those of gunicorn's own, less those of proxies and TLS, which this API has not.
_KINDS: list[tuple[type[Exception], int, str]] = [
    (http.LimitRequestHeaders, 431, "headers_too_large"),
    (http.LimitRequestLine, 414, "address_too_long"),
    (http.ExpectationFailed, 417, "wrong_http"),
    (http.ParseException, 400, "wrong_http"),
]


def refusal(status: int, code: str, message: str) -> bytes:
    """Return a whole answer with an error, after which the connection is closed; it is counted."""
    metrics.observe_request(metrics.OTHER, status, 0.0)
    metrics.count_error(code)
    body = error_json(code, message)
    return (
        b"HTTP/1.1 %d %b\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
        b"Content-Length: %d\r\n\r\n%b"
    ) % (status, HTTPStatus(status).phrase.encode(), len(body), body)


def refusal_of(fault: BaseException) -> bytes | None:
    """Return the answer to a request that gunicorn's parser refuses; None for any other fault."""
    for kind, status, code in _KINDS:
        if isinstance(fault, kind) and not isinstance(fault, http.ConfigurationProblem):
            said = str(fault).encode("ascii", "backslashreplace").decode()[:_SHOWN]
            return refusal(status, code, f"the request is no HTTP that is read here: {said}")
    return None


def fault_answer() -> bytes:
    """Return the answer to a request that a fault of this server keeps from one."""
    fault = internal_error()
    return refusal(fault.status, fault.code, fault.message)


class PatientUnreader(SocketUnreader):
    """Reads what a client sends, as long as that does not take too long."""

    def __init__(self, sock: Any, seconds: float) -> None:
        super().__init__(sock)
        self.seconds = seconds
        self.begin()

    def begin(self, whole: bool = False) -> None:
        """Start the time of a request. Of one that is there as a `whole` nothing more is read."""
        self._whole = whole
        self._until = time.monotonic() + self.seconds

    def chunk(self) -> bytes:
        """Return what has come next; raises TimeoutError if it has all taken too long."""
        if self._whole:
            return b""
        if time.monotonic() > self._until:
            raise TimeoutError(f"less than {LEAST_BYTES_A_SECOND >> 10} kB a second")
        data: bytes = super().chunk()
        self._until += len(data) / LEAST_BYTES_A_SECOND
        return data
