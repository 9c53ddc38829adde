"""Shadow mode: a version scores what the champion has answered, and answers nobody.

It works from the log of predictions (`serving.predictions`), not in the API: answers cost and risk
nothing, every answered row is scored, and on exactly the features that were logged. A row is scored
once by a version, known by its place in the log, whenever it gets there: the API's spool may ship
rows long after they were answered, so nothing is left out for being old.

Never promotes anything. What the two versions' scores say is `mlops.serving.comparison`'s subject.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from onnxruntime import InferenceSession
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from mlops.database import connect, hold_lock
from mlops.dataset.card import Card
from mlops.dataset.errors import DataError
from mlops.dataset.rows import from_features
from mlops.dataset.timeline import month_start
from mlops.registry.models import current_deployment
from mlops.registry.shadows import (
    LOOP,
    PERSON,
    Shadow,
    current_shadow,
    put_in_shadow,
    stopped_by_person,
)
from mlops.serving.deployment import Deployment, lock_name, render_version
from mlops.serving.export import open_session, score_session
from mlops.serving.payload import is_payload
from mlops.settings import Settings, get_settings
from mlops.training.records import lock

BATCH = 5000
"""Rows of one transaction: some 0.2 s of work, which is what a kill repeats."""

LOOK_ROWS = 20 * BATCH
"""Keys that are held at a time, some 15 MB."""

PURPOSES = ("live", "simulation")
"""Whose rows are scored; the test pipeline's own requests say nothing about the world."""


class ShadowError(RuntimeError):
    """A version cannot be in shadow as things stand."""


@dataclass(frozen=True)
class Scored:
    """What a call of `score_shadow` came to."""

    version: str | None
    """The version in shadow; None if there is none."""
    rows: int
    refused: int
    """Rows, counted in `rows`, that the version cannot score."""
    seconds: float


def start_shadow(
    connection: Connection,
    card: Card,
    version: str,
    settings: Settings | None = None,
    *,
    since: str | None = None,
    by: str = PERSON,
    reason: str | None = None,
    progress: Callable[[str], object] = print,
) -> Shadow:
    """Put a version in shadow, in place of whoever is there, and return it. The caller commits.

    It scores what is answered from now on and, given `since`, all rows of that period and later
    ones. Its payload is rendered if there is none, parity with sklearn included. Of the version
    that is in shadow already `since` changes, if given, and a person's wish makes it a person's.

    Raises ShadowError if it is the version that answers, or of other columns than the card's;
    RegistryError if it has no payload and the registry does not know it; ExportError if ONNX cannot
    stand for it; ValueError if `since` is no period.
    """
    settings = settings or get_settings()
    if since is not None:
        month_start(since)
    if not version.isdigit():
        raise ShadowError(f"found version {version!r}, expected a number of the registry's, like 7")
    # A deployment that is under way may be about to make it the champion, and renders as well.
    lock(connection, lock_name(card))
    champion = current_deployment(connection, card)
    if champion is not None and champion["model_version"] == version:
        raise ShadowError(
            f"version {version} is in production: it answers, so it has nothing to shadow; "
            "choose another one of the page Models"
        )
    described = _describe(connection, card, version, settings, progress)
    shadow = put_in_shadow(
        connection,
        card,
        version,
        by=by,
        since=since,
        reason=reason,
        candidate=described.get("candidate"),
        threshold=described["threshold"],
    )
    progress(f"shadow: version {version} ({shadow.candidate}), by {shadow.started_by}")
    return shadow


def shadow_challenger(
    card: Card,
    deployed: Deployment,
    progress: Callable[[str], object] = print,
    settings: Settings | None = None,
) -> Shadow | None:
    """Put the challenger that the gate did not promote in shadow; return it, None if it is not.

    It is put there if `shadow_held` says so, there is a champion, and it is better than a guess. A
    person's choice stands: a shadow that a person has started is not replaced, and a version that
    one has stopped does not come back. Run again, it does the same.

    In a transaction of its own, and what goes wrong is said, never raised: the gate has decided by
    then, and no retrain fails for want of a shadow.
    """
    settings = settings or get_settings()
    gate = deployed.gate
    auc = gate.get("challenger_roc_auc")
    if (
        not settings.shadow_held
        or deployed.outcome == "promoted"
        or deployed.production in (None, deployed.version)
        or auc is None
        or not (auc > 0.5 and gate["challenger_brier"] < gate["constant_brier"])
    ):
        return None
    try:
        with connect(settings=settings) as connection:
            current = current_shadow(connection, card)
            if current is not None and current.started_by == PERSON:
                progress(f"shadow: version {current.version} stays, as a person has chosen it")
                return None
            if stopped_by_person(connection, card, deployed.version):
                progress(f"shadow: none; a person has stopped version {deployed.version}")
                return None
            return start_shadow(
                connection,
                card,
                deployed.version,
                settings,
                by=LOOP,
                reason=deployed.reason,
                progress=progress,
            )
    except Exception as fault:
        progress(f"note: version {deployed.version} is not in shadow: {fault}")
        return None


