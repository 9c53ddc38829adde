"""A request with a file of rows, and its answer: the parts of `POST /predict/batch` that are HTTP.

The file is taken in whole before any row is scored, into the state folder, unpacked and checked on
the way. So what breaks off, is no gzip, no UTF-8 or too large is refused with nothing scored and
nothing logged; and a client may send all of its file before it reads any of the answer.
"""

from __future__ import annotations

import codecs
import logging
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import IO, Any

import orjson
from flask import Response, request

from predictor import observer, tables
from predictor.batch import RETRY_SECONDS, Batch, Request, Slots, keep_room
from predictor.errors import LogUnavailable, RequestError, internal_error, shown
from predictor.incoming import drain, note_scored, read_headers
from predictor.limits import Limits
from predictor.model import Model
from predictor.prediction_log import PredictionLog
from predictor.tables import NDJSON, PARQUET, SUFFIXES, BrokenFile

BATCHES = 2
"""At once in a worker, of its four threads."""
CHUNK_BYTES = 64 * 1024
UNPACK_BYTES = 1024 * 1024
ROOM_BYTES = 8 * 1024 * 1024  # after so many it is seen again whether the disk has room
LEFTOVER_SECONDS = 3600.0

logger = logging.getLogger("predict")

_PREFIX = "batch-"
_GZIP = b"\x1f\x8b"
_slots = Slots(BATCHES)


def score_file(
    model: Model, log: PredictionLog | None, limits: Limits, state: str | None
) -> Response:
    """Return the answer to the current request, a file of rows; raises RequestError.

    Files are kept below the folder `state` while they are scored, or in the temporary folder.
    """
    with ExitStack() as stack:
        try:
            request_id, period, purpose = read_headers(request.environ)
            content_type, packed = _read_types()
            _slots.take()
            stack.callback(_slots.give)
            limit = limits.batch_max_bytes
            folder = _folder(state)
            file = stack.enter_context(tempfile.NamedTemporaryFile(dir=folder, prefix=_PREFIX))
            keep = partial(keep_room, Path(file.name).parent, log=log)
            keep(request.content_length or 0)
            lines = _receive(file.file, content_type, packed, limit, lambda: keep(0))
            table = tables.open_table(Path(file.name), content_type, model, limit)
            stack.callback(table.close)
            rejected = stack.enter_context(
                tempfile.SpooledTemporaryFile(UNPACK_BYTES, dir=folder, prefix=_PREFIX)
            )
        except RequestError as fault:
            if fault.code not in ("too_slow", "unreadable_body"):
                drain(request.environ)
            raise
        except BrokenFile as fault:
            raise RequestError(fault.code, fault.message) from fault
        except OSError as fault:
            raise RequestError(
                "no_room",
                f"the file cannot be kept while it is scored: {fault.strerror}",
                status=503,
                retry_after=RETRY_SECONDS,
            ) from fault
        made_at = datetime.now(timezone.utc).isoformat()
        batch = Batch(model, table, Request(request_id, made_at, period, purpose), log)
        boundary = uuid.uuid4().hex
        alone = content_type in request.accept_mimetypes.values()
        answer = _Answer(batch, rejected, None if alone else boundary, stack.pop_all())
        return Response(
            answer,
            content_type=content_type if alone else f"multipart/mixed; boundary={boundary}",
            headers={"X-Model-Version": model.version, "X-Lines": str(lines)},
            direct_passthrough=True,
        )


class _Answer:
    """The answer as it is made; `close`, which gunicorn calls in any case, gives all back."""

    def __init__(
        self, batch: Batch, rejected: Any, boundary: str | None, resources: ExitStack
    ) -> None:
        self.batch, self.rejected, self.boundary = batch, rejected, boundary
        self._resources = resources
        self._environment = request.environ
        self._content = self._parts() if boundary else self._alone()

    def __iter__(self) -> Iterator[bytes]:
        return self._content

    def close(self) -> None:
        with self._resources:
            self._content.close()
        note_scored(self._environment, self.batch.model.version, self.batch.scored)

    def _alone(self) -> Generator[bytes, None, None]:
        try:
            yield from self.batch.predictions(self.rejected)
        except (BrokenFile, LogUnavailable) as fault:
            self._failed(fault)
            raise  # gunicorn then ends the connection without the end of the answer

    def _parts(self) -> Generator[bytes, None, None]:
        content_type = self.batch.table.content_type
        yield self._head("predictions", content_type, SUFFIXES[content_type])
        try:
            yield from self.batch.predictions(self.rejected)
            last = self._head("summary", "application/json", ".json")
            last += orjson.dumps(self.batch.summary())
        except Exception as fault:
            error = self._failed(fault)
            last = self._head("error", "application/json", ".json") + orjson.dumps(error)
        yield self._head("rejected", NDJSON, ".ndjson")
        self.rejected.seek(0)
        while chunk := self.rejected.read(CHUNK_BYTES):
            yield chunk
        yield last + f"\r\n--{self.boundary}--\r\n".encode()

    def _head(self, name: str, content_type: str, suffix: str) -> bytes:
        return (
            f"\r\n--{self.boundary}\r\nContent-Type: {content_type}\r\n"
            f'Content-Disposition: attachment; name="{name}"; filename="{name}{suffix}"\r\n\r\n'
        ).encode()

    def _failed(self, fault: Exception) -> dict[str, Any]:
        """Note why the answer ends early; return what the caller is told."""
        done = f"{self.batch.rows} rows were done"
        if isinstance(fault, BrokenFile):
            code, message = fault.code, f"{fault.message} ({done})"
        elif isinstance(fault, LogUnavailable):
            code, message = "log_unavailable", f"not answered on: {fault} ({done})"
        else:
            logger.exception("a batch failed", exc_info=fault)
            told = internal_error()
            code, message = told.code, f"{told.message} ({done})"
        self._environment[observer.CODE] = code
        return {"error": {"code": code, "field": None, "row": None, "message": message}}


