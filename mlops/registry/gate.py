"""Whether a challenger may go to production; measures and decides, never changes the registry."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from psycopg2.extensions import connection as Connection

from mlops.dataset.card import PERIOD, TARGET, Card
from mlops.dataset.errors import DataError
from mlops.dataset.rows import latest_labelled_window, load_window
from mlops.registry.models import get_version, load_pipeline
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.bootstrap import bootstrap
from mlops.training.fit import score_window
from mlops.training.metrics import brier, roc_auc

_FEWEST_ANSWERS = 10
_TITLES = {"roc_auc": "ROC AUC", "brier": "Brier"}


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
    rows: pd.DataFrame,
    card: Card,
    base_rate: float,
    settings: Settings | None = None,
) -> GateDecision:
    """Return whether the challenger goes to production, by its scores on one labelled window.

    `rows` (n) has the card's `slice_columns` and `target`, and neither model was fitted on them.
    Scores are probabilities, one a row; `base_rate` is the positive rate of what the challenger was
    fitted on. Whoever it is, it must beat the constant guess: ROC AUC above 0.5, Brier below that
    of answering `base_rate` to everybody. Without a champion that is all.

    Beside a champion the two are compared on the same `gate_resamples` bootstrap resamples. The
    challenger is **better** if its ROC AUC is above the champion's by more than `gate_margin` in a
    share of `gate_confidence` of them; or **equal and better calibrated** if it lacks at most
    `gate_equal` of ROC AUC and its Brier is below the champion's in that share. One that is either
    is **held** all the same if it loses badly on a large slice (see `_slices`).

    `numbers` holds all of this, for JSON: differences are challenger less champion, their `low` and
    `high` bound the central 2 x `gate_confidence` - 1 of the resamples, so that `low` above the
    margin is the rule. The same rows in the same order give the same decision.

    A window with one answer only has no ROC AUC: nothing is promoted on it. Raises ValueError for
    scores that are no probabilities, or not one a row.
    """
    settings = settings or get_settings()
    target = rows[TARGET].to_numpy()
    challenger = np.asarray(challenger_scores, dtype=np.float64)
    champion = None if champion_scores is None else np.asarray(champion_scores, dtype=np.float64)
    guess_brier = brier(target, np.full(len(target), base_rate))
    numbers: dict[str, Any] = {
        "rule": "no comparison",
        "rows": len(target),
        "positives": int(target.sum()),
        "positive_rate": float(target.mean()),
        "base_rate": float(base_rate),
        "constant_brier": guess_brier,
        "margin": settings.gate_margin,
        "confidence": settings.gate_confidence,
        "equal": settings.gate_equal,
        "resamples": settings.gate_resamples,
        "slice_margin": settings.gate_slice_margin,
        "challenger_roc_auc": None,
        "challenger_brier": brier(target, challenger),
        "champion_roc_auc": None,
        "champion_brier": None if champion is None else brier(target, champion),
        "roc_auc": None,
        "brier": None,
        "slices": [],
        "held_slices": [],
    }
    if target.min() == target.max():
        reason = f"all {len(target)} labels of the window are {target[0]}: no comparison"
        return GateDecision(False, reason, numbers)
    numbers["challenger_roc_auc"] = roc_auc(target, challenger)
    if champion is not None:
        numbers["champion_roc_auc"] = roc_auc(target, champion)
        compared = _compare(target, challenger, champion, settings.gate_confidence, settings)
        numbers.update(compared)
        numbers["slices"] = _slices(rows, challenger, champion, card, settings)
    promote, numbers["rule"], reason = _rule(numbers)
    losses = [each for each in numbers["slices"] if each["worse_by"]]
    numbers["held_slices"] = [each["name"] for each in losses]
    if losses:
        named = "; ".join(_loss_text(each) for each in losses)
        if promote:
            promote, numbers["rule"] = False, "held"
            reason = f"held: it loses on {named}; over all rows {reason}"
        else:
            reason += f"; it also loses on {named}"
    return GateDecision(promote, reason, numbers)


def _rule(numbers: dict[str, Any]) -> tuple[bool, str, str]:
    """Return whether the challenger passes on all rows, the rule's name, and a reason."""
    auc, champion = numbers["challenger_roc_auc"], numbers["champion_roc_auc"]
    if auc <= 0.5:
        reason = f"the challenger's ROC AUC {auc:.4f} is no better than a guess (0.5)"
        return False, "no better than a guess", reason
    if numbers["challenger_brier"] >= numbers["constant_brier"]:
        reason = (
            f"the challenger's Brier score {numbers['challenger_brier']:.4f} is no better than "
            f"answering {numbers['base_rate']:.1%} to everybody ({numbers['constant_brier']:.4f})"
        )
        return False, "no better than a guess", reason
    if champion is None:
        return True, "first", f"ROC AUC {auc:.4f}, and no champion to compare with"
    ranked, errs, asked = numbers["roc_auc"], numbers["brier"], numbers["confidence"]
    more = f" by more than {numbers['margin']:g}" if numbers["margin"] else ""
    pair = f"ROC AUC {auc:.4f} against the champion's {champion:.4f} ({_interval(ranked)})"
    briers = f"Brier {numbers['challenger_brier']:.4f} against {numbers['champion_brier']:.4f}"
    if ranked["better_share"] >= asked:
        share = f"in {ranked['better_share']:.1%} of resamples, {asked:.0%} are asked"
        return True, "better", f"better: {pair}, above it{more} {share}"
    if ranked["difference"] >= -numbers["equal"] and errs["better_share"] >= asked:
        share = f"lower in {errs['better_share']:.1%} of resamples, {asked:.0%} are asked"
        return (
            True,
            "equal and better calibrated",
            (f"equal and better calibrated: {pair}; {briers} ({_interval(errs)}), {share}"),
        )
    share = f"above it{more} in {ranked['better_share']:.1%} of resamples only"
    return (
        False,
        "not better",
        (
            f"not above the champion's: {pair}, {share}, {asked:.0%} are asked; {briers}"
            f" ({_interval(errs)})"
        ),
    )


