"""A new version takes over without failing a request; a broken one never answers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from mlops.serving.client import PayloadRefused, PredictClient
from mlops.serving.payload import switch_current
from tests.fixtures.predict import PredictServer, exported, make_payload
from tests.fixtures.waiting import await_


@dataclass
class Load:
    """What callers saw while something else happened."""

    versions: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@contextmanager
def under_load(server: PredictServer, callers: int = 4) -> Iterator[Load]:
    """Send requests without a pause, from several callers, until the block ends."""
    load, stop = Load(), threading.Event()
    record = server.reference()

    def call() -> None:
        with PredictClient(server.url) as client:
            while not stop.is_set():
                try:
                    load.versions.append(client.predict(record)["version"])
                except Exception as fault:
                    load.faults.append(repr(fault))

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        await_(lambda: len(load.versions) > 50 or load.faults)
        yield load
        count = len(load.versions)
        await_(lambda: len(load.versions) > count + 50 or load.faults)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def deploy(server: PredictServer, version: str, seed: int = 0) -> Path:
    folder = make_payload(server.settings.payloads_dir, version, seed)
    switch_current(server.settings.payloads_dir, version)
    return folder


def wait_for(server: PredictServer, version: str, timeout: float = 20) -> None:
    with PredictClient(server.url) as client:
        client.wait_for_version(version, server.settings.predict_workers, timeout)


def load_error(server: PredictServer) -> str:
    """Return the first fault of loading that any worker reports, once every worker has one."""
    faults: dict[int, str] = {}

    def everyone() -> bool:
        health = requests.get(f"{server.url}/health", timeout=10).json()
        if health["load_error"]:
            faults[health["pid"]] = health["load_error"]
        return len(faults) == server.settings.predict_workers

    await_(everyone, what=f"load errors, so far {faults}")
    return next(iter(faults.values()))


def test_answers_as_the_model_that_it_was_given(predict_server: PredictServer) -> None:
    card, frame, pipeline, _ = exported(0)
    with PredictClient(predict_server.url) as client:
        health, model = client.health(), client.model()
        records = frame[card.feature_names].astype(object).where(frame.notna(), None)
        answer = client.predict(records[card.feature_names].to_dict("records"))
    assert health["version"] == model["version"] == answer["version"] == "1"
    expected = pipeline.predict_proba(frame[card.feature_names])[:, 1]
    found = [each["probability"] for each in answer["predictions"]]
    assert max(abs(expected - found)) < 1e-5
    decisions = [each["decision"] for each in answer["predictions"]]
    assert decisions == ["yes" if p >= model["threshold"] else "no" for p in found]


def test_swaps_versions_under_load_without_failing_a_request(
    predict_server: PredictServer,
) -> None:
    pids = set(predict_server.workers())
    with under_load(predict_server) as load:
        for version in ("2", "3", "4"):
            deploy(predict_server, version, seed=int(version))
            wait_for(predict_server, version)
    assert load.faults == []
    assert set(load.versions) == {"1", "2", "3", "4"}
    assert set(predict_server.workers()) == pids, "a swap must not cost a worker"


def test_takes_a_payload_of_the_same_version_that_was_rendered_again(
    predict_server: PredictServer,
) -> None:
    record = predict_server.reference()
    before = predict_server.post(record).json()["predictions"][0]["probability"]
    make_payload(predict_server.settings.payloads_dir, "1", seed=5)
    await_(
        lambda: predict_server.post(record).json()["predictions"][0]["probability"] != before,
        what="the new model of version 1",
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.onnx", b"no model"),
        ("model.json", b'{"version": "2"'),
        ("model.json", b'{"version": "2"}'),
        ("predict.py", b"def broken(:\n"),
        ("predict.py", b"import nothing_of_this_name\n"),
        ("gunicorn.conf.py", b"workers = nothing\n"),
    ],
)
def test_broken_payload_is_reported_and_the_old_one_goes_on(
    predict_server: PredictServer, name: str, content: bytes
) -> None:
    folder = make_payload(predict_server.settings.payloads_dir, "2", seed=2)
    (folder / name).write_bytes(content)
    pids = set(predict_server.workers())
    with under_load(predict_server) as load:
        switch_current(predict_server.settings.payloads_dir, "2")
        assert load_error(predict_server).startswith("2: ")
    assert load.faults == []
    assert set(load.versions) == {"1"}
    assert set(predict_server.workers()) == pids
    with PredictClient(predict_server.url) as client, pytest.raises(PayloadRefused, match="2: "):
        client.wait_for_version("2", 2, timeout=5)

    # The way out: the link is put back, or a sound payload comes.
    switch_current(predict_server.settings.payloads_dir, "1")
    wait_for(predict_server, "1")
    await_(
        lambda: requests.get(f"{predict_server.url}/health", timeout=10).json()["status"] == "ok"
    )
    deploy(predict_server, "3", seed=3)
    wait_for(predict_server, "3")


def test_worker_killed_while_current_is_broken_comes_back_with_the_last_good_version(
    predict_server: PredictServer,
) -> None:
    deploy(predict_server, "2", seed=2)
    wait_for(predict_server, "2")
    folder = make_payload(predict_server.settings.payloads_dir, "3", seed=3)
    (folder / "model.onnx").write_bytes(b"no model")
    (folder / "predict.py").write_bytes(b"raise SystemExit('broken')\n")
    switch_current(predict_server.settings.payloads_dir, "3")
    load_error(predict_server)

    victim = predict_server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    await_(
        lambda: len(workers := predict_server.workers()) == 2 and victim not in workers,
        what="a new worker",
    )
    wait_for(predict_server, "2")
    assert load_error(predict_server).startswith("3: ")


def test_new_code_replaces_the_workers_once_and_drops_no_request(
    predict_server: PredictServer,
) -> None:
    pids = set(predict_server.workers())
    folder = make_payload(predict_server.settings.payloads_dir, "2", seed=2)
    code = folder / "predictor" / "quick.py"
    old = '("X-Content-Type-Options", "nosniff")'
    assert old in code.read_text()
    code.write_text(code.read_text().replace(old, '("X-Code", "new")'))
    with under_load(predict_server) as load:
        switch_current(predict_server.settings.payloads_dir, "2")
        wait_for(predict_server, "2")
    assert load.faults == []
    assert set(load.versions) == {"1", "2"}
    await_(lambda: len(predict_server.workers()) == 2)
    assert not pids & set(predict_server.workers())
    assert predict_server.output.count("Handling signal: hup") == 1
    assert requests.get(f"{predict_server.url}/health", timeout=10).headers["X-Code"] == "new"


def test_refuses_to_start_on_a_broken_payload_and_says_why(predict_server: PredictServer) -> None:
    predict_server.stop()
    folder = predict_server.settings.payloads_dir / "1"
    (folder / "model.onnx").write_bytes(b"no model")
    predict_server.start(wait=False)
    assert predict_server.process is not None
    assert predict_server.process.wait(timeout=30) != 0
    assert "PayloadError" in predict_server.output
