"""The benchmarks, in seconds instead of minutes: they run, check answers, and lose nothing.

No figure is compared with the clock: how fast a busy machine is says nothing about the code.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from array import array
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bodies
from benchmarks.load import Load, Outcome, ask, question, run
from benchmarks.sustained import trend
from mlops.settings import ROOT
from tests.fixtures.postgres import free_ports
from tests.fixtures.predict import SERVICES_PYTHON

SMALL = ["--sample", "--trees", "20"]


def benchmark(name: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """Return the JSON of the last line of a benchmark, and what it has told meanwhile."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *SMALL, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()  # nothing else on stdout
    return json.loads(line), done.stderr


def drawn(root: Path, name: str) -> str:
    """Have the results below `root` drawn, and return the document that they stand in."""
    (root / "docs").mkdir()
    (root / "images").mkdir()
    document = root / "docs" / "performance.md"
    document.write_text(f"before\n<!-- {name}: begin -->\nold\n<!-- {name}: end -->\nafter\n")
    command = [SERVICES_PYTHON, "-m", "benchmarks.report", "--root", root]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    return document.read_text()


def test_serving_benchmark_tells_every_figure_and_writes_its_file(tmp_path: Path) -> None:
    file = tmp_path / "benchmarks" / "results" / "serving.json"
    told, _ = benchmark(
        "serving", "--quick", "--seconds", "2", "--rows", "20000", "--results", str(file)
    )
    written = json.loads(file.read_text())
    assert {name: written[name] for name in told} == told
    for name in (
        *("rps", "p50_ms", "p99_ms", "p99_half_load_ms", "rows_per_s", "start_s", "memory_mb"),
        *("environment_mb", "batch_rows", "batch_s", "batch_peak_mb", "rps_ratio_floor"),
    ):
        assert told[name] > 0, name
    for name in ("rps_ratio_mlflow", "p50_ratio_mlflow", "rps_ratio_bentoml", "rps_ratio_fastapi"):
        assert told[name] is None, name  # the peers are not measured here
    assert told["p50_ms"] <= told["p99_ms"]
    assert told["batch_rows"] == 20_000
    assert told["failed_requests"] == told["lost_log_rows"] == 0
    ours, floor = written["servers"]["ours"], written["servers"]["constant"]
    assert ours["rps"]["n"] == floor["rps"]["n"] == 1
    # One row: most of a thousand rows' time is not theirs.
    assert ours["rows_per_s"]["median"] > ours["rps"]["median"]
    assert "/" not in json.dumps(written["machine"])  # no path of the machine
    document = drawn(tmp_path, "serving")
    assert f"**{told['rps']:,.0f}**" in document
    assert document.startswith("before\n")
    assert document.endswith("after\n")
    assert "old" not in document
    assert (tmp_path / "images" / "serving-benchmark.png").stat().st_size > 10_000


def test_load_benchmark_loses_nothing_while_versions_change_and_postgres_dies(
    tmp_path: Path,
) -> None:
    file = tmp_path / "benchmarks" / "results" / "load.json"
    told, _ = benchmark(
        "sustained",
        *("--seconds", "20", "--swap-s", "3", "--kills", "1", "--down-s", "4", "--probe-s", "2"),
        *("--results", str(file)),
    )
    assert told["failed_requests"] == told["lost_log_rows"] == 0
    assert told["requests"] == told["log_rows"] > 0
    assert told["swaps"] >= 4
    assert told["postgres_kills"] == 1
    assert sorted(told["log_rows_by_version"]) == ["1", "2"]
    written = json.loads(file.read_text())
    ((killed, back),) = written["postgres_down"]
    assert killed < back < 20
    assert sum(one["rps"] for one in written["course"]) > 0
    assert len(written["memory"]) > 5
    assert f"| requests | {told['requests']:,} (" in drawn(tmp_path, "load")
    assert (tmp_path / "images" / "serving-load.png").stat().st_size > 10_000


