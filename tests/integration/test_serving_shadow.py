"""A version in shadow, beside the real API and its log in the embedded Postgres."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from mlops.dataset.card import Card, load_card
from mlops.dataset.rows import to_records
from mlops.registry.models import record_deployment
from mlops.registry.shadows import LOOP, PERSON, current_shadow, stop_shadow
from mlops.serving import comparison
from mlops.serving import shadow as shadowing
from mlops.serving.client import PredictClient
from mlops.serving.comparison import ShadowMonth, compare_shadow, follow_shadow
from mlops.serving.payload import switch_current
from mlops.serving.shadow import ShadowError, shadow_challenger, start_shadow
from mlops.serving.traffic import forget_simulations
from mlops.settings import ROOT, Settings
from tests.fixtures.predict import PredictServer, make_payload, make_rows
from tests.fixtures.shadow import begin, database_of, label_all, log, rows_of, score
from tests.fixtures.waiting import await_


@pytest.fixture
def card() -> Card:
    return load_card("bank_marketing")


def shadow_count(settings: Settings, version: str = "2") -> int:
    query = "SELECT count(*) FROM serving.shadow_predictions WHERE model_version = %s"
    return int(rows_of(settings, query, version)[0][0])


def test_its_scores_are_those_that_the_api_would_have_answered(
    predict_server: PredictServer, database: Settings, card: Card
) -> None:
    begin(database, card)
    records = to_records(make_rows(card, 300, seed=9), card)
    for record in records[::7]:
        record[card.categories[0]] = "never seen"
    with PredictClient(predict_server.url) as client:
        client.predict(records, period="2009-03", request_id="list")
        for row, record in enumerate(records[:40]):
            client.predict(record, period="2009-03", request_id=f"one-{row}")
        client.predict(records[:5], period="2009-03", purpose="test", request_id="test")
    await_(lambda: rows_of(database, "SELECT count(*) FROM serving.predictions")[0][0] == 345, 20)

    done = score(database, card)
    assert (done.version, done.rows, done.refused) == ("2", 340, 0)

    switch_current(database.payloads_dir, "2")
    with PredictClient(predict_server.url) as client:
        client.wait_for_version("2", database.predict_workers, 30)
        answered = client.predict(records, purpose="test")["predictions"]
        alone = [client.predict(each, purpose="test")["predictions"][0] for each in records[:40]]
    found = {
        (name, row): value
        for name, row, value in rows_of(
            database, "SELECT request_id, row, probability FROM serving.shadow_predictions"
        )
    }
    expected = {("list", row): each["probability"] for row, each in enumerate(answered)}
    expected |= {(f"one-{row}", 0): each["probability"] for row, each in enumerate(alone)}
    assert found.keys() == expected.keys()
    # The last bit of a float32 depends on how many rows are multiplied at once, in the API too.
    assert max(abs(found[key] - expected[key]) for key in expected) < 1e-6
    champions = rows_of(database, "SELECT probability FROM serving.predictions WHERE row < 300")
    assert np.ptp([value for (value,) in champions]) > 0.1, "scores that tell rows apart"


def test_rows_are_scored_once_and_only_those_that_others_answered_since_it_began(
    database: Settings, card: Card
) -> None:
    log(database, card, 3, made_at=datetime.now(timezone.utc) - timedelta(hours=1))
    begin(database, card)
    log(database, card, 20)
    log(database, card, 10, purpose="simulation")
    log(database, card, 5, purpose="test")
    log(database, card, 4, version="2")
    assert score(database, card).rows == 30
    assert score(database, card).rows == 0
    assert shadow_count(database) == 30


def test_a_period_is_scored_from_its_beginning_if_asked(database: Settings, card: Card) -> None:
    before = datetime.now(timezone.utc) - timedelta(days=30)
    log(database, card, 7, period="2009-02-01", made_at=before)
    log(database, card, 8, period="2009-03-01", made_at=before)
    log(database, card, 9, period="2009-04-01", made_at=before)
    begin(database, card)
    assert score(database, card).rows == 0
    begin(database, card, since="2009-03")
    assert score(database, card).rows == 17
    with pytest.raises(ValueError, match="expected year and month"):
        begin(database, card, since="March")


def test_rows_that_a_spool_ships_late_are_found(database: Settings, card: Card) -> None:
    begin(database, card)
    with database_of(database) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE ops.shadows SET started_at = now() - interval '3 hours'")
    log(database, card, 5)
    assert score(database, card, recent_s=60).rows == 5
    log(database, card, 6, made_at=datetime.now(timezone.utc) - timedelta(hours=2))
    assert score(database, card, recent_s=60).rows == 0, "a look at the latest costs little"
    assert score(database, card).rows == 6


def test_a_kill_in_the_middle_loses_nothing(database: Settings, card: Card) -> None:
    begin(database, card)
    for seed in range(3):
        log(database, card, 400, seed=seed)
    code = (
        "from mlops.database import connect\n"
        "from mlops.dataset.card import load_card\n"
        "from mlops.serving import shadow\n"
        "import os, signal\n"
        "shadow.BATCH, batches, lock = 100, [], shadow.from_features\n"
        "def killed(*arguments):\n"
        "    batches.append(1)\n"
        "    if len(batches) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return lock(*arguments)\n"
        "shadow.from_features = killed\n"
        "with connect() as connection:\n"
        "    shadow.score_shadow(connection, load_card('bank_marketing'))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **database.environment(), "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert shadow_count(database) == 400, "four batches are kept, the fifth is undone"
    assert score(database, card).rows == 800
    assert shadow_count(database) == 1200


def test_two_at_once_wait_for_one_another(
    database: Settings, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(database, card)
    log(database, card, 200)
    entered, go_on = threading.Event(), threading.Event()
    read = shadowing.from_features

    def slowly(*arguments: Any) -> Any:
        entered.set()
        assert go_on.wait(20)
        return read(*arguments)

    monkeypatch.setattr(shadowing, "from_features", slowly)
    done: list[int] = []
    first = threading.Thread(target=lambda: done.append(score(database, card).rows))
    second = threading.Thread(target=lambda: done.append(score(database, card).rows))
    first.start()
    assert entered.wait(20)
    second.start()
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    await_(lambda: rows_of(database, waiting), 20, "the second waits")
    go_on.set()
    first.join(30)
    second.join(30)
    assert sorted(done) == [0, 200]


def test_what_the_log_forgets_the_shadow_forgets(database: Settings, card: Card) -> None:
    begin(database, card)
    log(database, card, 10, purpose="simulation")
    log(database, card, 5)
    score(database, card)
    with database_of(database) as connection:
        assert forget_simulations(connection) == 10
    assert shadow_count(database) == 5


def test_a_row_that_goes_while_it_is_scored_leaves_no_score(
    database: Settings, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(database, card)
    log(database, card, 10, purpose="simulation")
    read = shadowing.from_features
    forgotten: list[int] = []

    def forget() -> None:
        with database_of(database) as connection:
            forgotten.append(forget_simulations(connection))

    thread = threading.Thread(target=forget)

    def meanwhile(*arguments: Any) -> Any:
        thread.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await_(lambda: rows_of(database, waiting), 20, "the deletion waits")
        return read(*arguments)

    monkeypatch.setattr(shadowing, "from_features", meanwhile)
    assert score(database, card).rows == 10
    thread.join(20)
    assert forgotten == [10]
    assert shadow_count(database) == 0


def test_rows_that_it_cannot_score_are_stored_as_refused_and_not_tried_again(
    database: Settings, card: Card
) -> None:
    begin(database, card)
    good, bare, odd = to_records(make_rows(card, 3), card)
    del bare[card.feature_names[0]]
    odd[card.numbers[0]] = "a text"
    log(database, card, features=[good, bare, odd, {**good, "gone": 1}])
    done = score(database, card)
    assert (done.rows, done.refused) == (4, 2)
    found = rows_of(
        database, "SELECT row, probability, refused FROM serving.shadow_predictions ORDER BY row"
    )
    assert [row for row, score_, _ in found if score_ is None] == [1, 2]
    assert found[1][2] == f"it was logged without {card.feature_names[0]}"
    assert "a text" in found[2][2]
    assert score(database, card).rows == 0


def test_a_swap_of_the_champion_does_not_stop_it(database: Settings, card: Card) -> None:
    begin(database, card)
    log(database, card, 10, version="1")
    score(database, card)
    with database_of(database) as connection:
        record_deployment(connection, card, "3", cause="test")
    log(database, card, 12, version="3")
    assert score(database, card).rows == 12
    assert [name for (name,) in rows_of(database, "SELECT model_version FROM ops.shadows")] == ["2"]


def test_it_ends_when_its_version_goes_to_production(database: Settings, card: Card) -> None:
    begin(database, card)
    with database_of(database) as connection:
        record_deployment(connection, card, "2", cause="test")
        assert current_shadow(connection, card) is None
        with pytest.raises(ShadowError, match="version 2 is in production"):
            start_shadow(connection, card, "2", database)
    assert rows_of(database, "SELECT ended_by FROM ops.shadows") == [("it went to production",)]
    log(database, card, 5)
    assert score(database, card).version is None


def test_another_version_takes_its_place_and_a_person_may_stop_it(
    database: Settings, card: Card
) -> None:
    begin(database, card, "2")
    log(database, card, 10)
    score(database, card)
    begin(database, card, "3")
    log(database, card, 10)
    assert score(database, card).rows == 10
    assert (shadow_count(database, "2"), shadow_count(database, "3")) == (10, 10)
    with database_of(database) as connection:
        stopped = stop_shadow(connection, card)
        assert stopped is not None
        assert stopped.version == "3"
        assert stop_shadow(connection, card) is None
    ended = rows_of(database, "SELECT model_version, ended_by FROM ops.shadows ORDER BY id")
    assert ended == [("2", "replaced by version 3"), ("3", "stopped by a person")]
    log(database, card, 5)
    assert score(database, card).rows == 0


def test_it_stops_scoring_when_it_is_stopped_in_the_middle(
    database: Settings, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(database, card)
    log(database, card, 300)
    monkeypatch.setattr(shadowing, "BATCH", 100)
    read = shadowing.from_features

    def meanwhile(*arguments: Any) -> Any:
        with database_of(database) as connection:
            stop_shadow(connection, card)
        return read(*arguments)

    monkeypatch.setattr(shadowing, "from_features", meanwhile)
    assert score(database, card).rows == 100


def test_a_version_of_other_columns_is_refused(database: Settings, card: Card) -> None:
    folder = make_payload(database.payloads_dir, "2")
    described = orjson.loads((folder / "model.json").read_bytes())
    described["inputs"] = described["inputs"][1:]
    (folder / "model.json").write_bytes(orjson.dumps(described))
    with (
        database_of(database) as connection,
        pytest.raises(ShadowError, match="train one with today's card"),
    ):
        start_shadow(connection, card, "2", database)


def test_a_version_is_a_number_and_no_path(database: Settings, card: Card) -> None:
    make_payload(database.payloads_dir, "2")
    with database_of(database) as connection, pytest.raises(ShadowError, match="expected a number"):
        start_shadow(connection, card, "../payloads/2", database)


def held(version: str = "2", **changes: Any) -> Any:
    """Return a deployment in which the gate has held a challenger that is not bad."""
    deployed = {"outcome": "kept_champion", "version": version, "champion": "1", "production": "1"}
    return SimpleNamespace(**{**deployed, "reason": "not better", "gate": gate(), **changes})


def gate(auc: float | None = 0.7, brier: float = 0.09) -> dict[str, Any]:
    return {"challenger_roc_auc": auc, "challenger_brier": brier, "constant_brier": 0.1}


@pytest.mark.parametrize(
    ("deployed", "wanted"),
    [
        (held(), True),
        (held(outcome="promoted", production="2"), False),
        (held(production=None, champion=None), False),
        (held(version="1"), False),
        (held(gate={"challenger_roc_auc": None}), False),
        (
            held(gate={"challenger_roc_auc": 0.49, "challenger_brier": 0.0, "constant_brier": 1}),
            False,
        ),
        (
            held(gate={"challenger_roc_auc": 0.9, "challenger_brier": 0.2, "constant_brier": 0.1}),
            False,
        ),
    ],
)
def test_the_loop_shadows_a_held_challenger_that_is_better_than_a_guess(
    database: Settings, card: Card, deployed: Any, wanted: bool
) -> None:
    make_payload(database.payloads_dir, "2")
    off = database.model_copy(update={"shadow_held": False})
    assert shadow_challenger(card, deployed, settings=off) is None
    found = shadow_challenger(card, deployed, settings=database)
    again = shadow_challenger(card, deployed, settings=database)
    assert again == found
    assert (found is not None) is wanted
    if found:
        assert (found.version, found.started_by, found.reason) == ("2", LOOP, "not better")


def test_the_loop_replaces_its_own_shadow_and_never_a_persons(
    database: Settings, card: Card
) -> None:
    for version in ("2", "3", "4"):
        make_payload(database.payloads_dir, version, seed=int(version))

    def loop(version: str) -> str | None:
        shadow_challenger(card, held(version), settings=database)
        with database_of(database) as connection:
            current = current_shadow(connection, card)
        return current and current.version

    assert [loop("2"), loop("3")] == ["2", "3"]
    begin(database, card, "3")  # a person takes it up
    assert loop("4") == "3"
    with database_of(database) as connection:
        current = current_shadow(connection, card)
        assert current is not None
        assert current.started_by == PERSON
        stop_shadow(connection, card)
    assert loop("3") is None, "a person has stopped it"
    assert loop("4") == "4"


def test_a_challenger_that_cannot_be_in_shadow_stops_no_retrain(
    database: Settings, card: Card
) -> None:
    said: list[str] = []
    (database.payloads_dir / "2").mkdir(parents=True)
    for name in ("predict.py", "model.onnx", "model.json"):
        (database.payloads_dir / "2" / name).touch()
    assert shadow_challenger(card, held(), said.append, database) is None
    assert said[0].startswith("note: version 2 is not in shadow")
    with database_of(database) as connection:
        assert current_shadow(connection, card) is None


def compare(settings: Settings, card: Card) -> list[ShadowMonth]:
    with database_of(settings) as connection:
        return compare_shadow(connection, card, "2", settings)


def test_months_are_compared_by_who_answered_and_anew_when_rows_or_labels_come(
    database: Settings, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_payload(database.payloads_dir, "1", seed=1)
    begin(database, card)
    request = log(database, card, 200, seed=6)
    log(database, card, 100, period="2009-04-01", seed=7)
    log(database, card, 80, period="2009-04-01", version="3", seed=8)
    score(database, card)
    march, april, other = compare(database, card)
    assert [(each.period, each.champion) for each in (march, april, other)] == [
        ("2009-03", "1"),
        ("2009-04", "1"),
        ("2009-04", "3"),
    ]
    assert [each.row_count for each in (march, april, other)] == [200, 100, 80]
    query = "SELECT probability FROM serving.shadow_predictions WHERE request_id = %s"
    ours = [probability for (probability,) in rows_of(database, query, request)]
    assert march.mean_score == pytest.approx(np.mean(ours))
    assert march.changed_share == pytest.approx(np.mean([p < 0.5 for p in ours]))  # champion: 0.5
    assert march.roc_auc is None
    assert other.champion_threshold is None, "its payload is gone"
    assert other.changed_share is None

    label_all(database, request)
    measured: list[str] = []
    measure = comparison._measure
    monkeypatch.setattr(
        comparison, "_measure", lambda *args: measured.append(args[1].period) or measure(*args)
    )
    (march, *_) = compare(database, card)
    assert measured == ["2009-03"], "the others have not changed"
    assert march.labelled_count == 200
    assert march.roc_auc is not None
    assert march.roc_auc_low is not None
    assert march.profit is not None
    assert march.champion_roc_auc == 0.5
    assert compare(database, card)[0] == march
    assert measured == ["2009-03"]


def note_training(settings: Settings, version: str, start: str, end: str) -> None:
    """Write a training as the pipeline does: `version` is on its leaderboard."""
    with database_of(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ops.trainings (id, card, cause, window_start, window_end, data_digest,"
            " leaderboard) VALUES (%s, 'bank_marketing', 'test', %s, %s, '', %s)",
            (
                *(f"t{version}", f"{start}-01", f"{end}-01"),
                orjson.dumps([{"version": version, "candidate": "x", "rank": 1}]).decode(),
            ),
        )


def test_months_that_one_of_them_was_fitted_on_are_marked_and_not_judged(
    database: Settings, card: Card
) -> None:
    make_payload(database.payloads_dir, "1", seed=1)
    begin(database, card)
    for month in ("2009-03", "2009-04", "2009-05"):
        request = log(database, card, 200, champion=None, period=f"{month}-01", seed=int(month[-1]))
        label_all(database, request)
    score(database, card)
    assert all(each.roc_auc_low is not None for each in compare(database, card))

    note_training(database, "2", "2008-11", "2009-04")
    note_training(database, "1", "2008-10", "2009-03")
    march, april, may = compare(database, card)
    assert [(each.known_to_shadow, each.known_to_champion) for each in (march, april, may)] == [
        (True, True),
        (True, False),
        (False, False),
    ]
    for month in (march, april):
        assert month.labelled_count == 200
        assert month.changed_share is not None
        assert (month.roc_auc, month.brier_low, month.profit, month.roc_auc_low) == (None,) * 4
    assert may.roc_auc_low is not None
    assert comparison.in_words(march).endswith("; not judged: fitted on by version 2 and 1")
    assert compare(database, card) == [march, april, may], "as it was stored"


def test_the_window_of_a_version_without_a_leaderboard_is_that_of_its_payload(
    database: Settings, card: Card
) -> None:
    begin(database, card)  # its payload says 2008-05 to 2009-01
    label_all(database, log(database, card, 200, champion=None, period="2009-01-01"))
    score(database, card)
    (january,) = compare(database, card)
    assert (january.known_to_shadow, january.roc_auc) == (True, None)


def test_a_comparison_of_rows_that_were_forgotten_is_forgotten(
    database: Settings, card: Card
) -> None:
    begin(database, card)
    log(database, card, 30, purpose="simulation")
    log(database, card, 30, period="2009-04-01")
    score(database, card)
    assert len(compare(database, card)) == 2
    with database_of(database) as connection:
        forget_simulations(connection)
    assert [each.period for each in compare(database, card)] == ["2009-04"]
    stored = rows_of(database, "SELECT period::text FROM grafana.shadow_comparison")
    assert stored == [("2009-04-01",)]


def test_who_follows_the_shadow_scores_compares_and_never_fails(
    database: Settings, card: Card
) -> None:
    said: list[str] = []
    assert follow_shadow(card, said.append, database) == []
    begin(database, card)
    log(database, card, 40)
    (month,) = follow_shadow(card, said.append, database)
    assert month.row_count == 40
    assert any("2009-03, version 2 in the shadow of 1: 40 rows" in line for line in said)
    (database.payloads_dir / "2" / "model.onnx").write_bytes(b"no model")
    log(database, card, 5)
    assert follow_shadow(card, said.append, database) == []
    assert said[-1].startswith("note: the shadow does not follow")
