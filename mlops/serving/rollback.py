"""What changes production other than the gate: withdrawal, rollback, promotion by a person.

All of it goes the way of a deployment: link, answer of the API, alias, `ops.deployments`. What the
API or the registry does not take leaves production as it was. Never trains.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException
from psycopg2.extensions import connection as Connection

from mlops.database import hold_lock, undone
from mlops.dataset.card import Card
from mlops.registry.gate import GateDecision, evaluate_gate, record_decision
from mlops.registry.holds import (
    Hold,
    active_hold,
    finish_hold,
    place_hold,
    release_hold,
    rolled_back_for,
    undo_hold,
)
from mlops.registry.models import (
    Began,
    RegistryError,
    current_deployment,
    get_version,
    heal_history,
    production_version,
    record_deployment,
    retire_production,
)
from mlops.registry.stays import former_stays
from mlops.serving.deployment import (
    ANSWER_LIMIT_S,
    lock_name,
    register_production,
    render_version,
    switch_api,
)
from mlops.serving.payload import current_version, is_payload
from mlops.settings import Settings, get_settings
from mlops.training import tracking
from mlops.training.records import lock


class RollbackError(RuntimeError):
    """There is nothing to roll back, or nothing to roll back to; production is as it was."""


@dataclass(frozen=True)
class Change:
    """What a person's change of production came to."""

    version: str
    """The version that is in production now."""
    former: str | None
    """The version that was before; the same if nothing had to be changed."""
    sentence: str
    seconds: float


def roll_back(
    connection: Connection,
    card: Card,
    settings: Settings | None = None,
    progress: Callable[[str], object] = print,
    cause: str = "rolled back by hand",
    expected: str | None = None,
    request: str | None = None,
    answer_limit: float = ANSWER_LIMIT_S,
) -> Change:
    """Put the version that was in production before the champion back, and hold the loop.

    Rolled back again it goes one further back; to one that was rolled back or withdrawn it never
    returns. Payloads are kept, so this takes seconds and neither sklearn nor Mage; one that is gone
    is exported anew, which wants the environment of the orchestrator.

    `expected` is the version that is to be left: if another is in production, nothing is done, so
    that two people who look at the same page do not go back twice. Nor is it if a rollback with
    the same `request` was done already: a block of Mage that was killed is run again.

    The hold is committed first: if this process dies, nothing is promoted meanwhile, and the next
    call finishes this rollback before anything else. Commits.

    Raises RollbackError if nothing is in production or was before it, DeploymentError if the API or
    the registry does not get there: the hold is taken back then, and production is as it was.
    """
    settings = settings or get_settings()
    with hold_lock(connection, lock_name(card)):
        return _roll_back(
            connection, card, settings, progress, cause, expected, request, answer_limit
        )


def _roll_back(
    connection: Connection,
    card: Card,
    settings: Settings,
    progress: Callable[[str], object],
    cause: str,
    expected: str | None,
    request: str | None,
    answer_limit: float,
) -> Change:
    started = time.monotonic()
    champion = heal_history(connection, card, settings)
    former_hold = active_hold(connection, card)
    if former_hold is not None and former_hold.done_at is None:
        if champion == former_hold.rolled_to:
            # Killed between the alias and the commit: healed by now, and all that is left to do.
            finish_hold(connection, former_hold)
            connection.commit()
            sentence = (
                f"version {champion} is in production: the rollback of "
                f"{former_hold.held_at:%Y-%m-%d %H:%M} was interrupted, and is complete now"
            )
            progress(sentence)
            return Change(str(champion), champion, sentence, time.monotonic() - started)
        progress("a rollback was interrupted before it changed production: it begins anew")
    if (expected or champion) != champion or (request and rolled_back_for(connection, request)):
        connection.commit()
        sentence = f"version {champion or 'none'} is in production: nothing is left to roll back"
        progress(sentence)
        return Change(str(champion), champion, sentence, time.monotonic() - started)
    if champion is None:
        connection.commit()
        raise RollbackError(f"{card.name}: nothing is in production: run the pipeline deploy")
    stays = former_stays(connection, card)
    if not stays:
        connection.commit()
        raise RollbackError(
            f"{card.name}: nothing to roll back to: no version was in production before {champion} "
            "that was not rolled back or withdrawn itself; promote one by hand "
            "(`make promote VERSION=…`)"
        )
    target = str(stays[-1]["model_version"])
    reason = f"{cause}: from version {champion} to {target}"
    hold = place_hold(connection, card, reason, champion, target, request)
    connection.commit()
    progress(f"hold: nothing is promoted from now on; rolling back from {champion} to {target}")
    try:
        _return_to(stays[-1], champion, card, connection, settings, progress, answer_limit,
                   cause=reason, began="rollback")  # fmt: skip
        finish_hold(connection, hold)
        connection.commit()
    except Exception:
        connection.rollback()
        if not _may_be_production(target, card, settings):
            undo_hold(connection, hold, former_hold)
            connection.commit()
        raise
    sentence = (
        f"version {target} is in production again, instead of {champion}; nothing is promoted "
        "until `make release`, or a promotion by hand"
    )
    progress(sentence)
    return Change(target, champion, sentence, time.monotonic() - started)


