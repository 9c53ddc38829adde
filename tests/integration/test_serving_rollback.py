"""What a person does to production: back, held, released, promoted; and what a kill leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pytest
import yaml
from psycopg2.extensions import connection as Connection

from mlops.database import connect
from mlops.dataset.card import Card, load_card
from mlops.dataset.rows import store
from mlops.dataset.sources import RawData
from mlops.dataset.timeline import period_range
from mlops.registry.holds import active_hold
from mlops.registry.models import (
    RegistryError,
    production_version,
    promote,
    record_deployment,
)
from mlops.registry.stays import former_stays
from mlops.serving import deployment, rollback
from mlops.serving.client import PredictClient
from mlops.serving.deployment import DeploymentError, deploy, render_version
from mlops.serving.export import export_onnx
from mlops.serving.payload import current_version, is_payload, switch_current
from mlops.serving.rollback import RollbackError, promote_by_hand, release, roll_back, withdraw
from mlops.settings import Settings
from mlops.training.fit import fit_candidate
from mlops.training.trainings import finish_training, start_training
from tests.fixtures.predict import PredictServer, make_rows

CARD_NAME = "rollback_test"
TRAINING = f"{CARD_NAME}-sooner"
LATER = f"{CARD_NAME}-later"


@dataclass
class World:
    """A card with four trained versions, and an API that answers with one of them."""

    settings: Settings
    card: Card
    server: PredictServer
    versions: list[str]
    best: str
    """The version that the gate is asked about."""

    def production(self) -> tuple[str | None, ...]:
        """Return what link, API, alias and history say."""
        with PredictClient(self.server.url) as client:
            answering = str(client.health()["version"])
        rows = self.query("SELECT model_version FROM ops.deployments WHERE retired_at IS NULL")
        return (
            current_version(self.settings.payloads_dir),
            answering,
            production_version(self.card, self.settings),
            *(row[0] for row in rows),
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with self.database() as connection, connection.cursor() as cursor:
            cursor.execute(sql.replace("ops.deployments WHERE", "ops.deployments WHERE card ="
                                       f" '{self.card.name}' AND"))  # fmt: skip
            return list(cursor.fetchall())

    @contextmanager
    def database(self) -> Iterator[Connection]:
        with connect(settings=self.settings) as connection:
            yield connection

    def promote(self, version: str) -> None:
        with self.database() as connection:
            promote_by_hand(version, connection, self.card, "test", settings=self.settings)

    def roll_back(self, **asked: Any) -> rollback.Change:
        with self.database() as connection:
            return roll_back(connection, self.card, self.settings, **asked)

    def deploy(self) -> deployment.Deployment:
        anybody = self.settings.model_copy(update={"gate_margin": -1.0, "gate_slice_margin": 1.0})
        with self.database() as connection:
            return deploy(LATER, connection, "test", settings=anybody)

    def hold(self) -> Any:
        with self.database() as connection:
            return active_hold(connection, self.card)


@pytest.fixture(scope="module")
def trained(
    postgres: Settings, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("rollback")
    content = yaml.safe_load(load_card("bank_marketing").path.read_text())
    content["name"] = CARD_NAME
    content.pop("sample")
    (folder / "card.yaml").write_text(yaml.safe_dump(content))
    linear = {"class": "sklearn.linear_model.LogisticRegression", "scale": True}
    (folder / "candidates.yaml").write_text(
        yaml.safe_dump({f"C{n}": {**linear, "params": {"C": 10.0**-n}} for n in range(3)})
    )
    settings = postgres.model_copy(
        update={
            "card": str(folder / "card.yaml"),
            "candidates": folder / "candidates.yaml",
            "payloads_dir": folder / "payloads",
            "state_dir": folder / "state",
            "quality_out_of_range_share": 1.0,  # the rows are made up
        }
    )
    card = load_card(settings.card)
    months = period_range("2008-11", "2009-02")
    frames = [make_rows(card, 300, seed).assign(period=m) for seed, m in enumerate(months)]
    raw = RawData(pd.concat(frames, ignore_index=True), "0" * 64, "generated", "test", 1)
    with connect(settings=settings) as connection:
        store(connection, card, raw)
    boards = []
    for training_id, end in ((TRAINING, "2009-01"), (LATER, "2009-02")):
        with connect(settings=settings) as connection:
            start_training(connection, card, "test", "2008-11", end, training_id, settings)
        for candidate in ("C0", "C1", "C2"):
            with connect(settings=settings) as connection:
                fit_candidate(candidate, training_id, connection, settings)
        with connect(settings=settings) as connection:
            boards.append(finish_training(connection, training_id, settings))
    server = PredictServer(settings)
    versions = [str(entry["version"]) for entry in boards[0]]
    try:
        # The API starts with a payload: the first comes by itself, as on a new machine.
        with connect(settings=settings) as connection:
            render_version(versions[0], card, connection, settings, print)
        switch_current(settings.payloads_dir, versions[0])
        server.start()
        yield World(settings, card, server, versions, str(boards[1][0]["version"]))
    finally:
        server.stop()


@pytest.fixture
def world(trained: World) -> World:
    """The three versions have been in production one after another; no hold stands."""
    former = None
    with trained.database() as connection:
        with connection.cursor() as cursor:
            for table in ("deployments", "holds", "gate_decisions"):
                cursor.execute(f"DELETE FROM ops.{table} WHERE card = %s", (CARD_NAME,))
        for version in trained.versions:
            gate = {"promote": True, "reason": "test", "numbers": {"champion": former}}
            record_deployment(
                connection, trained.card, version, cause="test", gate=gate, began="by hand",
                training_id=TRAINING,
            )  # fmt: skip
            former = version
    for version in trained.versions:
        if not is_payload(trained.settings.payloads_dir / version):
            with trained.database() as connection:
                render_version(version, trained.card, connection, trained.settings, print)
    deployment.switch_api(trained.versions[-1], None, trained.settings, print, 60)
    promote(trained.versions[-1], trained.card, trained.settings)
    assert trained.production() == (trained.versions[-1],) * 4
    return trained


def test_the_former_version_is_back_everywhere_within_seconds_and_held(world: World) -> None:
    first, second, third = world.versions
    done = world.roll_back()
    assert (done.version, done.former) == (second, third)
    assert done.seconds < 20  # an export alone takes longer on a busy machine
    assert world.production() == (second,) * 4
    hold = world.hold()
    assert (hold.rolled_from, hold.rolled_to) == (third, second)
    assert hold.done_at is not None
    assert world.query(
        "SELECT model_version, began, retired_by FROM ops.deployments WHERE true ORDER BY id"
    ) == [
        (first, "by hand", second),
        (second, "by hand", third),
        (third, "by hand", second),
        (second, "rollback", None),
    ]


def test_back_twice_is_one_further_back_and_never_forth(world: World) -> None:
    first, second, third = world.versions
    assert [world.roll_back().version for _ in range(2)] == [second, first]
    assert world.production() == (first,) * 4
    before = world.hold()
    with pytest.raises(RollbackError, match=f"nothing to roll back to.*before {first}"):
        world.roll_back()
    assert world.production() == (first,) * 4
    assert world.hold() == before
    # A new one on top: back from it is what it replaced, not what was rolled back once.
    world.promote(third)
    assert world.roll_back().version == first


def test_nothing_in_production_is_nothing_to_roll_back(world: World) -> None:
    other = world.card.model_copy(update={"name": "never_trained"})
    with (
        pytest.raises(RollbackError, match="nothing is in production: run the pipeline deploy"),
        world.database() as connection,
    ):
        roll_back(connection, other, world.settings)


def test_while_held_the_loop_promotes_nothing_and_says_why(world: World) -> None:
    _, second, _ = world.versions
    world.roll_back()
    kept = world.deploy()
    assert (kept.outcome, kept.production) == ("kept_champion", second)
    assert "a hold stands since" in kept.reason
    assert "make release" in kept.reason
    assert kept.gate["rule"] == "hold"
    assert kept.gate["challenger_roc_auc"] is not None
    assert world.production() == (second,) * 4
    rows = world.query(
        "SELECT challenger, champion, promote, numbers ->> 'rule' FROM ops.gate_decisions"
        f" WHERE card = '{CARD_NAME}' ORDER BY id DESC LIMIT 1"
    )
    assert rows == [(world.best, second, False, "hold")]

    with world.database() as connection:
        assert release(connection, world.card, "test") is not None
        assert release(connection, world.card, "test") is None
    assert world.hold() is None
    assert world.deploy().outcome == "promoted"
    assert world.production() == (world.best,) * 4


def test_a_promotion_by_hand_asks_no_gate_stores_its_numbers_and_ends_the_hold(
    world: World,
) -> None:
    first, second, _ = world.versions
    world.roll_back()
    strict = world.settings.model_copy(update={"gate_margin": 1.0, "gate_equal": -1.0})
    with world.database() as connection:
        done = promote_by_hand(first, connection, world.card, "by Ada", settings=strict)
    assert (done.version, done.former) == (first, second)
    assert world.production() == (first,) * 4
    assert world.hold() is None
    rows = world.query(
        "SELECT began, cause, gate ->> 'promote', gate -> 'numbers' ->> 'champion'"
        " FROM ops.deployments WHERE retired_at IS NULL"
    )
    assert rows == [("by hand", "by Ada", "false", second)]
    # Again: nothing changes, and a hold that stands meanwhile ends.
    world.roll_back()
    world.promote(second)
    assert world.hold() is None
    assert len(world.query("SELECT 1 FROM ops.deployments WHERE true")) == 6


@pytest.mark.parametrize(
    ("version", "message"), [("", "expected a number"), ("999", "has no version 999")]
)
def test_a_version_that_is_none_is_not_promoted(world: World, version: str, message: str) -> None:
    before = world.production()
    with pytest.raises(RegistryError, match=message):
        world.promote(version)
    assert world.production() == before


def test_a_rollback_that_the_api_does_not_take_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second, third = world.versions
    shutil.rmtree(world.settings.payloads_dir / second)

    def broken(*args: Any) -> Any:
        return replace(export_onnx(*args), content=b"no model")

    monkeypatch.setattr(deployment, "export_onnx", broken)
    with pytest.raises(DeploymentError, match=f"Version {third} answers"):
        world.roll_back()
    assert world.production() == (third,) * 4
    assert world.hold() is None
    monkeypatch.undo()
    # A payload that is gone, or was left broken, is exported anew.
    shutil.rmtree(world.settings.payloads_dir / second)
    assert world.roll_back().version == second
    assert world.production() == (second,) * 4


def test_a_rollback_killed_before_it_changed_anything_begins_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second, third = world.versions

    def killed(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(rollback, "switch_api", killed)
    with pytest.raises(SystemExit):
        world.roll_back()
    assert world.production() == (third,) * 4
    assert world.hold().done_at is None
    # The loop keeps off meanwhile.
    assert world.deploy().outcome == "kept_champion"
    monkeypatch.undo()
    assert world.roll_back().version == second
    assert world.production() == (second,) * 4
    assert world.hold().done_at is not None


def test_the_loop_does_not_undo_a_rollback_killed_before_the_alias(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second, third = world.versions

    def killed(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(rollback, "register_production", killed)
        with pytest.raises(SystemExit):
            world.roll_back()
    assert world.production() == (second, second, third, third)
    kept = world.deploy()
    assert kept.outcome == "kept_champion"
    assert "roll back again to finish it" in kept.reason
    assert world.production() == (second, second, third, third)
    # A person may also have the version back that the registry still names.
    world.promote(third)
    assert world.production() == (third,) * 4
    assert world.roll_back().version == second
    assert world.production() == (second,) * 4

    # Nor is it undone by a deployment that Mage runs again, of the version that is left.
    with world.database() as connection:
        release(connection, world.card, "test")
    assert world.deploy().outcome == "promoted"
    with monkeypatch.context() as patch:
        patch.setattr(rollback, "register_production", killed)
        with pytest.raises(SystemExit):
            world.roll_back()
    halfway = (second, second, world.best, world.best)
    assert world.production() == halfway
    world.deploy()
    assert world.production() == halfway
    assert world.roll_back().version == second
    assert world.production() == (second,) * 4


def test_a_gate_that_fails_frees_no_lock_and_undoes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody comes in between, and what was healed before the gate stays healed."""
    first, second, third = world.versions
    promote(second, world.card, world.settings)  # the history says third: to be healed
    free: list[bool] = []

    def failing(connection: Connection, *_: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM ops.there_is_none")

    def render(*asked: Any) -> float:
        with world.database() as other, other.cursor() as cursor:
            cursor.execute(
                "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))",
                (deployment.lock_name(world.card),),
            )
            free.extend(cursor.fetchone() or ())
        return render_version(*asked)

    monkeypatch.setattr(rollback, "evaluate_gate", failing)
    monkeypatch.setattr(rollback, "render_version", render)
    world.promote(first)
    assert free == [False]
    assert world.production() == (first,) * 4
    assert world.query(
        "SELECT model_version, began, retired_by FROM ops.deployments WHERE true ORDER BY id"
    )[2:] == [(third, "by hand", second), (second, "healed", first), (first, "by hand", None)]
    (told,) = world.query(
        "SELECT numbers ->> 'rule' FROM ops.gate_decisions"
        f" WHERE card = '{CARD_NAME}' ORDER BY id DESC LIMIT 1"
    )
    assert told == ("not measured",)


def test_a_rollback_killed_after_the_alias_is_finished_and_not_done_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = world.versions

    def killed(*_: Any, **__: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(rollback, "record_deployment", killed)
    with pytest.raises(SystemExit):
        world.roll_back()
    assert world.production() == (second, second, second, third)
    monkeypatch.undo()
    done = world.roll_back()
    assert done.version == second
    assert "was interrupted, and is complete now" in done.sentence
    assert world.production() == (second,) * 4
    assert world.hold().done_at is not None
    # The next one goes on from there.
    assert world.roll_back().version == first


def test_asking_twice_for_the_same_rollback_is_one(world: World) -> None:
    _, second, third = world.versions
    assert world.roll_back(request="Mage 1").version == second
    again = world.roll_back(request="Mage 1")
    assert (again.version, again.former) == (second, second)
    # Nor does who looks at an old page: it is another version that he means.
    assert world.roll_back(expected=third).version == second
    assert world.production() == (second,) * 4
    assert len(world.query("SELECT 1 FROM ops.deployments WHERE true")) == 4


def test_what_was_withdrawn_is_no_place_to_return_to(world: World) -> None:
    first, second, third = world.versions
    with world.database() as connection:
        said = withdraw(third, world.card, connection, "refused", settings=world.settings)
    assert said == f"Version {second} is in production again"
    assert world.hold() is None  # the loop goes on
    with world.database() as connection:
        stays = former_stays(connection, world.card)
    assert [stay["model_version"] for stay in stays] == [first]
    assert world.roll_back().version == first


def test_every_versions_life_is_one_query(world: World) -> None:
    first, second, third = world.versions
    world.roll_back()
    rows = world.query(
        "SELECT model_version, candidate IS NOT NULL, window_start::text, fitted_rows > 0, began,"
        " production_from IS NULL, production_until IS NULL, retired_by, gate_champion"
        f" FROM ops.version_history WHERE card = '{CARD_NAME}'"
        f" AND (stay IS NOT NULL OR model_version = '{world.best}') ORDER BY stay NULLS FIRST"
    )
    assert rows == [
        (world.best, True, "2008-11-01", True, None, True, True, None, None),
        (first, True, "2008-11-01", True, "by hand", False, False, second, rows[1][-1]),
        (second, True, "2008-11-01", True, "by hand", False, False, third, first),
        (third, True, "2008-11-01", True, "by hand", False, False, second, second),
        (second, True, "2008-11-01", True, "rollback", False, True, None, first),
    ]


def test_the_panels_role_reads_the_history(world: World) -> None:
    with connect(role="grafana", settings=world.settings) as connection:
        frame = pd.read_sql_query("SELECT * FROM ops.version_history", connection)
    assert set(world.versions) <= set(frame["model_version"])
