"""Score the files that people put into the inbox: each once, by the API, whatever is killed when.

A file is known by its content and name (`ops.scored_files`). What was interrupted is scored again
under the same request id, which the API's log takes once. It never deletes what somebody put there:
a scored file moves to `done/`, one that cannot be scored to `rejected/`, and all others stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from mlops.database import hold_lock
from mlops.serving import exchange
from mlops.serving.client import ApiError, ApiUnavailable, PredictClient, Progress
from mlops.serving.exchange import Waiting
from mlops.settings import Settings, get_settings

_LOCK = "mlops.serving.scoring"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "mlops/scoring")
_DRAFT = ".scoring-"
_TELL_EVERY_S = 10.0

# What the API says about the one who asks, or about now; the file may be good.
_NOT_THE_FILES_FAULT = (401, 403, 404, 405, 408, 429)


class ScoringError(RuntimeError):
    """Files wait and cannot be scored now; they stay where they are."""


@dataclass(frozen=True)
class _Known:
    """A row of `ops.scored_files`."""

    status: str
    request_id: str
    runs: int
    predictions: str | None


def score_inbox(
    connection: Connection,
    settings: Settings | None = None,
    progress: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """Score every finished file of the inbox, the one that has waited longest first.

    Returns for each file `file` (its name) and `{"status": "success", "predictions": "<path>"}`,
    with `bad_rows` (a path or None), `version`, `rows`, `scored`, `rejected`, or
    `{"status": "rejected", "reason": "..."}`. Commits after each file. A second call at the same
    time waits for the first.

    Raises ScoringError, naming the file and what is away, if the API, a folder or Postgres fails;
    files that are not done then stay in the inbox.
    """
    settings = settings or get_settings()
    try:
        exchange.make_folders(settings)
        with hold_lock(connection, _LOCK):
            _sweep(connection, settings)
            files = exchange.finished(settings)
            if not files:
                progress(f"no finished file in {exchange.folder(settings, 'inbox')}")
            return _score_all(connection, files, settings, progress)
    except exchange.ExchangeError as error:
        raise ScoringError(str(error)) from error
    except psycopg2.Error as error:
        reason = str(error).strip().partition("\n")[0]
        raise ScoringError(
            f"Postgres does not take the record of files that are scored, so these stay in "
            f"{exchange.folder(settings, 'inbox')}: {reason}"
        ) from error


def request_id(digest: str, name: str, runs: int = 0) -> str:
    """Return the request id under which a file is scored for the time `runs` + 1."""
    return uuid.uuid5(_NAMESPACE, f"{digest}/{runs}/{name}").hex


def _score_all(
    connection: Connection,
    files: list[Waiting],
    settings: Settings,
    progress: Callable[[str], object],
) -> list[dict[str, Any]]:
    """Score the files; one that cannot be scored now keeps nobody else's from it.

    Raises ScoringError at the end if there was such a file.
    """
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    with PredictClient.of(settings) as client:
        for file in files:
            try:
                done = _score(connection, client, file, settings, progress)
            except OSError as error:
                if not os.path.lexists(file.path):
                    continue  # taken out again
                place = error.filename or file.path
                failures.append(f"{file.name!r}: {place}: {error.strerror or error}")
            except ApiUnavailable as error:
                failures.append(f"{file.name!r}: {error}")
                if not _answers(client):
                    break  # nor would it to the others
            else:
                if done is not None:
                    progress(f"{file.name!r}: {_in_words(done)}")
                    results.append({"file": file.name, **done})
    if failures:
        left = len(files) - len(results)
        raise ScoringError(
            "\n".join(
                [f"{left} of {len(files)} files stay in the inbox, to be tried again", *failures]
            )
        )
    return results


def _answers(client: PredictClient) -> bool:
    try:
        client.health()
    except (ApiError, ApiUnavailable):
        return False
    return True


def _score(
    connection: Connection,
    client: PredictClient,
    file: Waiting,
    settings: Settings,
    progress: Callable[[str], object],
) -> dict[str, Any] | None:
    """Score one file and put everything in its place; None if it is not there any more, or anew."""
    try:
        digest = _digest(file.path)
    except FileNotFoundError:
        return None
    known = _find(connection, digest, file.name)
    if known and known.status == "success" and known.predictions:
        result = settings.exchange_dir / known.predictions
        if result.exists():
            _put_away(file, settings)
            progress(f"{file.name!r} was scored before: its content has not changed")
            return _read_back(connection, digest, file.name, settings)
    asked, result = _claim(connection, digest, file, known, settings)
    drafts = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=exchange.folder(settings, "outbox")))
    predictions = drafts / f"predictions{exchange.ending(file.path.name).lower()}"
    bad_rows = drafts / "rejected.ndjson"
    try:
        try:
            told = _teller(file, progress)
            summary = client.score_file(file.path, predictions, bad_rows, asked, progress=told)
        except ValueError as error:  # the name tells no format
            return _reject(connection, digest, file, str(error), settings)
        if exchange.still(file) is False:
            # What was answered is logged; the file as it is now is another one.
            _close(connection, digest, file.name, "rejected", reason="changed while it was scored")
            progress(f"{file.name!r} has changed while it was scored: it is scored anew next time")
            return None
        counts = {key: summary[key] for key in ("version", "rows", "scored", "rejected")}
        if not counts["scored"]:
            reason = _why_none(counts["rows"], bad_rows)
            return _reject(connection, digest, file, reason, settings, bad_rows, counts)
        # The predictions last: who finds them finds the bad rows beside them.
        beside = Path(f"{result}{exchange.REJECTED_ROWS}")
        if counts["rejected"]:
            bad_rows.replace(beside)
        else:  # of an attempt that was interrupted, and answered by another version
            beside.unlink(missing_ok=True)
        predictions.replace(result)
        _close(connection, digest, file.name, "success", **counts)
        _put_away(file, settings)
        return {
            "status": "success",
            "predictions": str(result),
            "bad_rows": str(beside) if counts["rejected"] else None,
            **counts,
        }
    except ApiError as error:
        if error.status not in _NOT_THE_FILES_FAULT:
            return _reject(connection, digest, file, str(error), settings)
        _note(connection, digest, file.name, f"waits: {error}")
        raise ApiUnavailable(f"the predict API refuses the request: {error}") from error
    except (ApiUnavailable, OSError) as error:
        _note(connection, digest, file.name, f"waits: {error}")
        raise
    finally:
        shutil.rmtree(drafts, ignore_errors=True)


def _teller(file: Waiting, progress: Callable[[str], object]) -> Progress:
    """Return what tells of a large file now and then how much of it is done."""
    told = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _TELL_EVERY_S:
            told = time.monotonic()
            progress(f"{file.name!r}: {what}, {done:,} of {total:,}")

    return tell


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        digest = hashlib.sha256()
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _put_away(file: Waiting, settings: Settings) -> None:
    """Move a scored file out of the inbox."""
    _move(file, exchange.free_path(exchange.folder(settings, "done"), file.name))


def _move(file: Waiting, target: Path) -> None:
    """Move the file that was seen; it may be gone, which is as good.

    What somebody has put under its name at this very moment is put back, to be scored.
    """
    with contextlib.suppress(FileNotFoundError):
        shutil.move(file.path, target)
        if not exchange.same_content(target, file):
            shutil.move(target, exchange.free_path(file.path.parent, file.path.name))


def _reject(
    connection: Connection,
    digest: str,
    file: Waiting,
    reason: str,
    settings: Settings,
    bad_rows: Path | None = None,
    counts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Set the file aside, with its reason beside it."""
    place = exchange.folder(settings, "rejected")
    target = exchange.free_path(place, file.name, exchange.REASON, exchange.REJECTED_ROWS)
    said = {"file": file.name, "status": "rejected", "reason": reason, **(counts or {})}
    told = {**said, "sha256": digest, "at": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"}
    _close(connection, digest, file.name, "rejected", reason=reason, **(counts or {}))
    if bad_rows is not None:
        bad_rows.replace(f"{target}{exchange.REJECTED_ROWS}")
    note = Path(f"{target}{exchange.REASON}")
    note.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _move(file, target)
    return {"status": "rejected", "reason": reason, **(counts or {})}


def _why_none(rows: int, bad_rows: Path) -> str:
    if not rows:
        return "the file has no rows"
    with bad_rows.open(encoding="utf-8") as lines:
        first = json.loads(lines.readline())
    return (
        f"none of its {rows:,} rows can be scored; the first: line {first.get('line')}, "
        f"field {first.get('field')}: {first.get('message')}"
    )


def _in_words(done: dict[str, Any]) -> str:
    if done["status"] == "rejected":
        return f"rejected: {done['reason']}"
    bad = f", {done['rejected']:,} bad rows in {done['bad_rows']!r}" if done["rejected"] else ""
    return (
        f"{done['scored']:,} of {done['rows']:,} rows scored by version {done['version']} "
        f"into {done['predictions']!r}{bad}"
    )


def _sweep(connection: Connection, settings: Settings) -> None:
    """Take away what an interrupted run has left, which nobody can be writing now.

    A file that was being scored and has been taken out of the inbox will not be scored any more.
    """
    for drafts in exchange.folder(settings, "outbox").glob(f"{_DRAFT}*"):
        shutil.rmtree(drafts, ignore_errors=True)
    there = [each.name for each in exchange.look(settings)]
    with _transaction(connection) as cursor:
        cursor.execute(
            "UPDATE ops.scored_files SET status = 'rejected', finished_at = clock_timestamp(),"
            " reason = 'taken out of the inbox before it was scored'"
            " WHERE status = 'scoring' AND name <> ALL(%s)",
            (there,),
        )


@contextlib.contextmanager
def _transaction(connection: Connection) -> Iterator[Cursor]:
    """Yield a cursor and commit; the caller's connection may be in a `with` block of its own."""
    try:
        with connection.cursor() as cursor:
            yield cursor
        connection.commit()
    except BaseException:
        with contextlib.suppress(psycopg2.Error):
            connection.rollback()
        raise


def _find(connection: Connection, digest: str, name: str) -> _Known | None:
    with _transaction(connection) as cursor:
        cursor.execute(
            "SELECT status, request_id, runs, predictions FROM ops.scored_files"
            " WHERE sha256 = %s AND name = %s",
            (digest, name),
        )
        row = cursor.fetchone()
    return _Known(*row) if row else None


def _claim(
    connection: Connection, digest: str, file: Waiting, known: _Known | None, settings: Settings
) -> tuple[str, Path]:
    """Write down that the file is being scored; return its request id and where its result goes.

    What was interrupted keeps both, so a result that is there already is written once more.
    """
    asked = request_id(digest, file.name, known.runs if known else 0)
    with _transaction(connection) as cursor:
        if known and known.status == "scoring" and known.predictions:
            result = settings.exchange_dir / known.predictions
        else:
            outbox = exchange.folder(settings, "outbox")
            result = exchange.free_path(outbox, file.name, exchange.REJECTED_ROWS)
        below = str(result.relative_to(settings.exchange_dir))
        # Another file of that name was interrupted and replaced by this one: it has none yet.
        cursor.execute(
            "UPDATE ops.scored_files SET predictions = NULL"
            " WHERE predictions = %s AND status <> 'success' AND sha256 <> %s",
            (below, digest),
        )
        cursor.execute(
            """
            INSERT INTO ops.scored_files (sha256, name, status, request_id, bytes, predictions)
            VALUES (%s, %s, 'scoring', %s, %s, %s)
            ON CONFLICT (sha256, name) DO UPDATE SET
                status = 'scoring', request_id = excluded.request_id,
                predictions = excluded.predictions, reason = NULL, version = NULL, rows = NULL,
                scored = NULL, rejected = NULL, started_at = clock_timestamp(), finished_at = NULL
            """,
            (digest, file.name, asked, file.bytes, below),
        )
    return asked, result


def _close(
    connection: Connection,
    digest: str,
    name: str,
    status: str,
    reason: str | None = None,
    version: str | None = None,
    rows: int | None = None,
    scored: int | None = None,
    rejected: int | None = None,
) -> None:
    with _transaction(connection) as cursor:
        cursor.execute(
            "UPDATE ops.scored_files SET status = %s, reason = %s, version = %s, rows = %s,"
            " scored = %s, rejected = %s, finished_at = clock_timestamp(),"
            " runs = runs + (%s = 'success')::int,"
            " predictions = CASE %s WHEN 'success' THEN predictions END"
            " WHERE sha256 = %s AND name = %s",
            (status, reason, version, rows, scored, rejected, status, status, digest, name),
        )


def _note(connection: Connection, digest: str, name: str, reason: str) -> None:
    with _transaction(connection) as cursor:
        cursor.execute(
            "UPDATE ops.scored_files SET reason = %s WHERE sha256 = %s AND name = %s",
            (reason, digest, name),
        )


def _read_back(
    connection: Connection, digest: str, name: str, settings: Settings
) -> dict[str, Any]:
    with _transaction(connection) as cursor:
        cursor.execute(
            "SELECT predictions, version, rows, scored, rejected FROM ops.scored_files"
            " WHERE sha256 = %s AND name = %s",
            (digest, name),
        )
        predictions, version, rows, scored, rejected = cursor.fetchone() or (None,) * 5
    result = settings.exchange_dir / str(predictions)
    bad_rows = f"{result}{exchange.REJECTED_ROWS}"
    return {
        "status": "success",
        "predictions": str(result),
        "bad_rows": bad_rows if os.path.lexists(bad_rows) else None,
        "version": version,
        "rows": rows,
        "scored": scored,
        "rejected": rejected,
    }
