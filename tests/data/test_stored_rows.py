"""Rows in Postgres: stored once, replaced by month, and never learnt from before they happen."""

import hashlib
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg2
import pytest
from psycopg2.extras import Json

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.dataset.errors import DataError
from mlops.dataset.generate import generate_csv
from mlops.dataset.parsing import parse_csv
from mlops.dataset.rows import (
    data_digest,
    from_features,
    history_window,
    latest_labelled_window,
    load_future,
    load_window,
    periods_to_come,
    store,
    to_records,
)
from mlops.dataset.sources import RawData

CARD = load_card("bank_marketing")
CHURN = load_card(Path(__file__).parent / "cards" / "churn.yaml")


def raw_of(content: bytes, card=CARD, source="test.csv") -> RawData:
    frame = parse_csv(content, card, source)
    return RawData(frame, hashlib.sha256(content).hexdigest(), "file", source, len(content))


@pytest.fixture(scope="module")
def content() -> bytes:
    """Every tenth row of the generated sample."""
    header, *rows = generate_csv(CARD, seed=42).splitlines()
    return b"\n".join([header, *rows[::10]]) + b"\n"


@pytest.fixture(scope="module")
def raw(content) -> RawData:
    return raw_of(content)


@pytest.fixture
def connection(database):
    with connect(settings=database) as opened:
        yield opened


def with_months(content: bytes, change: dict[bytes, bytes], keep: str) -> RawData:
    """Return a file with a column `period`, of the months from `keep` on, and values changed."""
    frame = parse_csv(content, CARD, "x")
    header, *rows = content.splitlines()
    lines = [
        row + b";" + period.encode()
        for row, period in zip(rows, frame["period"], strict=True)
        if period >= keep
    ]
    text = b"\n".join([header + b";period", *lines]) + b"\n"
    for old, new in change.items():
        text = text.replace(old, new)
    return raw_of(text)


def count(connection, table: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table}")
        return cursor.fetchone()[0]


def predict(
    connection,
    frame,
    *,
    card=CARD,
    purpose="simulation",
    labelled=True,
    request="r",
    version="1",
):
    """Log the rows of `frame` as the API does, and deliver their labels."""
    now = datetime.now(timezone.utc)
    records = to_records(frame, card)
    with connection.cursor() as cursor:
        for row, (features, label, period) in enumerate(
            zip(records, frame["target"], frame["period"], strict=True)
        ):
            cursor.execute(
                "INSERT INTO serving.predictions VALUES (%s,%s,%s,%s,%s,%s,%s,0.5,0,%s,%s)",
                [
                    *(f"{request}-{period}", row, now, f"{period}-01", purpose),
                    *(version, Json(features)),
                    *((int(label), now) if labelled else (None, None)),
                ],
            )


def test_what_was_stored_is_loaded_bit_for_bit(connection, raw):
    ingestion = store(connection, CARD, raw)
    assert (ingestion.new, ingestion.rows, len(ingestion.periods)) == (True, raw.rows, 30)
    history = raw.frame[raw.frame["period"] <= "2009-02"].reset_index(drop=True)
    loaded = load_window(connection, CARD)
    pd.testing.assert_frame_equal(loaded, history)
    assert data_digest(loaded) == data_digest(history)
    future = load_future(connection, CARD, "2009-03", "2010-11")
    later = raw.frame[raw.frame["period"] > "2009-02"]
    pd.testing.assert_frame_equal(future.reset_index(drop=True), later.reset_index(drop=True))
    assert future.index.tolist() == (later.index + 1).tolist()


def test_the_file_is_recorded(connection, raw):
    store(connection, CARD, raw)
    with connection.cursor() as cursor:
        cursor.execute("SELECT sha256, card, source, origin, rows, bytes FROM ops.ingested_files")
        assert cursor.fetchall() == [
            (raw.sha256, "bank_marketing", "test.csv", "file", raw.rows, raw.bytes)
        ]


def test_the_same_file_twice_is_no_new_data(connection, raw):
    store(connection, CARD, raw)
    connection.commit()
    with connection.cursor() as cursor:
        cursor.execute("SELECT ingested_at FROM ops.ingested_files")
        before = cursor.fetchone()
    again = store(connection, CARD, raw)
    assert (again.new, again.rows) == (False, raw.rows)
    assert count(connection, "data.bank_marketing") == raw.rows
    with connection.cursor() as cursor:
        cursor.execute("SELECT ingested_at FROM ops.ingested_files")
        assert cursor.fetchall() == [before]


