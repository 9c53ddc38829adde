"""One JSON object a line, for gunicorn's messages, this API's own, and requests worth a line.

A line holds what an operator needs to find a request again, and nothing that a customer has sent:
no body, no query, no value of a field. What comes from outside (a path, a request id) is escaped to
ASCII, so that no request can end a line, start one, or reach a terminal.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

SLOW_SECONDS = 1.0
MAX_PATH = 200

FIELDS = (
    *("request_id", "method", "path", "route", "status", "code", "duration_ms", "rows"),
    *("version", "client"),
)
"""What a line may hold beside time, level, logger, message, pid and exception."""

logger = logging.getLogger("predict.access")


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON, a traceback as text in its `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        for name in FIELDS:
            value = record.__dict__.get(name)
            if value is not None:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Not orjson: it leaves U+2028 and its like as they are, which some readers take for line
        # ends.
        return json.dumps(line, default=str, ensure_ascii=True)


def configure(level_from: logging.Logger) -> None:
    """Have the application's messages written as gunicorn's own are."""
    own = logging.getLogger("predict")
    own.handlers = level_from.handlers
    own.setLevel(logging.INFO)
    own.propagate = False


class AccessLog:
    """Which requests get a line: `off`, `errors` (4xx, 5xx and slow ones), or `all`.

    A line costs 20 microseconds and a write, a tenth of a request, and 3,000 requests a second are
    3 GB of lines an hour: `errors` is the default, since `/metrics` counts all others.
    """

    def __init__(self, kind: str = "errors") -> None:
        if kind not in ("off", "errors", "all"):
            raise ValueError(f"MLOPS_PREDICT_ACCESS_LOG is {kind!r}, expected off, errors or all")
        # From which status on, and from how many seconds on.
        self._status = {"off": 1000, "errors": 400, "all": 0}[kind]
        self._seconds = float("inf") if kind == "off" else SLOW_SECONDS

    def wants(self, status: int, seconds: float) -> bool:
        return status >= self._status or seconds >= self._seconds

    def write(self, environ: dict[str, Any], status: int, seconds: float, **known: Any) -> None:
        """Write the line of one request; `known` are more of FIELDS."""
        level = logging.INFO if status < 500 else logging.ERROR
        method = environ.get("REQUEST_METHOD", "")[:20]
        path = environ.get("PATH_INFO", "")[:MAX_PATH].encode("latin-1").decode(errors="replace")
        logger.log(
            level,
            "%s %s %d",
            method,
            path,
            status,
            extra={
                "method": method,
                "path": path,
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
                "client": environ.get("REMOTE_ADDR", ""),
                **known,
            },
        )