def _read_types() -> tuple[str, bool]:
    """Return the file's type and whether it is packed; raises RequestError."""
    content_type = request.mimetype
    if content_type not in SUFFIXES:
        raise RequestError(
            "wrong_content_type",
            f"Content-Type is {shown(content_type)}, expected one of {', '.join(SUFFIXES)}",
            status=415,
        )
    charset = request.mimetype_params.get("charset", "utf-8")
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise RequestError(
            "wrong_encoding", f"charset is {shown(charset)}, expected utf-8", status=415
        )
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip") or (encoding == "gzip" and content_type == PARQUET):
        expected = "none (Parquet is packed in itself)" if content_type == PARQUET else "gzip"
        raise RequestError(
            "wrong_encoding",
            f"Content-Encoding is {shown(encoding)}, expected {expected}",
            status=415,
        )
    return content_type, encoding == "gzip"


def _folder(state: str | None) -> str | None:
    """Return where files are kept while they are scored; None is the system's temporary folder."""
    if not state:
        return None
    folder = Path(state) / "batches"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    for leftover in folder.glob(f"{_PREFIX}*"):  # of a worker that was killed
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()
    return str(folder)


def _chunks() -> Iterator[bytes]:
    """Yield the body as it comes; raises RequestError if it breaks off."""
    stream = request.environ["wsgi.input"]
    length = request.content_length
    if length is None and not request.environ.get("wsgi.input_terminated"):
        return
    size = 0
    try:
        while length is None or size < length:
            chunk = stream.read(CHUNK_BYTES if length is None else min(CHUNK_BYTES, length - size))
            if not chunk:
                break
            size += len(chunk)
            yield chunk
    except BlockingIOError as fault:
        raise RequestError("too_slow", "the file stopped coming", status=408) from fault
    except Exception as fault:  # a broken chunk or a caller that went away
        raise RequestError("unreadable_body", f"the file broke off: {fault}", status=400) from fault
    if length is not None and size < length:
        raise RequestError(
            "unreadable_body",
            f"the file broke off after {size} of {length} bytes: nothing was scored",
            status=400,
        )


def _receive(
    file: IO[bytes], content_type: str, packed: bool, limit: int, keep: Callable[[], None]
) -> int:
    """Write the body, unpacked, into `file`; return its number of lines, 0 of Parquet.

    `keep` is called now and then, and raises if the disk gets full. Raises RequestError if the body
    breaks off, is over `limit` bytes, no gzip or no text in UTF-8.
    """
    text = None if content_type == PARQUET else _Text()
    size = seen = 0
    for chunk in _unpacked() if packed else _chunks():
        size += len(chunk)
        if size - seen > ROOM_BYTES:
            keep()
            seen = size
        if size > limit:
            raise tables.too_large(limit)
        if text is not None:
            text.check(chunk)
        file.write(chunk)
    if text is not None:
        text.check(b"", final=True)
    file.flush()
    return 0 if text is None else text.lines


def _unpacked() -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        for chunk in _chunks():
            while chunk:
                if unpacker.eof:
                    if not chunk.strip(b"\0"):
                        break
                    unpacker = zlib.decompressobj(wbits=31)  # one archive after the other
                yield unpacker.decompress(chunk, UNPACK_BYTES)
                chunk = unpacker.unused_data or unpacker.unconsumed_tail
    except zlib.error as fault:
        raise RequestError("wrong_gzip", f"the file is no gzip: {fault}", status=400) from fault
    if not unpacker.eof:
        raise RequestError(
            "wrong_gzip", "the gzip ends in the middle: nothing was scored", status=400
        )


class _Text:
    """Checks that a text that comes in pieces is UTF-8, and counts its lines."""

    def __init__(self) -> None:
        self.lines = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._begun = False

    def check(self, chunk: bytes, final: bool = False) -> None:
        """Take the next piece; raises RequestError."""
        if not self._begun and chunk:
            self._begun = True
            if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise self._fault("it is UTF-16")
        if not chunk.isascii() or self._decoder.getstate()[0]:
            try:
                self._decoder.decode(chunk, final)
            except UnicodeDecodeError as fault:
                if self.lines == 0 and fault.object.startswith(_GZIP):
                    raise RequestError(
                        "wrong_encoding",
                        "the file is gzip: send it with the header Content-Encoding: gzip",
                        status=415,
                    ) from fault
                line = self.lines + fault.object[: fault.start].count(b"\n") + 1
                raise self._fault(
                    f"line {line} has the byte {fault.object[fault.start]:#04x}"
                ) from fault
        self.lines += chunk.count(b"\n")

    def _fault(self, found: str) -> RequestError:
        return RequestError(
            "wrong_encoding", f"the file is no text in UTF-8: {found}; save it as UTF-8", status=422
        )
