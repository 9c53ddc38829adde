"""What a replay came to in figures: pure functions of what was scored; never fits or measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlops.dataset.card import Card
from mlops.training.metrics import average_precision, brier, expected_profit, lift_at_10, roc_auc

Policy = Literal["static", "monthly", "alert"]

POLICIES: tuple[Policy, ...] = ("static", "monthly", "alert")
"""Never retrained; retrained at the end of each month; retrained when an alert says so."""


@dataclass(frozen=True)
class Retrain:
    """A retrain at the end of a month: why, on which months, and what the gate said."""

    cause: str
    window_start: str
    window_end: str
    candidate: str | None
    outcome: Literal["promoted", "kept_champion", "failed"]
    reason: str
    version: str | None = None
    """The new version, if it was promoted; it answers from the next month on."""
    challenger_roc_auc: float | None = None
    champion_roc_auc: float | None = None


@dataclass(frozen=True)
class Month:
    """A month that was played, with the version that answered and how well it did."""

    period: str
    rows: int
    positive_rate: float
    version: str
    candidate: str
    threshold: float
    roc_auc: float | None
    brier: float
    profit: float | None
    """Per 1,000 rows at the version's threshold, None for a card without costs."""
    prediction_drift: float | None
    prediction_drift_noise: float | None
    num_drifted_columns: int | None
    alerts: tuple[str, ...] = ()
    retrain: Retrain | None = None


@dataclass(frozen=True)
class Scored:
    """What a month's customers were told, and what they did: arrays of its rows."""

    period: str
    score: NDArray[np.float64]
    target: NDArray[np.int64]


@dataclass(frozen=True)
class Replayed:
    """One policy played to the end."""

    policy: Policy
    months: list[Month]
    scored: list[Scored]
    seconds: float

    def as_dict(self, card: Card) -> dict[str, Any]:
        """Return figures and months as JSON has them."""
        return {
            "policy": self.policy,
            **figures(self, card),
            "months": [asdict(month) for month in self.months],
        }


def month_figures(
    target: NDArray[Any], score: NDArray[np.float64], threshold: float, card: Card
) -> dict[str, Any]:
    """Return `roc_auc` (None if all answers are the same), `brier`, `profit`, `positive_rate`."""
    return {
        "roc_auc": roc_auc(target, score) if len(np.unique(target)) == 2 else None,
        "brier": brier(target, score),
        "profit": None
        if card.costs is None
        else expected_profit(target, score, threshold, card.costs),
        "positive_rate": float(np.mean(target)),
    }


def figures(replayed: Replayed, card: Card) -> dict[str, Any]:
    """Return the figures over all months.

    `roc_auc`, `average_precision`, `brier`, `lift_at_10` are pooled: of all rows together, so that
    scores of different months must compare. `mean_monthly_auc` counts each month alike. `profit` is
    that of the decisions that were made, per 1,000 rows.
    """
    score = np.concatenate([each.score for each in replayed.scored])
    target = np.concatenate([each.target for each in replayed.scored])
    retrains = [month.retrain for month in replayed.months if month.retrain is not None]
    return {
        "rows": len(score),
        "positive_rate": float(target.mean()),
        "roc_auc": roc_auc(target, score),
        "average_precision": average_precision(target, score),
        "brier": brier(target, score),
        "mean_monthly_auc": _mean([month.roc_auc for month in replayed.months]),
        "lift_at_10": lift_at_10(target, score),
        "profit": None
        if card.costs is None
        else float(
            np.average(
                [month.profit for month in replayed.months],
                weights=[month.rows for month in replayed.months],
            )
        ),
        "retrains": len(retrains),
        "promoted": sum(retrain.outcome == "promoted" for retrain in retrains),
        "versions": len({month.version for month in replayed.months}),
        "seconds": round(replayed.seconds, 1),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