def score_shadow(
    connection: Connection,
    card: Card,
    settings: Settings | None = None,
    progress: Callable[[str], object] = print,
    *,
    recent_s: float | None = None,
) -> Scored:
    """Score the logged rows that the version in shadow has not scored, and return how many.

    Those that others have answered for live or simulated traffic since it began, and of its `since`
    on. With `recent_s`, only what was answered in the last so many seconds is looked at, which
    costs the same however long the log is; what a spool ships late is left to a call without.

    Commits after every BATCH rows: a kill loses nothing, and the next call goes on. A second call
    at the same time waits for the first. Stops when the version leaves the shadow meanwhile. Rows
    that lack a field of the version's, or hold what it does not take, are stored as refused.
    """
    settings = settings or get_settings()
    began = time.monotonic()
    shadow = current_shadow(connection, card)
    connection.commit()
    rows = refused = 0
    if shadow is None:
        return Scored(None, rows, refused, time.monotonic() - began)
    with hold_lock(connection, f"shadow {card.name}"):
        for keys in _batches(connection, shadow, recent_s):
            if not _is_current(connection, card, shadow):
                progress(f"shadow: version {shadow.version} has left it")
                break
            scored, bad = _score_batch(connection, card, shadow, keys, settings, progress)
            rows, refused = rows + scored, refused + bad
    seconds = time.monotonic() - began
    if rows:
        without = f", {refused:,} of them refused" if refused else ""
        progress(
            f"shadow: version {shadow.version} scored {rows:,} rows{without} in {seconds:.1f} s"
        )
    return Scored(shadow.version, rows, refused, seconds)


Key = tuple[str, int]
"""Request id and row of the request, from 0."""


def _batches(connection: Connection, shadow: Shadow, recent_s: float | None) -> Iterator[list[Key]]:
    """Yield the keys of all rows that wait, BATCH at a time; each must be scored meanwhile."""
    while keys := _waiting(connection, shadow, recent_s):
        for start in range(0, len(keys), BATCH):
            yield keys[start : start + BATCH]
        if len(keys) < LOOK_ROWS:
            return


def _waiting(connection: Connection, shadow: Shadow, recent_s: float | None) -> list[Key]:
    """Return the keys of rows that wait to be scored, LOOK_ROWS at most.

    A plain query, not a cursor that is kept open: Postgres gives those no second process.
    """
    answered = "made.made_at >= %(started_at)s"
    if recent_s is not None:
        answered += " AND made.made_at >= clock_timestamp() - make_interval(secs => %(recent)s)"
    elif shadow.since is not None:
        answered = f"({answered} OR made.period >= %(since)s)"
    statement = sql.SQL(
        "SELECT made.request_id, made.row FROM serving.predictions AS made"
        " WHERE {answered} AND made.purpose IN %(purposes)s AND made.model_version <> %(version)s"
        " AND NOT EXISTS (SELECT FROM serving.shadow_predictions AS scored"
        "  WHERE scored.request_id = made.request_id AND scored.row = made.row"
        "  AND scored.model_version = %(version)s) LIMIT %(most)s"
    ).format(answered=sql.SQL(answered))
    with connection.cursor() as cursor:
        cursor.execute(
            statement,
            {
                "started_at": shadow.started_at,
                "recent": recent_s,
                "since": shadow.since and month_start(shadow.since),
                "purposes": PURPOSES,
                "version": shadow.version,
                "most": LOOK_ROWS,
            },
        )
        keys: list[Key] = cursor.fetchall()
    connection.commit()
    return keys


