"""The evaluator's sign of life: a file that it writes after every look, and how it is judged.

It has no port that could be asked. An evaluator that ended, hangs, or cannot reach what it needs
is seen by this file; it never holds more than one line.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mlops.settings import Settings

OLDEST_S = 45.0
"""A look takes at most a query's and a post's time limit, 10 s each, and a few of these."""


def heartbeat_path(settings: Settings) -> Path:
    """Return the file that the evaluator writes."""
    return settings.state_dir / "evaluator.alive"


def beat(settings: Settings, away: Iterable[str]) -> None:
    """Write that the evaluator has looked just now, and what was `away`, if anything.

    A disk that is full stops no evaluation; the file grows old, which is noticed.
    """
    path = heartbeat_path(settings)
    draft = path.with_name(f"{path.name}.new")
    with suppress(OSError):
        draft.write_text(", ".join(sorted(away)), encoding="utf-8")
        draft.replace(path)


def forget_beat(settings: Settings) -> None:
    """Remove what an earlier evaluator left."""
    heartbeat_path(settings).unlink(missing_ok=True)


def heartbeat_complaint(settings: Settings) -> str | None:
    """Return None if the evaluator has looked lately and reached all it needs, else what is not."""
    path = heartbeat_path(settings)
    try:
        age = time.time() - path.stat().st_mtime
        away = path.read_text(encoding="utf-8").strip()
    except OSError:
        return "has not looked at its rules yet"
    if age > OLDEST_S:
        return f"has not looked at its rules for {age:.0f} s"
    if age < -OLDEST_S:  # else it would count as alive until the clock is there again
        return f"has not looked at its rules since the clock was put back by {-age:.0f} s or more"
    return f"degraded: {away} does not answer, or fails: see its log" if away else None
