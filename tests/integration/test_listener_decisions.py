"""What becomes of stored alerts, on a real Postgres; the pipeline's start is a function here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from mlops.alerting.alerts import (
    AlertLog,
    Decision,
    decide_waiting,
    is_tried_again,
    log_decision,
    parse_notification,
    store_alerts,
    waiting_count,
)
from mlops.alerting.retrains import (
    Ages,
    RetrainRunningError,
    TriggerError,
    close_retrain,
    fail_stale_retrains,
    latest_retrains,
    note_deployment,
    open_retrain,
    request_retrain,
    unfinished_retrain,
)
from mlops.database import connect
from mlops.dataset.card import Card, load_card
from mlops.settings import Settings
from tests.fixtures.alerts import RULE, alert, notification

RULES = {RULE}


class Mage:
    """Stands in for the orchestrator: remembers what it was asked to start."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.away = False

    def __call__(self, pipeline: str, variables: dict[str, Any]) -> int:
        assert pipeline == "retrain"
        if self.away:
            raise ConnectionError("Mage does not answer\nand more lines")
        self.started.append(variables)
        return len(self.started)


@pytest.fixture
def mage() -> Mage:
    return Mage()


@pytest.fixture
def card() -> Card:
    return load_card("bank_marketing")


@pytest.fixture
def settings(database: Settings) -> Settings:
    with connect(settings=database) as connection:
        deploy(connection, "1")
    return database.model_copy(update={"retrain_cool_down_s": 0})


@pytest.fixture
def connection(settings: Settings) -> Iterator[Connection]:
    with connect(settings=settings) as opened:
        yield opened


