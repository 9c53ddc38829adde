"""Stages of versions: exactly one in production, however often and from wherever."""

from __future__ import annotations

import secrets

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from psycopg2 import sql

from mlops.database import connect
from mlops.dataset.card import PERIOD, TARGET
from mlops.dataset.rows import history_window
from mlops.registry.gate import evaluate_gate
from mlops.registry.models import (
    RegistryError,
    current_deployment,
    load_pipeline,
    production_version,
    promote,
    record_deployment,
    retire_production,
    stage_top,
)
from mlops.registry.stays import former_stays
from mlops.training import tracking
from mlops.training.fit import fit_candidate
from mlops.training.trainings import finish_training, start_training
from tests.fixtures.churn import MONTHS, churn_card, churn_rows, store_churn


@pytest.fixture
def settings(database, mlflow_server):
    return database


@pytest.fixture
def card(tmp_path):
    return churn_card(tmp_path, f"churn_{secrets.token_hex(4)}")


@pytest.fixture
def registry(settings, card) -> MlflowClient:
    """A registry that holds versions 1 to 5 of the card, without models."""
    client = tracking.client(settings)
    client.create_registered_model(card.name)
    run = client.create_run(client.create_experiment(card.name)).info
    for _ in range(5):
        client.create_model_version(card.name, f"{run.artifact_uri}/model", run.run_id)
    return client


def board(*versions):
    return [{"version": version} for version in versions]


def aliases(client, card):
    return {k: str(v) for k, v in client.get_registered_model(card.name).aliases.items()}


def stages(client, card):
    found = client.search_model_versions(f"name = '{card.name}'")
    return {str(each.version): each.tags.get("stage", "none") for each in found}


def test_the_three_best_go_to_staging(registry, card, settings):
    assert stage_top(board("4", "2", "5", "1", None), card, settings) == ["4", "2", "5"]
    assert aliases(registry, card) == {"staging-1": "4", "staging-2": "2", "staging-3": "5"}
    assert stages(registry, card) == {
        **{"1": "none", "2": "staging", "3": "none", "4": "staging", "5": "staging"}
    }


def test_a_later_training_takes_the_places_in_staging(registry, card, settings):
    stage_top(board("1", "2", "3"), card, settings)
    stage_top(board("5"), card, settings)
    assert aliases(registry, card) == {"staging-1": "5"}
    assert stages(registry, card)["1"] == "none"


def test_there_is_one_production_however_often_it_is_promoted(registry, card, settings):
    assert production_version(card, settings) is None
    assert promote("1", card, settings) is None
    assert promote("1", card, settings) is None
    assert promote("2", card, settings) == "1"
    assert promote("2", card, settings) is None
    assert promote("3", card, settings) == "2"
    assert production_version(card, settings) == "3"
    assert aliases(registry, card) == {"production": "3", "archived": "2"}
    assert stages(registry, card) == {
        **{"1": "archived", "2": "archived", "3": "production", "4": "none", "5": "none"}
    }


def test_staging_and_promotion_may_run_again(registry, card, settings):
    leaderboard = board("4", "2", "5")
    for _ in range(2):
        stage_top(leaderboard, card, settings)
        promote("4", card, settings)
        assert aliases(registry, card) == {
            **{"production": "4", "staging-2": "2", "staging-3": "5"}
        }
        assert stages(registry, card)["4"] == "production"


def test_a_former_champion_can_come_back(registry, card, settings):
    promote("1", card, settings)
    promote("2", card, settings)
    assert promote("1", card, settings) == "2"
    assert aliases(registry, card) == {"production": "1", "archived": "2"}
    assert stages(registry, card)["1"] == "production"
    assert stages(registry, card)["2"] == "archived"


def test_an_interrupted_promotion_is_healed_by_the_next(registry, card, settings):
    promote("1", card, settings)
    # As if the process had died after the first, and after the second write of promote("2").
    registry.set_registered_model_alias(card.name, "archived", "1")
    assert promote("2", card, settings) == "1"
    registry.set_registered_model_alias(card.name, "archived", "2")
    registry.set_registered_model_alias(card.name, "production", "3")
    promote("3", card, settings)
    assert aliases(registry, card) == {"production": "3", "archived": "2"}
    assert list(stages(registry, card).values()).count("production") == 1


def test_a_version_that_does_not_exist_is_not_promoted(registry, card, settings):
    promote("1", card, settings)
    with pytest.raises(RegistryError, match="has no version 99"):
        promote("99", card, settings)
    assert aliases(registry, card) == {"production": "1"}


