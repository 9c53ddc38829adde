"""Start the pipeline *evidence* from another one, which neither waits for it nor fails with it."""

from __future__ import annotations

from collections.abc import Callable

from mlops.orchestration.mage import MageError, trigger_pipeline
from mlops.settings import Settings, get_settings


def start_evidence(say: Callable[[str], object], settings: Settings | None = None) -> None:
    """Have Mage write what lacks evidence; with `evidence_seconds` 0, nothing is written."""
    settings = settings or get_settings()
    if not settings.evidence_seconds:
        return
    try:
        trigger_pipeline("evidence", settings=settings)
    except MageError as error:  # it is for people to read: nothing fails without it
        say(f"the pipeline evidence could not be started: {error}")