def test_the_same_file_under_changed_rules_of_the_card_is_new_data(connection, raw, content):
    store(connection, CARD, raw)
    target = CARD.target.model_copy(update={"positive": "no", "negative": "yes"})
    for changed in (
        CARD.model_copy(update={"missing": (*CARD.missing, "cellular")}),
        CARD.model_copy(update={"target": target}),
        CARD.model_copy(
            update={"time": CARD.time.model_copy(update={"start": "2007-05", "end": None})}
        ),
    ):
        parsed = raw_of(content, changed)
        assert parsed.sha256 == raw.sha256
        assert store(connection, changed, parsed).new
        assert not store(connection, changed, parsed).new
        assert count(connection, "data.bank_marketing") == raw.rows
        history = parsed.frame[parsed.frame["period"] <= "2009-02"].reset_index(drop=True)
        pd.testing.assert_frame_equal(load_window(connection, changed), history)


def test_a_file_of_a_database_that_knew_no_digest_is_stored_once_more(connection, raw):
    store(connection, CARD, raw)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE ops.ingested_files SET data_digest = NULL")
    assert store(connection, CARD, raw).new
    assert not store(connection, CARD, raw).new


def test_one_file_under_two_cards_is_recorded_for_each(connection, raw, content):
    other = CARD.model_copy(update={"name": "other"})
    store(connection, CARD, raw)
    store(connection, other, raw_of(content, other))
    with connection.cursor() as cursor:
        cursor.execute("SELECT card FROM ops.ingested_files ORDER BY card")
        assert cursor.fetchall() == [("bank_marketing",), ("other",)]
    assert not store(connection, CARD, raw).new


def test_covered_months_are_replaced_and_other_months_stay(connection, raw, content):
    store(connection, CARD, raw)
    newer = with_months(content, {b";cellular;": b";telephone;"}, keep="2010-01")
    assert store(connection, CARD, newer).periods[0] == "2010-01"
    assert count(connection, "data.bank_marketing") == raw.rows
    future = load_future(connection, CARD, "2009-03", "2010-11")
    assert "cellular" in set(future.loc[future["period"] < "2010-01", "contact"])
    assert "cellular" not in set(future.loc[future["period"] >= "2010-01", "contact"])
    assert load_window(connection, CARD).equals(
        raw.frame[raw.frame["period"] <= "2009-02"].reset_index(drop=True)
    )


def test_a_file_whose_rows_were_replaced_is_stored_again(connection, raw, content):
    store(connection, CARD, raw)
    store(connection, CARD, with_months(content, {b";cellular;": b";telephone;"}, keep="2010-01"))
    assert store(connection, CARD, raw).new
    future = load_future(connection, CARD, "2010-01", "2010-11")
    assert "cellular" in set(future["contact"])
    assert count(connection, "data.bank_marketing") == raw.rows


def test_months_that_were_not_there_are_appended(connection, raw, content):
    store(connection, CARD, with_months(content, {}, keep="2010-01"))
    assert periods_to_come(connection, CARD)[0] == "2010-01"
    earlier = raw.frame[raw.frame["period"] < "2010-01"].reset_index(drop=True)
    store(connection, CARD, RawData(earlier, "0" * 64, "file", "early.csv", 1))
    assert count(connection, "data.bank_marketing") == raw.rows


def test_on_a_fault_nothing_is_written(database, raw):
    broken = raw.frame.copy()
    broken.loc[len(broken) - 1, "job"] = "zero\0byte"  # nothing that parse_csv lets through
    with pytest.raises((psycopg2.Error, ValueError)), connect(settings=database) as connection:
        store(connection, CARD, RawData(broken, "1" * 64, "file", "broken.csv", 1))
    with connect(settings=database) as connection:
        assert count(connection, "ops.ingested_files") == 0
        with pytest.raises(DataError, match="no such table, expected stored rows: run the pipel"):
            load_window(connection, CARD)


