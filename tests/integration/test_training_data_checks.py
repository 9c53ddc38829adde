"""The quality gate where it stands: before a training, with its findings kept in Postgres."""

from __future__ import annotations

import json

import pytest

from mlops.alerting.alerts import decide_waiting, parse_notification, store_alerts
from mlops.alerting.retrains import close_retrain, open_retrain
from mlops.database import connect
from mlops.dataset.errors import DataError, DataQualityError
from mlops.dataset.rows import label_arrivals
from mlops.training.data_checks import data_check_text, read_data_check
from mlops.training.records import find_training
from mlops.training.trainings import start_training
from tests.fixtures.alerts import RULE, alert, notification
from tests.fixtures.churn import churn_card, churn_rows, store_churn

CANDIDATES = "Small: {class: sklearn.tree.DecisionTreeClassifier, params: {max_depth: 2}}\n"


class World:
    def __init__(self, database, folder):
        self.card = churn_card(folder)
        path = folder / "candidates.yaml"
        path.write_text(CANDIDATES)
        self.settings = database.model_copy(
            update={"card": str(self.card.path), "candidates": path, "retrain_cool_down_s": 0}
        )

    def connect(self):
        return connect(settings=self.settings)

    def start(self, training_id="t1", end="2020-04"):
        with self.connect() as connection:
            return start_training(
                connection, self.card, "test", "2020-01", end, training_id, self.settings
            )

    def checked(self, training_id="t1"):
        with self.connect() as connection:
            return read_data_check(connection, training_id)

    def answer(self, period, rows, labelled, version="1", purpose="live"):
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO serving.predictions (request_id, row, made_at, period, purpose,"
                " model_version, features, probability, label)"
                " SELECT %s, n, now(), %s, %s, %s,"
                """ jsonb_build_object('spend', n, 'visits', n %% 9, 'plan', 'basic'),"""
                " CASE WHEN n < %s THEN 0.6 ELSE 0.2 END + (n %% 5) / 100.0,"
                " CASE WHEN n < %s THEN n %% 2 END FROM generate_series(0, %s) AS n",
                (
                    f"{period} {version} {purpose}",
                    f"{period}-01",
                    purpose,
                    version,
                    labelled,
                    labelled,
                    rows - 1,
                ),
            )


@pytest.fixture
def world(database, tmp_path):
    return World(database, tmp_path)


def leaky():
    frame = churn_rows()
    frame["spend"] = (frame["target"] * 10 + 1).astype("float32")
    return frame


def test_good_rows_pass_and_it_is_written_down(world):
    store_churn(world.settings, world.card)
    world.start()
    row = world.checked()
    assert (row["passed"], row["findings"], row["card"]) == (True, [], "churn")
    with world.connect() as connection:
        assert data_check_text(connection, "t1") == "data quality: nothing found"


def test_a_leak_is_refused_by_name_and_what_was_found_outlives_the_refusal(world):
    store_churn(world.settings, world.card, leaky())
    with pytest.raises(DataQualityError, match="leakage: spend: alone it tells the answer"):
        world.start()
    row = world.checked()
    assert not row["passed"]
    assert [(each["check"], each["column"]) for each in row["findings"]] == [("leakage", "spend")]
    with world.connect() as connection:
        assert find_training(connection, "t1") is None, "nothing was started"
        assert "1 refused, 1 found" in data_check_text(connection, "t1")


def test_a_refused_training_may_start_under_its_id_once_the_rows_are_mended(world):
    store_churn(world.settings, world.card, leaky())
    with pytest.raises(DataQualityError):
        world.start()
    store_churn(world.settings, world.card)
    world.start()
    assert world.checked()["passed"]


def test_a_window_that_cannot_be_cut_is_a_finding_too(world):
    store_churn(world.settings, world.card)
    with pytest.raises(DataError, match="expected more than the 1 of validation"):
        world.start(end="2020-01")
    assert [each["check"] for each in world.checked()["findings"]] == ["window"]


def test_months_whose_labels_have_hardly_come_are_refused(world):
    store_churn(world.settings, world.card)
    world.answer("2020-05", rows=300, labelled=100)
    with pytest.raises(DataQualityError, match=r"2020-05: 200 of 300 answered rows \(66.7%\)"):
        world.start(end="2020-05")
    checks = {each["check"]: each["severity"] for each in world.checked()["findings"]}
    assert checks == {"label_delay": "refuse", "selective_labels": "warn"}


