"""Send the predict API whatever a client could, over real connections: `make fuzz` (N=100000).

Every answer must be one that was asked for or a 4xx whose JSON says what is wrong; no request may
hang, and no worker may be lost. What is sent is drawn from a seed, so that a run can be repeated; a
request that was answered wrongly is shown as it was sent. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fixtures.postgres import make_settings
from tests.fixtures.predict import PredictServer, make_payload

HANG_S = 10.0
"""An answer that takes longer counts as none."""

_TEXTS = [
    *(
        "",
        " ",
        "unknown",
        "NaN",
        "-1",
        "red",
        "'; DROP TABLE x; --",
        "<script>",
        "../../etc/passwd",
    ),
    *(
        "\u202e\u2066",
        "\U0001f600",
        "e\u0301",
        "\x7f",
        "\u2028",
        "a" * 256,
        "a" * 257,
        "\x00",
        "%s%n",
    ),
]
_NUMBERS = [
    *("0", "-0", "1e400", "-1e400", "3.4028234663852886e38", "3.5e38", "1e-400", "5e-324", "01"),
    *("NaN", "Infinity", "-Infinity", "9" * 5000, "1" + "0" * 400, "18446744073709551616", "1.5"),
    *("0x1F", "1_000", "+1", ".5", "1.", "true", "null", "40", "-1", "1e5"),
]
_METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH", "BREW", "get", ""]
_PATHS = [
    *("/predict", "/predict/batch", "/explain", "/model", "/health", "/ready", "/metrics", "/docs"),
    *(
        "/openapi.json",
        "/",
        "//",
        "/predict/",
        "/%00",
        "/%ff",
        "/../predict",
        "*",
        "/\u202e",
        "/a b",
    ),
    *("http://x/health", "/predict?a=b&a=c", "/" + "x" * 5000, "/" + "x" * 9000, "/PREDICT", ""),
]
_TYPES = [
    *("application/json", "application/json; charset=utf-16", "text/csv", "application/x-ndjson"),
    *(
        "application/vnd.apache.parquet",
        "text/plain",
        "",
        "multipart/form-data",
        "\u00e9",
        "a" * 999,
    ),
]
_HEADERS = [
    *("X-Request-Id: \x00", "X-Request-Id: a b", "X-Request-Id: " + "x" * 200, "X-Period: 2009-13"),
    *("X-Period: \u0662\u0660\u0660\u0669-03", "X-Purpose: none", "Content-Encoding: gzip"),
    *(
        "Content-Encoding: br",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Expect: tea",
    ),
    *("Expect: 100-continue", "Content-Length: 5", "Content-Length: -5", "Content-Length: 1e3"),
    *(
        "Content-Length: 99999999999999999999",
        "Connection: upgrade",
        "Upgrade: h2c",
        "Range: bytes=1-",
    ),
    *("Accept: */*;q=a", "Authorization: Bearer \xff", "A" * 9000 + ": b", "no colon", ": empty"),
    *("Host: a\r\nHost: b", "X: " + "y" * 20_000, "Cookie: " + "a=b;" * 900, "Forwarded: for=_"),
]


@dataclass
class Found:
    """What a run has seen; shared by its threads."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    worst_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, sent: bytes, statuses: list[int], seconds: float, fault: str | None) -> None:
        """Count one request, or what was sent at once."""
        with self.lock:
            self.requests += 1
            self.statuses.update(map(str, statuses or ["no answer"]))
            self.worst_s = max(self.worst_s, seconds)
            if fault and len(self.faults) < 20:
                self.faults.append(f"{fault}: {sent[:300]!r}{' …' if len(sent) > 300 else ''}")


