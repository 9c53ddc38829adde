"""Evidence as the last step of a pipeline, which it never fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.settings import Settings, get_settings

logger = logging.getLogger(__name__)


def write_evidence_of_loop(
    progress: Callable[[str], object], settings: Settings | None = None
) -> list[dict[str, Any]]:
    """Write what evidence lacks for the card of the settings; return what became of each version.

    Raises nothing: evidence is about a model that answers already, and no fault of it is a reason
    to fail what made that. The fault is told, and logged whole.
    """
    settings = settings or get_settings()
    if not settings.evidence_seconds:
        return []
    try:
        # Seconds of imports, which a pipeline that writes none shall not pay.
        from mlops.evidence.collect import write_evidence

        with connect(settings=settings) as connection:
            done = write_evidence(connection, load_card(settings.card), settings, progress)
        return [asdict(each) for each in done]
    except Exception as error:
        logger.exception("no evidence could be written")
        progress(f"no evidence could be written: {type(error).__name__}: {error}")
        return []
