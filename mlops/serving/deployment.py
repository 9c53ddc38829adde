"""Bring the best of a training to production, or keep the champion; never trains or retrains.

The order is what makes it safe: nothing is called production before every worker of the API has
answered with it. Each step may run again with the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from psycopg2.extensions import connection as Connection

from mlops.dataset.card import Card, load_card
from mlops.dataset.rows import data_digest, load_window
from mlops.dataset.windows import split_window
from mlops.registry.gate import evaluate_gate
from mlops.registry.models import (
    get_version,
    load_pipeline,
    production_version,
    promote,
    record_deployment,
    stage_top,
)
from mlops.serving.client import PayloadRefused, PredictClient
from mlops.serving.export import export_onnx
from mlops.serving.payload import (
    current_version,
    describe_model,
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
    """The version that was in production before."""
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
    seconds: the link is put back and production is as it was. ParityError if ONNX and sklearn
    differ. The caller commits; the registry is changed at once.
    """
    settings = settings or get_settings()
    started = time.monotonic()
    training_id = training_id or latest_training(connection, load_card(settings.card))
    training = read_training(connection, training_id)
    card = training.load_card(settings)
    lock(connection, f"deploy {card.name}")  # one at a time: there is one link and one champion
    leaderboard = _leaderboard(connection, training_id)

    staged = stage_top(leaderboard, card, settings)
    challenger = staged[0]
    champion = production_version(card, settings)
    progress(f"staging: versions {', '.join(staged)}; champion: {champion or 'none'}")

    decision = evaluate_gate(connection, card, challenger, champion, settings)
    progress(f"gate: {'passed' if decision.promote else 'not passed'}: {decision.reason}")
    production = challenger if decision.promote else champion
    max_difference = None
    # A champion is served too if nobody serves it: its payload may have been deleted.
    if production is not None and (
        decision.promote or current_version(settings.payloads_dir) != production
    ):
        max_difference = _serve(production, card, connection, settings, progress, answer_limit)
    if decision.promote:
        promote(challenger, card, settings)
        entry = next(each for each in leaderboard if each["version"] == challenger)
        record_deployment(
            connection,
            card,
            challenger,
            cause=cause,
            training_id=training_id,
            candidate=entry["candidate"],
            gate=decision.as_dict(),
        )
        progress(f"production: version {challenger} ({entry['candidate']})")
    return Deployment(
        outcome="promoted" if decision.promote else "kept_champion",
        version=challenger,
        champion=champion,
        production=production,
        reason=decision.reason,
        gate=decision.numbers,
        max_difference=max_difference,
        seconds=time.monotonic() - started,
    )


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


def _serve(
    version: str,
    card: Card,
    connection: Connection,
    settings: Settings,
    progress: Callable[[str], object],
    answer_limit: float,
) -> float:
    """Render a version and have the API answer with it; return ONNX's difference from sklearn."""
    registered = get_version(card, version, settings)
    run_id = str(registered.run_id)
    training = read_training(connection, registered.tags[tracking.TRAINING_TAG])
    onnx = export_onnx(
        load_pipeline(card, version, settings),
        card,
        tracking.load_reference(run_id, settings),
        settings.parity_tolerance,
    )
    progress(
        f"ONNX: {len(onnx.content) / 1024:.0f} kB, differs from sklearn by at most "
        f"{onnx.max_difference:.1e} on the validation rows"
    )
    frame = load_window(connection, card, training.window_start, training.window_end)
    if data_digest(frame) != training.data_digest:
        progress("note: the window's rows have changed since the training; ranges are today's")
    metrics = tracking.client(settings).get_run(run_id).data.metrics
    model_json = describe_model(
        card,
        version,
        onnx,
        split_window(frame, card.time.validation_months).fitting,
        run_id=run_id,
        candidate=registered.tags[tracking.CANDIDATE_TAG],
        training_id=training.id,
        threshold=metrics["validation_threshold"],
        metrics=metrics,
        window=(training.window_start, training.window_end),
    )
    folder = render_payload(version, onnx.content, model_json, settings.payloads_dir)
    before = switch_current(settings.payloads_dir, version)
    progress(f"payload: {folder.name}, was {before or 'none'}; waiting for the API")
    began = time.monotonic()
    try:
        with PredictClient(settings.predict_url) as client:
            client.wait_for_version(version, settings.predict_workers, answer_limit)
    except (PayloadRefused, TimeoutError) as fault:
        now = _take_back(before, version, answer_limit, settings)
        raise DeploymentError(f"version {version} was taken back: {fault}. {now}") from fault
    except BaseException:
        _take_back(before, version, 0.0, settings)
        raise
    progress(f"API: every worker answers as version {version} ({time.monotonic() - began:.1f} s)")
    return onnx.max_difference


def _take_back(before: str | None, version: str, answer_limit: float, settings: Settings) -> str:
    """Put the link back and return what answers now, as a sentence."""
    if before is None:
        remove_current(settings.payloads_dir)
        return "Nothing was deployed before: is the API up (`make status`)?"
    if before == version:
        return "It was the version before, too."
    switch_current(settings.payloads_dir, before)
    try:
        with PredictClient(settings.predict_url) as client:
            client.wait_for_version(
                before, settings.predict_workers, min(answer_limit, _BACK_LIMIT_S)
            )
    except (PayloadRefused, TimeoutError):
        return f"The link names version {before} again, which does not answer: see `make status`"
    return f"Version {before} answers"