class Requests:
    """Draws what is sent."""

    def __init__(self, reference: dict[str, Any], seed: int) -> None:
        self.reference = reference
        self.random = random.Random(seed)

    def draw(self) -> tuple[bytes, bool]:
        """Return the bytes of a request, and whether its client leaves without an answer."""
        kinds: list[tuple[float, Callable[[], bytes]]] = [
            (30, self.changed_record),
            (15, self.broken_json),
            (12, self.any_request),
            (10, self.valid),
            (8, self.file),
            (8, self.bent),
            (5, self.chunked),
            (4, self.explanation),
            (3, self.noise),
            (3, self.short),
            (0.2, self.bomb),
            (0.5, self.many),
        ]
        weights, makers = zip(*kinds, strict=True)
        raw = self.random.choices(makers, weights)[0]()
        return raw, self.random.random() < 0.02

    def post(
        self, body: bytes, path: str = "/predict", kind: str = "application/json", more: str = ""
    ) -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{more}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def valid(self) -> bytes:
        return self.post(json.dumps(self.reference).encode())

    def value(self, depth: int = 0) -> str:
        """Return a JSON value, or what looks like one."""
        draw = self.random.random()
        if draw < 0.35:
            return self.random.choice(_NUMBERS)
        if draw < 0.75 or depth > 3:
            return json.dumps(self.random.choice(_TEXTS), ensure_ascii=self.random.random() < 0.5)
        inner = [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if draw < 0.88:
            return f"[{','.join(inner)}]"
        return "{" + ",".join(f'"{place}":{each}' for place, each in enumerate(inner)) + "}"

    def record(self) -> str:
        fields = {json.dumps(name): json.dumps(value) for name, value in self.reference.items()}
        for _ in range(self.random.choice([1, 1, 1, 2, 5])):
            name = self.random.choice(list(fields))
            draw = self.random.random()
            if draw < 0.8:
                fields[name] = self.value()
            elif draw < 0.9 and len(fields) > 1:
                del fields[name]
            else:
                fields[json.dumps(self.random.choice(_TEXTS))] = self.value()
        pairs = [f"{name}:{value}" for name, value in fields.items()]
        if self.random.random() < 0.05:
            pairs += pairs[:1]  # a key twice
        return "{" + ",".join(pairs) + "}"

    def changed_record(self) -> bytes:
        count = self.random.choice([0, 1, 1, 1, 1, 2, 20])
        body = f"[{','.join(self.record() for _ in range(count))}]" if count != 1 else self.record()
        return self.post(body.encode("utf-8", "surrogatepass"))

    def explanation(self) -> bytes:
        return self.post(self.record().encode("utf-8", "surrogatepass"), "/explain")

    def broken_json(self) -> bytes:
        body = self.value().encode()
        draw = self.random.randrange(8)
        if draw == 0:
            depth = self.random.choice([100, 1023, 1025, 10_000])
            body = b"[" * depth + b"]" * depth
        elif draw == 1:
            depth = self.random.choice([100, 10_000])
            body = b'{"a":' * depth + b"1" + b"}" * depth
        elif draw == 2:
            body = json.dumps(self.reference).encode(self.random.choice(["utf-16", "utf-32-be"]))
        elif draw == 3:
            body = b"\xef\xbb\xbf" + json.dumps(self.reference).encode()
        elif draw == 4:
            body = b'{"age": "\\ud800", "\\udfff": "\xed\xa0\x80"}'
        elif draw == 5:
            body = json.dumps(self.reference).encode()[: self.random.randrange(200)]
        elif draw == 6:
            body = self.random.randbytes(self.random.randrange(300))
        return self.post(body, self.random.choice(["/predict", "/explain"]))

    def any_request(self) -> bytes:
        method, path = self.random.choice(_METHODS), self.random.choice(_PATHS)
        version = self.random.choice(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", ""])
        body = b"" if self.random.random() < 0.6 else self.record().encode("utf-8", "replace")
        lines = [f"{method} {path} {version}", "Host: x"]
        lines += [f"Content-Type: {self.random.choice(_TYPES)}"] if body else []
        lines += self.random.sample(_HEADERS, self.random.choice([0, 0, 1, 1, 2, 3]))
        lines += [f"Content-Length: {len(body)}"] if self.random.random() < 0.8 else []
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body

    def file(self) -> bytes:
        names = list(self.reference)
        rows = [
            ",".join(self.random.choice(_TEXTS + _NUMBERS[:8]) for _ in names)
            for _ in range(self.random.randrange(5))
        ]
        text = self.random.choice([",".join(names), "a,b", ""]) + "\n" + "\n".join(rows)
        body, kind = text.encode("utf-8", "replace"), "text/csv"
        draw = self.random.random()
        if draw < 0.3:
            kind = "application/x-ndjson"
            body = "\n".join(self.record() for _ in range(4)).encode("utf-8", "surrogatepass")
        elif draw < 0.4:
            kind, body = "application/vnd.apache.parquet", b"PAR1" + self.random.randbytes(200)
        elif draw < 0.5:
            body = self.random.randbytes(300)
        more = ""
        if self.random.random() < 0.3:
            more = "Content-Encoding: gzip\r\n"
            body = gzip.compress(body, 1)
            if self.random.random() < 0.5:
                body = self.damaged(body)
        return self.post(body, "/predict/batch", kind, more)

    def bomb(self) -> bytes:
        path = self.random.choice(["/predict", "/predict/batch"])
        return self.post(_BOMB, path, "text/csv", "Content-Encoding: gzip\r\n")

    def many(self) -> bytes:
        count = self.random.choice([100, 2000, 10_001])
        one = json.dumps(self.reference) if count < 10_001 else "{}"
        return self.post(f"[{','.join([one] * count)}]".encode())

    def damaged(self, raw: bytes) -> bytes:
        found = bytearray(raw)
        for _ in range(self.random.choice([1, 1, 2, 8])):
            if found:
                place = self.random.randrange(len(found))
                found[place : place + self.random.randrange(2)] = self.random.randbytes(1)
        return bytes(found)

    def bent(self) -> bytes:
        return self.damaged(self.random.choice([self.valid, self.changed_record, self.file])())

    def chunked(self) -> bytes:
        body = json.dumps(self.reference).encode()
        size = self.random.choice(
            [b"%x" % len(body), b"%X;a=b" % len(body), b"0", b"-1", b"zz", b""]
        )
        size = self.random.choice([size, b"%x" % (len(body) + 5), b"f" * 30])
        end = self.random.choice([b"\r\n0\r\n\r\n", b"\r\n0\r\nA: b\r\n\r\n", b"", b"XX0\r\n\r\n"])
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + body + end

    def noise(self) -> bytes:
        return self.random.randbytes(self.random.choice([1, 10, 100, 5000, 70_000]))

    def short(self) -> bytes:
        raw = self.valid()
        return raw[: self.random.randrange(1, len(raw))]


_BOMB = gzip.compress(b"0," * 20_000_000, 9)


def exchange(address: tuple[str, int], raw: bytes, leaves: bool) -> tuple[list[int], str | None]:
    """Send bytes on a connection of their own; return the statuses and what was wrong, if any.

    The client half-closes when it has sent all, so that a request that is none is not waited for.
    """
    with socket.create_connection(address, timeout=HANG_S) as client:
        if leaves:
            client.sendall(raw)
            return [], None
        received = b""
        try:
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before it was sent as a whole
        try:
            while more := client.recv(65536):
                received += more
        except TimeoutError:
            return [], f"no end of the answer after {HANG_S:g} s"
        except ConnectionResetError:
            if not received:
                return [], "cut off without an answer"
    return judge(raw, received)


def judge(raw: bytes, received: bytes) -> tuple[list[int], str | None]:
    """Return the statuses of the answers in `received`, and what is wrong with them."""
    statuses: list[int] = []
    head_only = raw.startswith(b"HEAD ")
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        if not end or not head.startswith(b"HTTP/1."):
            return statuses, f"what follows is no answer: {received[:80]!r}"
        status = int(head.split()[1])
        statuses.append(status)
        if status == 100:
            received = rest
            continue
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        }
        if status >= 500:
            return statuses, f"{status}: {rest[:200]!r}"
        if b"content-length" not in headers or head_only:
            return statuses, None  # a file as a stream, nothing follows it; or a head alone
        length = int(headers[b"content-length"])
        body, received = rest[:length], rest[length:]
        if status >= 400:
            try:
                error = json.loads(body)["error"]
                complete = set(error) == {"code", "field", "row", "message"} and error["message"]
            except (ValueError, KeyError, TypeError):
                complete = False
            if not complete:
                return statuses, f"{status} that does not say what is wrong: {body[:80]!r}"
    return statuses, None if statuses else "closed without an answer"


def fuzz(
    server: PredictServer,
    requests: int,
    seed: int,
    connections: int,
    progress: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Send `requests` requests over so many connections at once, and return what was found."""
    found, reference = Found(), server.reference()
    address = (server.settings.host, server.settings.predict_port)
    before, began = set(server.workers()), time.monotonic()
    todo = iter(range(requests))

    def client(number: int) -> None:
        drawn = Requests(reference, seed * 1000 + number)
        while True:
            with found.lock:
                if next(todo, None) is None:
                    return
            raw, leaves = drawn.draw()
            started = time.monotonic()
            try:
                statuses, fault = exchange(address, raw, leaves)
            except OSError as error:
                statuses, fault = [], f"{type(error).__name__}: {error}"
            found.add(raw, statuses, time.monotonic() - started, None if leaves else fault)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    told = began
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)
            if time.monotonic() - told >= 10:
                told = time.monotonic()
                progress(f"{found.requests:,} of {requests:,} requests, {len(found.faults)} faults")
    seconds = time.monotonic() - began
    after = set(server.workers())
    return {
        "requests": found.requests,
        "seed": seed,
        "seconds": round(seconds, 1),
        "statuses": dict(sorted(found.statuses.items())),
        "server_errors": sum(n for status, n in found.statuses.items() if status[0] == "5"),
        "worst_ms": round(1000 * found.worst_s, 1),
        "workers_lost": len(before - after),
        "tracebacks": server.output.count("Traceback (most recent call last)"),
        "faults": found.faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--connections", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlops-fuzz-") as folder:
        settings = make_settings(Path(folder))
        make_payload(settings.payloads_dir, "1")
        # Logged to a spool, and no database there: the log's way is in it, and nothing else.
        dsn = "host=127.0.0.1 port=1 user=nobody dbname=none"
        extra = {"PREDICT_LOG_DSN": dsn, "MLOPS_PREDICT_BATCH_MAX_MB": "16"}
        server = PredictServer(settings, logged=False, payload="1", extra=extra)
        try:
            server.start()
            result = fuzz(
                server, arguments.requests, arguments.seed, arguments.connections,
                lambda line: print(line, flush=True),
            )  # fmt: skip
        finally:
            server.stop()
    for fault in result["faults"]:
        print(fault, file=sys.stderr)
    result["faults"] = len(result["faults"])
    print(json.dumps(result))
    bad = ("server_errors", "workers_lost", "tracebacks", "faults")
    return 1 if any(result[name] for name in bad) else 0


if __name__ == "__main__":
    sys.exit(main())