def test_nothing_that_has_not_happened_yet_can_be_learnt_from(connection, raw):
    """Whatever stands in the file's later rows, the window is the same to the last bit."""
    store(connection, CARD, raw)
    windows = [load_window(connection, CARD), load_window(connection, CARD, "2008-11", "2010-11")]
    later = (raw.frame["period"] > "2009-02").to_numpy()
    altered = raw.frame.copy()
    altered.loc[later, "target"] = 1 - altered.loc[later, "target"]
    altered.loc[later, "balance"] = np.float32(-7)
    altered.loc[later, "job"] = "changed"
    store(connection, CARD, RawData(altered, "2" * 64, "file", "altered.csv", 1))
    assert set(load_future(connection, CARD, "2009-03", "2010-11")["job"]) == {"changed"}
    for window, start in zip(windows, (None, "2008-11"), strict=True):
        pd.testing.assert_frame_equal(load_window(connection, CARD, start, "2010-11"), window)
        assert window["period"].max() == "2009-02"


def test_the_future_holds_nothing_of_the_history(connection, raw):
    store(connection, CARD, raw)
    assert load_future(connection, CARD, "2008-05", "2009-02").empty
    assert load_future(connection, CARD, "2008-05", "2009-03")["period"].unique() == ["2009-03"]


def test_labelled_traffic_is_learnt_from_as_if_it_stood_in_the_file(connection, raw):
    store(connection, CARD, raw)
    march = load_future(connection, CARD, "2009-03", "2009-03")
    april = load_future(connection, CARD, "2009-04", "2009-04")
    predict(connection, march, purpose="live")
    predict(connection, april)
    window = load_window(connection, CARD, "2008-10")
    expected = raw.frame[raw.frame["period"].between("2008-10", "2009-04")].reset_index(drop=True)
    pd.testing.assert_frame_equal(window, expected)


def test_a_month_that_is_played_again_to_another_version_counts_once(connection, raw):
    store(connection, CARD, raw)
    april = load_future(connection, CARD, "2009-04", "2009-04")
    april = pd.concat([april, april.head(3)])  # customers who are alike stay as many
    predict(connection, april)
    once = load_window(connection, CARD)
    predict(connection, april, version="2", request="again")
    pd.testing.assert_frame_equal(load_window(connection, CARD), once)
    assert data_digest(load_window(connection, CARD)) == data_digest(once)
    assert (once["period"] == "2009-04").sum() == len(april)
    predict(connection, april, version="2", request="people", purpose="live")
    assert (load_window(connection, CARD)["period"] == "2009-04").sum() == 2 * len(april)


def test_traffic_that_may_not_be_learnt_from_is_left_out(connection, raw):
    store(connection, CARD, raw)
    march = load_future(connection, CARD, "2009-03", "2009-03")
    january = load_window(connection, CARD, "2009-01", "2009-01")
    before = load_window(connection, CARD)
    predict(connection, march, labelled=False)
    predict(connection, march, purpose="test", request="test")
    predict(connection, january, request="history")  # its rows come from the file already
    with connection.cursor() as cursor:  # another card's
        cursor.execute(
            "INSERT INTO serving.predictions VALUES "
            "('c', 0, now(), '2009-03-01', 'live', '1', '{\"spend\": 1}', 0.5, 0, 1, now())"
        )
    pd.testing.assert_frame_equal(load_window(connection, CARD), before)


def test_the_latest_labelled_months_move_with_the_labels(connection, raw):
    store(connection, CARD, raw)
    assert history_window(connection, CARD) == ("2008-05", "2009-02")
    assert latest_labelled_window(connection, CARD, 6) == ("2008-08", "2009-02")  # no 2008-09
    april = load_future(connection, CARD, "2009-04", "2009-04")
    predict(connection, april)
    assert latest_labelled_window(connection, CARD, 3) == ("2009-01", "2009-04")
    assert latest_labelled_window(connection, CARD, 99) == ("2008-05", "2009-04")
    predict(connection, load_future(connection, CARD, "2009-05", "2009-05").head(49))
    assert latest_labelled_window(connection, CARD, 1) == ("2009-04", "2009-04")


def test_the_periods_to_come_are_those_after_the_history(connection, raw):
    store(connection, CARD, raw)
    assert periods_to_come(connection, CARD)[:2] == ["2009-03", "2009-04"]
    assert len(periods_to_come(connection, CARD)) == 21
    assert periods_to_come(connection, CARD, after="2010-09") == ["2010-10", "2010-11"]
    assert periods_to_come(connection, CARD, after="2008-05")[0] == "2009-03"