def test_the_history_has_one_open_row(settings, card):
    with connect(settings=settings) as connection:
        assert current_deployment(connection, card) is None
        first = record_deployment(
            connection, card, "1", cause="first", candidate="Linear", gate={"promote": True}
        )
        assert record_deployment(connection, card, "1", cause="again") == first
        second = record_deployment(connection, card, "2", cause="drift", training_id="t2")
    with connect(settings=settings) as connection:
        current = current_deployment(connection, card)
        assert (current["id"], current["model_version"], current["cause"]) == (second, "2", "drift")
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT model_version, retired_at IS NULL, gate FROM ops.deployments ORDER BY id"
            )
            assert cursor.fetchall() == [("1", False, {"promote": True}), ("2", True, None)]


def test_a_stay_says_how_it_began_and_what_ended_it(settings, card):
    with connect(settings=settings) as connection:
        record_deployment(connection, card, "1", cause="first", began="first")
        record_deployment(connection, card, "2", cause="drift")
        retire_production(connection, card, settings)
        record_deployment(connection, card, "3", cause="again", began="first")
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT model_version, began, retired_by FROM ops.deployments"
                " WHERE card = %s ORDER BY id",
                (card.name,),
            )
            assert cursor.fetchall() == [
                ("1", "first", "2"),
                ("2", "gate", None),
                ("3", "first", None),
            ]
        # 2 was taken out of production with none to follow: it is no place to return to.
        assert [stay["model_version"] for stay in former_stays(connection, card)] == ["1"]


@pytest.mark.parametrize(
    ("stays", "expected"),
    [
        ([("1", "first")], []),
        ([("1", "first"), ("2", "gate"), ("3", "gate")], ["1", "2"]),
        ([("1", "first"), ("2", "gate"), ("1", "rollback")], []),
        ([("1", "first"), ("2", "gate"), ("3", "gate"), ("2", "rollback")], ["1"]),
        ([("1", "first"), ("2", "gate"), ("1", "rollback"), ("3", "gate")], ["1"]),
        ([("1", "first"), ("2", "gate"), ("1", "healed"), ("3", "gate")], ["1"]),
        ([("1", "first"), ("2", "healed"), ("3", "gate")], ["1", "2"]),
        ([("1", "first"), ("2", "gate"), ("1", "withdrawn")], []),
        ([("1", "first"), ("2", "gate"), ("1", "by hand")], ["1", "2"]),
    ],
)
def test_a_rollback_returns_to_what_was_not_rolled_back_itself(settings, card, stays, expected):
    with connect(settings=settings) as connection:
        for version, began in stays:
            record_deployment(connection, card, version, cause="test", began=began)
        found = former_stays(connection, card)
        assert [stay["model_version"] for stay in found] == expected


def test_production_can_be_retired_with_none_to_follow(registry, card, settings):
    promote("1", card, settings)
    with connect(settings=settings) as connection:
        record_deployment(connection, card, "1", cause="first")
        assert retire_production(connection, card, settings) == "1"
        assert retire_production(connection, card, settings) is None
        assert current_deployment(connection, card) is None
    assert aliases(registry, card) == {"archived": "1"}
    assert stages(registry, card)["1"] == "archived"
    assert promote("2", card, settings) is None


def test_nothing_was_ever_registered(settings, card):
    assert production_version(card, settings) is None
    with connect(settings=settings) as connection:
        assert retire_production(connection, card, settings) is None


@pytest.fixture
def trained(settings, card, tmp_path):
    """Settings with stored months 2020-01 to 04, and a function that trains on some of them."""
    candidates = tmp_path / "candidates.yaml"
    candidates.write_text(
        "Good: {class: sklearn.linear_model.LogisticRegression, scale: true}\n"
        "Weak: {class: sklearn.tree.DecisionTreeClassifier, params: {max_depth: 1}}\n"
    )
    settings = settings.model_copy(update={"card": str(card.path), "candidates": candidates})
    store_churn(settings, card)

    def train(connection, training_id, end):
        start_training(connection, card, "test", "2020-01", end, training_id, settings)
        for name in ("Good", "Weak"):
            fit_candidate(name, training_id, connection, settings)
        good, weak = finish_training(connection, training_id, settings)
        assert good["candidate"] == "Good"
        return good, weak

    return settings, train


def test_the_gate_compares_both_models_on_months_that_neither_knows(trained, card):
    settings, train = trained
    with connect(settings=settings) as connection:
        _, weak = train(connection, "old", "2020-03")
        good, _ = train(connection, "new", "2020-04")

        first = evaluate_gate(connection, card, weak["version"], None, settings)
        assert first.promote
        better = evaluate_gate(connection, card, good["version"], weak["version"], settings)
        numbers = better.numbers
        assert better.promote
        assert numbers["rule"] == "better"
        assert (numbers["window_start"], numbers["window_end"]) == ("2020-04", "2020-04")
        assert numbers["rows"] == numbers["unseen_rows"] == 250
        assert numbers["champion_fitted"] == "2020-01..2020-03"
        # The challenger's scores are those that it gave the rows before it was fitted on them.
        logged = good["metrics"]["validation_roc_auc"]
        assert numbers["challenger_roc_auc"] == pytest.approx(logged)
        assert numbers["champion_roc_auc"] != weak["metrics"]["validation_roc_auc"]
        assert numbers["base_rate"] == good["metrics"]["earlier_positive_rate"]
        again = evaluate_gate(connection, card, good["version"], good["version"], settings)
        assert again.promote
        assert "in production already" in again.reason
    assert load_pipeline(card, good["version"], settings)["classifier"].C == 1.0