def _compare(
    target: NDArray[Any],
    challenger: NDArray[np.float64],
    champion: NDArray[np.float64],
    confidence: float,
    settings: Settings,
) -> dict[str, dict[str, float]]:
    """Return for ROC AUC and Brier the difference, its interval, and how often it is better.

    `worse_share` is how often the challenger is worse by more than `gate_slice_margin`.
    """
    drawn = bootstrap(target, (challenger, champion), settings.gate_resamples)
    found = {}
    for name, measure, values, sign, margin in (
        ("roc_auc", roc_auc, drawn.roc_auc, 1.0, settings.gate_margin),
        ("brier", brier, drawn.brier, -1.0, 0.0),
    ):
        differences = values[0] - values[1]
        low, high = np.quantile(differences, (1 - confidence, confidence))
        found[name] = {
            "difference": measure(target, challenger) - measure(target, champion),
            "low": float(low),
            "high": float(high),
            "better_share": float(np.mean(sign * differences > margin)),
            "worse_share": float(np.mean(sign * differences < -settings.gate_slice_margin)),
        }
    return found


def _slices(
    rows: pd.DataFrame,
    challenger: NDArray[np.float64],
    champion: NDArray[np.float64],
    card: Card,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Return the comparison on each large slice, those of one column together.

    A slice is the rows with one value of one of the card's `slice_columns`, if they are a share of
    `gate_slice_share` of all and `gate_slice_rows`. `worse_by` names the measures (ROC AUC, Brier)
    by which the challenger is worse by more than `gate_slice_margin`, with a confidence that grows
    with the number of slices (Bonferroni): looking at many must not find more by chance.
    """
    target = rows[TARGET].to_numpy()
    enough = max(settings.gate_slice_rows, settings.gate_slice_share * len(rows))
    chosen = []
    for column in card.slice_columns:
        values = rows[column].to_numpy()
        for value, count in rows[column].value_counts().sort_index().items():
            here = values == value
            # With fewer of either answer a slice has no ROC AUC to speak of.
            if count >= enough and _FEWEST_ANSWERS <= target[here].sum() <= count - _FEWEST_ANSWERS:
                chosen.append((column, str(value), here))
    if not chosen:
        return []
    confidence = 1 - (1 - settings.gate_confidence) / len(chosen)
    found = []
    for column, value, here in chosen:
        ours, theirs, truth = challenger[here], champion[here], target[here]
        compared = _compare(truth, ours, theirs, confidence, settings)
        found.append(
            {
                "name": f"{column} = {value or 'missing'}",
                "column": column,
                "value": value,
                "rows": len(truth),
                "share": len(truth) / len(rows),
                "positives": int(truth.sum()),
                "confidence": confidence,
                "challenger_roc_auc": roc_auc(truth, ours),
                "champion_roc_auc": roc_auc(truth, theirs),
                "challenger_brier": brier(truth, ours),
                "champion_brier": brier(truth, theirs),
                **compared,
                "worse_by": [
                    measure
                    for measure, each in compared.items()
                    if each["worse_share"] >= confidence
                ],
            }
        )
    return found


def _loss_text(found: dict[str, Any]) -> str:
    measures = " and ".join(
        f"{_TITLES[measure]} {found[f'challenger_{measure}']:.3f} against "
        f"{found[f'champion_{measure}']:.3f}"
        for measure in found["worse_by"]
    )
    return f"{found['name']} ({measures}, {found['rows']} rows)"


def _interval(found: dict[str, float]) -> str:
    return f"{found['difference']:+.4f}, {found['low']:+.4f} to {found['high']:+.4f}"


def evaluate_gate(
    connection: Connection,
    card: Card,
    challenger_version: str,
    champion_version: str | None,
    settings: Settings | None = None,
) -> GateDecision:
    """Return the decision on the latest labelled rows that neither version was fitted on.

    These are of the last `validation_months` labelled periods: for a challenger that was just
    trained on them its validation rows. Where no labelled month is later than its training, its
    validation rows are taken, however few they are. Periods that a version was fitted on do not
    count: what it knows by heart tells nothing. If fewer than `gate_min_rows` rows remain, nothing
    is promoted, and the reason says who had seen the rest; the numbers are then those of all rows.

    A challenger that is in production already keeps its place: a deployment that was interrupted
    may run again.

    Raises RegistryError or TrainingError if a version, its model or its rows are gone, DataError if
    there is no labelled month and the challenger's validation rows are gone.
    """
    settings = settings or get_settings()
    rival = champion_version if champion_version != challenger_version else None
    challenger = _fitting(card, challenger_version, settings)
    champion = None if rival is None else _fitting(card, rival, settings)
    start, end, rows = _window(connection, card, challenger.validated)
    unseen = _unseen(rows, challenger, champion)
    enough = len(unseen) >= (
        settings.gate_min_rows if rival is not None or len(unseen) < len(rows) else 1
    )
    rows_compared = unseen if enough else rows
    decision = decide(
        score_window(load_pipeline(card, challenger_version, settings), card, rows_compared),
        None
        if rival is None
        else score_window(load_pipeline(card, rival, settings), card, rows_compared),
        rows_compared,
        card,
        challenger.base_rate,
        settings,
    )
    numbers = {
        **decision.numbers,
        "challenger": challenger_version,
        "champion": champion_version,
        "window_start": start,
        "window_end": end,
        "window_rows": len(rows),
        "unseen_rows": len(unseen),
        "challenger_fitted": f"{challenger.start}..{challenger.end}",
        "champion_fitted": champion and f"{champion.start}..{champion.end}",
    }
    if champion_version == challenger_version:
        return GateDecision(True, f"version {challenger_version} is in production already", numbers)
    if enough:
        return GateDecision(decision.promote, decision.reason, numbers)
    seen = [
        f"the {role} was fitted on {each.start} to {each.end}"
        for role, each in (("challenger", challenger), ("champion", champion))
        if each is not None and len(_unseen(rows, each)) < len(rows)
    ]
    numbers["rule"] = "no comparison"
    return GateDecision(
        False,
        f"no comparison: of {len(rows)} labelled rows of {start} to {end} {len(unseen)} are unseen "
        f"by {'both' if rival is not None else 'it'}, {settings.gate_min_rows} are asked "
        f"(gate_min_rows){': ' if seen else ''}{', '.join(seen)}",
        numbers,
    )


@dataclass(frozen=True)
class _Fitting:
    """What a version was fitted on, first and last period, and what it was validated on."""

    start: str
    end: str
    validated: str
    base_rate: float


def _fitting(card: Card, version: str, settings: Settings) -> _Fitting:
    """Return what a version's run says that it was fitted on."""
    run = tracking.client(settings).get_run(str(get_version(card, version, settings).run_id))
    start, end = run.data.params["fitting_periods"].split("..")
    return _Fitting(
        start, end, run.data.params["validation_periods"], run.data.metrics["fitting_positive_rate"]
    )


def _unseen(rows: pd.DataFrame, *versions: _Fitting | None) -> pd.DataFrame:
    """Return the rows of periods that none of the versions was fitted on."""
    seen = np.zeros(len(rows), dtype=bool)
    for each in versions:
        if each is not None:
            seen |= rows[PERIOD].between(each.start, each.end).to_numpy()
    return rows[~seen].reset_index(drop=True)


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