def test_a_card_without_a_history_learns_from_all_rows(connection):
    lines = ["spend,visits,plan,day,left"]
    lines += [f"{n / 7},{n},\\N,0{n % 9 + 1}.01.2020,{n % 2}" for n in range(60)]
    raw = raw_of("\n".join(lines).encode(), CHURN)
    store(connection, CHURN, raw)
    pd.testing.assert_frame_equal(load_window(connection, CHURN), raw.frame)
    assert set(raw.frame["plan"]) == {r"\N"}  # a text like any other, also to COPY
    assert load_future(connection, CHURN, "2020-01", "2020-12").empty
    assert periods_to_come(connection, CHURN) == []
    assert latest_labelled_window(connection, CHURN, 6) == ("2020-01", "2020-01")


def churn_file(months=("2020-01",)) -> RawData:
    """Return 60 rows of each month, of a card that has no `history_until`."""
    lines = ["spend,visits,plan,day,left"]
    for month in months:
        year, number = month.split("-")
        lines += [f"{n / 7},{n},plus,0{n % 9 + 1}.{number}.{year},{n % 2}" for n in range(60)]
    return raw_of("\n".join(lines).encode(), CHURN)


def test_without_history_until_labelled_traffic_after_the_file_is_learnt_from(connection):
    raw = churn_file(("2020-01", "2020-02"))
    store(connection, CHURN, raw)
    traffic = raw.frame.head(60).assign(period="2020-03")
    predict(connection, traffic, card=CHURN, purpose="live")
    within = raw.frame.tail(60)  # of a month that the file holds already
    predict(connection, within, card=CHURN, purpose="live", request="within")
    expected = pd.concat([raw.frame, traffic], ignore_index=True)
    pd.testing.assert_frame_equal(load_window(connection, CHURN), expected)
    assert history_window(connection, CHURN) == ("2020-01", "2020-02")
    assert latest_labelled_window(connection, CHURN, 2) == ("2020-02", "2020-03")
    assert periods_to_come(connection, CHURN) == []
    assert load_future(connection, CHURN, "2020-01", "2020-12").empty
    # Once a file holds that month, the file counts.
    store(connection, CHURN, churn_file(("2020-03",)))
    assert len(load_window(connection, CHURN)) == 180


def test_a_card_with_other_columns_makes_its_table_anew(connection, raw, content):
    store(connection, CARD, raw)
    fewer = CARD.model_copy(
        update={
            "features": tuple(f for f in CARD.features if f.name != "job"),
            "left_out": {**CARD.left_out, "job": "why not"},
        }
    )
    with pytest.raises(DataError, match=r"columns of an older card.*run the pipeline prepare"):
        load_window(connection, fewer)
    ingestion = store(connection, fewer, raw_of(content, fewer))
    assert (ingestion.new, ingestion.rebuilt) == (True, True)
    assert "job" not in load_window(connection, fewer)


def test_the_role_of_the_panels_may_read_the_rows(database, raw):
    with connect(settings=database) as connection:
        store(connection, CARD, raw)
    with connect(role="grafana", settings=database) as connection:
        assert count(connection, "data.bank_marketing") == raw.rows


def test_records_are_the_inverse_of_features(raw):
    records = to_records(raw.frame, CARD)
    assert records[0]["pdays"] is None
    assert records[0]["contact"] is None
    assert type(records[0]["age"]) is int
    assert from_features(CARD, records).equals(raw.frame[CARD.feature_names])


def test_a_fraction_stays_one_beside_whole_numbers():
    frame = from_features(CHURN, [{"spend": 0.75, "visits": 3, "plan": "plus"}])
    assert to_records(frame, CHURN) == [{"spend": 0.75, "visits": 3, "plan": "plus"}]
    assert type(to_records(frame, CHURN)[0]["visits"]) is int


def test_the_markers_of_the_card_mean_missing_in_a_request_too():
    frame = from_features(CARD, [{"pdays": -1, "job": "unknown"}, {"pdays": -1.0, "age": "40"}])
    assert frame["pdays"].isna().all()
    assert frame["job"].tolist() == ["", ""]
    assert frame["age"].tolist()[1] == 40
    with pytest.raises(DataError, match="record 0, 'age': found 'old', expected a number"):
        from_features(CARD, [{"age": "old"}])


def test_the_digest_tells_values_and_not_the_index(raw):
    digest = data_digest(raw.frame)
    assert data_digest(raw.frame.set_index(raw.frame.index + 7)) == digest
    changed = raw.frame.copy()
    changed.loc[3, "age"] += 1
    assert data_digest(changed) != digest
    assert data_digest(raw.frame.rename(columns={"age": "years"})) != digest
