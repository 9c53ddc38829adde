"""The result of a replay as files: `replay.json`, and a page that needs no internet.

Pure but for `write_report`; it plays nothing and measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlops.dataset.card import Card
from mlops.replay.figures import Replayed


def result_of(played: Sequence[Replayed], card: Card, **about: Any) -> dict[str, Any]:
    """Return what `replay.json` holds: what was played, each policy's figures and months."""
    return {
        "card": card.name,
        "title": card.title,
        "unit": None if card.costs is None else card.costs.unit,
        **about,
        "policies": {each.policy: each.as_dict(card) for each in played},
    }


def write_report(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write the report into `folder`, made if need be; return its files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "replay.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return [path]
