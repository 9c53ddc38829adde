"""The predict API: answers questions to one ONNX model, and logs each answer before it is sent.

Self-contained: it is copied into every payload, runs from there under gunicorn (gunicorn.conf.py)
on flask, numpy, onnxruntime, orjson and psycopg2 alone, and knows the model only through
`model.json` and `model.onnx` beside it. It never unpickles, never trains, and never writes into its
payload.

- A `Model` is loaded and tried before it answers anybody; `Service` swaps one reference.
- A `PredictionLog` appends every answer to a spool on disk before it is sent, and ships the spool
  to Postgres. What cannot be logged is refused with 503: the monitor misses no answer.
- Every fault of a caller is a 4xx whose JSON names the field and the row.

Environment: MLOPS_PREDICT_DB_PASSWORD with MLOPS_POSTGRES_{HOST,PORT,SSLMODE}, or
PREDICT_LOG_DSN, name the log's database (neither: answers are not logged, and /health says so);
MLOPS_STATE_DIR holds the spool; MLOPS_SPOOL_MAX_MB bounds it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import psycopg2
import psycopg2.extras
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

MAX_RECORDS = 10_000
MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_TEXT = 256  # characters of a category; longer is no category but a mistake
DRAIN_BYTES = 64 * 1024 * 1024  # read, so that the caller sees the 413 and not a broken pipe
WATCH_SECONDS = 0.25
RETRY_SECONDS = 5.0
CHECK_SECONDS = 60.0
SHIP_SECONDS = 0.2
SHIP_ROWS = 5_000
MAX_WAITING_SEGMENTS = 20
SEGMENT_BYTES = 4 * 1024 * 1024
FLOAT32_MAX = float(np.finfo(np.float32).max)
PURPOSES = ("live", "simulation", "test")
CODE_FILES = ("predict.py", "gunicorn.conf.py")

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_PERIOD = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")

logger = logging.getLogger("predict")


class RequestError(Exception):
    """A request that cannot be answered; becomes the JSON error of the contract."""

    def __init__(
        self,
        code: str,
        message: str,
        status: int = 422,
        field: str | None = None,
        row: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status
        self.field, self.row, self.retry_after = field, row, retry_after


class PayloadError(Exception):
    """A payload that must not answer."""


class LogUnavailable(Exception):
    """The spool cannot take another answer."""


# --- The model ------------------------------------------------------------------------------------


class Input:
    """One field of a record: what it may hold, and what it is when it is missing."""

    def __init__(self, spec: dict[str, Any], markers: list[str]) -> None:
        self.name: str = spec["name"]
        self.is_number = spec["kind"] == "number"
        self.required: bool = spec.get("required", True)
        self.integer: bool = spec.get("integer", False)
        self.warns: bool = spec.get("warn", True)
        self.low, self.high = spec.get("min"), spec.get("max")
        self.values = frozenset(spec.get("values", ()))
        # Texts that mean missing; for a number also the numbers that they write ("-1" and -1).
        self.missing_texts = frozenset(map(str, [*markers, *spec.get("missing", [])]))
        self.missing_numbers = (
            frozenset(map(float, filter(_NUMBER.fullmatch, self.missing_texts)))
            if self.is_number
            else frozenset()
        )

    def read(self, value: Any, row: int) -> float | int | str | None:
        """Return the value as the model takes it, None if missing; raises RequestError."""
        if value is None:
            return None
        if isinstance(value, str):
            if value in self.missing_texts or (not value and not self.is_number):
                return None
            if not self.is_number:
                return self._text(value, row)
        if not self.is_number:
            raise self._wrong_type(value, row, "a string")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong_type(value, row, "a whole number" if self.integer else "a number")
        if abs(value) > FLOAT32_MAX:
            raise RequestError(
                "out_of_range",
                f"row {row}: {self.name} is {value:g}, beyond what a float32 holds",
                field=self.name,
                row=row,
            )
        if value in self.missing_numbers:
            return None
        if self.integer and not float(value).is_integer():
            raise self._wrong_type(value, row, "a whole number")
        return value

    def warn(self, value: float | int | str) -> str | None:
        """Return what is unusual about a value that is answered all the same, or None."""
        if not self.warns:
            return None
        if isinstance(value, str):
            if value not in self.values:
                return f"{self.name} was never {_shown(value)} in training"
        elif self.low is not None and self.high is not None and not self.low <= value <= self.high:
            return (
                f"{self.name} lay between {self.low:g} and {self.high:g} in training, not {value:g}"
            )
        return None

    def _text(self, value: str, row: int) -> str:
        if len(value) > MAX_TEXT:
            raise RequestError(
                "too_long",
                f"row {row}: {self.name} has {len(value)} characters, at most {MAX_TEXT} are read",
                field=self.name,
                row=row,
            )
        if "\x00" in value:
            raise RequestError(
                "wrong_type",
                f"row {row}: {self.name} holds a NUL character, expected text",
                field=self.name,
                row=row,
            )
        return value

    def _wrong_type(self, value: Any, row: int, expected: str) -> RequestError:
        return RequestError(
            "wrong_type",
            f"row {row}: {self.name} is {_shown(value)}, expected {expected} or null",
            field=self.name,
            row=row,
        )


class Model:
    """One payload, loaded and tried: card, ONNX session and the digest of the code beside it."""

    def __init__(self, folder: Path) -> None:
        """Load `folder`; raises PayloadError, naming what is wrong, if it must not answer."""
        self.folder = folder
        try:
            self.card_json = (folder / "model.json").read_bytes()
            self.card: dict[str, Any] = orjson.loads(self.card_json)
            self.version = str(self.card["version"])
            self.threshold = float(self.card["threshold"])
            self.decisions = (
                str(self.card["target"]["negative"]),
                str(self.card["target"]["positive"]),
            )
            markers = self.card.get("missing", [])  # in any field; a field's own stand with it
            self.inputs = [Input(spec, markers) for spec in self.card["inputs"]]
            self.names = frozenset(each.name for each in self.inputs)
            self.code = code_digest(folder)
            ort.disable_telemetry_events()
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            self.session = ort.InferenceSession(
                (folder / "model.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
            )
            self.output: str = self.card["onnx"]["output"]
            self._try()
        except PayloadError:
            raise
        except Exception as fault:  # whatever is wrong with a payload, the old one goes on
            raise PayloadError(f"{type(fault).__name__}: {fault}") from fault

    def _try(self) -> None:
        declared = self.card["onnx"]["inputs"]
        found = {
            each.name: "string" if each.type == "tensor(string)" else "float32"
            for each in self.session.get_inputs()
        }
        if found != declared or set(found) != self.names:
            raise PayloadError(f"model.onnx takes {found}, model.json says {declared}")
        record, _ = self.read(self.card["reference"], 0)
        for _ in range(2):
            probability = self.score([record])[0]
            if not 0.0 <= probability <= 1.0:
                raise PayloadError(f"the reference record scored {probability}, no probability")

    def read(
        self, record: Any, row: int
    ) -> tuple[dict[str, float | int | str | None], list[dict[str, Any]]]:
        """Return the record as the model takes it and its warnings; raises RequestError."""
        if not isinstance(record, dict):
            raise RequestError(
                "wrong_type",
                f"row {row} is {_shown(record)}, expected an object of fields and values",
                row=row,
            )
        values: dict[str, float | int | str | None] = {}
        warnings = []
        for each in self.inputs:
            if each.name in record:
                value = each.read(record[each.name], row)
            elif each.required:
                raise RequestError(
                    "missing_field",
                    f"row {row}: {each.name} is missing (null says that its value is unknown)",
                    field=each.name,
                    row=row,
                )
            else:
                value = None
            values[each.name] = value
            if value is not None and (unusual := each.warn(value)):
                warnings.append({"field": each.name, "value": value, "message": unusual})
        if len(record) > len(self.names) or not self.names.issuperset(record):
            extra = next(name for name in record if name not in self.names)
            raise RequestError(
                "unknown_field",
                f"row {row}: {_shown(extra)} is no field of {self.card['model']};"
                f" its fields are {', '.join(each.name for each in self.inputs)}",
                field=extra[:MAX_TEXT],
                row=row,
            )
        return values, warnings

    def score(self, records: list[dict[str, float | int | str | None]]) -> list[float]:
        """Return P(positive) of each record, as the double of the float32 that ONNX gives."""
        feeds = {}
        for each in self.inputs:
            column = [record[each.name] for record in records]
            if each.is_number:
                numbers = [math.nan if value is None else value for value in column]
                feeds[each.name] = np.array(numbers, dtype=np.float32).reshape(-1, 1)
            else:
                texts = ["" if value is None else value for value in column]
                feeds[each.name] = np.array(texts, dtype=object).reshape(-1, 1)
        scores = self.session.run([self.output], feeds)[0]
        return np.asarray(scores[:, 1], dtype=np.float64).tolist()


def code_digest(folder: Path) -> str:
    """Return a digest of the code of a payload; another digest asks for new workers."""
    digest = hashlib.sha256()
    for name in CODE_FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _shown(value: Any) -> str:
    """Return a value in few characters, fit for a message."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- The log of predictions -----------------------------------------------------------------------


