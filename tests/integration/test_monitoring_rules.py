"""What is measured, and what the rule files make of it: on a real Postgres, by the real rules."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from psycopg2.extensions import connection as Connection

from mlops.alerting.alerts import Decision, decide_waiting, parse_notification, store_alerts
from mlops.alerting.evaluator import to_samples
from mlops.alerting.notification import group_alerts, notification_body
from mlops.alerting.rules import load_provisioning, provisioning_environment
from mlops.alerting.states import advance
from mlops.database import connect
from mlops.dataset.card import Card, load_card
from mlops.dataset.sources import read_source
from mlops.monitoring.monitor import measure_month, store_columns, store_metrics
from mlops.registry.models import record_deployment
from mlops.replay.false_alarms import deal_anew, judge_shuffles
from mlops.settings import Settings

NOON = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
VERSION = "1"
PERIODS = ["2009-03", "2009-04", "2009-05", "2009-06"]


@pytest.fixture
def card() -> Card:
    return load_card("bank_marketing")


@pytest.fixture
def connection(database: Settings, card: Card) -> Iterator[Connection]:
    with connect(settings=database) as opened:
        record_deployment(opened, card, VERSION, cause="test", began="first")
        yield opened


def sample(card: Card, rows: int, seed: int, period: str = "2009-01") -> pd.DataFrame:
    """Return rows of one quiet world: calibrated scores, and columns that never change."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame()
    for feature in card.features:
        frame[feature.name] = (
            np.round(random.normal(40, 10, rows)).astype("float32")
            if feature.kind == "number"
            else random.choice(["a", "b", "c"], rows)
        )
    frame["score"] = random.beta(1, 5, rows)
    frame["target"] = (random.random(rows) < frame["score"]).astype(float)
    return frame.assign(period=period)


def measure(
    connection: Connection,
    card: Card,
    settings: Settings,
    months: Sequence[pd.DataFrame],
    reference: pd.DataFrame | None = None,
) -> None:
    """Measure and store months as `monitor` does."""
    known = sample(card, 3000, seed=0) if reference is None else reference
    for number, rows in enumerate(months):
        period = str(rows["period"].iloc[0])
        metrics, drift = measure_month(
            known, rows, card, VERSION, period, 0.2, settings, False, earlier=months[:number]
        )
        store_metrics(connection, metrics)
        store_columns(connection, VERSION, period, drift.by_column if drift else ())


def alarms(connection: Connection, settings: Settings) -> dict[str, list[dict[str, str]]]:
    """Return the label sets that pass each rule's threshold, by the rule's title."""
    found: dict[str, list[dict[str, str]]] = {}
    for rule in load_provisioning(provisioning_environment(settings)).rules:
        with connection.cursor() as cursor:
            cursor.execute(rule.sql)
            names = [column.name for column in cursor.description or []]
            samples = to_samples(rule, names, cursor.fetchall())
        breached = [dict(each.labels) for each in samples if rule.breached_by(each.value)]
        if breached:
            found[rule.title] = breached
    return found


def decide(connection: Connection, card: Card, settings: Settings) -> list[Decision]:
    """Tell the listener's code what the rules say, as the evaluator would."""
    provisioning = load_provisioning(provisioning_environment(settings))
    rules = {rule.uid: rule for rule in provisioning.rules}
    states = []
    for rule in rules.values():
        with connection.cursor() as cursor:
            cursor.execute(rule.sql)
            names = [column.name for column in cursor.description or []]
            samples = to_samples(rule, names, cursor.fetchall())
        later = advance(rule, [], samples, NOON)
        states += advance(rule, later, samples, NOON + timedelta(seconds=20))
    for group in group_alerts(rules, states, provisioning.webhooks):
        body = notification_body(group, "http://127.0.0.1:1/")
        store_alerts(connection, parse_notification(json.dumps(body)))
    connection.commit()
    started: list[str] = []
    return decide_waiting(
        connection,
        card,
        lambda pipeline, variables: started.append(pipeline),
        {rule.title for rule in rules.values()},
        settings,
    )


def test_a_calibration_that_shifts_fires_performance_loss_and_retrains(
    connection: Connection, card: Card, database: Settings
) -> None:
    quiet, shifted = (
        sample(card, 400, seed, period) for seed, period in ((1, "2009-03"), (2, "2009-04"))
    )
    # The same customers and scores, and fewer of them say yes: drift cannot see it.
    shifted["target"] = shifted["target"].where(shifted.index % 2 == 0, 0.0)
    measure(connection, card, database, [quiet, shifted])
    assert alarms(connection, database) == {
        "Performance loss": [
            {"model_version": VERSION, "period": "2009-04", "measure": "calibration"}
        ]
    }
    (decision,) = decide(connection, card, database)
    assert (decision.rule, decision.decision) == ("Performance loss", "retrain")


