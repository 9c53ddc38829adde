"""What rows hold, counted for people: by month, by answer, and how much is missing."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mlops.dataset.card import PERIOD, TARGET, Card
from mlops.dataset.parsing import missing_shares


def summary(frame: pd.DataFrame, card: Card) -> dict[str, Any]:
    """Return the figures of a frame as JSON has them.

    `rows`, `positives`, `positive_rate` (0..1, None without rows), `periods`: the same for each
    period in order of time, `missing_shares`: feature → share 0..1.
    """
    periods = [
        {"period": str(period), **_balance(rows[TARGET])}
        for period, rows in frame.groupby(PERIOD, sort=True)
    ]
    return {
        "card": card.name,
        **_balance(frame[TARGET]),
        "periods": periods,
        "missing_shares": missing_shares(frame, card),
    }


def summary_text(figures: dict[str, Any]) -> str:
    """Return the figures of `summary` as one text of two small tables."""
    lines = [f"{figures['card']}: {_words(figures)}", "", "period       rows  positive"]
    lines += [
        f"{month['period']}  {month['rows']:>9,}  {month['positive_rate']:>8.1%}"
        for month in figures["periods"]
    ]
    width = max(len(name) for name in figures["missing_shares"])
    lines += ["", f"{'column':<{width}}  missing"]
    lines += [
        f"{name:<{width}}  {share:>7.1%}" for name, share in figures["missing_shares"].items()
    ]
    return "\n".join(lines)


def _balance(target: pd.Series) -> dict[str, Any]:
    return {
        "rows": len(target),
        "positives": int(target.sum()),
        "positive_rate": float(target.mean()) if len(target) else None,
    }


def _words(figures: dict[str, Any]) -> str:
    if not figures["rows"]:
        return "no rows"
    return (
        f"{figures['rows']:,} rows, {figures['positives']:,} positive "
        f"({figures['positive_rate']:.1%}), {len(figures['periods'])} months"
    )