def test_a_challenger_of_old_months_is_compared_on_the_later_ones(trained, card):
    settings, train = trained
    with connect(settings=settings) as connection:
        _, champion = train(connection, "oldest", "2020-02")
        old, _ = train(connection, "old", "2020-03")
        decision = evaluate_gate(connection, card, old["version"], champion["version"], settings)
        numbers = decision.numbers
        assert decision.promote
        assert (numbers["window_start"], numbers["window_end"]) == ("2020-04", "2020-04")
        assert numbers["challenger_roc_auc"] != old["metrics"]["validation_roc_auc"]


def test_rows_that_the_champion_knows_are_no_comparison(trained, card):
    settings, train = trained
    with connect(settings=settings) as connection:
        good, weak = train(connection, "t1", "2020-04")
        decision = evaluate_gate(connection, card, good["version"], weak["version"], settings)
        assert not decision.promote
        assert decision.numbers["rule"] == "no comparison"
        assert decision.numbers["unseen_rows"] == 0
        assert "0 of 250 labelled rows, 2020-04 to 2020-04, are unseen" in decision.reason
        assert "fitted on 2020-01..2020-04" in decision.reason
        # What the champion knows by heart is nowhere taken for a comparison.
        for key in ("roc_auc", "brier", "champion_roc_auc", "champion_brier"):
            assert decision.numbers[key] is None
        assert decision.numbers["slices"] == decision.numbers["held_slices"] == []
        # The challenger's own scores are out of fold: they tell whether it is worth a shadow.
        logged = good["metrics"]["validation_roc_auc"]
        assert decision.numbers["challenger_roc_auc"] == pytest.approx(logged)


def test_too_few_rows_are_no_comparison(trained, card):
    settings, train = trained
    with connect(settings=settings) as connection:
        _, weak = train(connection, "old", "2020-03")
        good, _ = train(connection, "new", "2020-04")
        strict = settings.model_copy(update={"gate_min_rows": 251})
        decision = evaluate_gate(connection, card, good["version"], weak["version"], strict)
        assert not decision.promote
        assert "250 of 250 labelled rows" in decision.reason
        assert "251 are asked (gate_min_rows)" in decision.reason
        assert decision.numbers["roc_auc"] is None
        assert evaluate_gate(connection, card, good["version"], None, strict).promote


def test_a_challenger_whose_months_were_forgotten_is_judged_by_what_it_kept(trained, card):
    settings, train = trained
    with connect(settings=settings) as connection:
        good, _ = train(connection, "t1", "2020-04")
        with connection.cursor() as cursor:  # as when simulated months are forgotten
            cursor.execute(
                sql.SQL("DELETE FROM {} WHERE period >= '2020-03-01'").format(
                    sql.Identifier("data", card.name)
                )
            )
        decision = evaluate_gate(connection, card, good["version"], None, settings)
        assert decision.promote
        logged = good["metrics"]["validation_roc_auc"]
        assert decision.numbers["challenger_roc_auc"] == pytest.approx(logged)


def test_a_challenger_that_ends_in_a_scant_month_is_judged_on_its_own_validation(trained, card):
    settings, train = trained
    rows = (250, 250, 250, 10)
    frame = churn_rows()
    parts = [frame[frame[PERIOD] == month].head(n) for month, n in zip(MONTHS, rows, strict=True)]
    last = parts[-1].copy()
    last[TARGET] = (last["spend"].fillna(60).rank(method="first") <= len(last) / 3).astype("int8")
    store_churn(settings, card, pd.concat([*parts[:-1], last], ignore_index=True))
    with connect(settings=settings) as connection:
        assert history_window(connection, card) == ("2020-01", "2020-03")
        good, _ = train(connection, "t1", "2020-04")
        numbers = evaluate_gate(connection, card, good["version"], None, settings).numbers
        assert numbers["window_end"] == "2020-04"
        assert numbers["rows"] == good["metrics"]["validation_rows"]
        logged = good["metrics"]["validation_roc_auc"]
        assert numbers["challenger_roc_auc"] == pytest.approx(logged)


def test_a_history_too_short_to_be_split_keeps_its_scant_end(settings, card):
    frame = churn_rows()
    april = frame[frame[PERIOD] == "2020-04"].head(10)
    short = pd.concat([frame[frame[PERIOD] == "2020-03"], april], ignore_index=True)
    store_churn(settings, card, short)
    with connect(settings=settings) as connection:
        assert history_window(connection, card) == ("2020-03", "2020-04")
