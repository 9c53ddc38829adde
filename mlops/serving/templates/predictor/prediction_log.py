"""The log of predictions: answers on their way to Postgres, safe on disk before they are sent.

The spool's lines are rows in the text format of COPY, made when a request is answered, so that
shipping them is a copy of bytes and takes no time from the requests that come in meanwhile.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import psycopg2

from predictor import metrics
from predictor.errors import LogUnavailable, PayloadError

COLUMNS = (
    "request_id, row, made_at, period, purpose, model_version, features, probability, warnings"
)
"""Columns of `serving.predictions` that a line holds, separated by tabs."""
TICK_SECONDS = 0.2  # between two flushes, and between two looks at what there is to ship
SHIP_BYTES = 8 * 1024 * 1024  # of one transaction, about 25,000 rows
RESTS = 6.0
"""Times as long as a shipment took, while requests come in: Postgres works as hard for a row as the
worker that answered it. Less, the fuller the spool is; none from half of it on."""
MAX_WAITING_SEGMENTS = 20
SEGMENT_BYTES = 4 * 1024 * 1024
FEW_ROWS_BYTES = 4096
UNWRITABLE_SECONDS = 5.0  # how long /ready says so after a write has failed

logger = logging.getLogger("predict")


class PredictionLog:
    """Answers on their way to Postgres; on disk before they are sent, gone only when committed.

    Each worker appends to a segment of its own (`*.open`, held by a file lock as long as its worker
    lives), flushed to the disk a moment later and closed under a name that tells its rows
    (`*-<rows>.ready`). One worker of all that share the spool, whoever holds `ship.lock`, ships:
    closed segments and those whose worker is dead. A repeat after a crash meets its own primary key
    and does nothing. What a crash can lose: of a process, nothing that was answered; of the
    machine, what was answered since the last flush: TICK_SECONDS and the time that a flush takes.
    """

    def __init__(self, folder: Path, connect: Callable[[], Any], max_bytes: int) -> None:
        self.folder, self.connect, self.max_bytes = folder, connect, max_bytes
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "rejected").mkdir(exist_ok=True)
        self.error: str | None = None
        self._lock = threading.Lock()
        self._segment: tuple[int, Path] | None = None
        self._rows = self._bytes = self._flushed_bytes = 0
        self._spooled_bytes = self._waiting_segments = 0
        self._unwritable_until = 0.0
        self._refused: dict[Path, tuple[int, int]] = {}  # size and rows of files of refused rows
        self._folder = os.open(self.folder, os.O_RDONLY)
        self._ship_lock = os.open(self.folder / "ship.lock", os.O_CREAT | os.O_RDWR, 0o600)
        self._leads = False
        self._connection: Any = None
        self._not_before = 0.0
        self._delay = 0.0
        self._stop = threading.Event()
        self._measure()
        self._threads = [
            threading.Thread(target=self._again, args=(step,), name=step.__name__, daemon=True)
            for step in (self._flush, self._ship_in_turn)
        ]
        for thread in self._threads:
            thread.start()

    def append(self, lines: bytes, rows: int, share: float = 1.0) -> None:
        """Put `rows` answered rows (see `format_lines`) on disk, all of them or none.

        `share` is how much of the spool they may fill, for those that can wait for room. Raises
        LogUnavailable if there is no room, or the disk does not take them.
        """
        with self._lock:
            if self._spooled_bytes + self._bytes + len(lines) > self.max_bytes * share:
                raise LogUnavailable(
                    f"the spool holds {self._spooled_bytes / 2**20:.1f} MB that Postgres has not"
                    f" taken yet, its limit is {self.max_bytes / 2**20:.1f} MB"
                )
            try:
                if self._segment is None:
                    self._open_segment()
                assert self._segment is not None
                descriptor, _ = self._segment
                view = memoryview(lines)
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError as fault:
                self._undo_half_line()
                self._unwritable_until = time.monotonic() + UNWRITABLE_SECONDS
                raise LogUnavailable(f"the spool cannot be written: {fault}") from fault
            self._bytes += len(lines)
            self._rows += rows

    def _undo_half_line(self) -> None:
        """Cut the segment after its last whole line, or leave it to the shipper, which does so."""
        if self._segment is None:
            return
        descriptor, path = self._segment
        try:
            os.ftruncate(descriptor, self._bytes)
        except OSError as fault:
            logger.error("%s is given up, with its whole lines: %s", path.name, fault)
            self._segment = None
            self._spooled_bytes += self._bytes
            self._rows = self._bytes = self._flushed_bytes = 0
            with suppress(OSError):
                os.close(descriptor)  # its lock goes, as if its worker were dead

    def full(self) -> str | None:
        """Return why a request of a few rows would be refused now, or None if it would not."""
        with self._lock:
            size = self._spooled_bytes + self._bytes
        if time.monotonic() < self._unwritable_until:
            return "the spool cannot be written"
        if size + FEW_ROWS_BYTES > self.max_bytes:
            return (
                f"the spool is full: {size / 2**20:.3g} of {self.max_bytes / 2**20:.3g} MB wait for"
                " Postgres"
            )
        return None

    def left(self) -> int:
        """Return how many bytes the spool may still take of the disk."""
        with self._lock:
            return max(0, self.max_bytes - self._spooled_bytes - self._bytes)

    def measured(self) -> dict[str, float]:
        """Return the spool's gauges, by their names in `metrics.MOMENTARY`."""
        return {
            "predict_log_pending_rows": self.pending(),
            "predict_log_rejected_rows": self.rejected(),
            "predict_log_spool_bytes": self._spooled_bytes + self._bytes,
            "predict_log_spool_limit_bytes": self.max_bytes,
        }

    def pending(self) -> int:
        """Return the number of answered rows that are not in Postgres yet."""
        with self._lock:
            own = self._segment[1] if self._segment else None
            rows = self._rows
        for path in self.folder.iterdir():
            if path.suffix == ".ready":
                rows += _rows_of(path)
            elif path.suffix == ".open" and path != own:
                with suppress(FileNotFoundError):  # closed or shipped meanwhile
                    rows += path.read_bytes().count(b"\n")
        return rows

    def rejected(self) -> int:
        """Return the number of rows that Postgres refused for good, kept in `rejected/`."""
        for path in (self.folder / "rejected").iterdir():
            size = path.stat().st_size
            if self._refused.get(path, (0, 0))[0] != size:  # counted again only when it grows
                self._refused[path] = size, len(_lines(path))
        return sum(rows for _, rows in self._refused.values())

    def close(self, patience: float = 5.0) -> None:
        """Close the segment and ship what there is, waiting at most `patience` seconds."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=patience)
        self._close_segment()
        self._not_before = 0.0
        until = time.monotonic() + patience
        while not self._threads[1].is_alive() and time.monotonic() < until:
            if self._lead():
                self._ship()
                break
            time.sleep(0.05)  # another worker ships; it may be leaving as well
        if self._connection is not None:
            self._connection.close()
        os.close(self._ship_lock)
        os.close(self._folder)

    def _again(self, step: Callable[[], None]) -> None:
        while not self._stop.wait(TICK_SECONDS):
            try:
                step()
            except Exception as fault:  # the log must outlive any single fault
                self.error = f"{type(fault).__name__}: {fault}"
                logger.exception("prediction log")

    def _flush(self) -> None:
        """Have on the disk what was answered; not in turn with shipping, which is slow."""
        if self._waiting_segments < MAX_WAITING_SEGMENTS or self._bytes > SEGMENT_BYTES:
            self._close_segment()
            return
        # Postgres is away, and one file each moment would be too many.
        with self._lock:
            if self._segment is None or self._bytes == self._flushed_bytes:
                return
            (descriptor, path), size = self._segment, self._bytes
            descriptor = os.dup(descriptor)
        try:
            flush(descriptor)
            flush(self._folder)
        finally:
            os.close(descriptor)
        with self._lock:
            if self._segment is not None and self._segment[1] == path:
                self._flushed_bytes = size

    def _ship_in_turn(self) -> None:
        if self._lead():
            self._ship()
        self._measure()

    def _open_segment(self) -> None:
        # By name they are in order of time, in which they are shipped.
        hidden = self.folder / f"{time.time_ns()}-{os.getpid()}-{uuid.uuid4().hex[:6]}.new"
        descriptor = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        # Locked before it gets the name that others look for: a lock that can be had means that
        # the owner is dead.
        path = hidden.with_suffix(".open")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            hidden.rename(path)
        except OSError:
            os.close(descriptor)
            raise
        self._segment = (descriptor, path)
        self._rows = self._bytes = self._flushed_bytes = 0

    def _close_segment(self) -> None:
        with self._lock:
            if self._segment is None or not self._rows:
                return
            (descriptor, path), rows = self._segment, self._rows
            self._segment = None
            self._spooled_bytes += self._bytes
            self._rows = self._bytes = self._flushed_bytes = 0
        # The lock is free again: requests do not wait for the disk. Until it has its new name the
        # segment's own lock keeps it from being taken for a dead worker's.
        try:
            flush(descriptor)
        finally:
            try:
                path.rename(path.with_name(f"{path.stem}-{rows}.ready"))
            finally:
                os.close(descriptor)  # its lock goes: whatever failed, it will be shipped
        flush(self._folder)  # a name, too, is on the disk only then

    def _measure(self) -> None:
        """Look at the spool; so requests are let in again while the rest of it is shipped."""
        size = waiting = 0
        written = 0.0
        with self._lock:
            own = self._segment[1] if self._segment else None
        for path in self.folder.iterdir():
            if path.suffix not in (".open", ".ready"):
                continue
            with suppress(FileNotFoundError):
                found = path.stat()
                written = max(written, found.st_mtime)
                waiting += path.suffix == ".ready"
                size += found.st_size if path != own else 0
        self._spooled_bytes, self._waiting_segments, self._written = size, waiting, written

    def _lead(self) -> bool:
        if not self._leads:
            self._leads = locked(self._ship_lock)
        return self._leads

    def _ship(self) -> None:
        if time.monotonic() < self._not_before:
            return
        try:
            batch: list[Path] = []
            size = 0
            for path in self._closed():
                batch.append(path)
                size += path.stat().st_size
                if size >= SHIP_BYTES:
                    self._ship_with_rests(batch)
                    batch, size = [], 0
            if batch:
                self._ship_with_rests(batch)
            self.error, self._delay = None, 0.0
        except (psycopg2.Error, OSError) as fault:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self.error is None:
                whose = "the disk" if isinstance(fault, OSError) else "Postgres"
                logger.warning("predictions wait on disk, %s does not take them: %s", whose, fault)
            self.error = str(fault).strip().splitlines()[0] if str(fault) else repr(fault)
            self._delay = min(max(0.5, self._delay * 2), 10.0)
            self._not_before = time.monotonic() + self._delay

    def _ship_with_rests(self, paths: list[Path]) -> None:
        """Ship, and leave the machine to the requests for a while, if any came meanwhile."""
        began = time.time()
        self._ship_segments(paths)
        took = time.time() - began
        self._measure()
        if self._written > began:
            rests = RESTS * max(0.0, 1 - 2 * self._spooled_bytes / self.max_bytes)
            self._stop.wait(rests * took)

    def _closed(self) -> Iterator[Path]:
        """Yield the segments that nobody writes any more, dead workers' ones among them."""
        for path in sorted(self.folder.iterdir()):
            if path.suffix == ".ready":
                yield path
            elif path.suffix in (".open", ".new"):
                try:
                    descriptor = os.open(path, os.O_RDONLY)
                except FileNotFoundError:
                    continue
                try:
                    # A .new one is locked a moment after it is made; young ones are left alone.
                    if path.suffix == ".new" and time.time() - path.stat().st_mtime < 60:
                        continue
                    if locked(descriptor) and path.exists():
                        rows = path.read_bytes().count(b"\n")
                        orphan = path.with_name(f"{path.stem}-{rows}.ready")
                        path.rename(orphan)
                        yield orphan
                except FileNotFoundError:
                    continue
                finally:
                    os.close(descriptor)

    def _ship_segments(self, paths: list[Path]) -> None:
        lines = [line for path in paths for written in _lines(path) for line in _as_rows(written)]
        refused = self._insert_all_but_refused(lines)
        # Only now: if Postgres goes away on the way, all lines come again.
        if refused:
            self._keep_aside(b"".join(line for line, _ in refused))
        for _, reason in refused:
            logger.error("a logged row is refused for good, kept aside: %s", reason)
        for path in paths:
            path.unlink(missing_ok=True)
        metrics.count_logged(len(lines) - len(refused), len(refused))

    def _insert_all_but_refused(self, lines: list[bytes]) -> list[tuple[bytes, psycopg2.Error]]:
        """Insert the lines; return those that Postgres refuses, found by halving."""
        try:
            self._insert(lines)
        except (psycopg2.DataError, psycopg2.IntegrityError) as fault:
            if len(lines) == 1:
                return [(lines[0], fault)]
            half = len(lines) // 2
            return self._insert_all_but_refused(lines[:half]) + self._insert_all_but_refused(
                lines[half:]
            )
        return []

    def _keep_aside(self, lines: bytes) -> None:
        """Append to `rejected/` all of the lines or none: what the disk refuses comes again."""
        # Not buffered: a buffer would be written once more when the file is closed.
        with (self.folder / "rejected" / "rows.tsv").open("ab", buffering=0) as rejected:
            size = rejected.seek(0, os.SEEK_END)
            try:
                view = memoryview(lines)
                while view:
                    view = view[os.write(rejected.fileno(), view) :]
            except OSError:
                os.ftruncate(rejected.fileno(), size)
                raise

    def _insert(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if self._connection is None:
            self._connection = self.connect()
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute(_INCOMING)
            cursor.copy_expert(
                f"COPY incoming ({COLUMNS}) FROM STDIN", io.BytesIO(b"".join(lines)), size=1 << 16
            )
            # No conflict target: naming one would need the right to read the table.
            cursor.execute(
                f"INSERT INTO serving.predictions ({COLUMNS}) SELECT {COLUMNS} FROM incoming"  # noqa: S608
                " ON CONFLICT DO NOTHING"
            )


_INCOMING = """
CREATE TEMPORARY TABLE IF NOT EXISTS incoming (
    request_id text, row integer, made_at timestamptz, period date, purpose text,
    model_version text, features jsonb, probability double precision, warnings integer
) ON COMMIT DELETE ROWS
"""


def format_lines(
    request_id: str,
    made_at: str,
    period: str,
    purpose: str,
    version: str,
    rows: Sequence[tuple[dict[str, Any], float, int]],
) -> bytes:
    """Return the lines of one request: each row's features, probability and number of warnings.

    The other values must hold no tab, line break or backslash, as request ids, dates and versions
    do not; JSON has no raw control characters, so that of it only backslashes are escaped.
    """
    before = f"{request_id}\t".encode()
    between = f"\t{made_at}\t{period}\t{purpose}\t{version}\t".encode()
    return b"".join(
        b"%b%d%b%b\t%r\t%d\n"
        % (
            before,
            number,
            between,
            orjson.dumps(features).replace(b"\\", b"\\\\"),
            probability,
            warnings,
        )
        for number, (features, probability, warnings) in enumerate(rows)
    )


def flush(descriptor: int) -> None:
    """Have the kernel write a file's content out to the disk."""
    # macOS has no fdatasync.
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _rows_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _lines(path: Path) -> list[bytes]:
    """Return the complete lines; half a line belongs to a row that was never answered."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _as_rows(line: bytes) -> list[bytes]:
    """Return a line as it is, or the rows of one that an earlier payload wrote: JSON, a request."""
    if not line.startswith(b"{"):  # as no request id does
        return [line]
    try:
        entry = orjson.loads(line)
        facts = {name: entry[name] for name in ("request_id", "made_at", "period", "purpose")}
        lines = format_lines(**facts, version=entry["version"], rows=entry["rows"])
        return lines.splitlines(keepends=True)
    except (ValueError, KeyError, TypeError):
        return [line]  # Postgres refuses it, and it is kept aside


def open_log(environment: dict[str, str]) -> PredictionLog | None:
    """Return the log that the environment asks for, or None if it names no database."""
    dsn = environment.get("PREDICT_LOG_DSN")
    password = environment.get("MLOPS_PREDICT_DB_PASSWORD")
    if not dsn and not password:
        logger.warning(
            "predictions are NOT logged: no PREDICT_LOG_DSN, no MLOPS_PREDICT_DB_PASSWORD"
        )
        return None
    state = environment.get("MLOPS_STATE_DIR")
    if not state:
        raise PayloadError("predictions are to be logged, but MLOPS_STATE_DIR (spool) is not set")
    arguments: dict[str, Any] = {"connect_timeout": 5, "application_name": "predict"}
    if dsn:
        arguments["dsn"] = dsn
    else:
        arguments.update(
            host=environment.get("MLOPS_POSTGRES_HOST", "127.0.0.1"),
            port=environment.get("MLOPS_POSTGRES_PORT", "15432"),
            sslmode=environment.get("MLOPS_POSTGRES_SSLMODE", "prefer"),
            dbname="mlops",
            user="predict",
            password=password,
        )
    limit = int(float(environment.get("MLOPS_SPOOL_MAX_MB", "1024")) * 1024 * 1024)
    return PredictionLog(
        Path(state) / "spool", lambda: psycopg2.connect(**arguments), max_bytes=limit
    )