def test_a_model_that_ranks_no_more_fires_performance_loss(
    connection: Connection, card: Card, database: Settings
) -> None:
    rows = sample(card, 2000, 1, "2009-03")
    rows["target"] = np.random.default_rng(3).permutation(rows["target"])
    measure(connection, card, database, [rows])
    (found,) = alarms(connection, database)["Performance loss"]
    assert found["measure"] == "ROC AUC"


def test_a_column_that_fails_to_come_is_noted_by_name_and_retrains_nothing(
    connection: Connection, card: Card, database: Settings
) -> None:
    rows = sample(card, 400, 1, "2009-03")
    rows.loc[rows.index % 4 == 0, "job"] = ""
    measure(connection, card, database, [rows])
    assert alarms(connection, database) == {
        "Missing data": [{"model_version": VERSION, "period": "2009-03", "column": "job"}]
    }
    (decision,) = decide(connection, card, database)
    assert (decision.rule, decision.decision, decision.retrain) == ("Missing data", "noted", None)
    with connection.cursor() as cursor:
        cursor.execute("SELECT decision, handled_at IS NOT NULL FROM ops.alerts")
        assert cursor.fetchall() == [("noted", True)]
        cursor.execute("SELECT count(*) FROM ops.retrains")
        assert cursor.fetchone() == (0,)


def test_other_customers_are_noted_while_the_scores_stay(
    connection: Connection, card: Card, database: Settings
) -> None:
    rows = sample(card, 400, 1, "2009-03")
    for feature in card.features:
        if feature.kind == "number":
            rows[feature.name] += 20
        else:
            rows[feature.name] = "a"
    measure(connection, card, database, [rows])
    assert list(alarms(connection, database)) == ["Data drift"]
    assert [decision.decision for decision in decide(connection, card, database)] == ["noted"]


def test_what_is_wrong_in_a_small_month_alarms_once_its_labels_are_enough(
    connection: Connection, card: Card, database: Settings
) -> None:
    months = [sample(card, 120, seed, period) for seed, period in enumerate(PERIODS[:2], 1)]
    for rows in months:
        rows["target"] = 0.0
    measure(connection, card, database, months[:1])
    assert alarms(connection, database) == {}
    measure(connection, card, database, months)
    (found,) = alarms(connection, database)["Performance loss"]
    assert (found["period"], found["measure"]) == ("2009-04", "calibration")


def test_only_the_version_in_production_alarms(
    connection: Connection, card: Card, database: Settings
) -> None:
    rows = sample(card, 400, 1, "2009-03").assign(target=0.0, job="", score=0.9)
    measure(connection, card, database, [rows])
    assert {"Performance loss", "Missing data"} <= set(alarms(connection, database))
    measure(connection, card, database, [rows.assign(target=np.nan)])
    assert {"Prediction drift", "Missing data"} <= set(alarms(connection, database))
    record_deployment(connection, card, "2", cause="test", began="gate")
    assert alarms(connection, database) == {}


@pytest.mark.parametrize(("rows", "reference_rows"), [(200, 200), (250, 3000)])
def test_months_in_which_nothing_happens_hardly_ever_alarm(
    connection: Connection, card: Card, database: Settings, rows: int, reference_rows: int
) -> None:
    """Small months against small references are what retraining leaves behind."""
    told = 0
    for world in range(8):
        reference = sample(card, reference_rows, 1000 + world)
        months = [
            sample(card, rows, 2000 + 10 * world + number, period)
            for number, period in enumerate(PERIODS)
        ]
        measure(connection, card, database, months, reference)
        told += sum(map(len, alarms(connection, database).values()))
    assert told <= 2  # of 32 months, of which the rules look at 24


def test_dealing_anew_keeps_the_rows_and_the_sizes_of_months(card: Card) -> None:
    frame = pd.concat([sample(card, 50, 1, "2009-03"), sample(card, 20, 2, "2009-04")])
    dealt = deal_anew(frame, seed=1)
    assert list(dealt["period"].value_counts()) == [50, 20]
    assert sorted(dealt["score"]) == sorted(frame["score"])
    assert set(dealt[dealt["period"] == "2009-04"]["score"]) != set(
        frame[frame["period"] == "2009-04"]["score"]
    )
    pd.testing.assert_frame_equal(dealt, deal_anew(frame, seed=1))


@pytest.mark.real_data
@pytest.mark.skipif(
    not os.environ.get("MLOPS_DATA"),
    reason="MLOPS_DATA does not name the real Bank Marketing file",
)
def test_shuffled_months_alarm_at_most_once_in_twenty(card: Card, database: Settings) -> None:
    settings = database.model_copy(update={"data": os.environ["MLOPS_DATA"]})
    frame = read_source(card, settings).frame
    found = judge_shuffles(frame, card, settings, shuffles=2, candidate="LogisticRegression")
    print(json.dumps(found.summary()))
    assert len(found.months) == 46
    assert found.rate <= 1 / 20
    # Nothing of it stays behind.
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM grafana.evidently_metrics")
        assert cursor.fetchone() == (0,)
