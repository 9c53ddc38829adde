"""Whether a challenger may go to production; measures and decides, never changes the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run
from numpy.typing import ArrayLike, NDArray
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json

from mlops.dataset.card import PERIOD, SCORE, TARGET, Card
from mlops.dataset.errors import DataError
from mlops.dataset.rows import latest_labelled_window, load_window
from mlops.registry.models import get_version, load_pipeline
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.bootstrap import bootstrap
from mlops.training.fit import score_window
from mlops.training.metrics import FEWEST_ANSWERS, brier, roc_auc

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
    Scores are probabilities, one a row; `base_rate` is the positive rate of the months before
    `rows`, which the constant guess may know. Whoever it is, it must beat that guess: ROC AUC above
    0.5 (beside a champion: not below it beyond chance), Brier below that of answering `base_rate`
    to everybody. Without a champion that is all.

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
    # Beside a champion it must be so beyond chance: in the worst months both rank about as a guess,
    # and there a level that is right is worth having.
    surely = champion is None or numbers["roc_auc"]["challenger_high"] <= 0.5
    if auc <= 0.5 and surely:
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
            "challenger_high": float(np.quantile(values[0], confidence)),
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
            if count >= enough and FEWEST_ANSWERS <= target[here].sum() <= count - FEWEST_ANSWERS:
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
    """Return the decision on the latest labelled rows that neither version's scores know.

    For a challenger that was just trained these are its validation rows, with the scores that it
    gave them out of fold; if labelled months are later than its training, these months. Rows of
    periods that the champion was fitted on do not count: what it knows by heart tells nothing. If
    fewer than `gate_min_rows` remain, nothing is promoted and the reason says so; the numbers are
    then the challenger's alone, on all rows, and nothing is said of the champion.

    A challenger that is in production already keeps its place: a deployment that was interrupted
    may run again.

    Raises RegistryError or TrainingError if a version, its model or its validation rows are gone.
    """
    settings = settings or get_settings()
    rival = champion_version if champion_version != challenger_version else None
    run = _run(card, challenger_version, settings)
    rows, scores = _evidence(connection, card, challenger_version, run, settings)
    champion_fitted = None if rival is None else _fitted(_run(card, rival, settings))
    decision = decide_on_unseen(
        rows,
        scores,
        champion_fitted,
        lambda unseen: score_window(load_pipeline(card, str(rival), settings), card, unseen),
        card,
        # What was positive before the rows that are compared: the guess must not know them.
        run.data.metrics.get("earlier_positive_rate", run.data.metrics["fitting_positive_rate"]),
        settings,
    )
    numbers = {
        **decision.numbers,
        "challenger": challenger_version,
        "champion": champion_version,
        "challenger_fitted": _fitted(run),
    }
    if champion_version == challenger_version:
        return GateDecision(True, f"version {challenger_version} is in production already", numbers)
    return GateDecision(decision.promote, decision.reason, numbers)


def decide_on_unseen(
    rows: pd.DataFrame,
    scores: NDArray[np.float64],
    champion_fitted: str | None,
    score_champion: Callable[[pd.DataFrame], NDArray[np.float64]],
    card: Card,
    base_rate: float,
    settings: Settings,
) -> GateDecision:
    """Return the decision on those of `rows` that the champion was not fitted on.

    `rows` (n) has the features, `target` and `period`, `scores` (n) are the challenger's;
    `champion_fitted` is the champion's first and last period ("2008-05..2009-02"), None if there is
    none. `score_champion` is asked for its scores of the rows that are left. If these are fewer
    than `gate_min_rows`, nothing is promoted, and the numbers are the challenger's on all rows. A
    replay decides by this as a deployment does.
    """
    unseen = np.ones(len(rows), dtype=bool)
    if champion_fitted is not None:
        first, last = champion_fitted.split("..")
        unseen = ~rows[PERIOD].between(first, last).to_numpy()
    enough = champion_fitted is None or unseen.sum() >= max(1, settings.gate_min_rows)
    champion_scores = None
    if enough:
        rows, scores = rows[unseen], scores[unseen]
        if champion_fitted is not None:
            champion_scores = score_champion(rows)
    decision = decide(scores, champion_scores, rows, card, base_rate, settings)
    start, end = str(rows[PERIOD].min()), str(rows[PERIOD].max())
    numbers = {
        **decision.numbers,
        "window_start": start,
        "window_end": end,
        "window_rows": len(unseen),
        "unseen_rows": int(unseen.sum()),
        "champion_fitted": champion_fitted,
    }
    if enough:
        return GateDecision(decision.promote, decision.reason, numbers)
    known = f", which was fitted on {champion_fitted}" if unseen.sum() < len(unseen) else ""
    return GateDecision(
        False,
        f"no comparison: {unseen.sum()} of {len(unseen)} labelled rows, {start} to {end}, are "
        f"unseen by the champion{known}; {settings.gate_min_rows} are asked (gate_min_rows)",
        {**numbers, "rule": "no comparison"},
    )


def _run(card: Card, version: str, settings: Settings) -> Run:
    found = get_version(card, version, settings)
    return tracking.client(settings).get_run(str(found.run_id))


def _fitted(run: Run) -> str:
    """Return first and last period that a version was fitted on: 2008-05..2009-02."""
    return str(run.data.params["fitting_periods"])


def _evidence(
    connection: Connection, card: Card, version: str, run: Run, settings: Settings
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Return the rows that a challenger is judged on, and its scores of them.

    Those of labelled months later than its training, if there are any that end a window; else its
    validation rows, which were scored without having been fitted.
    """
    reference = tracking.load_reference(run.info.run_id, settings)
    known = max(_fitted(run).rpartition("..")[2], str(reference[PERIOD].max()))
    try:
        _, end = latest_labelled_window(connection, card, card.time.validation_months)
    except DataError:
        end = known
    if end > known:
        rows = load_window(connection, card, known, end)
        rows = rows[rows[PERIOD] > known].reset_index(drop=True)
        return rows, score_window(load_pipeline(card, version, settings), card, rows)
    return reference, reference[SCORE].to_numpy(dtype=np.float64)


def record_decision(
    connection: Connection,
    card: Card,
    challenger: str,
    champion: str | None,
    decision: GateDecision,
    cause: str,
    training_id: str | None,
) -> None:
    """Keep a decision in `ops.gate_decisions`, whatever it is; the caller commits."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.gate_decisions"
            " (card, challenger, champion, training_id, cause, promote, reason, numbers)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            (
                *(card.name, challenger, champion, training_id, cause),
                *(decision.promote, decision.reason, Json(decision.numbers)),
            ),
        )
