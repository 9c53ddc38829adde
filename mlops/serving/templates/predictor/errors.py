"""What can go wrong for a caller, a payload or the log, and how values are shown in messages."""

from __future__ import annotations

import json
from typing import Any


class RequestError(Exception):
    """A request that cannot be answered; becomes the JSON error of the contract."""

    def __init__(
        self,
        code: str,
        message: str,
        status: int = 422,
        field: str | None = None,
        row: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status
        self.field, self.row, self.retry_after = field, row, retry_after


class PayloadError(Exception):
    """A payload that must not answer."""


class LogUnavailable(Exception):
    """The spool cannot take another answer."""


def shown(value: Any) -> str:
    """Return a value in few characters, fit for a message."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
