"""What can go wrong for a caller, a payload or the log, and how values are shown in messages."""

from __future__ import annotations

import json
from typing import Any

import orjson


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

    def body(self) -> bytes:
        """Return the JSON of the answer."""
        return error_json(self.code, self.message, self.field, self.row)

    def headers(self) -> list[tuple[str, str]]:
        """Return the headers that the answer has beside those of all answers."""
        return [] if self.retry_after is None else [("Retry-After", str(self.retry_after))]


def internal_error() -> RequestError:
    """Return what a caller is told of a fault that is not the caller's."""
    return RequestError("internal", "a fault of this server; its log has the details", status=500)


class PayloadError(Exception):
    """A payload that must not answer."""


class LogUnavailable(Exception):
    """The spool cannot take another answer."""


def error_json(code: str, message: str, field: str | None = None, row: int | None = None) -> bytes:
    """Return an error as every answer that is one has it."""
    return orjson.dumps({"error": {"code": code, "field": field, "row": row, "message": message}})


def shown(value: Any) -> str:
    """Return a value in few characters, fit for a message."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
