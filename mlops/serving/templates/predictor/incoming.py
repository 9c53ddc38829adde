"""What a request says: its headers and its body, or a RequestError that names what is wrong.

It reads the WSGI environment, so that the way past Flask (`quick`) and Flask's routes share it.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timezone
from typing import Any

import orjson

from predictor import observer
from predictor.errors import RequestError, shown
from predictor.observer import Environment

MAX_BODY_BYTES = 10 * 1024 * 1024
DRAIN_BYTES = 64 * 1024 * 1024  # read, so that the caller sees the 413 and not a broken pipe
PURPOSES = ("live", "simulation", "test")

_PERIOD = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


def read_headers(environ: Environment) -> tuple[str, str, str]:
    """Return request id, first day of the period and purpose; raises RequestError."""
    request_id = environ.get("HTTP_X_REQUEST_ID")
    if request_id is None:
        request_id = environ[observer.ID]
    elif not observer.REQUEST_ID.fullmatch(request_id):
        raise RequestError(
            "wrong_header",
            "X-Request-Id takes 1 to 128 letters, digits, '.', '_', ':' and '-'",
            status=400,
            field="X-Request-Id",
        )
    period = environ.get("HTTP_X_PERIOD")
    if period is None:
        first_day = datetime.now(timezone.utc).date().replace(day=1)
    else:
        match = _PERIOD.fullmatch(period)
        if not match or not match[0].isascii() or match[1] == "0000":
            raise RequestError(
                "wrong_header",
                f"X-Period is {shown(period)}, expected a month such as 2009-03",
                status=400,
                field="X-Period",
            )
        first_day = date(int(match[1]), int(match[2]), 1)
    purpose = environ.get("HTTP_X_PURPOSE", "live")
    if purpose not in PURPOSES:
        raise RequestError(
            "wrong_header",
            f"X-Purpose is {shown(purpose)}, expected one of {', '.join(PURPOSES)}",
            status=400,
            field="X-Purpose",
        )
    return request_id, first_day.isoformat(), purpose


def note_scored(environ: Environment, version: str, rows: int) -> None:
    """Tell counters and log how many rows `version` has scored for this request."""
    environ[observer.SCORED] = (version, rows)


def read_json(environ: Environment) -> Any:
    """Return the parsed body; raises RequestError for anything but JSON of at most 10 MB."""
    body = _read_body(environ)
    content_type = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise RequestError(
            "wrong_content_type",
            f"Content-Type is {shown(content_type)}, expected application/json",
            status=415,
        )
    if environ.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
        raise RequestError("wrong_encoding", "Content-Encoding is not read here", status=415)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as fault:
        raise RequestError("wrong_json", f"the body is no JSON: {fault}", status=400) from fault


def _read_body(environ: Environment) -> bytes:
    stream = environ["wsgi.input"]
    # Digits, gunicorn has seen to that; a body in chunks ends by itself.
    chunked = "HTTP_TRANSFER_ENCODING" in environ
    length = None if chunked else int(environ.get("CONTENT_LENGTH") or 0)
    chunks: list[bytes] = []
    size = 0
    try:
        while length is None or size < length:
            chunk = stream.read(min(65536, length - size) if length is not None else 65536)
            if not chunk:
                break
            size += len(chunk)
            if size <= MAX_BODY_BYTES:
                chunks.append(chunk)
            elif size > DRAIN_BYTES:
                break
    except Exception as fault:  # a broken chunk or a caller that went away
        raise RequestError("unreadable_body", f"the body broke off: {fault}", status=400) from fault
    if size > MAX_BODY_BYTES:
        raise RequestError(
            "body_too_large", f"the body is over {MAX_BODY_BYTES >> 20} MB: send less", status=413
        )
    return b"".join(chunks)
