"""The floor: gunicorn and an application that reads the request and answers always the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

_BODY = (
    b'{"request_id":"00000000000000000000000000000000","version":"1",'
    b'"predictions":[{"probability":0.5,"decision":"no","warnings":[]}]}'
)
_HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(_BODY)))]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer any request with one prediction that nobody has made."""
    environ["wsgi.input"].read()
    start_response("200 OK", _HEADERS)
    return [_BODY]
