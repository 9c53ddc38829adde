"""What Prometheus reads: counts of several processes, added up, folded and never lost."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlops.settings import ROOT
from predictor import metrics
from predictor.logs import AccessLog, JsonFormatter

TEMPLATES = ROOT / "mlops" / "serving" / "templates"


class Workers:
    """Processes that count into one folder, as gunicorn's workers do."""

    def __init__(self, folder: Path) -> None:
        self.folder = metrics.open_folder(folder)

    def run(self, code: str) -> str:
        """Run `code` with the module `metrics` in a process of its own; return what it prints."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(TEMPLATES),
            metrics.FOLDER_VARIABLE: str(self.folder),
        }
        return subprocess.run(
            [sys.executable, "-c", f"from predictor import metrics\n{code}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout

    def exposition(self) -> dict[str, float]:
        return samples(self.run("print(metrics.exposition().decode())"))

    def retire(self, living: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(metrics.FOLDER_VARIABLE, str(self.folder))
        metrics.retire_workers(living)


def samples(text: str) -> dict[str, float]:
    """Return the value of each series of an exposition."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(tmp_path / "metrics")


COUNT = """
metrics.observe_request('/predict', 200, 0.0006)
metrics.observe_request('/predict', 422, 0.004)
metrics.count_rows('/predict', '3', 5)
metrics.count_error('missing_field')
metrics.count_unusual('job', 'unseen', 2)
"""


def test_counts_of_all_processes_are_added_also_of_dead_ones(workers: Workers) -> None:
    workers.run(COUNT)
    workers.run(COUNT)
    found = workers.exposition()
    assert found['predict_requests_total{route="/predict",status="200"}'] == 2
    assert found['predict_rows_total{route="/predict",version="3"}'] == 10
    assert found['predict_errors_total{code="missing_field"}'] == 2
    assert found['predict_input_unusual_total{field="job",kind="unseen"}'] == 4
    assert found['predict_request_duration_seconds_count{route="/predict"}'] == 4
    assert found['predict_request_duration_seconds_sum{route="/predict"}'] == pytest.approx(0.0092)
    buckets = 'predict_request_duration_seconds_bucket{le="%s",route="/predict"}'
    assert [
        found[buckets % limit] for limit in ("0.0005", "0.00075", "0.003", "0.005", "+Inf")
    ] == [*(0, 2, 2, 4, 4)]


