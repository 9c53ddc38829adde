"""What a request says: its headers and its body, or a RequestError that names what is wrong.

It reads the WSGI environment, so that the way past Flask (`quick`) and Flask's routes share it.
"""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress
from datetime import date, datetime, timezone
from typing import Any

import orjson

from predictor import observer
from predictor.errors import RequestError, shown
from predictor.limits import Limits
from predictor.observer import Environment

# Of what is refused so much is read, for so long, that its sender sees the answer.
DRAIN_BYTES = 8 * 1024 * 1024
DRAIN_SECONDS = 2.0
PURPOSES = ("live", "simulation", "test")

_PERIOD = re.compile(r"([1-9][0-9]{3})-(0[1-9]|1[0-2])")


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
        if not match:
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


def read_json(environ: Environment, limits: Limits) -> Any:
    """Return the parsed body; raises RequestError for anything but JSON of the size that is read.

    Of a key that an object has twice the last value counts, as most parsers take it.
    """
    body = _read_body(environ, limits)
    content_type = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise RequestError(
            "wrong_content_type",
            f"Content-Type is {shown(content_type)}, expected application/json",
            status=415,
        )
    encoding = environ.get("HTTP_CONTENT_ENCODING", "identity")
    if encoding.strip().lower() != "identity":
        raise RequestError(
            "wrong_encoding",
            f"Content-Encoding is {shown(encoding)}: compressed bodies are read by /predict/batch"
            " only",
            status=415,
        )
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as fault:
        reason = "it is empty" if not body else _wide(body) or str(fault)
        raise RequestError("wrong_json", f"the body is no JSON: {reason}", status=400) from fault


def drain(environ: Environment) -> None:
    """Read on for a moment what a refused caller sends, who else would see a broken pipe.

    Who sends more, or more slowly, is answered all the same, and cut off then.
    """
    stream = environ["wsgi.input"]
    length = environ.get("CONTENT_LENGTH")
    left = DRAIN_BYTES if length is None else min(int(length), DRAIN_BYTES)
    # gunicorn's; what is answered on the spot has none that could wait.
    sock = environ.get("gunicorn.socket")
    sock = sock if isinstance(sock, socket.socket) else None
    patience = sock.gettimeout() if sock else None
    until = time.monotonic() + DRAIN_SECONDS
    try:
        while left > 0 and (seconds := until - time.monotonic()) > 0:
            if sock:
                sock.settimeout(seconds)
            chunk = stream.read(min(left, 65536))
            if not chunk:
                break
            left -= len(chunk)
    except Exception:
        return  # a broken body: its sender is refused all the same
    finally:
        if sock:
            with suppress(OSError):
                sock.settimeout(patience)


def _wide(body: bytes) -> str | None:
    """Return what a body is that begins as UTF-16, UTF-32 or a byte order mark, else None."""
    if body.startswith(b"\xef\xbb\xbf"):
        return "it begins with a byte order mark, which JSON has none of"
    if body.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in body[:4]:
        return "it looks like UTF-16 or UTF-32, and JSON is UTF-8"
    return None


def _read_body(environ: Environment, limits: Limits) -> bytes:
    stream = environ["wsgi.input"]
    # Digits, gunicorn has seen to that; a body in chunks ends by itself.
    coding = environ.get("HTTP_TRANSFER_ENCODING")
    if coding is not None and coding.strip().lower() != "chunked":
        raise RequestError(
            "wrong_encoding",
            f"Transfer-Encoding is {shown(coding)}, expected chunked or none",
            status=415,
        )
    length = None if coding else int(environ.get("CONTENT_LENGTH") or 0)
    until = time.monotonic() + limits.body_timeout_s
    chunks: list[bytes] = []
    size = 0
    try:
        while length is None or size < length:
            chunk = stream.read(min(65536, length - size) if length is not None else 65536)
            if not chunk:
                break
            size += len(chunk)
            if size <= limits.max_body_bytes:
                chunks.append(chunk)
            else:
                drain(environ)
                break
            if time.monotonic() > until:
                raise TimeoutError
    except (TimeoutError, BlockingIOError) as fault:  # the latter of a socket's own timeout
        raise RequestError(
            "too_slow",
            f"{size} bytes of the body were there after {limits.body_timeout_s:g} seconds",
            status=408,
        ) from fault
    except Exception as fault:  # a broken chunk or a caller that went away
        raise RequestError(
            "unreadable_body",
            f"the body broke off after {size} bytes: {type(fault).__name__} {fault}".rstrip(),
            status=400,
        ) from fault
    if size > limits.max_body_bytes:
        raise RequestError(
            "body_too_large",
            f"the body is over {limits.max_body_bytes >> 20} MB: send less",
            status=413,
        )
    if length is not None and size < length:
        raise RequestError(
            "unreadable_body", f"the body broke off after {size} of {length} bytes", status=400
        )
    return b"".join(chunks)
