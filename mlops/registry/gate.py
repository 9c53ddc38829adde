"""Whether a challenger may go to production; measures and decides, never changes the registry."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from psycopg2.extensions import connection as Connection

from mlops.dataset.card import TARGET, Card
from mlops.dataset.errors import DataError
from mlops.dataset.rows import latest_labelled_window, load_window
from mlops.registry.models import get_version, load_pipeline
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.fit import score_window
from mlops.training.metrics import brier, roc_auc
from mlops.training.records import find_training


@dataclass(frozen=True)
class GateDecision:
    """What the gate says, why in one sentence, and the numbers that it rests on."""

    promote: bool
    reason: str
    numbers: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, for `ops.deployments.gate`."""
        return asdict(self)


def decide(
    challenger_scores: ArrayLike,
    champion_scores: ArrayLike | None,
    target: ArrayLike,
    base_rate: float,
    margin: float = 0.0,
) -> GateDecision:
    """Return whether the challenger goes to production, by its scores on one labelled window.

    It must beat the constant guess (ROC AUC above 0.5, Brier below that of answering `base_rate`,
    the positive rate of its fitting part, to everybody) and, if there is a champion, have a ROC AUC
    above the champion's by more than `margin`. `target` is 0 and 1, scores and `base_rate` are
    probabilities, all arrays have length n.

    A window with one answer only has no ROC AUC: nothing is promoted on it. Raises ValueError for
    scores that are no probabilities, or not one a row.
    """
    target = np.asarray(target)
    guess_brier = brier(target, np.full(len(target), base_rate))
    numbers: dict[str, Any] = {
        "rows": len(target),
        "positive_rate": float(target.mean()),
        "base_rate": float(base_rate),
        "constant_brier": guess_brier,
        "margin": float(margin),
        "challenger_roc_auc": None,
        "challenger_brier": brier(target, challenger_scores),
        "champion_roc_auc": None,
        "champion_brier": None if champion_scores is None else brier(target, champion_scores),
    }
    if target.min() == target.max():
        return GateDecision(
            False, f"all {len(target)} labels of the window are {target[0]}: no comparison", numbers
        )
    challenger = numbers["challenger_roc_auc"] = roc_auc(target, challenger_scores)
    champion = None if champion_scores is None else roc_auc(target, champion_scores)
    numbers["champion_roc_auc"] = champion
    if challenger <= 0.5:
        reason = f"the challenger's ROC AUC {challenger:.4f} is no better than a guess (0.5)"
        return GateDecision(False, reason, numbers)
    if numbers["challenger_brier"] >= guess_brier:
        reason = (
            f"the challenger's Brier score {numbers['challenger_brier']:.4f} is no better than "
            f"answering {base_rate:.1%} to everybody ({guess_brier:.4f})"
        )
        return GateDecision(False, reason, numbers)
    if champion is None:
        return GateDecision(
            True, f"ROC AUC {challenger:.4f}, and no champion to compare with", numbers
        )
    more = f" by more than {margin:g}" if margin else ""
    if challenger - champion > margin:
        reason = f"ROC AUC {challenger:.4f} is above the champion's {champion:.4f}{more}"
        return GateDecision(True, reason, numbers)
    reason = f"ROC AUC {challenger:.4f} is not above the champion's {champion:.4f}{more}"
    return GateDecision(False, reason, numbers)


def evaluate_gate(
    connection: Connection,
    card: Card,
    challenger_version: str,
    champion_version: str | None,
    settings: Settings | None = None,
) -> GateDecision:
    """Return the decision on the last `validation_months` periods of the latest labelled window.

    For a challenger that was just trained on that window these are its validation rows; where no
    labelled month is later than its training, its validation rows are taken, however few they are.
    One that was trained on older months is compared on the latest ones all the same, and one that
    was fitted on some of these is refused: it knows the answers. If the champion was fitted or
    chosen on some, which flatters it, the reason says so (`numbers["champion_saw_window"]`).

    A challenger that is in production already keeps its place: a deployment that was interrupted
    may run again.

    Raises RegistryError or TrainingError if a version, its model or its rows are gone, DataError if
    there is no labelled month and the challenger's validation rows are gone.
    """
    settings = settings or get_settings()
    run_id = str(get_version(card, challenger_version, settings).run_id)
    run = tracking.client(settings).get_run(run_id)
    fitted_until = run.data.params["fitting_periods"].rpartition("..")[2]
    start, end, rows = _window(connection, card, run.data.params["validation_periods"])
    rival = champion_version if champion_version != challenger_version else None
    decision = decide(
        score_window(load_pipeline(card, challenger_version, settings), card, rows),
        None if rival is None else score_window(load_pipeline(card, rival, settings), card, rows),
        rows[TARGET],
        run.data.metrics["fitting_positive_rate"],
        settings.gate_margin,
    )
    numbers = {
        **decision.numbers,
        "challenger": challenger_version,
        "champion": champion_version,
        "window_start": start,
        "window_end": end,
    }
    if champion_version == challenger_version:
        return GateDecision(True, f"version {challenger_version} is in production already", numbers)
    promote, reason = decision.promote, decision.reason
    if rival is not None:
        until = _trained_until(connection, card, rival, settings)
        numbers["champion_saw_window"] = until is not None and until >= start
        if numbers["champion_saw_window"]:
            reason += f"; the champion was trained on months up to {until}, which flatters it"
    if fitted_until >= start:
        promote = False
        reason = (
            f"the challenger was fitted on months up to {fitted_until}, which reach into the latest"
            f" labelled ones, {start} to {end}: no comparison; train it on months up to {end}"
        )
    return GateDecision(promote, reason, numbers)


def _window(connection: Connection, card: Card, validated: str) -> tuple[str, str, pd.DataFrame]:
    """Return first and last period and the rows to compare on, given the challenger's `validated`.

    A training may end in a month that has too few rows to end a labelled window. If that were
    compared on the months before, the challenger would have been fitted on them, and so would the
    next one.
    """
    start, end = validated.split("..")
    own = load_window(connection, card, start, end)
    try:
        latest = latest_labelled_window(connection, card, card.time.validation_months)
    except DataError:
        if own.empty:
            raise
        return start, end, own
    if latest[1] > end or own.empty:  # empty, where simulated months were forgotten
        return *latest, load_window(connection, card, *latest)
    return start, end, own


def _trained_until(
    connection: Connection, card: Card, version: str, settings: Settings
) -> str | None:
    """Return the last period of a version's training window, None if its record is gone."""
    training_id = get_version(card, version, settings).tags.get(tracking.TRAINING_TAG)
    training = find_training(connection, training_id) if training_id else None
    return None if training is None else training.window_end
