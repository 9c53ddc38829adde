"""Files of the inbox, scored by the real API and recorded in the real Postgres."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg2
import pytest
from pydantic import SecretStr

from mlops.database import connect, database_url
from mlops.dataset.card import load_card
from mlops.serving import scoring
from mlops.serving.client import PredictClient
from mlops.serving.scoring import ScoringError, request_id, score_inbox
from mlops.settings import ROOT, Settings
from tests.fixtures.predict import PredictServer, make_rows
from tests.fixtures.waiting import await_

CARD = load_card("bank_marketing")


def rows_csv(rows: int, seed: int = 0) -> str:
    frame = make_rows(CARD, rows, seed)[CARD.feature_names]
    return str(frame.assign(client=range(rows)).to_csv(index=False))


def put(settings: Settings, name: str, content: str | bytes) -> Path:
    path = settings.exchange_dir / "inbox" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def score(settings: Settings) -> list[dict[str, Any]]:
    with connect(settings=settings) as connection:
        return score_inbox(connection, settings)


def query(settings: Settings, sql: str, *values: object) -> list[tuple[Any, ...]]:
    with connect(settings=settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall()


def logged(settings: Settings) -> list[tuple[str, int]]:
    """Request ids and how many rows each has in the prediction log."""
    return query(
        settings, "SELECT request_id, count(*) FROM serving.predictions GROUP BY 1 ORDER BY 2, 1"
    )


def await_log(settings: Settings, rows: int) -> None:
    found: list[tuple[Any, ...]] = []

    def arrived() -> bool:
        found[:] = query(settings, "SELECT count(*) FROM serving.predictions")
        return bool(found[0][0] >= rows)

    await_(arrived, 30, lambda: f"{rows} rows in the log: {found}")


def names(settings: Settings, folder: str) -> list[str]:
    return sorted(path.name for path in (settings.exchange_dir / folder).iterdir())


def states(settings: Settings) -> dict[str, tuple[str, str | None]]:
    rows = query(settings, "SELECT name, status, reason FROM ops.scored_files")
    return {name: (status, reason) for name, status, reason in rows}


@pytest.fixture
def settings(database: Settings, predict_server: PredictServer) -> Settings:
    return database


def test_a_file_is_scored_once_with_its_bad_rows_beside_it(settings: Settings) -> None:
    lines = rows_csv(200).splitlines()
    lines[50] = lines[50].replace(lines[50].split(",")[0], "forty", 1)
    content = "\n".join(lines) + "\n"
    put(settings, "customers.csv", content)
    (done,) = score(settings)
    outbox = settings.exchange_dir / "outbox"
    bad_rows = outbox / "customers.csv.rejected.ndjson"
    assert done == {
        "file": "customers.csv",
        "status": "success",
        "predictions": str(outbox / "customers.csv"),
        "bad_rows": str(bad_rows),
        "version": "1",
        "rows": 200,
        "scored": 199,
        "rejected": 1,
    }
    scored = pd.read_csv(outbox / "customers.csv")
    assert scored["client"].tolist() == [number for number in range(200) if number != 49]
    assert scored["probability"].between(0, 1).all()
    assert json.loads(bad_rows.read_text())["line"] == 51
    assert names(settings, "inbox") == []
    assert names(settings, "done") == ["customers.csv"]
    assert (settings.exchange_dir / "done" / "customers.csv").read_text() == content
    await_log(settings, 199)

    put(settings, "customers.csv", content)
    (again,) = score(settings)
    assert again == done
    assert names(settings, "inbox") == []
    assert names(settings, "done") == ["customers-2.csv", "customers.csv"]
    assert names(settings, "outbox") == ["customers.csv", "customers.csv.rejected.ndjson"]
    assert len(logged(settings)) == 1
    columns = "status, version, rows, scored, rejected, predictions, reason, runs"
    assert query(settings, f"SELECT {columns} FROM ops.scored_files") == [
        ("success", "1", 200, 199, 1, "outbox/customers.csv", None, 1)
    ]


def test_another_file_of_the_same_name_overwrites_no_result(settings: Settings) -> None:
    put(settings, "day.csv", rows_csv(20))
    score(settings)
    first = (settings.exchange_dir / "outbox" / "day.csv").read_bytes()
    put(settings, "day.csv", rows_csv(30, seed=1))
    (second,) = score(settings)
    assert second["predictions"].endswith("outbox/day-2.csv")
    assert second["scored"] == 30
    assert (settings.exchange_dir / "outbox" / "day.csv").read_bytes() == first
    # Whoever fetches results leaves the name free for the next day's.
    (settings.exchange_dir / "outbox" / "day.csv").unlink()
    put(settings, "day.csv", rows_csv(10, seed=2))
    assert score(settings)[0]["predictions"].endswith("outbox/day.csv")


def test_a_file_whose_result_was_taken_away_is_scored_again_as_a_new_request(
    settings: Settings,
) -> None:
    put(settings, "rows.csv", rows_csv(20))
    (first,) = score(settings)
    Path(first["predictions"]).unlink()
    put(settings, "rows.csv", rows_csv(20))
    (second,) = score(settings)
    assert second == first
    assert Path(second["predictions"]).exists()
    await_log(settings, 40)
    assert [rows for _, rows in logged(settings)] == [20, 20]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("notes.txt", b"buy milk", r"\.csv"),
        ("empty.csv", b"", ""),
        ("broken.parquet", b"PAR1 is not all that it takes", "(?i)parquet"),
        ("broken.csv.gz", b"no gzip", "(?i)gzip"),
        ("other.csv", b"name,colour\nx,red\n", CARD.feature_names[0]),
    ],
)
def test_a_file_that_cannot_be_scored_is_set_aside_and_says_why(
    settings: Settings, name: str, content: bytes, says: str
) -> None:
    put(settings, name, content)
    put(settings, "good.csv", rows_csv(5))
    results = {each["file"]: each for each in score(settings)}
    assert results["good.csv"]["status"] == "success"
    assert results[name]["status"] == "rejected"
    assert pd.Series(results[name]["reason"]).str.contains(says)[0], results[name]["reason"]
    assert names(settings, "inbox") == []
    rejected = settings.exchange_dir / "rejected"
    assert (rejected / name).read_bytes() == content
    told = json.loads((rejected / f"{name}.reason.json").read_text())
    assert (told["status"], told["reason"]) == ("rejected", results[name]["reason"])
    assert states(settings)[name] == ("rejected", told["reason"])
    assert name not in names(settings, "outbox")


def test_a_file_without_one_good_row_is_rejected_with_all_its_reasons(settings: Settings) -> None:
    number = CARD.numbers[0]
    frame = make_rows(CARD, 5)[CARD.feature_names].astype({number: object}).assign(**{number: "x"})
    put(settings, "bad.csv", frame.to_csv(index=False))
    (result,) = score(settings)
    assert result["status"] == "rejected"
    assert (
        f"none of its 5 rows can be scored; the first: line 2, field {number}" in (result["reason"])
    )
    folder = settings.exchange_dir / "rejected"
    lines = (folder / "bad.csv.rejected.ndjson").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [2, 3, 4, 5, 6]


def test_a_rejected_file_is_tried_again_when_it_is_put_there_again(settings: Settings) -> None:
    for _ in range(2):
        put(settings, "notes.txt", "buy milk")
        assert score(settings)[0]["status"] == "rejected"
    assert names(settings, "rejected") == [
        "notes-2.txt",
        "notes-2.txt.reason.json",
        "notes.txt",
        "notes.txt.reason.json",
    ]


def test_without_the_api_files_stay_and_are_scored_when_it_is_back(
    settings: Settings, predict_server: PredictServer
) -> None:
    predict_server.stop()
    put(settings, "rows.csv", rows_csv(20))
    put(settings, "more.csv", rows_csv(10, seed=1))
    with pytest.raises(ScoringError, match=r"2 of 2 files stay.*\n.*does not answer"):
        score(settings)
    assert names(settings, "inbox") == ["more.csv", "rows.csv"]
    assert names(settings, "outbox") == []
    ((status, reason),) = [state for state in states(settings).values() if state[1]]
    assert (status, reason[:6]) == ("scoring", "waits:")
    predict_server.start()
    assert {each["status"] for each in score(settings)} == {"success"}
    assert set(states(settings).values()) == {("success", None)}


def test_an_api_that_asks_for_a_key_is_no_fault_of_the_file(
    settings: Settings, predict_server: PredictServer
) -> None:
    predict_server.stop()
    predict_server.extra["MLOPS_PREDICT_API_KEY"] = "the key"
    predict_server.start()
    put(settings, "rows.csv", rows_csv(20))
    with pytest.raises(ScoringError, match="refuses the request"):
        score(settings)
    ((status, reason),) = states(settings).values()
    assert (status, str(reason)[:6]) == ("scoring", "waits:")
    assert names(settings, "inbox") == ["rows.csv"]
    (done,) = score(settings.model_copy(update={"predict_api_key": SecretStr("the key")}))
    assert done["status"] == "success"


def test_a_file_that_may_not_be_read_keeps_no_other_waiting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(settings, "closed.csv", rows_csv(20))
    put(settings, "open.csv", rows_csv(10, seed=1))
    digest = scoring._digest

    def as_nobody(path: Path) -> str:  # root, who may run the tests, reads everything
        if path.name == "closed.csv":
            raise PermissionError(13, "Permission denied", str(path))
        return digest(path)

    monkeypatch.setattr(scoring, "_digest", as_nobody)
    with pytest.raises(
        ScoringError, match=r"1 of 2 files stay.*\n.*closed\.csv: Permission denied"
    ):
        score(settings)
    assert names(settings, "inbox") == ["closed.csv"]
    assert names(settings, "outbox") == ["open.csv"]


def test_a_lost_connection_to_postgres_is_said_and_loses_nothing(settings: Settings) -> None:
    put(settings, "rows.csv", rows_csv(20))
    connection = psycopg2.connect(database_url(settings=settings))
    query(settings, "SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
    with pytest.raises(ScoringError, match="Postgres"):
        score_inbox(connection, settings)
    assert names(settings, "inbox") == ["rows.csv"]
    assert score(settings)[0]["status"] == "success"


def run_in_a_process(settings: Settings) -> subprocess.Popen[bytes]:
    """Score as Mage would, in a process that can be killed."""
    program = (
        "from mlops.database import connect\n"
        "from mlops.serving.scoring import score_inbox\n"
        "with connect() as connection: score_inbox(connection)\n"
    )
    named = {name: value for name, value in os.environ.items() if not name.startswith("MLOPS_")}
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env={**named, **settings.environment()}
    )


def test_what_was_killed_is_scored_again_and_logged_once(settings: Settings) -> None:
    rows = 60_000
    path = put(settings, "large.csv", rows_csv(rows))
    killed = run_in_a_process(settings)
    try:
        outbox = settings.exchange_dir / "outbox"

        def some_are_scored() -> bool:
            return any(each.stat().st_size for each in outbox.glob(".scoring-*/*"))

        await_(some_are_scored, 60, "the file is being scored")
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert path.exists()
    assert [name for name in names(settings, "outbox") if not name.startswith(".")] == []
    assert states(settings) == {"large.csv": ("scoring", None)}
    (done,) = score(settings)
    assert (done["scored"], done["rejected"]) == (rows, 0)
    assert names(settings, "outbox") == ["large.csv"]
    with Path(done["predictions"]).open() as file:
        assert sum(1 for _ in csv.reader(file)) == rows + 1
    await_log(settings, rows)
    ((asked, count),) = logged(settings)
    assert count == rows
    ((digest, runs),) = query(settings, "SELECT sha256, runs FROM ops.scored_files")
    assert runs == 1
    assert asked == request_id(digest, "large.csv")


def test_two_at_once_score_each_file_once(settings: Settings) -> None:
    for number in range(4):
        put(settings, f"part-{number}.csv", rows_csv(50, seed=number))
    results: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: results.extend(score(settings))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each["file"] for each in results) == [f"part-{n}.csv" for n in range(4)]
    await_log(settings, 200)
    assert [rows for _, rows in logged(settings)] == [50] * 4


ODD_NAMES = [
    b"two words.csv",
    b"line\nbreak.csv",
    "größe ✓.csv".encode(),
    b"latin \xe9.csv",
    b"x..%2f..%2fetc.csv",
    b"'; DROP TABLE ops.scored_files; --.csv",
    b"-rf.csv",
    b"UPPER.CSV",
    b"a" * 251 + b".csv",
]


def test_odd_names_stay_below_the_outbox(settings: Settings) -> None:
    put(settings, "x.csv", "").unlink()
    for number, name in enumerate(ODD_NAMES):
        path = os.fsencode(settings.exchange_dir / "inbox") + b"/" + name
        Path(os.fsdecode(path)).write_text(rows_csv(3, seed=number))
    results = score(settings)
    assert len(results) == len(ODD_NAMES)
    assert {each["status"] for each in results} == {"success"}, results
    for each in results:
        assert Path(each["predictions"]).parent == settings.exchange_dir / "outbox"
        assert Path(each["predictions"]).is_file()
        json.dumps(each).encode("utf-8")
    assert len(states(settings)) == len(ODD_NAMES)
    assert names(settings, "inbox") == []


def test_a_file_that_changes_while_it_is_scored_is_scored_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(settings, "rows.csv", rows_csv(20))
    score_file: Callable[..., dict[str, Any]] = PredictClient.score_file

    def and_more_comes(self: PredictClient, *args: Any, **named: Any) -> dict[str, Any]:
        summary = score_file(self, *args, **named)
        path.write_text(rows_csv(30))
        return summary

    monkeypatch.setattr(PredictClient, "score_file", and_more_comes)
    assert score(settings) == []
    monkeypatch.undo()
    assert names(settings, "outbox") == []
    (done,) = score(settings)
    assert done["scored"] == 30


def test_a_file_taken_out_while_it_waited_is_not_waited_for(
    settings: Settings, predict_server: PredictServer
) -> None:
    predict_server.stop()
    put(settings, "rows.csv", rows_csv(20))
    with pytest.raises(ScoringError):
        score(settings)
    (settings.exchange_dir / "inbox" / "rows.csv").unlink()
    assert score(settings) == []
    assert states(settings) == {
        "rows.csv": ("rejected", "taken out of the inbox before it was scored")
    }


def test_the_role_of_the_panels_reads_the_files_and_changes_none(settings: Settings) -> None:
    with connect(role="grafana", settings=settings) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT * FROM ops.scored_files")
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            cursor.execute("DELETE FROM ops.scored_files")
