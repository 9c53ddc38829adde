"""A load generator: sends HTTP requests, one connection each, and checks every answer.

It measures and never decides: what is sent, how fast and what is a right answer come from the
caller. Standard library and orjson only, so that whoever has the project has it too; its processes
do little but blocking socket calls, and say how much of the machine they took (`cpu_s`).

- `rate=None` (closed loop): each of `connections` processes sends its next request as soon as the
  last one is answered. That finds the most that a server can do.
- `rate=r` (open loop): requests leave at the times of a Poisson process, whether or not earlier
  ones are answered, and a latency counts from the time that was planned: a server that stalls
  cannot stop the clock by not being asked (coordinated omission).
"""

from __future__ import annotations

import gc
import math
import pickle
import random
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

TIMEOUT_S = 30
OPEN_LOOP_PROCESSES = 2
_SMALL = 4096
"""Answers up to this many bytes are all read as JSON; of longer ones every `check_every`-th."""
_RECEIVE = 1 << 16
"""Bytes; beyond 128 kB each call would map memory anew, which costs more than the call."""
_MAX_OPEN = 500
"""Unanswered requests of an open-loop process; select() takes 1,024 files, and 500 are a stall."""

Decode = Callable[[Any], tuple[str, Sequence[float]]]
"""From the parsed answer to the model's version and the probabilities, in the records' order."""


@dataclass(frozen=True)
class Question:
    """One request and what is right to answer.

    With `ids`, `head` gets the header X-Request-Id appended; `rest` closes it and is the body.
    """

    head: bytes
    rest: bytes
    expected: dict[str, Sequence[float]]
    """By version: the probability of each record."""
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Load:
    """What is sent to one server, for how long and how fast."""

    port: int
    questions: Sequence[Question]
    decode: Decode
    seconds: float
    warmup: float = 0.0
    """Seconds before that, in which the same is sent and not measured; one answer at least."""
    connections: int = 4
    rate: float | None = None
    """Requests per second, of all processes together; None: closed loop."""
    ids: str | None = None
    """Requests are named `<ids>-<process>-<number>` in X-Request-Id."""
    check_every: int = 8
    limit: int | None = None
    """Stop after so many requests, however long it takes; each process sends its share."""
    host: str = "127.0.0.1"