def test_label_arrivals_count_customers_of_a_month_played_twice_once(world):
    store_churn(world.settings, world.card)
    world.answer("2020-05", rows=300, labelled=0, version="1", purpose="simulation")
    world.answer("2020-05", rows=300, labelled=300, version="2", purpose="simulation")
    world.answer("2020-05", rows=100, labelled=50)
    world.answer("2020-06", rows=500, labelled=0, purpose="test")
    with world.connect() as connection:
        found = label_arrivals(connection, world.card, "2020-01", "2020-12")
    assert found.index.tolist() == ["2020-05"]
    month = found.loc["2020-05"]
    assert (month["answered"], month["labelled"]) == (400, 350)
    assert month["unlabelled_score"] == pytest.approx(0.22)
    assert month["labelled_score"] == pytest.approx(0.62)
    assert month["score_std"] == pytest.approx(0.133, abs=0.01)


def test_label_arrivals_of_no_traffic_are_an_empty_frame(world):
    store_churn(world.settings, world.card)
    with world.connect() as connection:
        assert label_arrivals(connection, world.card, "2020-01", "2020-12").empty


@pytest.mark.parametrize("beside", [None, "leakage"])
def test_an_alert_whose_labels_had_yet_to_come_is_tried_again_once_they_have(world, beside):
    """The one refusal that heals; trying before would only use the tries up."""
    store_churn(world.settings, world.card)
    world.answer("2020-05", rows=300, labelled=100)
    started = []

    def trigger(_pipeline, variables):
        started.append(variables["retrain_id"])

    def decide():
        with world.connect() as connection:
            return decide_waiting(connection, world.card, trigger, {RULE}, world.settings)

    def execute(statement, *values):
        with world.connect() as connection, connection.cursor() as cursor:
            cursor.execute(statement, values)

    execute(
        "INSERT INTO ops.deployments (card, model_version, cause) VALUES (%s, '1', 'test')",
        world.card.name,
    )
    raised = alert(labels={"alertname": RULE, "period": "2020-05"})
    with world.connect() as connection:
        store_alerts(connection, parse_notification(json.dumps(notification(raised)).encode()))
    decide()
    with pytest.raises(DataQualityError, match="wait for them"):
        world.start(started[0], end="2020-05")
    with world.connect() as connection:
        open_retrain(connection, world.card, started[0])
        close_retrain(connection, started[0], "failed", "no labels")
    if beside:
        other = [{"check": beside, "severity": "refuse", "message": "", "numbers": {}}]
        execute("UPDATE ops.data_checks SET findings = findings || %s::jsonb", json.dumps(other))
    labelled = "UPDATE serving.predictions SET label = row %% 2 WHERE row < %s"
    execute(labelled, 149)
    decide()
    assert len(started) == 1, "149 of 300 are too few"
    execute(labelled, 250)
    decide()
    assert len(started) == (1 if beside else 2)


def test_an_alert_whose_rows_were_refused_is_not_tried_again(world):
    """A data fault does not heal by trying; any other failure is tried again."""
    store_churn(world.settings, world.card, leaky())
    started = []

    def trigger(_pipeline, variables):
        started.append(variables["retrain_id"])

    def decide():
        with world.connect() as connection:
            return decide_waiting(connection, world.card, trigger, {RULE}, world.settings)

    raised = alert(labels={"alertname": RULE, "period": "2020-05"})
    with world.connect() as connection:
        store_alerts(connection, parse_notification(json.dumps(notification(raised)).encode()))
    decide()
    assert len(started) == 1
    with pytest.raises(DataQualityError) as refusal:
        world.start(started[0])
    with world.connect() as connection:
        open_retrain(connection, world.card, started[0])
        close_retrain(connection, started[0], "failed", f"block train/start: {refusal.value}")
    decide()
    decide()
    assert len(started) == 1, "its rows were refused"
    with world.connect() as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE ops.data_checks SET passed = true")
    decide()
    assert len(started) == 2, "it failed for another reason, and is tried again"
