"""Score a file of rows: read, checked, scored, logged and written in blocks, never as a whole.

A block (4,096 rows) goes through all steps in one thread; as many blocks are under way as there are
cores, and the answer takes them in their order. Almost all of the time is spent in ONNX Runtime and
Arrow, which let other threads run, so that single requests are answered meanwhile. What is measured
(see docs/performance.md): nine tenths of the scoring are the trees, whose time depends on how well
the processor guesses their branches: rows that are alike, one after the other, take a fifth less.
So a block is scored in the order of its values, and put back. The session is the one that answers
single requests. Trees score a row the same whatever stands around it; of a model that multiplies
matrices (logistic regression, SVC, MLP) the last bit of the float32 depends on the number of rows,
here as in the lists of /predict.

Rows are in the log before they are in the answer. While the log is full a batch waits; it leaves
room for single requests.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from predictor import metrics
from predictor.columns import Column
from predictor.errors import LogUnavailable, RequestError
from predictor.model import Model
from predictor.prediction_log import PredictionLog
from predictor.tables import Block, BrokenFile, Fault, Scored, Table, joined, texts_of

THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
LOG_PATIENCE_SECONDS = 60.0
LOG_POLL_SECONDS = 0.05
LOG_PIECE_BYTES = 256 * 1024
LOG_SHARE = 0.75
"""Of the spool; what a batch leaves is for single requests, which cannot wait."""
MAX_REJECTED_BYTES = 256 * 1024 * 1024
RETRY_SECONDS = 10


@dataclass(frozen=True)
class Request:
    """What was asked for a file as a whole."""

    request_id: str
    made_at: str
    period: str
    purpose: str


@dataclass
class _Done:
    written: Any
    logged: pa.Array
    kept: int
    rows: int
    faults: list[Fault]
    unusual: dict[tuple[str, str], int]


class Batch:
    """One file on its way through a model."""

    def __init__(
        self, model: Model, table: Table, request: Request, log: PredictionLog | None
    ) -> None:
        self.model, self.table, self.request, self.log = model, table, request, log
        self.rows = self.scored = self.rejected = 0
        self._fragments = _Fragments(model, request)

    def summary(self) -> dict[str, Any]:
        """Return the last part of the answer."""
        return {
            "request_id": self.request.request_id,
            "version": self.model.version,
            "rows": self.rows,
            "scored": self.scored,
            "rejected": self.rejected,
        }

    def predictions(self, rejected: BinaryIO) -> Iterator[bytes]:
        """Yield the scored file; lines of rejected rows are written into `rejected`.

        Raises BrokenFile if the file cannot be read on, LogUnavailable if nothing can be logged.
        """
        # Arrow's own allocators keep what threads have freed: 50 MB more for the same file.
        pa.set_memory_pool(pa.system_memory_pool())
        yield self.table.start()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="batch") as pool:
            under_way: deque[Future[_Done]] = deque()
            try:
                for block in self.table.blocks():
                    under_way.append(pool.submit(self._do, block))
                    if len(under_way) > THREADS:
                        yield from self._take(under_way.popleft().result(), rejected)
                while under_way:
                    yield from self._take(under_way.popleft().result(), rejected)
            finally:
                for each in under_way:
                    each.cancel()
        yield self.table.end()

    def _take(self, done: _Done, rejected: BinaryIO) -> Iterator[bytes]:
        if self.log is not None and done.kept:
            append_patiently(self.log, done.logged)
        self.rows += done.rows
        self.scored += done.kept
        self.rejected += len(done.faults)
        for (field, kind), n in done.unusual.items():
            metrics.count_unusual(field, kind, n)
        if done.faults:
            rejected.write(
                b"".join(
                    orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in done.faults
                )
            )
            if rejected.tell() > MAX_REJECTED_BYTES:
                raise BrokenFile(
                    "too_many_rejected",
                    f"{self.rejected} of {self.rows} rows cannot be scored: is it the right file?"
                    f" The last one: {done.faults[-1].message}",
                )
        content = self.table.emit(done.written)
        if content:
            yield content

    def _do(self, block: Block) -> _Done:
        """Return all that a block becomes; runs beside other blocks."""
        inputs = self.model.inputs
        columns = block.columns(inputs)
        good = np.ones(len(block.lines), bool)
        for column in columns:
            if not column.good.all():
                good &= column.good[column.codes]
        kept = np.flatnonzero(good)
        faults = block.faults + [self._fault(block, place) for place in np.flatnonzero(~good)]
        faults.sort(key=lambda fault: fault.line)
        codes = [column.codes if good.all() else column.codes[kept] for column in columns]
        warnings = np.zeros(len(kept), np.int64)
        unusual: dict[tuple[str, str], int] = {}
        for each, column, places in zip(inputs, columns, codes, strict=True):
            if column.unusual.any():
                found = column.unusual[places]
                warnings += found
                unusual[each.name, each.unusual_kind] = int(found.sum())
            if column.missing.any():
                unusual[each.name, "missing"] = int(column.missing[places].sum())
        probabilities = pa.array(score(self.model, columns, codes))
        scored = Scored(kept, probabilities, self._decisions(probabilities), warnings)
        logged = pa.array([], pa.string())
        if self.log is not None:
            logged = self._fragments.lines(block.numbers[kept], columns, codes, scored)
        return _Done(
            block.write(scored), logged, len(kept), block.rows, faults,
            {key: n for key, n in unusual.items() if n},
        )  # fmt: skip

    def _decisions(self, probabilities: pa.Array) -> np.ndarray:
        return (probabilities.to_numpy() >= self.model.threshold).astype(np.int64)

    def _fault(self, block: Block, place: np.integer[Any]) -> Fault:
        """Return why a row is not scored, in the words of /predict."""
        line = int(block.lines[place])
        try:
            self.model.read(block.record(int(place)), line)
        except RequestError as fault:
            message = (
                fault.message.replace("row", "line", 1) if _in_lines(self.table) else fault.message
            )
            return Fault(line, fault.field, fault.code, message)
        raise AssertionError(f"row {line} was taken for a wrong one")


def _in_lines(table: Table) -> bool:
    return table.content_type.startswith(("text/", "application/x-ndjson"))


def score(model: Model, columns: list[Column], codes: list[np.ndarray]) -> np.ndarray:
    """Return P(positive) of each row, as doubles of the float32 that ONNX gives.

    `codes` are the rows' places in the tables of `columns`.
    """
    rows = len(codes[0])
    if not rows:
        return np.empty(0)
    order = _alike(columns, codes)
    feeds = {
        each.name: column.values[places[order]].reshape(-1, 1)
        for each, column, places in zip(model.inputs, columns, codes, strict=True)
    }
    found = model.session.run([model.output], feeds)[0][:, 1]
    scores = np.empty(rows, np.float64)
    scores[order] = found
    return scores


def _alike(columns: list[Column], codes: list[np.ndarray]) -> np.ndarray:
    """Return an order of rows that puts those together which are alike in few-valued columns."""
    key = np.zeros(len(codes[0]), np.uint64)
    size = 1
    for column, places in sorted(
        zip(columns, codes, strict=True), key=lambda pair: len(pair[0].values)
    ):
        size *= len(column.values)
        if size >= 2**63:
            break
        key = key * np.uint64(len(column.values)) + places.astype(np.uint64)
    return np.argsort(key, kind="stable")


class _Fragments:
    """Makes lines of the prediction log (see `PredictionLog`) from columns."""

    def __init__(self, model: Model, request: Request) -> None:
        self._request_id = f"{request.request_id}\t"
        facts = (request.made_at, request.period, request.purpose, model.version)
        between = "\t".join(["", *facts, ""])
        self._before = [
            (f"{between}{{" if place == 0 else ",")
            + _copied(f"{orjson.dumps(each.name).decode()}:")
            for place, each in enumerate(model.inputs)
        ]
        self._warnings = pa.array([f"\t{n}\n" for n in range(len(model.inputs) + 1)], pa.string())

    def lines(
        self, numbers: np.ndarray, columns: list[Column], codes: list[np.ndarray], scored: Scored
    ) -> pa.Array:
        """Return the line of each row."""
        values = [
            pc.binary_join_element_wise(before, _escaped(column.logged), "").take(pa.array(places))
            for before, column, places in zip(self._before, columns, codes, strict=True)
        ]
        return pc.binary_join_element_wise(
            self._request_id,
            texts_of(numbers),
            *values,
            "}\t",
            texts_of(scored.probabilities),
            self._warnings.take(pa.array(scored.warnings)),
            "",
        )


def _copied(text: str) -> str:
    return text.replace("\\", "\\\\")


def _escaped(texts: pa.Array) -> pa.Array:
    # JSON has no raw tabs and line breaks.
    return pc.replace_substring(texts, "\\", "\\\\")


def append_patiently(log: PredictionLog, lines: pa.Array) -> None:
    """Put lines into the log, waiting for room; raises LogUnavailable if there is none for long."""
    mean = max(1, len(joined(lines[:64])) // min(64, len(lines)))
    step = max(1, LOG_PIECE_BYTES // mean)
    for start in range(0, len(lines), step):
        piece = lines[start : start + step]
        content = joined(piece)
        until = time.monotonic() + LOG_PATIENCE_SECONDS
        while True:
            try:
                log.append(content, len(piece), LOG_SHARE)
                break
            except LogUnavailable:
                if time.monotonic() > until:
                    raise
                time.sleep(LOG_POLL_SECONDS)


def keep_room(folder: Path, coming: int, log: PredictionLog | None) -> None:
    """Raise RequestError unless `coming` bytes in `folder` leave the disk to the log.

    The log needs what its spool may still take: a file that took it would have single requests
    refused.
    """
    free = shutil.disk_usage(folder).free
    kept = log.left() if log is not None else 0
    if free < coming + kept:
        raise RequestError(
            "no_room",
            f"the disk has {free / 2**20:.0f} MB left, of which {kept / 2**20:.0f} MB are kept for"
            " the log of predictions (MLOPS_SPOOL_MAX_MB)",
            status=503,
            retry_after=RETRY_SECONDS,
        )


class Slots:
    """How many batches one worker takes at once."""

    def __init__(self, number: int) -> None:
        self._free = threading.BoundedSemaphore(number)

    def take(self) -> None:
        """Take a slot; raises RequestError if none is free."""
        if not self._free.acquire(blocking=False):
            raise RequestError(
                "busy",
                "other files are being scored: come back in some seconds",
                status=429,
                retry_after=5,
            )

    def give(self) -> None:
        """Give it back."""
        self._free.release()
