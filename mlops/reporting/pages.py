"""Fill a template; the frame that every report shares. It reads and writes nothing else."""

from __future__ import annotations

from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).resolve().parent / "templates"

ABSENT = "–"  # noqa: RUF001 - a dash for a person


@lru_cache(maxsize=1)
def _templates() -> Environment:
    # Everything is escaped: names of columns, reasons and errors come from outside.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "share": share, "when": when, "count": count}
    return environment


def render(template: str, **facts: Any) -> str:
    """Return the page of `templates/<template>` filled with `facts`: one file, whole in itself."""
    return _templates().get_template(template).render(**facts)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number, a dash where there is none."""
    return ABSENT if value is None or value != value else f"{value:.{digits}f}"


def share(value: float | None, digits: int = 1) -> str:
    """Write a share (0..1) in percent."""
    return ABSENT if value is None or value != value else f"{value:.{digits}%}"


def count(value: float | None) -> str:
    """Write a number of rows."""
    return ABSENT if value is None else f"{int(value):,}"


def when(value: datetime | date | None) -> str:
    """Write a time to the minute (UTC), or a period."""
    if value is None:
        return ABSENT
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else f"{value:%Y-%m}"