class Answers(BaseHTTPRequestHandler):
    """Answers with what the request's own body asks for: probability, status, or silence."""

    seen: list[str | None]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(self.headers["X-Request-Id"])
        body = json.dumps(
            {"version": "1", "predictions": [{"probability": asked["probability"]}]}
        ).encode()
        self.send_response(asked.get("status", 200))
        self.send_header("Content-Length", str(len(body) + asked.get("short", 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def answering() -> Iterator[tuple[int, list[str | None]]]:
    """Port of a server, and the request ids that it has seen."""
    Answers.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], Answers.seen
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"probability": 0.25}, None),
        ({"probability": 0.26}, "probability 0.26, expected 0.25"),
        ({"probability": None}, "TypeError"),
        ({"probability": 0.25, "status": 503}, "status 503"),
        ({"probability": 0.25, "short": 3}, "broke off"),
    ],
)
def test_generator_tells_a_right_answer_from_a_wrong_one(
    answering: tuple[int, list[str | None]], body: dict[str, Any], complaint: str | None
) -> None:
    port, _ = answering
    asked = question("/predict", json.dumps(body).encode(), {"1": [0.25]})
    found = ask(port, asked, bodies.decode_ours)
    assert found == complaint if complaint is None else complaint in str(found)


@pytest.mark.parametrize("rate", [None, 50.0])
def test_generator_counts_failures_and_names_every_request_once(
    answering: tuple[int, list[str | None]], rate: float | None
) -> None:
    port, seen = answering
    right, wrong = (
        question("/predict", json.dumps({"probability": each}).encode(), {"1": [0.25]})
        for each in (0.25, 0.5)
    )
    load = Load(
        port, [right, right, right, wrong], bodies.decode_ours, seconds=1, rate=rate, ids="name"
    )
    outcome = run(load)
    sent = [
        f"name-{process}-{number}" for process, count in outcome.names for number in range(count)
    ]
    assert sorted(map(str, seen)) == sorted(sent)
    assert outcome.answered + len(outcome.failures) == len(sent)
    assert {reason for _, reason in outcome.failures} == {"probability 0.5, expected 0.25"}
    assert math.isclose(len(outcome.failures) / len(sent), 0.25, abs_tol=0.1)
    assert outcome.latencies == array("d", sorted(outcome.latencies))


def test_generator_counts_a_refused_connection_as_failed() -> None:
    asked = question("/predict", b"{}", {"1": [0.25]})
    (port,) = free_ports(1)
    outcome = run(Load(port, [asked], bodies.decode_ours, seconds=0.2, rate=50))
    assert outcome.failures
    assert outcome.answered == 0


def test_open_loop_counts_from_the_planned_time(
    answering: tuple[int, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, _ = answering
    stall = 0.5
    began = threading.Event()
    answer = Answers.do_POST

    def stalled(self: Answers) -> None:
        if not began.is_set():
            began.set()
            threading.Event().wait(stall)
        answer(self)

    monkeypatch.setattr(Answers, "do_POST", stalled)
    asked = question("/predict", json.dumps({"probability": 0.25}).encode(), {"1": [0.25]})
    outcome = run(Load(port, [asked], bodies.decode_ours, seconds=1, rate=100))
    assert not outcome.failures
    # The others went on meanwhile: not one request was left out for the one that stalled.
    assert outcome.quantile_ms(1.0) >= stall * 1000
    assert len(outcome.latencies) > 50


def test_quantiles_are_those_of_the_sorted_latencies() -> None:
    outcome = Outcome(latencies=array("d", [number / 1000 for number in range(1, 101)]))
    assert outcome.quantile_ms(0.5) == pytest.approx(51)
    assert outcome.quantile_ms(0.99) == pytest.approx(100)
    assert math.isnan(Outcome().quantile_ms(0.5))


def test_trend_leaves_out_the_beginning_and_tells_growth_a_minute() -> None:
    flat = [(float(second), 300.0 if second < 20 else 200.0) for second in range(100)]
    assert trend(flat) == (200.0, 200.0, 0.0)
    growing = [(float(second), 100.0 + second / 60) for second in range(600)]
    assert trend(growing)[2] == pytest.approx(1.0)
