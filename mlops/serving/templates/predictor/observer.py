"""Sees every request that reaches the application: gives it an id, counts it, and logs it.

What the routes know about a request, they say by `note`; it stands in the request's environment
until the answer is complete. Nothing here changes an answer but its `X-Request-Id`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any

from predictor import metrics
from predictor.logs import AccessLog

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

ID, SCORED, CODE = "predict.request_id", "predict.scored", "predict.code"
"""Keys of a request's environment: its id; version and number of rows scored; code of its error."""

Environment = dict[str, Any]


class Observer:
    """A WSGI application around another: `app.wsgi_app = Observer(app.wsgi_app, routes, log)`."""

    def __init__(self, inner: Any, routes: Iterable[str], access_log: AccessLog) -> None:
        self.inner, self.access_log = inner, access_log
        self.routes = {route: route for route in routes}

    def __call__(self, environ: Environment, start_response: Any) -> Iterable[bytes]:
        """Answer as the inner application does, and take notice of it."""
        started = perf_counter()
        sent = environ.get("HTTP_X_REQUEST_ID")
        request_id = sent if sent and REQUEST_ID.fullmatch(sent) else os.urandom(16).hex()
        environ[ID] = request_id
        status, sent_headers = 500, []

        def start(line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal status, sent_headers
            status, sent_headers = int(line[:3]), headers
            headers.append(("X-Request-Id", request_id))
            return start_response(line, headers, *([exc_info] if exc_info else []))

        try:
            answer = self.inner(environ, start)
        except BaseException:
            self._seen(environ, 500, started)
            raise
        if type(answer) is list or any(name == "Content-Length" for name, _ in sent_headers):
            self._seen(environ, status, started)
            return answer
        return _Streamed(answer, lambda: self._seen(environ, status, started))

    def _seen(self, environ: Environment, status: int, started: float) -> None:
        seconds = perf_counter() - started
        route = self.routes.get(environ["PATH_INFO"], metrics.OTHER)
        metrics.observe_request(route, status, seconds)
        version, rows = environ.get(SCORED, (None, None))
        if rows:
            metrics.count_rows(route, version, rows)
        code = environ.get(CODE)
        if code is not None:
            metrics.count_error(code)
        if self.access_log.wants(status, seconds):
            self.access_log.write(
                environ,
                status,
                seconds,
                request_id=environ[ID],
                route=route,
                code=code,
                rows=rows,
                version=version,
            )


class _Streamed:
    """An answer that is made while it is sent: seen when it ends, or the caller goes away."""

    def __init__(self, answer: Iterable[bytes], seen: Callable[[], None]) -> None:
        self._answer, self._seen = answer, seen

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._answer)

    def close(self) -> None:
        try:
            if hasattr(self._answer, "close"):
                self._answer.close()
        finally:
            self._seen()