def execute(connection: Connection, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        rows = cursor.fetchall() if cursor.description else []
    connection.commit()
    return rows


def deploy(connection: Connection, version: str) -> None:
    execute(connection, "UPDATE ops.deployments SET retired_at = now() WHERE retired_at IS NULL")
    execute(
        connection,
        "INSERT INTO ops.deployments (card, model_version, cause)"
        " VALUES ('bank_marketing', %s, 'test')",
        version,
    )


def notify(
    connection: Connection,
    fingerprint: str = "a1",
    status: str = "firing",
    starts_at: str = "2026-01-01T00:00:00Z",
    rule: str = RULE,
    **labels: str,
) -> tuple[int, int]:
    about = {"alertname": rule, "model_version": "1", "period": "2009-03", **labels}
    sent = notification(alert(rule, fingerprint, status, startsAt=starts_at, labels=about))
    stored = store_alerts(connection, parse_notification(json.dumps(sent)))
    connection.commit()
    return stored.new, stored.repeated


def decide(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> list[tuple[str, str]]:
    decisions = decide_waiting(connection, card, mage, RULES, settings)
    return [(each.alert.partition("/")[0], each.decision) for each in decisions]


def test_an_alert_starts_one_retrain_and_is_handled(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    notify(connection)
    assert decide(connection, card, mage, settings) == [("a1", "retrain")]
    (started,) = mage.started
    (retrain,) = latest_retrains(connection, card)
    assert started == {
        "retrain_id": retrain["id"],
        "cause": "alert: Prediction drift (version 1, 2009-03)",
    }
    assert retrain["alert"] == "a1/2026-01-01T00:00:00+00:00"
    assert retrain["outcome"] is None
    assert execute(connection, "SELECT decision, retrain FROM ops.alerts") == [
        ("retrain", retrain["id"])
    ]
    assert decide(connection, card, mage, settings) == []
    assert waiting_count(connection) == 0


def test_the_same_alert_again_starts_nothing(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    assert notify(connection) == (1, 0)
    decide(connection, card, mage, settings)
    close_retrain(connection, unfinished_retrain(connection, card) or "", "kept_champion", "gate")
    for _ in range(3):
        assert notify(connection) == (0, 1)
    assert decide(connection, card, mage, settings) == []
    assert len(mage.started) == 1
    assert execute(connection, "SELECT repeats FROM ops.alerts") == [(3,)]


def test_alerts_that_wait_together_are_answered_by_one_retrain(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    notify(connection, "a1", period="2009-03")
    notify(connection, "b2", period="2009-04")
    assert decide(connection, card, mage, settings) == [("a1", "retrain"), ("b2", "joined")]
    assert len(mage.started) == 1
    assert len({row[0] for row in execute(connection, "SELECT retrain FROM ops.alerts")}) == 1


def test_an_alert_that_comes_during_a_retrain_waits_for_its_end(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    notify(connection, "a1")
    decide(connection, card, mage, settings)
    running = begin_training(connection, card)
    notify(connection, "b2", period="2009-04")
    assert decide(connection, card, mage, settings) == [("b2", "waits")]
    assert decide(connection, card, mage, settings) == []  # said once
    close_retrain(connection, running, "kept_champion", "gate")
    assert decide(connection, card, mage, settings) == [("b2", "retrain")]


def test_an_alert_that_comes_before_a_retrain_has_taken_its_rows_joins_it(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    """Two rules find the same month, one a moment after the other: one retrain answers both."""
    notify(connection, "a1")
    decide(connection, card, mage, settings)
    notify(connection, "b2", period="2009-04")
    assert decide(connection, card, mage, settings) == [("b2", "joined")]
    running = begin_training(connection, card)
    close_retrain(connection, running, "kept_champion", "gate")
    assert decide(connection, card, mage, settings) == []
    assert len(mage.started) == 1


def test_what_joined_a_retrain_that_fails_is_tried_again(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    running = open_retrain(connection, card)
    notify(connection)
    assert decide(connection, card, mage, settings) == [("a1", "joined")]
    close_retrain(connection, running, "failed", "no disk")
    assert decide(connection, card, mage, settings) == [("a1", "waits"), ("a1", "retrain")]
    assert len(mage.started) == 1


def test_a_clock_that_jumps_ahead_gives_up_no_retrain(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    """For the rows it is the same whether the clock goes ahead, or they are of longer ago."""
    seconds = [0.0]
    ages = Ages(lambda: seconds[0])
    running = request_retrain(connection, card, "by hand", mage)
    assert fail_stale_retrains(connection, card, settings, ages) == []
    execute(connection, "UPDATE ops.retrains SET started_at = started_at - interval '1 day'")
    seconds[0] = settings.retrain_limit_s - 60
    assert fail_stale_retrains(connection, card, settings, ages) == []
    seconds[0] = settings.retrain_limit_s + 60
    assert fail_stale_retrains(connection, card, settings, ages) == [running]


def test_a_clock_that_is_put_back_still_gives_up_a_retrain_in_time(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    seconds = [0.0]
    ages = Ages(lambda: seconds[0])
    running = request_retrain(connection, card, "by hand", mage)
    execute(connection, "UPDATE ops.retrains SET started_at = started_at + interval '1 day'")
    assert fail_stale_retrains(connection, card, settings, ages) == []
    seconds[0] = settings.retrain_limit_s + 60
    assert fail_stale_retrains(connection, card, settings, ages) == [running]


def test_a_retrain_of_before_a_restart_is_as_old_as_it_says(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    running = request_retrain(connection, card, "by hand", mage)
    execute(connection, "UPDATE ops.retrains SET started_at = started_at - interval '1 day'")
    assert fail_stale_retrains(connection, card, settings, Ages()) == [running]


def test_a_cool_down_of_the_future_holds_nothing_up(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    """The clock was put back an hour, and it would have lasted an hour longer than it is."""
    settings = settings.model_copy(update={"retrain_cool_down_s": 60})
    close_retrain(connection, open_retrain(connection, card), "kept_champion", "gate")
    execute(connection, "UPDATE ops.retrains SET finished_at = finished_at + interval '1 hour'")
    notify(connection)
    assert decide(connection, card, mage, settings) == [("a1", "retrain")]


def begin_training(connection: Connection, card: Card) -> str:
    """Have the retrain that is under way take its rows, as block train/start does."""
    running = unfinished_retrain(connection, card)
    assert running is not None
    execute(
        connection,
        "INSERT INTO ops.trainings (id, card, cause, window_start, window_end, data_digest)"
        " VALUES (%s, %s, 'test', '2009-01-01', '2009-02-01', 'd')",
        *(running, card.name),
    )
    return running


def test_an_alert_about_a_version_that_was_replaced_is_superseded(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    notify(connection)
    deploy(connection, "2")
    assert decide(connection, card, mage, settings) == [("a1", "superseded")]
    assert mage.started == []


def test_an_alert_that_resolved_meanwhile_starts_nothing(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    notify(connection)
    notify(connection, status="resolved")
    notify(connection, status="firing")  # a repeat that came late
    notify(connection, "b2", status="resolved")  # its firing was never heard of
    assert decide(connection, card, mage, settings) == [("a1", "resolved"), ("b2", "resolved")]
    assert mage.started == []


def test_a_new_episode_ends_the_one_before(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    mage.away = True
    notify(connection)
    decide(connection, card, mage, settings)
    notify(connection, starts_at="2026-02-01T00:00:00Z")
    mage.away = False
    assert decide(connection, card, mage, settings) == [("a1", "resolved"), ("a1", "retrain")]


@pytest.mark.parametrize("rule", ["TestAlert", "DatasourceNoData", "DatasourceError", "Other"])
def test_only_listed_rules_start_anything(
    connection: Connection, card: Card, mage: Mage, settings: Settings, rule: str
) -> None:
    notify(connection, rule=rule)
    assert decide(connection, card, mage, settings) == [("a1", "ignored")]
    assert mage.started == []


def test_the_cool_down_is_waited_for(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    patient = settings.model_copy(update={"retrain_cool_down_s": 600})
    notify(connection)
    decide(connection, card, mage, patient)
    close_retrain(connection, unfinished_retrain(connection, card) or "", "kept_champion", "gate")
    notify(connection, "b2", period="2009-04")
    assert decide(connection, card, mage, patient) == [("b2", "waits")]
    ((said,),) = execute(connection, "SELECT decision FROM ops.alerts WHERE fingerprint = 'b2'")
    assert said.startswith("waits: cool-down")
    execute(connection, "UPDATE ops.retrains SET finished_at = now() - interval '601 seconds'")
    assert decide(connection, card, mage, patient) == [("b2", "retrain")]


def test_an_alert_waits_for_mage_and_nothing_is_left_of_the_attempt(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    mage.away = True
    notify(connection)
    assert decide(connection, card, mage, settings) == [("a1", "waits")]
    assert latest_retrains(connection, card) == []
    ((said,),) = execute(connection, "SELECT decision FROM ops.alerts")
    assert said == "waits: retrain was not started: Mage does not answer"
    ((reserved,),) = execute(connection, "SELECT retrain FROM ops.alerts")
    mage.away = False
    assert decide(connection, card, mage, settings) == [("a1", "retrain")]
    # The same id: a run that Mage took without our hearing of it would be recognised by it.
    assert mage.started[0]["retrain_id"] == reserved


def test_a_crash_before_the_start_is_made_good(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    def killed(pipeline: str, variables: dict[str, Any]) -> int:
        raise KeyboardInterrupt

    notify(connection)
    with pytest.raises(KeyboardInterrupt):
        decide_waiting(connection, card, killed, RULES, settings)
    left = unfinished_retrain(connection, card)
    assert left is not None
    assert decide(connection, card, mage, settings) == [("a1", "retrain")]
    assert [each["retrain_id"] for each in mage.started] == [left]
    assert len(latest_retrains(connection, card)) == 1


def test_a_retrain_that_nobody_finishes_is_given_up_and_frees_the_way(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    stuck = request_retrain(connection, card, "by hand", mage)
    begin_training(connection, card)
    notify(connection)
    assert decide(connection, card, mage, settings) == [("a1", "waits")]
    execute(connection, "UPDATE ops.retrains SET started_at = now() - interval '2 hours'")
    assert decide(connection, card, mage, settings) == [("a1", "retrain")]
    failed = next(r for r in latest_retrains(connection, card) if r["id"] == stuck)
    assert failed["outcome"] == "failed"
    assert "3600 s" in failed["reason"]


def fail(connection: Connection, card: Card, training_id: str | None = None) -> str:
    """Fail the retrain that is under way, as the pipeline's callback does."""
    running = unfinished_retrain(connection, card)
    assert running is not None
    close_retrain(connection, running, "failed", "no disk", training_id=training_id)
    return running


@pytest.mark.parametrize("training_id", [None, "t1"])
def test_a_retrain_that_failed_is_tried_again_and_not_for_ever(
    connection: Connection, card: Card, mage: Mage, settings: Settings, training_id: str | None
) -> None:
    notify(connection)
    assert decide(connection, card, mage, settings) == [("a1", "retrain")]
    failed = []
    for _ in range(2):
        assert not is_tried_again(connection, card, RULES, settings)
        failed.append(fail(connection, card, training_id))
        assert is_tried_again(connection, card, RULES, settings)
        assert decide(connection, card, mage, settings) == [("a1", "waits"), ("a1", "retrain")]
    failed.append(fail(connection, card, training_id))
    assert not is_tried_again(connection, card, RULES, settings)
    assert decide(connection, card, mage, settings) == []
    assert len({started["retrain_id"] for started in mage.started}) == 3
    assert [started["cause"].partition("), ")[2] for started in mage.started] == [
        *["", "try 2 of 3", "try 3 of 3"]
    ]
    assert execute(connection, "SELECT decision, retrain, tries FROM ops.alerts") == [
        ("retrain", failed[-1], 3)
    ]


def test_between_two_tries_the_cool_down_is_waited_for(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    patient = settings.model_copy(update={"retrain_cool_down_s": 600})
    notify(connection)
    decide(connection, card, mage, patient)
    failed = fail(connection, card)
    reopened, waits = decide_waiting(connection, card, mage, RULES, patient)
    assert (reopened.reason, reopened.retrain) == (
        f"retrain {failed} failed: try 2 of 3 follows",
        failed,
    )
    assert waits.reason.startswith("cool-down")
    assert decide(connection, card, mage, patient) == []
    assert len(mage.started) == 1
    execute(connection, "UPDATE ops.retrains SET finished_at = now() - interval '601 seconds'")
    assert decide(connection, card, mage, patient) == [("a1", "retrain")]


def test_a_retrain_that_a_person_cancelled_is_not_started_again(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    notify(connection)
    decide(connection, card, mage, settings)
    running = unfinished_retrain(connection, card)
    assert running is not None
    close_retrain(connection, running, "failed", "ended in Mage", cancelled=True)
    assert decide(connection, card, mage, settings) == []
    assert len(mage.started) == 1
    notify(connection, starts_at="2026-01-02T00:00:00Z")  # a new episode is a new question
    assert decide(connection, card, mage, settings) == [("a1", "retrain")]


def test_alerts_that_had_joined_are_tried_again_too(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    notify(connection, "a1")
    notify(connection, "b2", period="2009-04")
    decide(connection, card, mage, settings)
    notify(connection, "a1", status="resolved")
    fail(connection, card)
    assert decide(connection, card, mage, settings) == [("b2", "waits"), ("b2", "retrain")]


@pytest.mark.parametrize("outcome", ["promoted", "kept_champion", None])
def test_nothing_is_tried_again_that_a_later_retrain_has_answered(
    connection: Connection, card: Card, mage: Mage, settings: Settings, outcome: Any
) -> None:
    notify(connection)
    decide(connection, card, mage, settings)
    fail(connection, card)
    later = open_retrain(connection, card)  # by hand
    if outcome is not None:
        close_retrain(connection, later, outcome, "gate")
    assert decide(connection, card, mage, settings) == []
    assert len(mage.started) == 1


@pytest.mark.parametrize("over", ["resolved", "superseded", "other rules", "before it starts"])
def test_nothing_is_tried_again_that_is_over(
    connection: Connection, card: Card, mage: Mage, settings: Settings, over: str
) -> None:
    notify(connection)
    decide(connection, card, mage, settings)
    if over == "before it starts":
        fail(connection, card)
        patient = settings.model_copy(update={"retrain_cool_down_s": 600})
        assert decide(connection, card, mage, patient) == [("a1", "waits"), ("a1", "waits")]
        notify(connection, status="resolved")
        assert decide(connection, card, mage, settings) == [("a1", "resolved")]
    else:
        if over == "resolved":
            notify(connection, status="resolved")
        elif over == "superseded":
            deploy(connection, "2")
        fail(connection, card)
        rules = set() if over == "other rules" else RULES
        assert decide_waiting(connection, card, mage, rules, settings) == []
    assert len(mage.started) == 1


def test_the_tries_are_a_setting(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    once = settings.model_copy(update={"retrain_tries": 1})
    notify(connection)
    decide(connection, card, mage, once)
    fail(connection, card)
    assert decide(connection, card, mage, once) == []


def test_two_deciders_at_once_start_one_retrain(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    notify(connection)

    def one(_: int) -> list[Decision]:
        with connect(settings=settings) as own:
            return decide_waiting(own, card, mage, RULES, settings)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(8)))
    assert len(mage.started) == 1


def test_an_alert_that_another_watcher_tells_again_is_answered_already(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    # Grafana and the evaluator make different fingerprints of the same labels.
    notify(connection, "a1")
    assert decide(connection, card, mage, settings) == [("a1", "retrain")]
    close_retrain(connection, mage.started[0]["retrain_id"], "kept_champion", "not better")
    notify(connection, "99", starts_at="2026-01-02T00:00:00Z")
    notify(connection, "98", starts_at="2026-01-02T00:00:00Z", period="2009-04")
    assert decide(connection, card, mage, settings) == [("99", "joined"), ("98", "retrain")]
    close_retrain(connection, mage.started[1]["retrain_id"], "kept_champion", "not better")
    # From then on it is that watcher's: a new episode is a new alert.
    notify(connection, "99", starts_at="2026-01-03T00:00:00Z")
    assert decide(connection, card, mage, settings) == [("99", "retrain")]


def test_a_month_answered_before_a_rollback_is_not_answered_again(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    """The version is back, its months fire anew: no news, and a retrain would undo the person."""
    notify(connection, "a1")
    assert decide(connection, card, mage, settings) == [("a1", "retrain")]
    close_retrain(connection, mage.started[0]["retrain_id"], "promoted", "better")
    notify(connection, "a1", status="resolved")
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE ops.deployments SET retired_at = clock_timestamp() WHERE card = %s",
            (card.name,),
        )
        for version, retired in (("2", "clock_timestamp()"), ("1", "NULL")):
            cursor.execute(
                "INSERT INTO ops.deployments (card, model_version, cause, deployed_at, retired_at)"
                f" VALUES (%s, %s, 'test', clock_timestamp(), {retired})",
                (card.name, version),
            )
    connection.commit()
    notify(connection, "a1", starts_at="2026-01-03T00:00:00Z")
    notify(connection, "a2", starts_at="2026-01-03T00:00:00Z", period="2009-09")
    assert decide(connection, card, mage, settings) == [("a1", "joined"), ("a2", "retrain")]


def test_a_failed_answer_to_another_watcher_is_none(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    notify(connection, "a1")
    decide(connection, card, mage, settings)
    close_retrain(connection, mage.started[0]["retrain_id"], "failed", "no reason")
    notify(connection, "a1", status="resolved")
    notify(connection, "99", starts_at="2026-01-02T00:00:00Z")
    assert decide(connection, card, mage, settings) == [("99", "retrain")]


def test_an_alert_without_a_version_label_is_the_champions(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    body = notification(alert(fingerprint="c3", labels={"alertname": RULE}))
    store_alerts(connection, parse_notification(json.dumps(body)))
    connection.commit()
    assert decide(connection, card, mage, settings) == [("c3", "retrain")]


# The books


def test_one_retrain_at_a_time_is_held_by_the_database(
    connection: Connection, card: Card, mage: Mage
) -> None:
    first = request_retrain(connection, card, "by hand", mage)
    with pytest.raises(RetrainRunningError, match=first):
        request_retrain(connection, card, "by hand", mage)
    with pytest.raises(RetrainRunningError):
        open_retrain(connection, card)
    assert open_retrain(connection, card, first) == first
    assert len(mage.started) == 1


def test_a_pipeline_started_by_hand_opens_its_own_row(connection: Connection, card: Card) -> None:
    opened = open_retrain(connection, card, "run-7")
    assert opened == "run-7"
    assert open_retrain(connection, card, "run-7") == "run-7"  # an interrupted block runs again
    close_retrain(connection, opened, "promoted", "better")
    with pytest.raises(RetrainRunningError, match="finished already"):
        open_retrain(connection, card, "run-7")


def test_a_refused_start_leaves_no_row(connection: Connection, card: Card, mage: Mage) -> None:
    mage.away = True
    with pytest.raises(TriggerError, match="Mage does not answer"):
        request_retrain(connection, card, "by hand", mage)
    assert latest_retrains(connection, card) == []


def test_the_outcome_is_written_once_but_for_a_failure_that_was_none(
    connection: Connection, card: Card
) -> None:
    opened = open_retrain(connection, card)
    assert close_retrain(connection, opened, "failed", "given up")
    assert not close_retrain(connection, opened, "failed", "again")
    assert close_retrain(connection, opened, "promoted", "better")
    assert not close_retrain(connection, opened, "kept_champion", "late")
    (retrain,) = latest_retrains(connection, card)
    assert (retrain["outcome"], retrain["reason"]) == ("promoted", "better")
    with pytest.raises(LookupError, match="nobody"):
        close_retrain(connection, "nobody", "failed", "x")


DEPLOYED = {
    "outcome": "promoted",
    "champion": "1",
    "version": "2",
    "gate": {"champion_roc_auc": 0.6, "challenger_roc_auc": 0.7, "margin": 0.0},
}


def kept(connection: Connection, card: Card) -> tuple[Any, ...]:
    retrain = latest_retrains(connection, card)[0]
    names = ("champion", "challenger", "champion_score", "challenger_score", "gate")
    return tuple(retrain[name] for name in names)


def test_a_retrain_that_fails_after_its_deployment_keeps_what_it_decided(
    connection: Connection, card: Card
) -> None:
    opened = open_retrain(connection, card, "r1")
    deploy(connection, "2")
    execute(
        connection,
        "UPDATE ops.deployments SET training_id = 'r1' WHERE retired_at IS NULL",
    )
    note_deployment(connection, opened, DEPLOYED, "r1")
    connection.rollback()  # the note is committed whatever its block does next
    assert kept(connection, card) == ("1", "2", 0.6, 0.7, DEPLOYED["gate"])
    assert unfinished_retrain(connection, card) == opened
    assert close_retrain(connection, opened, "failed", "block monitor/monitor: no disk")
    assert kept(connection, card) == ("1", "2", 0.6, 0.7, DEPLOYED["gate"])
    (retrain,) = latest_retrains(connection, card)
    assert (retrain["outcome"], retrain["training_id"]) == ("failed", "r1")
    assert retrain["reason"] == (
        "block monitor/monitor: no disk; version 2 is in production all the same"
    )


def test_a_retrain_whose_version_was_withdrawn_does_not_claim_production(
    connection: Connection, card: Card
) -> None:
    opened = open_retrain(connection, card, "r1")
    note_deployment(connection, opened, DEPLOYED, "r1")
    deploy(connection, "1")  # the former champion is back
    assert close_retrain(connection, opened, "failed", "refused")
    (retrain,) = latest_retrains(connection, card)
    assert (retrain["reason"], retrain["challenger"]) == ("refused", "2")


def test_a_deployment_of_no_retrain_is_not_noted(connection: Connection) -> None:
    with pytest.raises(LookupError, match="nobody"):
        note_deployment(connection, "nobody", DEPLOYED)


def test_a_young_retrain_is_not_given_up(
    connection: Connection, card: Card, settings: Settings
) -> None:
    open_retrain(connection, card)
    assert fail_stale_retrains(connection, card, settings) == []


def test_the_alert_log_has_a_line_for_every_decision(
    connection: Connection, card: Card, mage: Mage, settings: Settings
) -> None:
    log = AlertLog(settings)
    notify(connection)
    notify(connection, "b2", rule="TestAlert")
    decide_waiting(
        connection, card, mage, RULES, settings, report=lambda each: log_decision(log, each)
    )
    log.close()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["event"], line["decision"]) for line in lines] == [
        ("decided", "ignored"),
        ("decided", "retrain"),
    ]
    assert lines[1]["retrain"] == mage.started[0]["retrain_id"]
