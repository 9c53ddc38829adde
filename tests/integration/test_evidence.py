"""Evidence of versions in a real MLflow and Postgres: all of it, once, and never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlops.database import connect
from mlops.evidence import collect, figures
from mlops.evidence.loop import write_evidence_of_loop
from mlops.registry.models import promote, stage_top
from mlops.reporting.library import card_path, find_report
from mlops.settings import Settings
from mlops.training import tracking
from tests.integration.test_training_runs import World

PICTURES = set(figures.READING) - {"profit"}  # the churn card has no costs


@pytest.fixture
def world(database: Settings, mlflow_server: str, tmp_path: Path) -> World:
    """Two versions of a small card: 1 in production, 2 in staging."""
    world = World(database, tmp_path)
    world.settings = world.settings.model_copy(update={"evidence_seconds": 300.0})
    world.start("first")
    for name in ("Linear", "Small"):
        world.fit(name, "first")
    board = world.finish("first")
    promote("1", world.card, world.settings)
    stage_top(board, world.card, world.settings)
    return world


def write(world: World, said: list[str] | None = None) -> list[tuple[str, str, str]]:
    with connect(settings=world.settings) as connection:
        done = collect.write_evidence(
            connection, world.card, world.settings, (said if said is not None else []).append
        )
    return [(each.version, each.stage, each.outcome) for each in done]


def artifacts(world: World, version: str, folder: str) -> set[str]:
    client = tracking.client(world.settings)
    run_id = client.get_model_version(world.card.name, version).run_id
    return {Path(each.path).name for each in client.list_artifacts(run_id, folder)}


def test_every_version_in_use_gets_its_evidence_once_and_the_champion_its_card(
    world: World,
) -> None:
    assert write(world) == [("1", "production", "written"), ("2", "staging-2", "written")]
    for version in ("1", "2"):
        found = artifacts(world, version, "evidence")
        assert found == {f"{name}.png" for name in PICTURES} | {"evidence.json"}
    assert artifacts(world, "1", "model_card") == {"model_card.html", "model_card.pdf"}
    assert artifacts(world, "2", "model_card") == set()
    report = find_report(world.settings.reports_dir, version="1", period=None)
    assert report.kind == "card"
    assert report.detail is not None
    assert report.detail.read_bytes().startswith(b"%PDF")
    assert "scikit-learn==" in card_path(world.settings.reports_dir, "1").read_text()
    before = card_path(world.settings.reports_dir, "1").stat().st_mtime_ns
    assert write(world) == [("1", "production", "there"), ("2", "staging-2", "there")]
    assert card_path(world.settings.reports_dir, "1").stat().st_mtime_ns == before

    # A person, or a gate, puts the other one into production: its numbers are those it had.
    client = tracking.client(world.settings)
    run_id = client.get_model_version(world.card.name, "2").run_id
    numbers = json.loads(
        Path(
            client.download_artifacts(
                run_id, "evidence/evidence.json", str(world.candidates.parent)
            )
        ).read_text()
    )
    promote("2", world.card, world.settings)
    said: list[str] = []
    assert write(world, said)[0] == ("2", "production", "written")
    assert not [line for line in said if "learning curve" in line], "nothing is measured anew"
    page = card_path(world.settings.reports_dir, "2").read_text()
    assert f"{numbers['metrics']['values']['roc_auc']['value']:.3f}" in page
    # What a person has deleted is made again.
    card_path(world.settings.reports_dir, "2").unlink()
    write(world)
    assert card_path(world.settings.reports_dir, "2").read_text() == page


def test_a_version_that_fails_is_told_and_the_others_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = collect.measure

    def fail_once(*arguments: object, **more: object) -> object:
        monkeypatch.setattr(collect, "measure", measure)
        raise RuntimeError("no such luck")

    monkeypatch.setattr(collect, "measure", fail_once)
    said: list[str] = []
    done = write_evidence_of_loop(said.append, world.settings)
    assert [each["outcome"] for each in done] == ["failed", "written"]
    assert [line for line in said if "no evidence: RuntimeError: no such luck" in line]
    assert not card_path(world.settings.reports_dir, "1").exists()


@pytest.mark.parametrize("server", ["postgres_port", "mlflow_port"])
def test_a_loop_goes_on_where_a_server_is_away(
    monkeypatch: pytest.MonkeyPatch, world: World, server: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = world.settings.model_copy(update={server: 9})
    said: list[str] = []
    assert write_evidence_of_loop(said.append, away) == []
    assert "no evidence could be written" in said[-1]


def test_no_version_is_begun_when_the_time_is_over(world: World) -> None:
    world.settings = world.settings.model_copy(update={"evidence_seconds": 1e-9})
    said: list[str] = []
    assert [outcome for *_, outcome in write(world, said)] == ["later", "later"]
    assert "evidence_seconds" in said[-1]
    world.settings = world.settings.model_copy(update={"evidence_seconds": 0.0})
    assert write_evidence_of_loop(said.append, world.settings) == []