def _score_batch(
    connection: Connection,
    card: Card,
    shadow: Shadow,
    keys: list[Key],
    settings: Settings,
    progress: Callable[[str], object],
) -> tuple[int, int]:
    """Score rows and commit; return how many there still were, and how many were refused."""
    folder = settings.payloads_dir / shadow.version
    if not is_payload(folder):
        lock(connection, lock_name(card))
        render_version(shadow.version, card, connection, settings, progress)
    with connection.cursor() as cursor:
        # Locked until they are scored: who forgets a row then forgets its score with it.
        cursor.execute(
            "SELECT made.request_id, made.row, made.period, made.features"
            " FROM serving.predictions AS made"
            " JOIN unnest(%s::text[], %s::integer[]) AS key (request_id, row)"
            " USING (request_id, row) FOR KEY SHARE OF made",
            ([name for name, _ in keys], [row for _, row in keys]),
        )
        found: list[tuple[str, int, date, dict[str, Any]]] = cursor.fetchall()
        session = _open(folder, (folder / "model.onnx").stat().st_mtime_ns)
        scores, faults = _scores(session, card, [features for *_, features in found])
        names, rows, periods, _ = zip(*found, strict=True) if found else ((), (), (), ())
        cursor.execute(
            "INSERT INTO serving.shadow_predictions"
            " (request_id, row, model_version, period, probability, refused, scored_at)"
            " SELECT request_id, row, %s, period, probability, refused, clock_timestamp()"
            " FROM unnest(%s::text[], %s::integer[], %s::date[], %s::float8[], %s::text[])"
            " AS scored (request_id, row, period, probability, refused)"
            " ON CONFLICT DO NOTHING",
            (shadow.version, list(names), list(rows), list(periods), scores, faults),
        )
    connection.commit()
    return len(found), sum(fault is not None for fault in faults)


def _scores(
    session: InferenceSession, card: Card, records: list[dict[str, Any]]
) -> tuple[list[float | None], list[str | None]]:
    """Return each record's P(positive), or why it has none."""
    scores: list[float | None] = [None] * len(records)
    faults = [_lacking(card, record) for record in records]
    good = [row for row, fault in enumerate(faults) if fault is None]
    try:
        frame = from_features(card, [records[row] for row in good])
    except DataError as error:
        if len(records) == 1:
            return scores, [str(error)]
        # Each by itself, to tell which.
        pairs = [_scores(session, card, [record]) for record in records]
        return [score for (score,), _ in pairs], [fault for _, (fault,) in pairs]
    if good:
        found = score_session(session, card, frame)
        for row, score in zip(good, found.tolist(), strict=True):
            if np.isfinite(score):
                scores[row] = score
            else:
                faults[row] = f"its score is {score}, which is no probability"
    return scores, faults


def _lacking(card: Card, record: dict[str, Any]) -> str | None:
    """Return what a record lacks that the API would refuse it for, None if it has all fields.

    What it has beyond the card's columns was the champion's, and is left out.
    """
    lacking = [name for name in card.feature_names if name not in record]
    return f"it was logged without {', '.join(lacking)}" if lacking else None


@lru_cache(maxsize=2)
def _open(folder: Path, written: int) -> InferenceSession:
    """Return the model of a payload; `written` (ns) tells one that was rendered anew."""
    return open_session((folder / "model.onnx").read_bytes())


def _describe(
    connection: Connection,
    card: Card,
    version: str,
    settings: Settings,
    progress: Callable[[str], object],
) -> dict[str, Any]:
    """Return `model.json` of a version, rendered if need be. Raises ShadowError."""
    folder = settings.payloads_dir / version
    if not is_payload(folder):
        render_version(version, card, connection, settings, progress)
    described: dict[str, Any] = orjson.loads((folder / "model.json").read_bytes())
    names = [each["name"] for each in described["inputs"]]
    if described["model"] != card.name or set(names) != set(card.feature_names):
        raise ShadowError(
            f"version {version} is a model of {described['model']} with the columns "
            f"{', '.join(names)}; expected {card.name} with {', '.join(card.feature_names)}: "
            "train one with today's card"
        )
    return described


def _is_current(connection: Connection, card: Card, shadow: Shadow) -> bool:
    current = current_shadow(connection, card)
    return current is not None and current.id == shadow.id
