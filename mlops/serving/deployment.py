"""Bring the best of a training to production, or keep the champion; never trains or retrains.

The order is what makes it safe: nothing is called production before every worker of the API has
answered with it, and what the registry does not take is taken back. Each step may run again with
the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mlflow.exceptions import MlflowException
from psycopg2.extensions import connection as Connection

from mlops.dataset.card import Card, load_card
from mlops.dataset.rows import data_digest, load_window
from mlops.registry.gate import GateDecision, evaluate_gate, record_decision
from mlops.registry.holds import active_hold
from mlops.registry.models import (
    current_deployment,
    get_version,
    heal_history,
    load_pipeline,
    production_version,
    promote,
    record_deployment,
    stage_top,
)
from mlops.serving.client import ApiError, ApiUnavailable, PayloadRefused, PredictClient
from mlops.serving.export import export_onnx
from mlops.serving.payload import (
    current_version,
    describe_model,
    is_payload,
    remove_current,
    render_payload,
    switch_current,
)
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.records import lock, read_training

ANSWER_LIMIT_S = 60.0
"""How long the API may take to answer as a new version; its first start is in it."""

_BACK_LIMIT_S = 20.0


class DeploymentError(RuntimeError):
    """A version did not come to answer; what answered before answers again."""


@dataclass(frozen=True)
class Deployment:
    """What a deployment came to."""

    outcome: Literal["promoted", "kept_champion"]
    version: str
    """The challenger."""
    champion: str | None
    """The version that was in production before the challenger; None if there was none."""
    production: str | None
    """The version that is in production now."""
    reason: str
    gate: dict[str, Any]
    """The numbers that the gate decided on."""
    max_difference: float | None
    """Largest difference of probability between ONNX and sklearn; None if nothing was exported."""
    seconds: float


def deploy(
    training_id: str | None,
    connection: Connection,
    cause: str = "by hand",
    progress: Callable[[str], object] = print,
    answer_limit: float = ANSWER_LIMIT_S,
    settings: Settings | None = None,
) -> Deployment:
    """Put the best of a training (None: the card's latest one) to production if it passes the gate.

    Raises DeploymentError if the API does not answer as the new version within `answer_limit`
    seconds, or the registry does not take it: the link is put back and production is as it was.
    ParityError if ONNX and sklearn differ. Where the challenger is in production already, the block
    having died before Mage noted it, the result is the one that it had then. The caller commits;
    the registry is changed at once.
    """
    settings = settings or get_settings()
    started = time.monotonic()
    training_id = training_id or latest_training(connection, load_card(settings.card))
    training = read_training(connection, training_id)
    card = training.load_card(settings)
    lock(connection, lock_name(card))  # one at a time: there is one link and one champion
    leaderboard = _leaderboard(connection, training_id)

    entry = next(each for each in leaderboard if each["version"])
    challenger = str(entry["version"])
    champion = heal_history(connection, card, settings)
    progress(f"challenger: version {challenger}; champion: {champion or 'none'}")

    if champion == challenger:
        decision, former = _former_decision(connection, card, challenger, settings)
    else:
        decision, former = evaluate_gate(connection, card, challenger, champion, settings), champion
        decision = _unless_held(connection, card, decision)
        record_decision(connection, card, challenger, champion, decision, cause, training_id)
    progress(f"gate: {'passed' if decision.promote else 'not passed'}: {decision.reason}")
    production = challenger if decision.promote else champion
    back_to = before = current_version(settings.payloads_dir)
    if decision.promote and champion is not None and is_payload(settings.payloads_dir / champion):
        back_to = champion  # also where an earlier deployment was killed after its switch
    max_difference = None
    hold = active_hold(connection, card)
    if hold is not None and hold.done_at is None and before == hold.rolled_to != production:
        # A person wants this version, and the registry does not know yet: not the loop's to undo.
        progress(
            f"note: the API stays with version {before}: a rollback to it was interrupted before "
            f"the registry took it, which names {production}; roll back again to finish it"
        )
    # A champion is served too if nobody serves it: its payload may have been deleted.
    elif production is not None and (decision.promote or before != production):
        max_difference = render_version(production, card, connection, settings, progress)
        switch_api(production, back_to, settings, progress, answer_limit)
    if decision.promote:
        register_production(challenger, back_to, card, settings, progress, answer_limit)
        record_deployment(
            connection,
            card,
            challenger,
            cause=cause,
            training_id=training_id,
            candidate=entry["candidate"],
            gate=decision.as_dict(),
            began="first" if former is None else "gate",
        )
        progress(f"production: version {challenger} ({entry['candidate']})")
    # Last, so that a deployment that fails leaves the registry as it was.
    try:
        progress(f"staging: versions {', '.join(stage_top(leaderboard, card, settings))}")
    except MlflowException as fault:  # staging decides nothing
        progress(f"note: staging is left to the next deployment: {fault}")
    return Deployment(
        outcome="promoted" if decision.promote else "kept_champion",
        version=challenger,
        champion=former,
        production=production,
        reason=decision.reason,
        gate=decision.numbers,
        max_difference=max_difference,
        seconds=time.monotonic() - started,
    )


def _unless_held(connection: Connection, card: Card, decision: GateDecision) -> GateDecision:
    """Return the decision, or that nothing is promoted while a person's hold stands."""
    hold = active_hold(connection, card)
    if hold is None:
        return decision
    if not decision.promote:
        reason = f"{decision.reason}; and {hold.in_words()}"
        return GateDecision(False, reason, decision.numbers)
    numbers = {**decision.numbers, "rule": "hold", "rule_without_hold": decision.numbers["rule"]}
    reason = f"{hold.in_words()}. The gate would have let it pass: {decision.reason}"
    return GateDecision(False, reason, numbers)


def _former_decision(
    connection: Connection, card: Card, version: str, settings: Settings
) -> tuple[GateDecision, str | None]:
    """Return the gate by which the version in production came there, and whom it replaced."""
    stored = (current_deployment(connection, card) or {}).get("gate") or {}
    numbers = stored.get("numbers", {})
    former = numbers.get("champion")
    if "challenger_roc_auc" in numbers:
        return GateDecision(True, stored["reason"], numbers), former
    # Healed after a crash: the numbers were lost with its row, and are measured anew.
    rival = None if former == version else former
    anew = evaluate_gate(connection, card, version, rival, settings)
    reason = stored.get("reason") or f"version {version} is in production already"
    return GateDecision(True, f"{reason}; {anew.reason}", anew.numbers), rival


def lock_name(card: Card) -> str:
    """Return the lock that whoever renders a payload or changes production holds."""
    return f"deploy {card.name}"


def latest_training(connection: Connection, card: Card) -> str:
    """Return the id of the card's training that finished last, for a deployment by hand."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM ops.trainings WHERE card = %s AND finished_at IS NOT NULL"
            " AND leaderboard @? '$[*] ? (@.version != null)' ORDER BY finished_at DESC LIMIT 1",
            (card.name,),
        )
        row = cursor.fetchone()
    if row is None:
        raise DeploymentError(f"no training of {card.name} has finished: run the pipeline train")
    return str(row[0])


def _leaderboard(connection: Connection, training_id: str) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT leaderboard FROM ops.trainings WHERE id = %s", (training_id,))
        row = cursor.fetchone()
    leaderboard = (row and row[0]) or []
    if not any(entry["version"] for entry in leaderboard):
        raise DeploymentError(
            f"training {training_id} has no leaderboard with a registered model: "
            "let the pipeline train finish first"
        )
    return list(leaderboard)


def render_version(
    version: str,
    card: Card,
    connection: Connection,
    settings: Settings,
    progress: Callable[[str], object],
) -> float:
    """Write the payload of a version, which nobody need answer with; return ONNX's difference.

    Raises ParityError if it differs from sklearn too much, RegistryError without such a version.
    """
    registered = get_version(card, version, settings)
    run_id = str(registered.run_id)
    training = read_training(connection, registered.tags[tracking.TRAINING_TAG])
    validation = tracking.load_reference(run_id, settings)
    onnx = export_onnx(
        load_pipeline(card, version, settings), card, validation, settings.parity_tolerance
    )
    progress(
        f"ONNX: {len(onnx.content) / 1024:.0f} kB, differs from sklearn by at most "
        f"{onnx.max_difference:.1e} on the validation rows, "
        f"{onnx.hostile_difference:.1e} on {onnx.hostile_rows} hostile ones"
    )
    frame = load_window(connection, card, training.window_start, training.window_end)
    if data_digest(frame) != training.data_digest:
        progress("note: the window's rows have changed since the training; ranges are today's")
    run = tracking.client(settings).get_run(run_id)
    model_json = describe_model(
        card,
        version,
        onnx,
        frame,
        run_id=run_id,
        candidate=registered.tags[tracking.CANDIDATE_TAG],
        training_id=training.id,
        threshold=run.data.metrics["validation_threshold"],
        metrics=run.data.metrics,
        window=(training.window_start, training.window_end),
        costs=tracking.costs_of(run),
        validation=validation,
    )
    render_payload(version, onnx.content, model_json, settings.payloads_dir)
    return onnx.max_difference


def switch_api(
    version: str,
    back_to: str | None,
    settings: Settings,
    progress: Callable[[str], object],
    answer_limit: float,
) -> None:
    """Point the link at a version's payload and wait for the API, or put it back to `back_to`."""
    before = switch_current(settings.payloads_dir, version)
    progress(f"payload: {version}, was {before or 'none'}; waiting for the API")
    began = time.monotonic()
    try:
        with PredictClient.of(settings) as client:
            client.wait_for_version(version, settings.predict_workers, answer_limit)
    except (PayloadRefused, TimeoutError) as fault:
        now = _take_back(back_to, version, answer_limit, settings)
        raise DeploymentError(f"version {version} was taken back: {fault}. {now}") from fault
    except BaseException:
        _take_back(back_to, version, 0.0, settings)
        raise
    progress(f"API: every worker answers as version {version} ({time.monotonic() - began:.1f} s)")


def register_production(
    version: str,
    back_to: str | None,
    card: Card,
    settings: Settings,
    progress: Callable[[str], object],
    answer_limit: float,
) -> None:
    """Call production what the API answers with already, or put the link back to `back_to`."""
    try:
        promote(version, card, settings)
    except BaseException as fault:
        interrupted = not isinstance(fault, Exception)
        if _is_production(version, card, settings):
            if interrupted:
                raise
            # The alias is what counts; the others and the tags follow at the next promotion.
            progress(f"note: version {version} is in production, its tags are not set: {fault}")
            return
        now = _take_back(back_to, version, 0.0 if interrupted else answer_limit, settings)
        if interrupted:
            raise
        raise DeploymentError(
            f"version {version} was taken back: the registry at {settings.mlflow_url} did not "
            f"take it: {fault}. {now}"
        ) from fault


def _is_production(version: str, card: Card, settings: Settings) -> bool:
    """Return whether the alias names the version; no, if the registry does not answer."""
    try:
        return production_version(card, settings) == version
    except MlflowException:
        return False  # if it does after all, the next deployment serves it


def _take_back(before: str | None, version: str, answer_limit: float, settings: Settings) -> str:
    """Put the link back and return what answers now, as a sentence."""
    if before is None:
        remove_current(settings.payloads_dir)
        try:
            with PredictClient.of(settings, timeout=2.0) as client:
                client.health()
        except ApiUnavailable:
            return "No version is named now, and the API does not answer: is it up (`make status`)?"
        except ApiError:
            pass  # it answers, if only that it is not well
        return "No version is named now; the API answers with what it has loaded until it restarts"
    if before == version:
        return "It was the version before, too."
    switch_current(settings.payloads_dir, before)
    try:
        with PredictClient.of(settings) as client:
            client.wait_for_version(
                before, settings.predict_workers, min(answer_limit, _BACK_LIMIT_S)
            )
    except (PayloadRefused, TimeoutError):
        return f"The link names version {before} again, which does not answer: see `make status`"
    return f"Version {before} answers"
