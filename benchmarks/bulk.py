"""A file of a million rows through a server: seconds, and the most memory that the server took.

Ours takes the file as it is (`POST /predict/batch`). The others have no such thing: they are sent
requests of 10,000 rows, whose JSON is made beforehand and not counted, over four connections.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.load import Load, run
from benchmarks.servers import OURS, BenchmarkError, MemoryWatch, Run, Server

ROWS_A_REQUEST = 10_000


@dataclass(frozen=True)
class Bulk:
    """What a file took."""

    rows: int
    seconds: float
    peak_mb: float
    file_mb: float


def write_csv(run_: Run, rows: int) -> Path:
    """Write a CSV of `rows` rows, the run's records again and again, and return its path."""
    path = run_.folder / "rows.csv"
    names = list(run_.records[0])
    lines = _whole(pd.DataFrame(run_.records, columns=names))
    text = lines.to_csv(index=False, header=False).encode()
    with path.open("wb") as file:
        file.write(",".join(names).encode() + b"\n")
        for _ in range(rows // len(lines)):
            file.write(text)
        rest = rows % len(lines)
        file.write(lines.head(rest).to_csv(index=False, header=False).encode())
    return path


def _whole(block: pd.DataFrame) -> pd.DataFrame:
    """Return whole numbers as such: pandas writes 3.0 where there are missing ones beside them."""
    lines = block.copy()
    for name in lines.columns:
        if pd.api.types.is_float_dtype(lines[name]):
            lines[name] = lines[name].astype("Int64")
    return lines


def score_file(server: Server, run_: Run, rows: int) -> Bulk:
    """Send `rows` rows to a server; raises BenchmarkError unless every one comes back right."""
    if server.kind is not OURS:
        return _score_requests(server, run_, rows)
    source, answer = write_csv(run_, rows), run_.folder / "scored.csv"
    with MemoryWatch(server) as memory:
        began = time.perf_counter()
        _stream(server.port, source, answer)
        seconds = time.perf_counter() - began
    found = pd.read_csv(answer, usecols=["probability"])["probability"].to_numpy()
    expected = np.resize(np.array(run_.scores["1"]), rows)
    if len(found) != rows or not np.allclose(found, expected, atol=1e-4, rtol=0):
        raise BenchmarkError(f"{len(found)} of {rows} rows came back, or some are wrong")
    return Bulk(rows, seconds, memory.peak_mb, source.stat().st_size / 1e6)


def _stream(port: int, source: Path, answer: Path) -> None:
    """Send the file and take the answer at the same time, as it comes, onto the disk."""
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        head = (
            "POST /predict/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            "Content-Type: text/csv\r\nAccept: text/csv\r\n"
            f"Content-Length: {source.stat().st_size}\r\n\r\n"
        )
        connection.sendall(head.encode())

        def send() -> None:
            with source.open("rb") as file:
                connection.sendfile(file)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        if response.status != 200:
            raise BenchmarkError(
                f"/predict/batch answers {response.status}: {response.read(500)!r}"
            )
        with answer.open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
        sender.join()


def _score_requests(server: Server, run_: Run, rows: int) -> Bulk:
    questions = run_.questions(server.kind, ROWS_A_REQUEST, 1)
    load = Load(
        server.port,
        questions,
        server.kind.decode,
        seconds=0,
        limit=-(-rows // ROWS_A_REQUEST),
        check_every=1,
    )
    with MemoryWatch(server) as memory:
        outcome = run(load)
    if outcome.failures:
        raise BenchmarkError(f"{server.kind.title}, a file of {rows} rows: {outcome.failures[0]}")
    sent = outcome.answered * ROWS_A_REQUEST
    megabytes = outcome.answered * len(questions[0].rest) / 1e6
    return Bulk(sent, outcome.seconds, memory.peak_mb, megabytes)
