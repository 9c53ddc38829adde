"""From a finished training to an API that answers with it, and to traffic and tests over it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from psycopg2.extensions import connection as Connection
from sklearn.preprocessing import FunctionTransformer

from mlops.database import connect
from mlops.dataset.card import Card, load_card
from mlops.dataset.rows import load_window, store
from mlops.dataset.sources import RawData
from mlops.dataset.timeline import period_range
from mlops.registry.models import current_deployment, production_version, promote
from mlops.serving import deployment, testing
from mlops.serving.client import PredictClient
from mlops.serving.deployment import DeploymentError, deploy
from mlops.serving.export import ExportError, ParityError, export_onnx
from mlops.serving.payload import current_version
from mlops.serving.rollback import promote_by_hand
from mlops.serving.testing import score_production, score_unseen
from mlops.serving.traffic import (
    TrafficError,
    deliver_labels,
    forget_simulations,
    simulate_month,
)
from mlops.settings import Settings
from mlops.training import tracking
from mlops.training.fit import fit_candidate
from mlops.training.trainings import finish_training, start_training
from tests.fixtures.predict import PredictServer, make_rows
from tests.fixtures.waiting import await_

ROWS = 300  # a month


@dataclass
class Stack:
    """What the stack would hold: settings, card, an API, and trainings that have finished."""

    settings: Settings
    card: Card
    server: PredictServer
    first: str
    second: str

    def answering(self) -> str:
        with PredictClient(self.server.url) as client:
            return str(client.health()["version"])


@pytest.fixture(scope="module")
def stack(
    request: pytest.FixtureRequest,
    postgres: Settings,
    mlflow_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """A card of its own for each module: MLflow's registry, shared, keeps each one's champion."""
    name = request.module.__name__.rpartition(".")[2]
    folder = tmp_path_factory.mktemp("deployment")
    content = yaml.safe_load(load_card("bank_marketing").path.read_text())
    content["name"] = name
    content.pop("sample")
    (folder / "card.yaml").write_text(yaml.safe_dump(content))
    linear = {"class": "sklearn.linear_model.LogisticRegression", "scale": True}
    (folder / "two.yaml").write_text(
        yaml.safe_dump({"Good": {**linear, "params": {"C": 1.0}},
                        "Weak": {**linear, "params": {"C": 1e-7}}})
    )  # fmt: skip
    (folder / "one.yaml").write_text(yaml.safe_dump({"Same": {**linear, "params": {"C": 1.0}}}))
    settings = postgres.model_copy(
        update={
            "card": str(folder / "card.yaml"),
            "candidates": folder / "two.yaml",
            "payloads_dir": folder / "payloads",
            "state_dir": folder / "state",
            "quality_out_of_range_share": 1.0,  # the rows are made up
        }
    )
    card = load_card(settings.card)
    months = period_range("2008-11", "2009-06")
    frames = [make_rows(card, ROWS, seed).assign(period=m) for seed, m in enumerate(months)]
    raw = RawData(pd.concat(frames, ignore_index=True), "0" * 64, "generated", "test", 1)
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE serving.predictions, ops.test_results CASCADE")
        store(connection, card, raw)
    train("first", "2009-01", card, settings)
    # Later by a month, which the first one's champion does not know: the gate compares on it.
    one = settings.model_copy(update={"candidates": folder / "one.yaml"})
    train("second", "2009-02", card, one)
    server = PredictServer(settings)
    try:
        yield Stack(settings, card, server, f"{name}-first", f"{name}-second")
    finally:
        server.stop()


def train(name: str, end: str, card: Card, settings: Settings) -> None:
    training_id = f"{card.name}-{name}"
    with connect(settings=settings) as connection:
        start_training(connection, card, "test", "2008-11", end, training_id, settings)
    for candidate in yaml.safe_load(Path(settings.candidates).read_text()):
        with connect(settings=settings) as connection:
            fit_candidate(candidate, training_id, connection, settings)
    with connect(settings=settings) as connection:
        finish_training(connection, training_id, settings)


@contextmanager
def database(stack: Stack) -> Iterator[Connection]:
    with connect(settings=stack.settings) as connection:
        yield connection


def rows_of(stack: Stack, query: str) -> list[tuple[Any, ...]]:
    with database(stack) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def start_when_deployed(server: PredictServer) -> threading.Thread:
    """Do as supervisor does: the API starts once there is a payload."""

    def start() -> None:
        await_((server.settings.payloads_dir / "current" / "predict.py").exists, timeout=60)
        server.start(wait=False)

    thread = threading.Thread(target=start)
    thread.start()
    return thread


def test_first_deployment_that_fails_says_what_answers_now(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deploy_first(limit: float) -> str:
        with pytest.raises(DeploymentError) as fault, database(stack) as connection:
            deploy(stack.first, connection, answer_limit=limit, settings=stack.settings)
        return str(fault.value)

    text = deploy_first(0.5)
    assert "No version is named now" in text
    assert "is it up (`make status`)?" in text

    def away(*_: Any) -> None:
        raise MlflowException("the registry is away")

    monkeypatch.setattr(deployment, "promote", away)
    starter = start_when_deployed(stack.server)
    text = deploy_first(60.0)
    starter.join()
    assert "registry is away. No version is named now; the API answers with" in text
    assert "make status" not in text
    stack.server.stop()


def test_first_deployment_brings_the_best_to_production(stack: Stack) -> None:
    starter = start_when_deployed(stack.server)
    lines: list[str] = []
    with database(stack) as connection:
        done = deploy(stack.first, connection, "test", lines.append, settings=stack.settings)
    starter.join()
    assert (done.outcome, done.champion) == ("promoted", None)
    assert done.production == done.version == stack.answering()
    assert done.version == production_version(stack.card, stack.settings)
    assert done.max_difference is not None
    assert done.max_difference <= 1e-5
    assert done.gate["challenger_roc_auc"] > 0.5
    assert any("every worker answers" in line for line in lines)
    with database(stack) as connection:
        row = current_deployment(connection, stack.card)
    assert row is not None
    assert (row["model_version"], row["candidate"], row["cause"]) == (done.version, "Good", "test")
    with PredictClient(stack.server.url) as client:
        model = client.model()
    assert model["candidate"] == "Good"
    assert model["training"]["rows"] == 3 * ROWS
    assert (model["training"]["window_start"], model["training"]["window_end"]) == (
        "2008-11",
        "2009-01",
    )
    assert model["threshold"] == model["metrics"]["validation_threshold"]
    # The card has costs: the threshold is the one of most profit, and says what to expect.
    assert stack.card.costs is not None
    assert model["costs"] == dict(stack.card.costs)
    profit = model["profit"]
    assert profit["rows"] == ROWS  # validation is the newest month
    assert profit["chosen"]["threshold"] == model["threshold"]
    assert profit["chosen"]["profit"] == pytest.approx(model["metrics"]["validation_profit"])
    assert profit["chosen"]["profit"] > max(0, profit["all"])


def test_deploying_again_changes_nothing(stack: Stack) -> None:
    before = rows_of(stack, "SELECT * FROM ops.deployments ORDER BY id")
    with database(stack) as connection:
        again = deploy(stack.first, connection, "again", print, settings=stack.settings)
    assert again.version == again.production == stack.answering()
    assert (again.outcome, again.champion) == ("promoted", None)  # as the first time
    assert rows_of(stack, "SELECT * FROM ops.deployments ORDER BY id") == before


def test_unseen_months_are_scored_alike_by_sklearn_and_over_the_api(stack: Stack) -> None:
    version = stack.answering()
    lines: list[str] = []
    with database(stack) as connection:
        results = score_unseen(connection, stack.card, version, lines.append, stack.settings)
    assert [each.period for each in results] == ["2009-03", "2009-04", "2009-05"]
    assert all(each.rows == ROWS and each.max_difference <= 1e-5 for each in results)
    assert all(each.metrics["roc_auc"] > 0.6 for each in results)
    assert all(each.metrics["profit"] > 0 for each in results)  # on rows that chose nothing
    assert "profit" in lines[-1].splitlines()[0]
    stored = rows_of(
        stack,
        "SELECT period::text, rows, metrics ->> 'roc_auc', max_difference"
        f" FROM ops.test_results WHERE model_version = '{version}' ORDER BY period",
    )
    assert [(f"{r.period}-01", r.rows, r.max_difference) for r in results] == [
        (period, rows, difference) for period, rows, _, difference in stored
    ]
    assert lines[-1].count("\n") == 3


def test_difference_between_api_and_sklearn_is_refused(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = testing.score_window
    monkeypatch.setattr(testing, "score_window", lambda *args: score(*args) + 2e-5)
    with pytest.raises(ParityError, match="file row"), database(stack) as connection:
        score_unseen(connection, stack.card, stack.answering(), print, stack.settings)


def test_month_is_played_labelled_and_never_doubled(stack: Stack) -> None:
    told: list[tuple[int, int]] = []
    with database(stack) as connection:
        played = simulate_month(
            "2009-03",
            stack.card,
            connection,
            progress=lambda done, of: told.append((done, of)),
            settings=stack.settings,
        )
        again = simulate_month("2009-03", stack.card, connection, settings=stack.settings)
    assert (played.rows, played.labelled, played.versions) == (ROWS, ROWS, (stack.answering(),))
    assert told[-1] == (ROWS, ROWS)
    assert replace(again, seconds=0) == replace(played, seconds=0)
    where = "FROM serving.predictions WHERE purpose = 'simulation'"
    assert rows_of(
        stack, f"SELECT count(*), count(DISTINCT period), min(period)::text, count(label) {where}"
    ) == [(ROWS, 1, "2009-03-01", ROWS)]
    with database(stack) as connection:
        learnable = load_window(connection, stack.card, "2009-03", "2009-03")
    assert len(learnable) == ROWS
    source = make_rows(stack.card, ROWS, seed=4)
    assert sorted(learnable["age"].fillna(-1)) == sorted(source["age"].fillna(-1))
    assert learnable["target"].sum() == source["target"].sum()


def test_label_that_changes_is_taken_and_one_without_prediction_is_not_counted(
    stack: Stack,
) -> None:
    (name, label), *_ = rows_of(
        stack,
        "SELECT request_id, label FROM serving.predictions WHERE purpose = 'simulation' LIMIT 1",
    )
    with database(stack) as connection:
        assert deliver_labels(connection, [(name, 0, 1 - label), ("nobody", 0, 1)]) == 1
        assert deliver_labels(connection, [(name, 0, label)]) == 1
        assert deliver_labels(connection, []) == 0


def test_month_that_is_not_to_come_is_refused_naming_those_that_are(stack: Stack) -> None:
    for period in ("2009-01", "2012-01"):
        with (
            pytest.raises(TrafficError, match="2009-03, 2009-04, 2009-05, 2009-06"),
            database(stack) as connection,
        ):
            simulate_month(period, stack.card, connection, settings=stack.settings)


def test_simulations_are_forgotten_and_nothing_else(stack: Stack) -> None:
    # What was played twice may still be on its way a second time, and would come after the end.
    with PredictClient(stack.server.url) as client:
        await_(lambda: client.health()["log"]["pending"] == 0, 60)
    with database(stack) as connection:
        assert forget_simulations(connection) == ROWS
    assert rows_of(stack, "SELECT DISTINCT purpose FROM serving.predictions") == [("test",)]


def test_challenger_that_is_no_better_leaves_the_champion(stack: Stack) -> None:
    champion = stack.answering()
    with database(stack) as connection:
        kept = deploy(stack.second, connection, "test", print, settings=strict(stack))
    assert (kept.outcome, kept.production, kept.champion) == ("kept_champion", champion, champion)
    assert kept.version != champion
    assert kept.max_difference is None
    assert stack.answering() == champion == production_version(stack.card, stack.settings)


def generous(stack: Stack) -> Settings:
    """A gate that lets anybody through."""
    return stack.settings.model_copy(update={"gate_margin": -1.0, "gate_slice_margin": 1.0})


def strict(stack: Stack) -> Settings:
    """A gate that lets nobody through."""
    return stack.settings.model_copy(update={"gate_margin": 1.0, "gate_equal": -1.0})


def test_model_that_the_api_cannot_load_is_taken_back(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, before = stack.answering(), state(stack)

    def broken(*args: Any) -> Any:
        return replace(export_onnx(*args), content=b"no model")

    monkeypatch.setattr(deployment, "export_onnx", broken)
    with (
        pytest.raises(DeploymentError, match=f"cannot load.*Version {champion} answers"),
        database(stack) as connection,
    ):
        deploy(stack.second, connection, "test", print, settings=generous(stack))
    assert state(stack) == before


def test_model_that_cannot_be_exported_exactly_is_not_deployed_and_says_why(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, load = state(stack), deployment.load_pipeline

    def inexpressible(*args: Any) -> Any:
        pipeline = load(*args)
        pipeline.steps.insert(1, ("odd", FunctionTransformer(np.tanh)))
        return pipeline

    def unbounded(*args: Any) -> Any:
        pipeline = load(*args)
        numbers = pipeline["vectoriser"].named_transformers_["numbers"]
        numbers.steps = [step for step in numbers.steps if step[0] != "bound"]
        return pipeline

    for broken, reason in (
        (inexpressible, "LogisticRegression cannot be expressed in ONNX"),
        (unbounded, r"hostile row \(.*sklearn cannot score it.*train it again"),
    ):
        monkeypatch.setattr(deployment, "load_pipeline", broken)
        with pytest.raises(ExportError, match=reason), database(stack) as connection:
            deploy(stack.second, connection, "test", print, settings=generous(stack))
        assert state(stack) == before


def state(stack: Stack) -> tuple[Any, ...]:
    """What tells production, and staging: link, answer, aliases, history."""
    client = tracking.client(stack.settings)
    return (
        current_version(stack.settings.payloads_dir),
        stack.answering(),
        client.get_registered_model(stack.card.name).aliases,
        rows_of(stack, "SELECT * FROM ops.deployments ORDER BY id"),
    )


def test_registry_that_fails_after_the_switch_takes_the_link_back(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, before = stack.answering(), state(stack)
    answered: list[str] = []

    def away(*_: Any) -> None:
        answered.append(stack.answering())
        raise MlflowException("the registry is away")

    monkeypatch.setattr(deployment, "promote", away)
    with (
        pytest.raises(DeploymentError, match=f"registry is away. Version {champion} answers"),
        database(stack) as connection,
    ):
        deploy(stack.second, connection, "test", print, settings=generous(stack))
    assert answered != [champion], "the switch comes first"
    assert state(stack) == before


def test_interrupted_deployment_is_taken_back_too(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, before = stack.answering(), state(stack)

    def cancelled(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment, "promote", cancelled)
    with pytest.raises(KeyboardInterrupt), database(stack) as connection:
        deploy(stack.second, connection, "test", print, settings=generous(stack))
    with PredictClient(stack.server.url) as client:  # nobody waited for it, as for a cancelled run
        client.wait_for_version(champion, stack.settings.predict_workers, 20)
    assert state(stack) == before


def test_better_challenger_takes_over_and_the_champion_is_retired(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = stack.answering()

    def fails_late(version: str, *rest: Any) -> None:
        promote(version, *rest)
        raise MlflowException("the tags were not set")

    # Once the alias is set there is no way back, and need be none.
    monkeypatch.setattr(deployment, "promote", fails_late)
    with database(stack) as connection:
        done = deploy(stack.second, connection, "test", print, settings=generous(stack))
    assert (done.outcome, done.champion, done.production) == ("promoted", champion, done.version)
    assert stack.answering() == done.version == production_version(stack.card, stack.settings)
    assert rows_of(
        stack,
        "SELECT model_version, retired_at IS NULL FROM ops.deployments"
        f" WHERE card = '{stack.card.name}' ORDER BY id",
    ) == [(champion, False), (done.version, True)]


def test_deployment_that_mage_did_not_note_has_the_same_result_again(stack: Stack) -> None:
    *_, (former, _) = history(stack, retired=True)
    with database(stack) as connection:
        row = current_deployment(connection, stack.card)
        again = deploy(stack.second, connection, "again", print, settings=generous(stack))
    assert row is not None
    assert (again.outcome, again.champion) == ("promoted", former)
    assert again.version == again.production == stack.answering()
    assert again.gate == row["gate"]["numbers"]
    assert again.reason == row["gate"]["reason"]
    assert again.gate["champion_roc_auc"] is not None


def test_history_that_a_crash_left_behind_is_healed(stack: Stack) -> None:
    champion = stack.answering()
    *_, (former, _) = retired = history(stack, retired=True)
    with database(stack) as connection, connection.cursor() as cursor:
        # As if the block had died after the alias was set: its transaction is undone.
        cursor.execute("DELETE FROM ops.deployments WHERE retired_at IS NULL")
        cursor.execute(
            "UPDATE ops.deployments SET retired_at = NULL WHERE model_version = %s", (former,)
        )
    with database(stack) as connection:
        kept = deploy(stack.first, connection, "test", print, settings=strict(stack))
    assert (kept.outcome, kept.champion, kept.production) == ("kept_champion", champion, champion)
    assert history(stack, retired=True) == retired
    with database(stack) as connection:
        row = current_deployment(connection, stack.card)
    assert row is not None
    assert (row["model_version"], row["candidate"], row["training_id"]) == (
        champion,
        "Same",
        stack.second,
    )
    assert "interrupted" in row["cause"]
    with database(stack) as connection:  # the run that died goes on: its numbers come again
        again = deploy(stack.second, connection, "again", print, settings=strict(stack))
    assert (again.outcome, again.version, again.champion) == ("promoted", champion, former)
    assert again.gate["champion_roc_auc"] is not None


def history(stack: Stack, retired: bool) -> list[tuple[Any, ...]]:
    return rows_of(
        stack,
        f"SELECT model_version, candidate FROM ops.deployments WHERE card = '{stack.card.name}'"
        f" AND (retired_at IS NOT NULL) = {retired} ORDER BY id",
    )


def test_version_that_the_test_refuses_gives_way_to_the_former_champion(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = stack.answering()
    *_, (former, _) = history(stack, retired=True)
    score = testing.score_window
    monkeypatch.setattr(testing, "score_window", lambda *args: score(*args) + 2e-5)
    with pytest.raises(ParityError, match=f"Version {former} is in production again.*file row"):
        score_production(stack.card, refused, print, stack.settings)
    assert stack.answering() == former == production_version(stack.card, stack.settings)
    assert current_version(stack.settings.payloads_dir) == former
    with database(stack) as connection:
        row = current_deployment(connection, stack.card)
    assert row is not None
    assert (row["model_version"], row["candidate"]) == (former, "Good")
    assert f"version {refused} was refused" in row["cause"]
    # The next one that is refused does not bring back the first: none was before this champion.
    with pytest.raises(ParityError, match="nothing is in production"):
        score_production(stack.card, former, print, stack.settings)
    assert production_version(stack.card, stack.settings) is None
    assert history(stack, retired=False) == []
    with database(stack) as connection:
        again = deploy(stack.second, connection, "test", print, settings=stack.settings)
    assert (again.outcome, again.champion) == ("promoted", None)
    assert stack.answering() == refused


def test_api_that_is_down_leaves_everything_as_it_was(stack: Stack) -> None:
    champion = stack.answering()
    former, _ = history(stack, retired=True)[0]
    stack.server.stop()
    with (
        pytest.raises(DeploymentError, match="0 of 2 workers answer"),
        database(stack) as connection,
    ):
        # By hand: the champion knows every row on which the gate could compare the older one.
        promote_by_hand(
            former, connection, stack.card, "test", answer_limit=1.0, settings=stack.settings
        )
    assert current_version(stack.settings.payloads_dir) == champion
    assert production_version(stack.card, stack.settings) == champion


def test_champion_whose_payload_is_gone_is_served_again(stack: Stack) -> None:
    champion = production_version(stack.card, stack.settings)
    (stack.settings.payloads_dir / "current").unlink()
    starter = start_when_deployed(stack.server)
    with database(stack) as connection:
        done = deploy(stack.first, connection, "test", print, settings=strict(stack))
    starter.join()
    assert (done.outcome, done.production) == ("kept_champion", champion)
    assert stack.answering() == champion


def test_champion_whose_payload_folder_is_gone_is_served_again(stack: Stack) -> None:
    champion = stack.answering()
    shutil.rmtree(stack.settings.payloads_dir / champion)
    with database(stack) as connection:
        done = deploy(stack.first, connection, "test", print, settings=strict(stack))
    assert (done.outcome, done.production) == ("kept_champion", champion)
    assert current_version(stack.settings.payloads_dir) == champion == stack.answering()


def test_nothing_to_deploy_is_said(stack: Stack) -> None:
    other = stack.settings.model_copy(update={"card": "bank_marketing"})
    with pytest.raises(DeploymentError, match="run the pipeline train"), database(stack) as c:
        deploy(None, c, "test", print, settings=other)