def test_files_of_dead_workers_become_one_and_nothing_is_lost(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: dict[str, float] = {}
    for _ in range(3):
        workers.run(COUNT)
        before = workers.exposition()
        workers.retire(set(), monkeypatch)
        assert workers.exposition() == before
        assert all(before[series] >= value for series, value in counted.items())
        counted = before
    names = sorted(path.name for path in workers.folder.glob("*.db"))
    assert names == ["counter_retired.db", "histogram_retired.db"]
    assert counted['predict_requests_total{route="/predict",status="200"}'] == 3


def test_files_of_living_workers_stay(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = int(workers.run(COUNT + "import os; print(os.getpid())"))
    workers.retire({pid}, monkeypatch)
    assert (workers.folder / f"counter_{pid}.db").exists()


def test_a_file_that_its_worker_never_filled_blocks_nothing(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.run(COUNT)
    (workers.folder / "counter_4194303.db").write_bytes(b"")
    workers.retire(set(), monkeypatch)
    assert workers.exposition()['predict_rows_total{route="/predict",version="3"}'] == 5


def test_folding_waits_for_nobody_who_reads(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.run(COUNT + "metrics.model_loaded({'version': '1'})")
    with metrics._files(str(workers.folder), metrics.fcntl.LOCK_SH):
        workers.retire(set(), monkeypatch)
        assert not (workers.folder / "counter_retired.db").exists()
        # A worker that is dead answers nobody, whether its counts are folded or not.
        assert 'predict_workers{version="1"}' not in workers.exposition()
    workers.retire(set(), monkeypatch)
    assert (workers.folder / "counter_retired.db").exists()


def test_only_versions_that_are_answered_with_are_told(workers: Workers) -> None:
    card = "{'model': 'm', 'version': '%s', 'candidate': 'SVC'}"
    code = "".join(f"metrics.model_loaded({card % version})\n" for version in (1, 2, 1, 3))
    found = samples(workers.run(f"{code}print(metrics.exposition().decode())"))
    assert {series for series in found if "version" in series} == {
        'predict_model_info{candidate="SVC",model="m",version="3"}',
        'predict_workers{version="3"}',
    }
    assert found['predict_workers{version="3"}'] == 1
    assert found['predict_model_loads_total{outcome="loaded"}'] == 4


def test_a_second_server_with_the_same_state_takes_another_folder(tmp_path: Path) -> None:
    first = metrics.open_folder(tmp_path / "metrics")
    (first / "counter_1.db").write_bytes(b"x")
    second = metrics.open_folder(tmp_path / "metrics")
    try:
        assert first == tmp_path / "metrics"
        assert second != first
        assert (first / "counter_1.db").exists()
    finally:
        metrics.close_folder(second)
    assert not second.exists()


def test_a_state_folder_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = metrics.open_folder(tmp_path / "file" / "metrics")
    try:
        assert folder.is_dir()
    finally:
        metrics.close_folder(folder)


def test_closing_deletes_nothing_but_its_own_files(tmp_path: Path) -> None:
    folder = metrics.open_folder(tmp_path / "metrics")
    (folder / "counter_1.db").write_bytes(b"x")
    (folder / "notes.txt").write_text("mine")
    metrics.close_folder(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_inputs_are_counted_by_field_and_kind(workers: Workers) -> None:
    read: list[Any] = [
        ({"age": None, "job": "x"}, [{"field": "job", "value": "x"}]),
        ({"age": 999, "job": None}, [{"field": "age", "value": 999}]),
        ({"age": None, "job": "clerk"}, []),
    ]
    kinds = {"age": "out_of_range", "job": "unseen"}
    found = samples(
        workers.run(f"metrics.count_inputs({kinds}, {read})\nprint(metrics.exposition().decode())")
    )
    assert found == {
        'predict_input_unusual_total{field="age",kind="missing"}': 2,
        'predict_input_unusual_total{field="age",kind="out_of_range"}': 1,
        'predict_input_unusual_total{field="job",kind="missing"}': 1,
        'predict_input_unusual_total{field="job",kind="unseen"}': 1,
    }


def test_names_follow_prometheus_conventions(workers: Workers) -> None:
    momentary = dict.fromkeys(metrics.MOMENTARY, 1.0)
    text = workers.run(
        f"{COUNT}metrics.model_failed(); metrics.count_logged(3, 1)\n"
        f"print(metrics.exposition({momentary}).decode())"
    )
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert len(types) >= 11
    for name, kind in types.items():
        assert name.startswith("predict_")
        assert name.endswith("_total") == (kind == "counter")
        assert re.search(rf"^# HELP {name} .+\.$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("kind", "status", "seconds", "written"),
    [
        ("off", 500, 9.0, False),
        ("errors", 200, 0.1, False),
        ("errors", 404, 0.1, True),
        ("errors", 200, 1.5, True),
        ("all", 200, 0.1, True),
    ],
)
def test_which_requests_get_a_line(kind: str, status: int, seconds: float, written: bool) -> None:
    assert AccessLog(kind).wants(status, seconds) is written


def test_another_kind_of_access_log_is_refused() -> None:
    with pytest.raises(ValueError, match="MLOPS_PREDICT_ACCESS_LOG is 'some', expected off"):
        AccessLog("some")


def test_a_traceback_is_one_line_of_json() -> None:
    try:
        raise ValueError("two\nlines \u2028 \x1b[31m")
    except ValueError:
        record = logging.LogRecord(
            "predict", logging.ERROR, __file__, 1, "a %s", ("fault",), sys.exc_info()
        )
    record.request_id = "order-7"
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert "\n" not in line
    read = json.loads(line)
    assert (read["level"], read["message"], read["request_id"]) == ("error", "a fault", "order-7")
    assert read["exception"].startswith("Traceback")
    assert read["exception"].endswith("ValueError: two\nlines \u2028 \x1b[31m")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", read["time"])
