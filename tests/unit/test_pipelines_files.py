"""Mage's pipelines as they lie in the repository: whole, consistent, described, and thin."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops.orchestration.mage import PIPELINES, TRIGGER
from mlops.orchestration.server import PROJECT

BLOCK_LINES = 22
"""Lines of a block's functions, all together: more is domain code that went astray."""

FOLDERS = {
    "custom": "custom",
    "data_loader": "data_loaders",
    "transformer": "transformers",
    "data_exporter": "data_exporters",
    "callback": "callbacks",
}


def load(pipeline: str, file: str) -> dict[str, Any]:
    path = PROJECT / "pipelines" / pipeline / file
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def parts(pipeline: str) -> list[dict[str, Any]]:
    metadata = load(pipeline, "metadata.yaml")
    return [*metadata["blocks"], *metadata["callbacks"]]


def file_of(block: dict[str, Any]) -> Path:
    if given := block["configuration"].get("file_path"):
        return PROJECT / given
    return PROJECT / FOLDERS[block["type"]] / f"{block['uuid']}.py"


def block_files() -> list[Path]:
    return [path for folder in FOLDERS.values() for path in (PROJECT / folder).rglob("*.py")]


def test_the_project_has_these_pipelines_and_no_other() -> None:
    found = {path.parent.name for path in (PROJECT / "pipelines").glob("*/metadata.yaml")}
    assert found == set(PIPELINES)


def test_the_project_has_its_id_and_sends_no_statistics() -> None:
    project = yaml.safe_load((PROJECT / "metadata.yaml").read_text(encoding="utf-8"))
    assert project["project_uuid"], "Mage would write one into the file"
    assert project["help_improve_mage"] is False


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_is_named_and_described(pipeline: str) -> None:
    metadata = load(pipeline, "metadata.yaml")
    assert metadata["uuid"] == metadata["name"] == pipeline
    assert len(metadata["description"]) > 40
    assert metadata["tags"]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_block_has_its_file(pipeline: str) -> None:
    missing = [str(file_of(block)) for block in parts(pipeline) if not file_of(block).is_file()]
    assert not missing


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_upstream_and_downstream_say_the_same(pipeline: str) -> None:
    blocks = {block["uuid"]: block for block in load(pipeline, "metadata.yaml")["blocks"]}
    down = {(a, b) for a, block in blocks.items() for b in block["downstream_blocks"]}
    up = {(a, b) for b, block in blocks.items() for a in block["upstream_blocks"]}
    assert up == down
    assert {name for edge in up for name in edge} <= set(blocks)
    # One after the other, so that a run reads from top to bottom.
    assert sum(not block["upstream_blocks"] for block in blocks.values()) == 1


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_block_that_several_pipelines_use_is_of_one_type(pipeline: str) -> None:
    types = {block["uuid"]: block["type"] for name in PIPELINES for block in parts(name)}
    assert all(block["type"] == types[block["uuid"]] for block in parts(pipeline))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_has_an_active_api_trigger_without_a_token(pipeline: str) -> None:
    triggers = load(pipeline, "triggers.yaml")["triggers"]
    assert all("token" not in trigger for trigger in triggers)
    assert all(trigger["pipeline_uuid"] == pipeline for trigger in triggers)
    api = next(trigger for trigger in triggers if trigger["name"] == TRIGGER)
    assert (api["schedule_type"], api["status"]) == ("api", "active")
    assert api["last_enabled_at"], "Mage would write it into the file"


def test_the_monthly_retrain_is_there_and_off() -> None:
    triggers = {each["name"]: each for each in load("retrain", "triggers.yaml")["triggers"]}
    monthly = triggers["monthly"]
    assert (monthly["schedule_type"], monthly["schedule_interval"]) == ("time", "@monthly")
    assert monthly["status"] == "inactive"


def test_no_schedule_runs_by_itself() -> None:
    """Files to be scored are watched for: a run a minute would bury those that did something."""
    triggers = [each for name in PIPELINES for each in load(name, "triggers.yaml")["triggers"]]
    timed = [each for each in triggers if each["schedule_type"] == "time"]
    assert {each["status"] for each in timed} == {"inactive"}


def test_candidates_are_fitted_in_parallel_processes() -> None:
    for pipeline in ("train", "retrain"):
        metadata = load(pipeline, "metadata.yaml")
        blocks = {block["uuid"]: block for block in metadata["blocks"]}
        assert metadata["run_pipeline_in_one_process"] is False
        assert blocks["train/start"]["configuration"] == {"dynamic": True}
        assert blocks["train/fit_candidate"]["configuration"] == {"reduce_output": True}


def test_the_best_are_blended_after_the_candidates_and_before_the_ranking() -> None:
    for pipeline in ("train", "retrain"):
        blocks = {block["uuid"]: block for block in load(pipeline, "metadata.yaml")["blocks"]}
        assert blocks["train/fit_ensemble"]["upstream_blocks"] == ["train/fit_candidate"]
        assert blocks["train/leaderboard"]["upstream_blocks"] == ["train/fit_ensemble"]


def test_every_block_of_retrain_is_watched_by_the_callback() -> None:
    metadata = load("retrain", "metadata.yaml")
    # In one process, Mage may kill a failed run before its callback has written anything.
    assert metadata["run_pipeline_in_one_process"] is False
    watched = {name for each in metadata["callbacks"] for name in each["upstream_blocks"]}
    assert watched == {block["uuid"] for block in metadata["blocks"]}


def test_a_callback_of_the_dynamic_block_watches_that_alone() -> None:
    """Mage cannot fetch the inputs of any other, and the callback then is not run."""
    for callback in load("retrain", "metadata.yaml")["callbacks"]:
        watched = callback["upstream_blocks"]
        assert "train/start" not in watched or watched == ["train/start"]


@pytest.mark.parametrize("path", block_files(), ids=lambda path: path.parent.name + "/" + path.stem)
def test_a_block_says_what_it_is_for_and_only_calls_the_domain(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    modules = {
        node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 0
    }
    plain = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    foreign = {name for name in modules | plain if not name.startswith("mlops.")}
    assert foreign <= {"dataclasses", "mage_ai.data_preparation.decorators"}
    assert not any(name.startswith(("mlops.app", "mlops.stack")) for name in modules)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    lines = sum((node.end_lineno or 0) - node.lineno + 1 for node in functions)
    assert 0 < lines <= BLOCK_LINES
    # Mage's log keeps the first argument of print only.
    prints = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert all(len(call.args) == 1 for call in prints)


def test_no_block_lies_about_unused() -> None:
    used = {file_of(block) for pipeline in PIPELINES for block in parts(pipeline)}
    assert set(block_files()) == used