@dataclass
class Outcome:
    """What came of a `Load`; all times in seconds."""

    latencies: array[float] = field(default_factory=lambda: array("d"))
    """Of the requests that began in the measured part; `run` returns them sorted."""
    course: list[tuple[float, float]] = field(default_factory=list)
    """Open loop: when such a request was planned, since the first one could be, and its latency."""
    answered: int = 0
    """Right answers from first to last request, warm-up included."""
    names: list[tuple[int, int]] = field(default_factory=list)
    """Per process, the requests that it sent: its number, and how many."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Requests without a right answer: name (process-number), and what was wrong."""
    late: array[float] = field(default_factory=lambda: array("d"))
    """Open loop: how long after its planned time each request left, sorted."""
    rps: float = 0.0
    """Right answers a second, of the requests that began in the measured part."""
    seconds: float = 0.0
    cpu_s: float = 0.0
    """Processor time of the generator itself."""

    def quantile_ms(self, share: float) -> float:
        """Return the latency in ms that `share` (0..1) of the requests did not exceed."""
        return quantile(self.latencies, share) * 1000


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that `share` (0..1) of the sorted values do not exceed; NaN if none."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def question(
    path: str,
    body: bytes,
    expected: dict[str, Sequence[float]],
    content_type: str = "application/json",
) -> Question:
    """Return a POST of `body` that asks the server to close the connection after its answer."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    )
    return Question(head.encode(), b"\r\n" + body, expected)


def ask(port: int, one: Question, decode: Decode, timeout: float = TIMEOUT_S) -> str | None:
    """Send one request; return None if the answer is right, else what is wrong with it."""
    try:
        with _connect("127.0.0.1", port, timeout) as connection:
            connection.sendall(one.head + one.rest)
            answer = _Answer()
            while not answer.feed(connection.recv(_RECEIVE)):
                pass
    except OSError as fault:
        return f"{type(fault).__name__}: {fault}"
    return answer.complaint(one, decode, whole=True)


def run(load: Load) -> Outcome:
    """Send `load` from processes of its own, and return what came of it.

    Raises RuntimeError if a process of the generator dies.
    """
    count = load.connections if load.rate is None else OPEN_LOOP_PROCESSES
    processes: list[subprocess.Popen[bytes]] = []
    total = Outcome()
    try:
        for _ in range(count):
            # Programs of their own, not forks: they hold nothing of the caller, and start as fast
            # whatever that has imported.
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.load"],
                    cwd=Path(__file__).resolve().parent.parent,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
        for number, process in enumerate(processes):
            _tell(process, (load, number, count))
        for process in processes:
            _hear(process)  # it is ready
        for process in processes:
            _tell(process, "begin")
        for number, process in enumerate(processes):
            part: Outcome = _hear(process)
            total.latencies.extend(part.latencies)
            total.late.extend(part.late)
            total.course += part.course
            total.answered += part.answered
            total.rps += part.rps
            total.names.append((number, part.names[0][1]))
            total.failures += part.failures
            total.seconds = max(total.seconds, part.seconds)
            total.cpu_s += part.cpu_s
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    total.latencies = array("d", sorted(total.latencies))
    total.late = array("d", sorted(total.late))
    return total


def _tell(process: subprocess.Popen[bytes], what: Any) -> None:
    assert process.stdin is not None
    pickle.dump(what, process.stdin)
    process.stdin.flush()


def _hear(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    try:
        return pickle.load(process.stdout)  # our own process, over our own pipe
    except EOFError as fault:
        raise RuntimeError("a process of the load generator died") from fault


class _Answer:
    """An answer as it comes in."""

    __slots__ = ("body_at", "data", "length", "status")

    def __init__(self) -> None:
        self.data = b""
        self.status = 0
        self.body_at = -1
        self.length = -1

    def feed(self, chunk: bytes) -> bool:
        """Take what was received; return whether the answer is complete (b"" is the end)."""
        if not chunk:
            return True
        self.data = self.data + chunk if self.data else chunk
        if self.body_at < 0:
            end = self.data.find(b"\r\n\r\n")
            if end < 0:
                return False
            self.body_at = end + 4
            head = self.data[:end].lower()
            self.status = int(head[9:12] or 0) if head.startswith(b"http/1.") else 0
            at = head.find(b"\r\ncontent-length:")
            if at >= 0:
                self.length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        return self.length >= 0 and len(self.data) - self.body_at >= self.length

    def complaint(self, asked: Question, decode: Decode, whole: bool) -> str | None:
        """Return what is wrong with the answer, or None; its JSON is read if `whole`."""
        if self.status != 200:
            return f"status {self.status}: {self.data[max(self.body_at, 0) :][:200]!r}"
        size = len(self.data) - self.body_at
        if size < self.length or not size:
            return f"broke off after {size} of {self.length} bytes"
        return wrong(self.data[self.body_at :], asked, decode) if whole else None


def wrong(body: bytes, asked: Question, decode: Decode) -> str | None:
    """Return what is wrong with a body, or None: version and every probability are compared."""
    try:
        version, found = decode(orjson.loads(body))
        expected = asked.expected[version]
        if len(found) != len(expected):
            return f"{len(found)} probabilities for {len(expected)} records"
        for one, other in zip(found, expected, strict=True):
            if not abs(one - other) <= asked.tolerance:
                return f"probability {one}, expected {other}"
    except (ValueError, KeyError, TypeError, IndexError) as fault:
        return f"{type(fault).__name__} {fault}: {body[:200]!r}"
    return None


def _connect(host: str, port: int, timeout: float = TIMEOUT_S) -> socket.socket:
    connection = socket.socket()
    # Not settimeout(), which makes each call a poll and a call.
    limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        connection.connect((host, port))
    except BaseException:
        connection.close()
        raise
    return connection


def main() -> None:
    """Be one process of the generator: a Load comes by stdin, its Outcome goes to stdout."""
    load, number, count = pickle.load(sys.stdin.buffer)
    state = _State(load, number)
    gc.disable()  # there are no cycles, and its pauses would count as the server's
    _say("ready")
    pickle.load(sys.stdin.buffer)
    begin = time.perf_counter()
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    if load.rate is None:
        _closed(state, begin, count)
    else:
        _open(state, begin, load.rate / count)
    used = resource.getrusage(resource.RUSAGE_SELF)
    outcome = state.outcome
    outcome.cpu_s = used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime
    outcome.names = [(number, state.sent)]
    # A connection of a closed loop is busy from its first measured request to the end of its last,
    # so that is the time that its requests took, however long one of them takes.
    outcome.seconds = load.seconds if load.rate is not None else state.last - state.first
    state.check_kept()
    outcome.rps = state.measured / outcome.seconds if state.measured else 0.0
    _say(outcome)


def _say(what: Any) -> None:
    pickle.dump(what, sys.stdout.buffer)
    sys.stdout.buffer.flush()


class _State:
    """What a process has sent, and what came back."""

    def __init__(self, load: Load, number: int) -> None:
        self.load, self.number = load, number
        self.outcome = Outcome()
        self.sent = 0
        self.measured = 0
        self.first = self.last = 0.0
        """When the first measured request began, and the last one was answered."""
        self._kept: list[tuple[int, bytes]] = []
        # Processes start at different questions, so that they do not ask the same in step.
        self._offset = number * len(load.questions) // 4

    def next(self) -> tuple[int, bytes]:
        """Return the number of the next request and its bytes."""
        number = self.sent
        self.sent += 1
        asked = self._asked(number)
        if self.load.ids is None:
            return number, asked.head + asked.rest
        name = b"X-Request-Id: %b-%d-%d\r\n" % (self.load.ids.encode(), self.number, number)
        return number, asked.head + name + asked.rest

    def answered(self, number: int, answer: _Answer, began: float, first: float) -> None:
        """Count an answer to a request that began (was planned) at `began`."""
        now = time.perf_counter()
        small = len(answer.data) <= _SMALL
        # At full load reading JSON would take time from the server: it is put by, and read later.
        at_once = small and self.load.rate is not None
        complaint = answer.complaint(self._asked(number), self.load.decode, whole=at_once)
        if complaint:
            self.failed(number, complaint)
            return
        if not at_once and (small or number % self.load.check_every == 0):
            self._kept.append((number, answer.data[answer.body_at :]))
        self.outcome.answered += 1
        if first <= began:
            self.measured += 1
            self.first, self.last = self.first or began, now
            self.outcome.latencies.append(now - began)
            if self.load.rate is not None:
                self.outcome.course.append((began - first, now - began))

    def failed(self, number: int, reason: str) -> None:
        self.outcome.failures.append((f"{self.number}-{number}", reason))

    def check_kept(self) -> None:
        """Check the answers that were put by: outside of the time that is measured."""
        for number, body in self._kept:
            complaint = wrong(body, self._asked(number), self.load.decode)
            if complaint:
                self.failed(number, complaint)
                self.outcome.answered -= 1
                self.measured -= 1
        self._kept.clear()

    def _asked(self, number: int) -> Question:
        questions = self.load.questions
        return questions[(self._offset + number) % len(questions)]


def _closed(state: _State, begin: float, count: int) -> None:
    load = state.load
    first = begin if not load.warmup else math.inf
    share = math.inf if load.limit is None else -(-load.limit // count)
    while state.sent < share:
        began = time.perf_counter()
        # Not before the first answer, however long a cold server takes for it.
        if first == math.inf and state.sent and began >= begin + load.warmup:
            first = began
        if load.limit is None and began >= first + load.seconds:
            break
        number, message = state.next()
        try:
            with _connect(load.host, load.port) as connection:
                connection.sendall(message)
                answer = _Answer()
                while not answer.feed(connection.recv(_RECEIVE)):
                    pass
        except OSError as fault:
            state.failed(number, f"{type(fault).__name__}: {fault}")
            continue
        state.answered(number, answer, began, first)


def _open(state: _State, begin: float, rate: float) -> None:
    load = state.load
    first = begin + load.warmup
    end = first + load.seconds
    arrivals = random.Random(state.number)
    planned = begin + arrivals.expovariate(rate)
    under_way: dict[socket.socket, tuple[int, float, _Answer]] = {}
    while planned < end or under_way:
        now = time.perf_counter()
        while planned <= now and planned < end and len(under_way) < _MAX_OPEN:
            number, message = state.next()
            if planned >= first:
                state.outcome.late.append(now - planned)
            connection = None
            try:
                connection = _connect(load.host, load.port)
                connection.sendall(message)
                under_way[connection] = (number, planned, _Answer())
            except OSError as fault:
                state.failed(number, f"{type(fault).__name__}: {fault}")
                if connection is not None:
                    connection.close()
            planned += arrivals.expovariate(rate)
            now = time.perf_counter()
        wait = planned - now if planned < end and len(under_way) < _MAX_OPEN else 1.0
        # select(), since epoll rounds what it waits up to whole milliseconds.
        ready, _, _ = select.select(list(under_way), [], [], max(0.0, wait))
        for connection in ready:
            number, began, answer = under_way[connection]
            try:
                if not answer.feed(connection.recv(_RECEIVE)):
                    continue
                state.answered(number, answer, began, first)
            except OSError as fault:
                state.failed(number, f"{type(fault).__name__}: {fault}")
            del under_way[connection]
            connection.close()
        if under_way:
            connection = next(iter(under_way))  # the oldest
            number, began, _ = under_way[connection]
            if time.perf_counter() - began > TIMEOUT_S:
                state.failed(number, f"no answer within {TIMEOUT_S} s")
                del under_way[connection]
                connection.close()


if __name__ == "__main__":
    from benchmarks import load as itself  # its classes are pickled by the name of the module

    itself.main()
