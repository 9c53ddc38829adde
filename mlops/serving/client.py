"""A client of the predict API: one keep-alive session, plain errors; never knows a model.

Requests carry an id, and the API logs an id once, so a request that broke off is simply sent again.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

import numpy as np
import orjson
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from mlops.settings import Settings

Record = Mapping[str, Any]

Progress = Callable[[str, int, int], object]
"""Called with what is under way, how much of it is done, and of how much: `sending` (bytes), then
`scoring` (lines; of Parquet at its end only)."""

_TYPES = {
    ".csv": "text/csv",
    ".ndjson": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
}
_FILE_PATIENCE_S = 120.0  # a file waits so long for the prediction log, and some more
_BUSY_TRIES = 15  # some ten minutes; each sends the whole file
_BUSY_SECONDS = 60.0  # between two of them at most
_CHUNK_BYTES = 256 * 1024

_BOUNDARY = re.compile(r"boundary=\"?([^\";]+)")
_NAME = re.compile(rb'name="([^"]*)"')

_PROBES = 8
_POLL_S = 0.1


class ApiError(RuntimeError):
    """The API refused a request; carries what its JSON error says."""

    def __init__(
        self,
        message: str,
        status: int,
        code: str | None = None,
        field: str | None = None,
        row: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.field, self.row = status, code, field, row


class ApiUnavailable(RuntimeError):
    """Nobody answers, or what answers cannot answer now."""


class PayloadRefused(RuntimeError):
    """The API could not load the version that it was waited for."""


class PredictClient:
    """The API at `url`. One client is for one thread: it holds a session.

    Usable in a `with` block, which closes its connections.
    """

    def __init__(self, url: str, timeout: float = 30.0, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands between this machine and itself
        if api_key:
            self._session.headers["Authorization"] = b"Bearer " + api_key.encode().strip()
        # Connections that break off are tried again; what the API answers is never.
        retry = Retry(
            total=3,
            backoff_factor=0.2,
            allowed_methods=None,
            status=0,
            redirect=0,
            respect_retry_after_header=False,
        )
        self._session.mount("http://", HTTPAdapter(max_retries=retry))
        self._session.mount("https://", HTTPAdapter(max_retries=retry))

    @classmethod
    def of(cls, settings: Settings, timeout: float = 30.0) -> PredictClient:
        """Return a client of the stack's own API, with the key that it may ask for."""
        key = settings.predict_api_key
        return cls(settings.predict_url, timeout, key.get_secret_value() if key else None)

    def __enter__(self) -> PredictClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def predict(
        self,
        records: Record | Sequence[Record],
        period: str | None = None,
        purpose: str = "live",
        request_id: str | None = None,
    ) -> dict[str, Any]:
        """Return the API's answer to one record or a list: `request_id, version, predictions`.

        A NaN in a record is sent as null. Raises ApiError for what the API refuses, ApiUnavailable
        if it does not answer.
        """
        headers = {
            "Content-Type": "application/json",
            "X-Purpose": purpose,
            "X-Request-Id": request_id or uuid.uuid4().hex,
        }
        if period is not None:
            headers["X-Period"] = period
        body = orjson.dumps(records, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
        return self._call("POST", "/predict", data=body, headers=headers)

    def score_file(
        self,
        source: Path,
        predictions: Path,
        rejected: Path,
        request_id: str | None = None,
        period: str | None = None,
        purpose: str = "live",
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Score the rows of `source` and return the API's `summary` of it.

        That is `{"request_id", "version", "rows", "scored", "rejected"}`. The format is told by the
        name: .csv, .ndjson, .parquet, the first two also with .gz. `predictions` gets the scored
        rows in the same format (packed if its own name ends in .gz), `rejected` a line of JSON
        (`line, field, code, message`) for each bad row; it is empty if there is none. Both are
        written beside their names and renamed when the summary has come: whoever finds them, finds
        them whole. Memory does not grow with the file.

        A connection that breaks off before the answer begins is tried again under the same id, and
        so is a server that is busy with other files, after ever longer pauses, for some ten
        minutes. Raises ValueError for a name of another
        ending, ApiError for what the API refuses, at once or in the middle (nothing is written
        then), ApiUnavailable if it does not answer, breaks off or cannot log.
        """
        content_type, packed = _type_of(source)
        headers = {
            "Content-Type": content_type,
            "X-Purpose": purpose,
            "X-Request-Id": request_id or uuid.uuid4().hex,
        }
        if packed:
            headers["Content-Encoding"] = "gzip"
        if period is not None:
            headers["X-Period"] = period
        drafts = [path.with_name(f".{path.name}.draft") for path in (predictions, rejected)]
        try:
            summary = self._score_file(
                source, headers, drafts, predictions.suffix == ".gz", progress
            )
            # The predictions last: who finds them finds the rejected rows beside them.
            drafts[1].replace(rejected)
            drafts[0].replace(predictions)
        finally:
            for draft in drafts:
                draft.unlink(missing_ok=True)
        return summary

    def _score_file(
        self,
        source: Path,
        headers: Mapping[str, str],
        drafts: Sequence[Path],
        pack: bool,
        progress: Progress | None,
    ) -> dict[str, Any]:
        counted = headers["Content-Type"] != _TYPES[".parquet"]
        for tries in range(_BUSY_TRIES):
            response = self._send_file(source, headers, progress)
            if response.status_code != 429 or tries == _BUSY_TRIES - 1:
                break
            # Other files are being scored: its turn comes.
            wait = float(response.headers.get("Retry-After", "1"))
            response.close()
            time.sleep(max(wait, min(2.0**tries, _BUSY_SECONDS)))
        with response:
            if not response.ok:
                self._answer(response, "/predict/batch")
            lines = int(response.headers.get("X-Lines", "0"))
            with (
                _create(drafts[0], pack) as scored,
                drafts[1].open("wb") as rejected,
            ):
                parts = {"predictions": scored, "rejected": rejected}
                others: dict[str, bytes] = {}
                done = 0
                try:
                    for name, content in _parts(response):
                        if name not in parts:
                            others[name] = others.get(name, b"") + content
                            continue
                        parts[name].write(content)
                        if progress is not None and name == "predictions" and counted:
                            done += content.count(b"\n")
                            progress("scoring", min(done, lines), lines)
                except requests.RequestException as fault:
                    raise self._away(fault) from fault
        if "error" in others:
            error = orjson.loads(others["error"])["error"]
            if error["code"] in ("log_unavailable", "internal"):
                raise ApiUnavailable(error["message"])
            raise ApiError(error["message"], 422, error["code"], error["field"])
        if "summary" not in others:
            raise ApiUnavailable(f"{self.url}: the answer broke off before its end")
        summary: dict[str, Any] = orjson.loads(others["summary"])
        if progress is not None:
            progress("scoring", summary["rows"], summary["rows"])
        return summary

    def _send_file(
        self, source: Path, headers: Mapping[str, str], progress: Progress | None
    ) -> requests.Response:
        with source.open("rb") as file:
            try:
                return self._session.post(
                    f"{self.url}/predict/batch",
                    data=_Sending(file, progress),
                    headers=headers,
                    timeout=(self.timeout, max(self.timeout, _FILE_PATIENCE_S)),
                    stream=True,
                )
            except requests.RequestException as fault:
                raise self._away(fault) from fault

    def explain(self, record: Record) -> dict[str, Any]:
        """Return what each field of one record adds to its score, against the reference customer.

        That is `request_id, version, probability, reference_probability, decision, contributions,
        warnings`; a contribution has `field, value, reference, contribution`, the largest first.
        Nothing is logged. Raises ApiError for what the API refuses, ApiUnavailable if it does not
        answer.
        """
        body = orjson.dumps(record, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = {"Content-Type": "application/json"}
        return self._call("POST", "/explain", data=body, headers=headers)

    def health(self) -> dict[str, Any]:
        """Return `/health` of whichever worker answers."""
        return self._call("GET", "/health")

    def model(self) -> dict[str, Any]:
        """Return `model.json` of the version that answers."""
        return self._call("GET", "/model")

    def wait_for_version(self, version: str, workers: int, timeout: float) -> None:
        """Return once `workers` different workers have answered with `version`, and none otherwise.

        Raises PayloadRefused as soon as a worker says that it cannot load the version, TimeoutError
        after `timeout` seconds, naming what was seen last.
        """
        until = time.monotonic() + timeout
        seen = "nobody answers"
        arrived: set[int] = set()
        with ThreadPoolExecutor(_PROBES) as probes:
            while True:
                # Fresh connections, several at once: an idle worker takes one of them each.
                answers = [
                    answer
                    for answer in probes.map(lambda _: self._probe(), range(_PROBES))
                    if answer is not None
                ]
                if answers:
                    seen = ", ".join(
                        sorted({f"worker {a['pid']} has version {a['version']}" for a in answers})
                    )
                for answer in answers:
                    error = answer.get("load_error")
                    if answer["version"] == version:
                        arrived.add(answer["pid"])
                    elif error and str(error).startswith(f"{version}: "):
                        raise PayloadRefused(f"the API cannot load version {error}")
                    else:
                        arrived.discard(answer["pid"])
                if len(arrived) >= workers and all(a["version"] == version for a in answers):
                    return
                if time.monotonic() >= until:
                    raise TimeoutError(
                        f"{self.url}: {len(arrived)} of {workers} workers answer as version "
                        f"{version} after {timeout:.0f} s ({seen})"
                    )
                time.sleep(_POLL_S)

    def _probe(self) -> dict[str, Any] | None:
        try:
            with requests.Session() as session:
                session.trust_env = False
                response = session.get(f"{self.url}/health", timeout=2)
                answer = response.json()
        except (requests.RequestException, ValueError):
            return None
        return answer if isinstance(answer, dict) and {"pid", "version"} <= answer.keys() else None

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        until = time.monotonic() + self.timeout
        while True:
            try:
                response = self._session.request(
                    method, self.url + path, timeout=self.timeout, **arguments
                )
            except requests.RequestException as fault:
                raise self._away(fault) from fault
            # Over the rate that the API allows: it says when to come again.
            wait = _seconds(response.headers.get("Retry-After"))
            if response.status_code != 429 or time.monotonic() + wait > until:
                return self._answer(response, path)
            time.sleep(wait)

    def _away(self, fault: requests.RequestException) -> ApiUnavailable:
        return ApiUnavailable(
            f"the predict API at {self.url} does not answer: is the stack up, and a model "
            f"deployed? ({type(fault).__name__})"
        )

    def _answer(self, response: requests.Response, path: str) -> dict[str, Any]:
        """Return the JSON of an answer; raises ApiError or ApiUnavailable for a refusal."""
        try:
            body = orjson.loads(response.content)
        except orjson.JSONDecodeError as fault:
            raise ApiUnavailable(
                f"{self.url}{path} answers {response.status_code} without JSON: is another "
                "server on that port?"
            ) from fault
        if response.ok and isinstance(body, dict):
            return body
        error = body.get("error") if isinstance(body, dict) else None
        if not isinstance(error, dict):
            error = {"message": f"{self.url}{path} answers {response.status_code}"}
        message = str(error.get("message"))
        if response.status_code >= 500:
            raise ApiUnavailable(message)
        raise ApiError(
            message, response.status_code, error.get("code"), error.get("field"), error.get("row")
        )


def _type_of(source: Path) -> tuple[str, bool]:
    """Return a file's type and whether it is packed, as its name tells; raises ValueError."""
    packed = source.suffix.lower() == ".gz"
    suffix = (Path(source.stem).suffix if packed else source.suffix).lower()
    if suffix not in _TYPES or (packed and suffix == ".parquet"):
        raise ValueError(
            f"{source.name}: found the ending {source.suffix or 'nothing'!r}, expected .csv,"
            " .csv.gz, .ndjson, .ndjson.gz or .parquet"
        )
    return _TYPES[suffix], packed


def _create(path: Path, pack: bool) -> IO[bytes]:
    return gzip.open(path, "wb", compresslevel=1) if pack else path.open("wb")  # type: ignore[return-value]


class _Sending:
    """A file as `requests` sends it, which tells how much of it has gone."""

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file, self._progress = file, progress
        self._size = os.fstat(file.fileno()).st_size
        self._sent = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:  # what tells `requests` to stream it
        while chunk := self.read(_CHUNK_BYTES):
            yield chunk

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._sent = 0
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        # http.client asks for little at a time.
        chunk = self._file.read(max(size, _CHUNK_BYTES))
        self._sent += len(chunk)
        if self._progress is not None and chunk:
            self._progress("sending", self._sent, self._size)
        return chunk


def _parts(response: requests.Response) -> Iterator[tuple[str, bytes]]:
    """Yield the content of a multipart answer, piece by piece, each with its part's name."""
    found = _BOUNDARY.search(response.headers.get("Content-Type", ""))
    if not found:
        raise ApiUnavailable(f"{response.url} answers no file: is another server on that port?")
    mark = b"\r\n--" + found[1].encode()
    name, rest = "", b""
    for chunk in response.iter_content(_CHUNK_BYTES):
        rest += chunk
        while (place := rest.find(mark)) >= 0:
            head = rest.find(b"\r\n\r\n", place)
            if head < 0:
                break  # the part's heading is not there yet, or this is the end of the last part
            if place:
                yield name, rest[:place]
            heading = _NAME.search(rest, place, head)
            name = heading[1].decode() if heading else ""
            rest = rest[head + 4 :]
        safe = place if place >= 0 else len(rest) - len(mark)  # the beginning of a mark stays
        if safe > 0:
            yield name, rest[:safe]
            rest = rest[safe:]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        plain = value.item()
        return None if isinstance(plain, float) and math.isnan(plain) else plain
    raise TypeError(f"{value!r} is nothing that JSON can say")


def _seconds(header: str | None) -> float:
    """Return what a Retry-After says, or for ever if it says nothing that can be waited for."""
    return float(header) if header is not None and header.isdigit() else math.inf
