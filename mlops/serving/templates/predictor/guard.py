"""Stands before every address, and lets through what the limits admit; never looks into a body."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from predictor.errors import RequestError
from predictor.incoming import drain
from predictor.limits import Limits
from predictor.observer import Environment
from predictor.quick import refuse


class Guard:
    """A WSGI application around another, which sees only requests that are admitted."""

    def __init__(self, inner: Any, limits: Limits) -> None:
        self.inner, self.limits = inner, limits

    def __call__(self, environ: Environment, start_response: Any) -> Iterable[bytes]:
        try:
            self.limits.admit(environ)
        except RequestError as fault:
            drain(environ)
            return refuse(environ, start_response, fault)
        return self.inner(environ, start_response)
