"""What a retrain came to, in words: for its report's title and its notice; needs no library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RETRAINS_SQL = (
    "SELECT r.*, coalesce(r.champion, (SELECT d.model_version FROM ops.deployments d"
    " WHERE d.card = r.card AND d.deployed_at <= r.started_at"
    " AND coalesce(d.retired_at, 'infinity') > r.started_at"
    " ORDER BY d.deployed_at DESC LIMIT 1)) AS champion FROM ops.retrains r"
)
"""Retrains with their champion, also those that failed before a deployment could note it."""


def headline(retrain: Mapping[str, Any]) -> str:
    """Return what a retrain (a row of `ops.retrains`) came to, in a few words."""
    champion, challenger = retrain["champion"], retrain["challenger"]
    if retrain["outcome"] == "promoted":
        instead = f" in place of version {champion}" if champion else ""
        return f"Version {challenger} is in production{instead}"
    if retrain["outcome"] == "kept_champion":
        # Without a champion the gate has kept nothing, and nothing answers.
        kept = f"version {champion} stays" if champion else "nothing goes to production"
        held = (retrain.get("gate") or {}).get("rule") in ("held", "hold")
        return f"Challenger {challenger} {'was held' if held else 'did not pass'}: {kept}"
    if retrain["outcome"] == "failed":
        return "The retrain failed" + (f": version {champion} stays" if champion else "")
    return "The retrain is under way"