class PredictionLog:
    """Answers on their way to Postgres; on disk before they are sent, gone only when committed.

    Each worker appends to a segment of its own (`*.open`, held by a file lock as long as its worker
    lives), closed a moment later under a name that tells its rows (`*-<rows>.ready`). One worker of
    all that share the spool, whoever holds `ship.lock`, ships: closed segments and those whose
    worker is dead. A line is one request, so a repeat after a crash meets its own primary key and
    does nothing. The lines survive the kill of a worker, not the loss of power: there is no fsync.
    """

    def __init__(self, folder: Path, connect: Callable[[], Any], max_bytes: int) -> None:
        self.folder, self.connect, self.max_bytes = folder, connect, max_bytes
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "rejected").mkdir(exist_ok=True)
        self.error: str | None = None
        self._lock = threading.Lock()
        self._segment: tuple[int, Path] | None = None
        self._rows = self._bytes = 0
        self._spooled_bytes = self._waiting_segments = 0
        self._ship_lock = os.open(self.folder / "ship.lock", os.O_CREAT | os.O_RDWR, 0o600)
        self._leads = False
        self._connection: Any = None
        self._not_before = 0.0
        self._delay = 0.0
        self._stop = threading.Event()
        self._measure()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def append(self, entry: dict[str, Any]) -> None:
        """Put one request's answers on disk; raises LogUnavailable if there is no room."""
        line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
        with self._lock:
            if self._spooled_bytes + self._bytes + len(line) > self.max_bytes:
                raise LogUnavailable(
                    f"the spool holds {self._spooled_bytes / 2**20:.1f} MB that Postgres has not"
                    f" taken yet, its limit is {self.max_bytes / 2**20:.1f} MB"
                )
            try:
                if self._segment is None:
                    self._open_segment()
                assert self._segment is not None
                descriptor, _ = self._segment
                view = memoryview(line)
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError as fault:
                self._undo_half_line()
                raise LogUnavailable(f"the spool cannot be written: {fault}") from fault
            self._bytes += len(line)
            self._rows += len(entry["rows"])

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
            self._rows = self._bytes = 0
            with suppress(OSError):
                os.close(descriptor)  # its lock goes, as if its worker were dead

    def pending(self) -> int:
        """Return the number of answered rows that are not in Postgres yet."""
        with self._lock:
            own = self._segment[1] if self._segment else None
            rows = self._rows
        for path in self.folder.iterdir():
            if path.suffix == ".ready":
                rows += _rows_of(path)
            elif path.suffix == ".open" and path != own:
                try:
                    rows += sum(len(orjson.loads(line)["rows"]) for line in _lines(path))
                except (FileNotFoundError, orjson.JSONDecodeError):
                    continue  # closed or shipped meanwhile
        return rows

    def rejected(self) -> int:
        """Return the number of requests that Postgres refused for good, kept in `rejected/`."""
        return sum(1 for path in (self.folder / "rejected").iterdir() for _ in _lines(path))

    def close(self, patience: float = 5.0) -> None:
        """Close the segment and ship what there is, waiting at most `patience` seconds."""
        self._stop.set()
        self._thread.join(timeout=patience)
        self._close_segment()
        self._not_before = 0.0
        until = time.monotonic() + patience
        while not self._thread.is_alive() and time.monotonic() < until:
            if self._lead():
                self._ship()
                break
            time.sleep(0.05)  # another worker ships; it may be leaving as well
        if self._connection is not None:
            self._connection.close()
        os.close(self._ship_lock)

    def _run(self) -> None:
        while not self._stop.wait(SHIP_SECONDS):
            try:
                if self._waiting_segments < MAX_WAITING_SEGMENTS or self._bytes > SEGMENT_BYTES:
                    self._close_segment()
                if self._lead():
                    self._ship()
                self._measure()
            except Exception as fault:  # the log must outlive any single fault
                self.error = f"{type(fault).__name__}: {fault}"
                logger.exception("prediction log")

    def _open_segment(self) -> None:
        hidden = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}.new"
        descriptor = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        # Locked before it gets the name that others look for: a lock that can be had means that
        # the owner is dead.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path = hidden.with_suffix(".open")
        hidden.rename(path)
        self._segment = (descriptor, path)
        self._rows = self._bytes = 0

    def _close_segment(self) -> None:
        with self._lock:
            if self._segment is None or not self._rows:
                return
            descriptor, path = self._segment
            path.rename(path.with_name(f"{path.stem}-{self._rows}.ready"))
            os.close(descriptor)
            self._segment = None
            self._spooled_bytes += self._bytes
            self._rows = self._bytes = 0

    def _measure(self) -> None:
        size = waiting = 0
        with self._lock:
            own = self._segment[1] if self._segment else None
        for path in self.folder.iterdir():
            try:
                if path.is_file() and path != own:
                    size += path.stat().st_size
                    waiting += path.suffix == ".ready"
            except FileNotFoundError:
                continue
        self._spooled_bytes, self._waiting_segments = size, waiting

    def _lead(self) -> bool:
        if not self._leads:
            self._leads = _locked(self._ship_lock)
        return self._leads

    def _ship(self) -> None:
        if time.monotonic() < self._not_before:
            return
        try:
            batch: list[Path] = []
            rows = 0
            for path in self._closed():
                batch.append(path)
                rows += _rows_of(path)
                if rows >= SHIP_ROWS:
                    self._ship_segments(batch)
                    batch, rows = [], 0
            if batch:
                self._ship_segments(batch)
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
                    if _locked(descriptor) and path.exists():
                        rows = sum(line.count(b'"request_id"') for line in _lines(path))
                        orphan = path.with_name(f"{path.stem}-{rows}.ready")
                        path.rename(orphan)
                        yield orphan
                except FileNotFoundError:
                    continue
                finally:
                    os.close(descriptor)

    def _ship_segments(self, paths: list[Path]) -> None:
        lines = [line for path in paths for line in _lines(path)]
        try:
            self._insert(lines)
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError, KeyError):
            refused = []
            for line in lines:
                try:
                    self._insert([line])
                except (psycopg2.DataError, psycopg2.IntegrityError, ValueError, KeyError) as fault:
                    refused.append((line, fault))
            # Only now: if Postgres goes away on the way, all lines come again.
            if refused:
                self._keep_aside(b"".join(line for line, _ in refused))
            for _, reason in refused:
                logger.error("a logged request is refused for good, kept aside: %s", reason)
        for path in paths:
            path.unlink(missing_ok=True)

    def _keep_aside(self, lines: bytes) -> None:
        """Append to `rejected/` all of the lines or none: what the disk refuses comes again."""
        # Not buffered: a buffer would be written once more when the file is closed.
        with (self.folder / "rejected" / "requests.jsonl").open("ab", buffering=0) as rejected:
            size = rejected.seek(0, os.SEEK_END)
            try:
                view = memoryview(lines)
                while view:
                    view = view[os.write(rejected.fileno(), view) :]
            except OSError:
                os.ftruncate(rejected.fileno(), size)
                raise

    def _insert(self, lines: list[bytes]) -> None:
        rows = []
        for line in lines:
            entry = orjson.loads(line)
            for number, (features, probability, warnings) in enumerate(entry["rows"]):
                rows.append(
                    (
                        entry["request_id"],
                        number,
                        entry["made_at"],
                        entry["period"],
                        entry["purpose"],
                        entry["version"],
                        orjson.dumps(features).decode(),
                        probability,
                        warnings,
                    )
                )
        if not rows:
            return
        if self._connection is None:
            self._connection = self.connect()
        with self._connection, self._connection.cursor() as cursor:
            # No conflict target: naming one would need the right to read the table.
            psycopg2.extras.execute_values(
                cursor,
                "INSERT INTO serving.predictions (request_id, row, made_at, period, purpose,"
                " model_version, features, probability, warnings) VALUES %s ON CONFLICT DO NOTHING",
                rows,
                template="(%s, %s, %s, %s, %s, %s, %s::jsonb, %s, %s)",
                page_size=1000,
            )


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _rows_of(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _lines(path: Path) -> list[bytes]:
    """Return the complete lines; half a line belongs to a request that was never answered."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


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


# --- The service ----------------------------------------------------------------------------------


class Service:
    """What one worker holds: the model that answers, the log, and the watch over the link."""

    def __init__(self, link: Path, environment: dict[str, str]) -> None:
        self.link = link
        self.environment = environment
        self.model: Model | None = None
        self.load_error: str | None = None
        self.log: PredictionLog | None = None
        self.workers = 1
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self._seen: tuple[Any, ...] | None = None
        self._retry_at = 0.0
        self._last_good: Callable[[Path], None] = lambda folder: None
        self._own_code = code_digest(Path(__file__).resolve().parent)
        self._reload_lock: int | None = None

    def load(self) -> None:
        """Load the payload that the link names; raises PayloadError."""
        self._seen = self._look()
        self.model = Model(self.link.resolve(strict=True))
        self._last_good(self.model.folder)

    def start(self, workers: int = 1, fallback: Path | None = None, last_good: Any = None) -> None:
        """Start logging and watching. A worker that finds a broken payload takes the `fallback`."""
        self.workers = workers
        self._last_good = last_good or self._last_good
        try:
            self.load()
        except (PayloadError, OSError) as fault:
            if fallback is None or not self.link.is_symlink():
                raise
            self._failed(fault)
            self.model = Model(fallback)
        self.log = open_log(self.environment)
        if self.link.is_symlink():
            self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
            self._watcher.start()

    def stop(self) -> None:
        """Stop watching, and ship what is in the log."""
        self._stop.set()
        if self.log is not None:
            self.log.close()

    def _look(self) -> tuple[Any, ...] | None:
        """Return what tells one payload from another, a replaced one of the same name included."""
        try:
            stat = (self.link / "model.json").stat()
            target = str(self.link.readlink() if self.link.is_symlink() else self.link)
        except OSError:
            return None
        return (target, stat.st_ino, stat.st_mtime_ns)

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_SECONDS):
            seen = self._look()
            retry = self.load_error is not None and time.monotonic() >= self._retry_at
            if seen == self._seen and not retry:
                continue
            self._seen = seen
            try:
                self._take(self.link.resolve(strict=True))
                self.load_error = None
            except Exception as fault:  # the old model goes on answering, whatever it was
                self._failed(fault)

    def _take(self, folder: Path) -> None:
        new = Model(folder)
        if new.code != self._own_code:
            self._ask_for_new_workers(folder)
            return
        old, self.model = self.model, new
        self._last_good(folder)
        logger.info("version %s answers, it was %s", new.version, old.version if old else None)

    def _ask_for_new_workers(self, folder: Path) -> None:
        """Have gunicorn replace its workers, once the new code has proved that it runs."""
        check = subprocess.run(
            [sys.executable, "-B", str(folder / "predict.py")],
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
        if check.returncode != 0:
            last = (check.stderr.strip().splitlines() or ["no message"])[-1]
            raise PayloadError(f"its predict.py does not run: {last}")
        # One of the workers asks, whoever has the lock: a second SIGHUP would replace the new
        # workers at once. The lock goes when this worker goes.
        if self._reload_lock is not None:
            os.close(self._reload_lock)
        self._reload_lock = os.open(folder / "predict.py", os.O_RDONLY)
        if _locked(self._reload_lock):
            logger.info("%s brings new code: reloading gunicorn", folder.name)
            os.kill(os.getppid(), signal.SIGHUP)

    def _failed(self, fault: Exception) -> None:
        name = (self.link.readlink() if self.link.is_symlink() else self.link).name
        error = f"{name}: {fault}"
        if error != self.load_error:
            logger.error("payload %s cannot be loaded, the old one goes on", error)
        self.load_error = error
        self._retry_at = time.monotonic() + RETRY_SECONDS

    # What the routes answer

    def health(self) -> dict[str, Any]:
        log: dict[str, Any] = {"enabled": self.log is not None, "pending": 0}
        if self.log is not None:
            log |= {
                "pending": self.log.pending(),
                "rejected": self.log.rejected(),
                "error": self.log.error,
            }
        return {
            "status": "ok" if self.load_error is None else "degraded",
            "version": self._model().version,
            "pid": os.getpid(),
            "workers": self.workers,
            "load_error": self.load_error,
            "log": log,
        }

    def predict(self) -> dict[str, Any]:
        model = self._model()  # one reference for the whole request: a swap does not touch it
        request_id, period, purpose = _headers()
        body = _read_json()
        records = body if isinstance(body, list) else [body]
        if not records:
            raise RequestError("empty", "the list holds no record, expected 1 to 10,000")
        if len(records) > MAX_RECORDS:
            raise RequestError(
                "too_many_records",
                f"the list holds {len(records)} records, expected 1 to {MAX_RECORDS}",
                status=413,
            )
        read = [model.read(record, row) for row, record in enumerate(records)]
        probabilities = model.score([record for record, _ in read])
        if self.log is not None:
            try:
                self.log.append(
                    {
                        "request_id": request_id,
                        "made_at": datetime.now(timezone.utc).isoformat(),
                        "period": period,
                        "purpose": purpose,
                        "version": model.version,
                        "rows": [
                            (record, probability, len(warnings))
                            for (record, warnings), probability in zip(
                                read, probabilities, strict=True
                            )
                        ],
                    }
                )
            except LogUnavailable as fault:
                # The one answer in 5xx: unlogged predictions would blind the monitor.
                raise RequestError(
                    "log_unavailable", f"not answered: {fault}", status=503, retry_after=10
                ) from fault
        return {
            "request_id": request_id,
            "version": model.version,
            "predictions": [
                {
                    "probability": probability,
                    "decision": model.decisions[probability >= model.threshold],
                    "warnings": warnings,
                }
                for (_, warnings), probability in zip(read, probabilities, strict=True)
            ],
        }

    def _model(self) -> Model:
        assert self.model is not None, "start() loads a model or raises"
        return self.model

    def card(self) -> bytes:
        return self._model().card_json


def _headers() -> tuple[str, str, str]:
    """Return request id, first day of the period and purpose; raises RequestError."""
    request_id = request.headers.get("X-Request-Id")
    if request_id is None:
        request_id = uuid.uuid4().hex
    elif not _REQUEST_ID.fullmatch(request_id):
        raise RequestError(
            "wrong_header",
            "X-Request-Id takes 1 to 128 letters, digits, '.', '_', ':' and '-'",
            status=400,
            field="X-Request-Id",
        )
    period = request.headers.get("X-Period")
    if period is None:
        first_day = datetime.now(timezone.utc).date().replace(day=1)
    else:
        match = _PERIOD.fullmatch(period)
        if not match or not match[0].isascii() or match[1] == "0000":
            raise RequestError(
                "wrong_header",
                f"X-Period is {_shown(period)}, expected a month such as 2009-03",
                status=400,
                field="X-Period",
            )
        first_day = date(int(match[1]), int(match[2]), 1)
    purpose = request.headers.get("X-Purpose", "live")
    if purpose not in PURPOSES:
        raise RequestError(
            "wrong_header",
            f"X-Purpose is {_shown(purpose)}, expected one of {', '.join(PURPOSES)}",
            status=400,
            field="X-Purpose",
        )
    return request_id, first_day.isoformat(), purpose


def _read_json() -> Any:
    """Return the parsed body; raises RequestError for anything but JSON of at most 10 MB."""
    body = _read_body()
    if request.mimetype != "application/json":
        raise RequestError(
            "wrong_content_type",
            f"Content-Type is {_shown(request.mimetype)}, expected application/json",
            status=415,
        )
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise RequestError("wrong_encoding", "Content-Encoding is not read here", status=415)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as fault:
        raise RequestError("wrong_json", f"the body is no JSON: {fault}", status=400) from fault


def _read_body() -> bytes:
    stream = request.environ["wsgi.input"]
    length = request.content_length
    if length is None and not request.environ.get("wsgi.input_terminated"):
        return b""
    chunks: list[bytes] = []
    size = 0
    try:
        while length is None or size < length:
            chunk = stream.read(min(65536, length - size) if length is not None else 65536)
            if not chunk:
                break
            size += len(chunk)
            if size <= MAX_BODY_BYTES:
                chunks.append(chunk)
            elif size > DRAIN_BYTES:
                break
    except Exception as fault:  # a broken chunk or a caller that went away
        raise RequestError("unreadable_body", f"the body broke off: {fault}", status=400) from fault
    if size > MAX_BODY_BYTES:
        raise RequestError(
            "body_too_large", f"the body is over {MAX_BODY_BYTES >> 20} MB: send less", status=413
        )
    return b"".join(chunks)


def _json(body: Any, status: int = 200) -> Response:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return Response(content, status=status, mimetype="application/json")


def _error(
    status: int, code: str, message: str, field: str | None = None, row: int | None = None
) -> Response:
    return _json(
        {"error": {"code": code, "field": field, "row": row, "message": message}}, status=status
    )


def create_app(service: Service) -> Flask:
    """Return the Flask app that answers for `service`."""
    app = Flask("predict", static_folder=None)

    @app.get("/health")
    def health() -> Response:
        return _json(service.health())

    @app.get("/model")
    def model() -> Response:
        return _json(service.card())

    @app.post("/predict")
    def predict() -> Response:
        return _json(service.predict())

    @app.errorhandler(RequestError)
    def refused(fault: RequestError) -> Response:
        response = _error(fault.status, fault.code, fault.message, fault.field, fault.row)
        if fault.retry_after is not None:
            response.headers["Retry-After"] = str(fault.retry_after)
        return response

    @app.errorhandler(HTTPException)
    def http_error(fault: HTTPException) -> Response:
        code = fault.name.lower().replace(" ", "_")
        response = _error(
            fault.code or 400, code, f"{request.method} {request.path[:200]}: {fault.name}"
        )
        for name, value in fault.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def bug(fault: Exception) -> Response:
        logger.exception("unexpected fault")
        return _error(500, "internal", "a fault of this server; its log has the details")

    @app.after_request
    def secure(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    return app


# gunicorn runs `app`; its configuration starts and stops `service` in each worker.
service = Service(
    Path(os.environ.get("PREDICT_PAYLOAD") or Path(__file__).absolute().parent), dict(os.environ)
)
app = create_app(service)


def check() -> str:
    """Prove over its own API that this payload runs; return its version, raise if it does not."""
    here = Path(__file__).resolve().parent
    runpy.run_path(str(here / "gunicorn.conf.py"))
    trial = Service(here, {})
    trial.load()
    client = create_app(trial).test_client()
    reference = orjson.dumps(trial._model().card["reference"])
    answer = client.post("/predict", data=reference, content_type="application/json")
    health = client.get("/health")
    if answer.status_code != 200 or health.status_code != 200:
        raise PayloadError(f"it answers {answer.status_code} to its own reference: {answer.text}")
    return trial._model().version


if __name__ == "__main__":
    print(f"version {check()} runs")
