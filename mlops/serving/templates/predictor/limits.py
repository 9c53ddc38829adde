"""What the API takes from whom: sizes, an optional API key, and the rate of each client.

`Limits` reads the settings, `Arrivals` is what all workers know about the clients' rates. Who asks
them are `guard`, before every address, and `incoming`, on reading a body. Knows no HTTP server.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import mmap
import secrets
import time
from collections.abc import Mapping

from predictor.errors import PayloadError, RequestError
from predictor.observer import Environment

OPEN = frozenset({"/health", "/ready", "/metrics"})
"""Asked by machines that watch the service: neither a key nor a rate counts for them."""

SLOTS = 1 << 16


class Unauthorized(RequestError):
    """A request without the API key, or with a wrong one."""

    def __init__(self, message: str) -> None:
        super().__init__("unauthorized", message, status=401, field="Authorization")

    def headers(self) -> list[tuple[str, str]]:
        return [("WWW-Authenticate", 'Bearer realm="predict"')]


class Arrivals:
    """When each client may come next, in memory that all workers forked after it share.

    One number a client (GCRA, the "theoretical arrival time"), in a slot that a keyed hash of the
    address chooses; the key is new at each start, so nobody can choose an address to land in
    another's slot. Two clients in one slot share their rate: of 1,000 clients at once each has a
    chance of 1.5 % to. No lock: a slot is 8 aligned bytes, written at once, and two workers that
    read it in the same instant let one request too many through.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._times = memoryview(mmap.mmap(-1, SLOTS * 8)).cast("d")

    def wait(self, client: str, rate: float, burst: int) -> float:
        """Count a request of `client`; return 0, or after how many seconds it may come again.

        What is refused is not counted. `rate` is in requests a second, of which `burst` may come at
        once.
        """
        digest = hashlib.blake2b(_network(client).encode(), key=self._key, digest_size=2).digest()
        slot = digest[0] << 8 | digest[1]
        now = time.monotonic()  # of the machine, the same for all its processes
        arrival = max(self._times[slot], now)
        early = arrival - now - (burst - 1) / rate
        if early > 0:
            return early
        self._times[slot] = arrival + 1 / rate
        return 0.0


def _network(client: str) -> str:
    """Return what counts as one client: an IPv4 address, or the 64 bits that an IPv6 site has."""
    if ":" not in client:
        return client
    try:
        address = ipaddress.IPv6Address(client.partition("%")[0])
    except ValueError:
        return client
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return address.packed[:8].hex()


def body_timeout(environment: Mapping[str, str]) -> float:
    """Return the seconds that a client has to send a request; raises PayloadError as `Limits`."""
    return _number(environment, "BODY_TIMEOUT_S", 30, 0.01)


def _number(environment: Mapping[str, str], name: str, default: float, least: float) -> float:
    text = environment.get(f"MLOPS_PREDICT_{name}") or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise PayloadError(
            f"MLOPS_PREDICT_{name} is {text!r}, expected a number of at least {least:g}"
        )
    return value


def _key(environment: Mapping[str, str]) -> bytes:
    """Return the API key, b"" for none, without the blanks around it, which no header keeps."""
    text = environment.get("MLOPS_PREDICT_API_KEY") or ""
    key = text.encode().strip()  # bytes, as of the header: of text it would take more than blanks
    if text and not key:
        # Taken for none, it would open to everybody what somebody meant to close.
        raise PayloadError(
            "MLOPS_PREDICT_API_KEY is blank: set a key, or leave it empty to ask nobody"
        )
    return key


class Limits:
    """What one request may be and bring; the settings of `mlops/settings.py` that begin alike."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read the settings; raises PayloadError, naming the variable that makes no sense."""
        self.api_key = _key(environment)
        self.rate = _number(environment, "RATE_LIMIT", 0, 0)
        self.burst = int(_number(environment, "RATE_BURST", 20, 1))
        self.max_records = int(_number(environment, "MAX_RECORDS", 10_000, 1))
        self.max_body_bytes = int(_number(environment, "MAX_BODY_MB", 10, 1)) << 20
        self.batch_max_bytes = int(_number(environment, "BATCH_MAX_MB", 4096, 1)) << 20
        self.body_timeout_s = body_timeout(environment)
        self.arrivals: Arrivals | None = None

    def share(self, arrivals: Arrivals | None) -> None:
        """Count clients in `arrivals`, made by gunicorn's master for all its workers."""
        self.arrivals = arrivals

    def admit(self, environ: Environment) -> None:
        """Raise RequestError (401, 429) for a request that is not to be answered.

        The client is who the connection comes from: what it says about itself in `X-Forwarded-For`
        is not believed, so behind a proxy all are one client, and the proxy is to keep the rate.
        """
        if environ["PATH_INFO"] in OPEN:
            return
        if self.rate:
            if self.arrivals is None:
                self.arrivals = Arrivals()
            client = environ.get("REMOTE_ADDR") or ""
            # Before the key: else keys could be tried at any rate.
            if seconds := self.arrivals.wait(client, self.rate, self.burst):
                raise RequestError(
                    "rate_limited",
                    f"over {self.rate:g} requests a second from {client or 'this socket'}, "
                    f"{self.burst} at once: come again later",
                    status=429,
                    retry_after=math.ceil(seconds),
                )
        if self.api_key:
            self._check_key(environ.get("HTTP_AUTHORIZATION"))

    def _check_key(self, header: str | None) -> None:
        if header is None:
            raise Unauthorized("no API key: send it as `Authorization: Bearer <key>`")
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("another kind of Authorization, expected `Bearer <key>`")
        # A header's bytes come as latin-1 (PEP 3333).
        if not hmac.compare_digest(key.encode("latin-1", "replace").strip(), self.api_key):
            raise Unauthorized("a wrong API key")