def withdraw(
    version: str,
    card: Card,
    connection: Connection,
    cause: str,
    progress: Callable[[str], object] = print,
    answer_limit: float = ANSWER_LIMIT_S,
    settings: Settings | None = None,
) -> str:
    """Take a version out of production; return what is there, as a sentence.

    The champion that it replaced comes back: link, alias and `ops.deployments`. If it replaced
    none, nothing is in production, and the API answers with the last one until the next deployment.
    A version that is not in production (any more) is left alone. The loop goes on: no hold.

    Raises DeploymentError if the API does not answer as the former champion: nothing is changed
    then. The caller commits; the registry is changed at once.
    """
    settings = settings or get_settings()
    lock(connection, lock_name(card))
    champion = heal_history(connection, card, settings)
    if champion != version or current_deployment(connection, card) is None:
        return f"Version {champion or 'none'} is in production"
    stays = former_stays(connection, card)
    if not stays:
        retire_production(connection, card, settings)
        return f"Version {version} replaced none: nothing is in production now, run deploy again"
    _return_to(stays[-1], version, card, connection, settings, progress, answer_limit,
               cause=cause, began="withdrawn")  # fmt: skip
    former = stays[-1]["model_version"]
    progress(f"production: version {former} again, instead of {version}")
    return f"Version {former} is in production again"


def promote_by_hand(
    version: str,
    connection: Connection,
    card: Card,
    cause: str = "promoted by hand",
    progress: Callable[[str], object] = print,
    answer_limit: float = ANSWER_LIMIT_S,
    settings: Settings | None = None,
) -> Change:
    """Put a version in production that a person has chosen, whatever the gate says of it.

    The gate's numbers are measured and stored all the same; ONNX parity is asked for as ever. A
    hold ends by it. A version that is in production already stays there, and the hold ends.

    Raises RegistryError if there is no such version, ParityError or ExportError if it cannot be
    exported exactly, DeploymentError as `deploy` does: production is as it was then. The caller
    commits; the registry is changed at once.
    """
    settings = settings or get_settings()
    started = time.monotonic()
    if not version.isdigit():
        raise RegistryError(
            f"found version {version!r}, expected a number of {card.name} in the registry, such as "
            "7: the page Models lists them"
        )
    lock(connection, lock_name(card))
    champion = heal_history(connection, card, settings)
    tags = get_version(card, version, settings).tags
    # The link may name another: that of a rollback which was killed half-way.
    if champion == version and current_version(settings.payloads_dir) == version:
        released = release_hold(connection, card, f"promotion of version {version} by hand")
        sentence = f"version {version} is in production already" + (
            "; the hold is released" if released else ""
        )
        progress(sentence)
        return Change(version, version, sentence, time.monotonic() - started)
    decision = _measured(connection, card, version, champion, settings)
    progress(f"gate, for the record: {decision.reason}")
    render_version(version, card, connection, settings, progress)
    back_to = current_version(settings.payloads_dir)
    if champion is not None and is_payload(settings.payloads_dir / champion):
        back_to = champion
    switch_api(version, back_to, settings, progress, answer_limit)
    register_production(version, back_to, card, settings, progress, answer_limit)
    training_id = tags.get(tracking.TRAINING_TAG)
    record_decision(connection, card, version, champion, decision, cause, training_id)
    record_deployment(
        connection,
        card,
        version,
        cause=cause,
        training_id=training_id,
        candidate=tags.get(tracking.CANDIDATE_TAG),
        gate=decision.as_dict(),
        began="by hand",
    )
    released = release_hold(connection, card, f"promotion of version {version} by hand")
    sentence = f"version {version} is in production, instead of {champion or 'none'}" + (
        "; the hold is released, and the loop promotes again" if released else ""
    )
    progress(sentence)
    return Change(version, champion, sentence, time.monotonic() - started)


def release(
    connection: Connection,
    card: Card,
    by: str = "by hand",
    progress: Callable[[str], object] = print,
) -> Hold | None:
    """Let the loop promote again; return the hold that stood, None if there was none.

    Waits for a deployment or rollback that is under way. The caller commits.
    """
    lock(connection, lock_name(card))
    hold = release_hold(connection, card, by)
    progress(
        "no hold stands: the loop promotes"
        if hold is None
        else f"released: {hold.reason}; the next retrain may promote again"
    )
    return hold


def _measured(
    connection: Connection, card: Card, version: str, champion: str | None, settings: Settings
) -> GateDecision:
    """Return the gate's decision, or why there is none: it may not stand in a person's way.

    What fails is undone up to here only: the caller's lock and what it has written stay.
    """
    try:
        with undone(connection):
            return evaluate_gate(connection, card, version, champion, settings)
    except Exception as fault:  # rows or a model may be gone; the person has decided all the same
        numbers = {"champion": champion, "challenger": version, "rule": "not measured"}
        return GateDecision(False, f"the gate could not be measured: {fault}", numbers)


def _may_be_production(version: str, card: Card, settings: Settings) -> bool:
    """Return whether the alias names the version; yes, if the registry does not answer."""
    try:
        return production_version(card, settings) == version
    except MlflowException:
        return True


def _return_to(
    stay: dict[str, Any],
    version: str,
    card: Card,
    connection: Connection,
    settings: Settings,
    progress: Callable[[str], object],
    answer_limit: float,
    *,
    cause: str,
    began: Began,
) -> None:
    """Put the version of a former stay back in production, in place of `version`.

    Its training, candidate and gate go with it: they are what it came to production by.
    """
    former = str(stay["model_version"])
    if not is_payload(settings.payloads_dir / former):
        render_version(former, card, connection, settings, progress)
    switch_api(former, version, settings, progress, answer_limit)
    register_production(former, version, card, settings, progress, answer_limit)
    record_deployment(
        connection,
        card,
        former,
        cause=cause,
        training_id=stay["training_id"],
        candidate=stay["candidate"],
        gate=stay["gate"],
        began=began,
    )
