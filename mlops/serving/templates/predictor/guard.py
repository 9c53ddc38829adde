"""Stands before every address, and lets through what the limits admit; never looks into a body."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from predictor.errors import RequestError
from predictor.limits import Limits
from predictor.observer import Environment
from predictor.quick import refuse

DRAIN_BYTES = 1024 * 1024
"""Of the body of a refused request are read, so that its sender sees the answer; else it is cut."""


class Guard:
    """A WSGI application around another, which sees only requests that are admitted."""

    def __init__(self, inner: Any, limits: Limits) -> None:
        self.inner, self.limits = inner, limits

    def __call__(self, environ: Environment, start_response: Any) -> Iterable[bytes]:
        try:
            self.limits.admit(environ)
        except RequestError as fault:
            _drain(environ)
            return refuse(environ, start_response, fault)
        return self.inner(environ, start_response)


def _drain(environ: Environment) -> None:
    """Read what there is of a small body: closing before it is read would cut the answer off."""
    length = environ.get("CONTENT_LENGTH") or "0"
    chunked = "HTTP_TRANSFER_ENCODING" in environ
    left = DRAIN_BYTES if chunked else int(length)
    if left > DRAIN_BYTES:
        return
    try:
        while left > 0 and (chunk := environ["wsgi.input"].read(min(left, 65536))):
            left -= len(chunk)
    except Exception:
        return  # a broken body: its sender is refused all the same
