"""A payload appears whole or not at all, and says what the model expects."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from mlops.dataset.card import Costs, load_card
from mlops.serving import payload
from mlops.serving.export import OnnxModel
from mlops.serving.payload import (
    TEMPLATES,
    current_version,
    describe_model,
    remove_current,
    render_payload,
    switch_current,
)
from tests.fixtures.predict import SERVICES_PYTHON, make_rows

CARD = load_card("bank_marketing")
FILES = {
    "predict.py",
    "predictor",
    "predict.dockerfile",
    "requirements.txt",
    "gunicorn.conf.py",
    "model.onnx",
    "model.json",
}


def describe(frame: Any, **more: Any) -> dict[str, Any]:
    inputs = {each.name: "float32" if each.kind == "number" else "string" for each in CARD.features}
    return describe_model(
        CARD,
        "3",
        OnnxModel(b"onnx", 3e-7, inputs, hostile_rows=9, hostile_difference=3e-7),
        frame,
        run_id="r",
        candidate="XGBClassifier",
        training_id="t",
        threshold=0.31,
        metrics={"validation_roc_auc": 0.65},
        window=("2008-05", "2009-02"),
        **more,
    )


def test_describes_fields_by_card_and_fitting_rows() -> None:
    frame = make_rows(CARD)
    frame["age"] = np.array([18, 40, 40, 95] * 150, dtype=np.float32)
    frame["job"] = ["admin.", "admin.", "maid", ""] * 150
    described = orjson.loads(orjson.dumps(describe(frame)))
    inputs = {each["name"]: each for each in described["inputs"]}
    assert list(inputs) == CARD.feature_names
    assert inputs["age"] == {
        "name": "age", "kind": "number", "description": "Age of the customer", "unit": "years",
        "min": 18, "max": 95, "median": 40, "integer": True, "missing": [], "required": True,
        "warn": True,
    }  # fmt: skip
    assert inputs["job"] == {
        "name": "job", "kind": "category", "description": "Kind of job",
        "values": ["admin.", "maid"], "mode": "admin.", "missing": ["unknown"], "required": True,
        "warn": True,
    }  # fmt: skip
    assert inputs["month"]["warn"] is False  # the calendar moves by itself
    assert described["reference"]["age"] == 40
    assert described["reference"]["job"] == "admin."
    assert set(described["reference"]) == set(described["onnx"]["inputs"]) == set(inputs)
    assert described["target"]["positive"] == "yes"
    assert described["training"]["rows"] == 600
    assert described["training"]["positive_rate"] == pytest.approx(frame["target"].mean())
    assert described["missing"] == list(CARD.missing)


def test_says_what_profit_to_expect_if_it_knows_the_costs() -> None:
    frame = make_rows(CARD)
    assert {"costs", "profit"}.isdisjoint(describe(frame))
    random = np.random.default_rng(0)
    score = random.random(400)
    validation = frame.head(400).assign(
        score=score, target=(random.random(400) < score).astype(int)
    )
    costs = Costs(contact=5, success=10, unit="euros")
    described = orjson.loads(orjson.dumps(describe(frame, costs=costs, validation=validation)))
    assert described["costs"] == {"contact": 5.0, "success": 10.0, "unit": "euros"}
    profit = described["profit"]
    assert (profit["per_rows"], profit["rows"]) == (1000, 400)
    contacted = validation[validation["score"] >= 0.31]
    assert profit["chosen"] == {
        "threshold": 0.31,
        "share": len(contacted) / 400,
        "profit": pytest.approx((10 * contacted["target"].sum() - 5 * len(contacted)) / 0.4),
    }
    assert profit["all"] == pytest.approx((10 * validation["target"].sum() - 5 * 400) / 0.4)
    assert len(profit["curve"]) == 100
    assert set(profit["curve"][0]) == {"threshold", "share", "profit"}
    assert profit["curve"][-1]["share"] == 1.0


def test_reference_says_missing_where_most_rows_do() -> None:
    frame = make_rows(CARD)
    frame["poutcome"] = (["failure"] + [""] * 5) * 100
    frame["pdays"] = np.array(([9] + [np.nan] * 5) * 100, dtype=np.float32)
    frame["previous"] = np.float32("nan")
    described = describe(frame)
    inputs = {each["name"]: each for each in described["inputs"]}
    assert inputs["poutcome"]["mode"] is None
    assert inputs["pdays"]["median"] == 9
    assert inputs["previous"]["min"] is inputs["previous"]["median"] is None
    assert [described["reference"][name] for name in ("poutcome", "pdays", "previous")] == [
        None
    ] * 3


def test_renders_every_file_and_nothing_beside(tmp_path: Path) -> None:
    folder = render_payload("3", b"onnx", {"version": "3"}, tmp_path)
    assert folder == tmp_path / "3"
    assert {file.name for file in folder.iterdir()} == FILES
    assert [entry.name for entry in tmp_path.iterdir()] == ["3"]
    assert (folder / "model.onnx").read_bytes() == b"onnx"
    assert orjson.loads((folder / "model.json").read_bytes()) == {"version": "3"}
    render_payload("3", b"another", {"version": "3"}, tmp_path)
    assert (folder / "model.onnx").read_bytes() == b"another"
    assert [entry.name for entry in tmp_path.iterdir()] == ["3"]


@pytest.mark.parametrize("version", ["", "../3", "3/4", "current", "v3"])
def test_refuses_versions_that_are_no_number(tmp_path: Path, version: str) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        render_payload(version, b"onnx", {}, tmp_path)


def test_interrupted_rendering_leaves_no_payload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(payload, "_to_disk", no_space)
    with pytest.raises(OSError, match="No space"):
        render_payload("3", b"onnx", {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_rendering_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".2.1a2b3c4d.new").mkdir()
    (tmp_path / ".current.1a2b3c4d.new").symlink_to("2")
    (tmp_path / ".gitkeep").touch()
    render_payload("3", b"onnx", {}, tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"3", ".gitkeep"}


def test_link_names_one_version_or_another_at_any_moment(tmp_path: Path) -> None:
    assert current_version(tmp_path) is None
    for version in ("1", "2"):
        render_payload(version, b"onnx", {"version": version}, tmp_path)
    assert switch_current(tmp_path, "1") is None
    stop, seen = threading.Event(), set()

    def watch() -> None:
        while not stop.is_set():
            seen.add(orjson.loads((tmp_path / "current" / "model.json").read_bytes())["version"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(50):
        assert switch_current(tmp_path, "2") == "1"
        assert switch_current(tmp_path, "1") == "2"
    stop.set()
    watcher.join()
    assert seen <= {"1", "2"}
    assert current_version(tmp_path) == "1"
    assert not (tmp_path / "current").readlink().is_absolute(), "the folder may be moved"
    remove_current(tmp_path)
    remove_current(tmp_path)
    assert current_version(tmp_path) is None


@pytest.mark.parametrize("gone", ["model.json", "model.onnx", "predict.py", None])
def test_link_to_a_payload_that_is_gone_names_no_version(tmp_path: Path, gone: str | None) -> None:
    for version in ("1", "2"):
        render_payload(version, b"onnx", {}, tmp_path)
    switch_current(tmp_path, "1")
    (tmp_path / "1" / gone).unlink() if gone else shutil.rmtree(tmp_path / "1")
    assert current_version(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="no payload"):
        switch_current(tmp_path, "1")
    assert switch_current(tmp_path, "2") is None
    assert current_version(tmp_path) == "2"


def test_link_is_not_set_to_what_is_no_payload(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no payload"):
        switch_current(tmp_path, "3")
    render_payload("3", b"onnx", {}, tmp_path)
    (tmp_path / "current").mkdir()
    with pytest.raises(FileExistsError, match="expected a link"):
        switch_current(tmp_path, "3")


def test_api_imports_only_what_its_image_holds() -> None:
    installed = {"flask", "gunicorn", "werkzeug", "numpy", "onnxruntime", "orjson"}
    installed |= {"prometheus_client", "psycopg2", "pyarrow"}
    allowed = installed | {"predict", "predictor"}
    imported = set()
    for path in TEMPLATES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) <= allowed


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the image has Python 3.11; 3.10 gets an older onnxruntime"
)
def test_image_installs_what_the_services_environment_runs() -> None:
    """The whole closure with exact versions; what is printed on failure is the file to write."""
    script = """
import re
from importlib.metadata import distribution
from packaging.requirements import Requirement
wanted = "flask gunicorn numpy onnxruntime orjson prometheus-client psycopg2-binary pyarrow".split()
versions = {}
while wanted:
    name = re.sub("[-_.]+", "-", wanted.pop()).lower()
    if name not in versions:
        found = distribution(name)
        versions[name] = found.version
        requirements = map(Requirement, found.requires or [])
        wanted += [r.name for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})]
print("\\n".join(f"{name}=={version}" for name, version in sorted(versions.items())))
"""
    if not SERVICES_PYTHON.exists():
        pytest.fail(f"{SERVICES_PYTHON} is missing: run `make setup`, which makes it")
    run = [str(SERVICES_PYTHON), "-c", script]
    expected = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert (TEMPLATES / "requirements.txt").read_text() == expected
