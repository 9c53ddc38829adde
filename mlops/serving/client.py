"""A client of the predict API: one keep-alive session, plain errors; never knows a model.

Requests carry an id, and the API logs an id once, so a request that broke off is simply sent again.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import orjson
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from mlops.settings import Settings

Record = Mapping[str, Any]

# Called with what is under way ("sending" in bytes, "scoring" in rows), how much is done, of how much.
Progress = Callable[[str, int, int], None]

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
            self._session.headers["Authorization"] = f"Bearer {api_key}".encode()
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

        Raises ValueError for a name of another ending, ApiError for what the API refuses as a whole
        (nothing is written then), ApiUnavailable if it does not answer, breaks off or cannot log.
        """
        raise NotImplementedError

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
        try:
            response = self._session.request(
                method, self.url + path, timeout=self.timeout, **arguments
            )
        except requests.RequestException as fault:
            raise ApiUnavailable(
                f"the predict API at {self.url} does not answer: is the stack up, and a model "
                f"deployed? ({type(fault).__name__})"
            ) from fault
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


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        plain = value.item()
        return None if isinstance(plain, float) and math.isnan(plain) else plain
    raise TypeError(f"{value!r} is nothing that JSON can say")
