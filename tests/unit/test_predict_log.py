"""The spool of the predict API where its disk or its database fails at the worst moment."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import orjson
import psycopg2
import pytest

from predictor import prediction_log
from predictor.errors import LogUnavailable
from predictor.prediction_log import PredictionLog, format_lines


def no_connection() -> NoReturn:
    raise psycopg2.OperationalError("Postgres is away")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Any]:
    """A log whose threads have ended: the test ships itself."""
    log = PredictionLog(tmp_path / "spool", no_connection, max_bytes=10_000)
    log._stop.set()
    for thread in log._threads:
        thread.join()
    yield log
    log.close(patience=0)


def append(log: Any, name: str, rows: int = 1) -> None:
    """Log one request of so many rows."""
    at = "2026-01-01T00:00:00+00:00"
    answered = [({}, 0.5, 0)] * rows
    log.append(format_lines(name, at, "2026-01-01", "live", "1", answered), rows)


def name_of(line: bytes) -> str:
    return line.split(b"\t")[0].decode()


def names(path: Path) -> list[str]:
    return [name_of(line) for line in path.read_bytes().splitlines()]


def test_a_refused_row_is_kept_aside_once_though_postgres_goes_away_meanwhile(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    away = True

    def insert(lines: list[bytes]) -> None:
        found = [name_of(line) for line in lines]
        if "poison" in found:
            raise psycopg2.DataError("no such purpose")
        if away and "last" in found:
            raise psycopg2.OperationalError("gone")
        taken.extend(found)

    monkeypatch.setattr(log, "_insert", insert)
    for name in ("first", "poison", "last"):
        append(log, name)
    log._close_segment()
    (segment,) = log.folder.glob("*.ready")
    for _ in range(2):
        with pytest.raises(psycopg2.OperationalError):
            log._ship_segments([segment])
    away = False
    log._ship_segments([segment])
    assert not segment.exists()
    assert set(taken) == {"first", "last"}
    assert names(log.folder / "rejected" / "rows.tsv") == ["poison"]
    assert log.rejected() == 1


def test_a_full_disk_for_refused_rows_is_waited_for_and_leaves_no_half_line(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def insert(lines: list[bytes]) -> None:
        tries.append(len(lines))
        raise psycopg2.DataError("no such purpose")

    def half(descriptor: int, data: bytes) -> int:
        write(descriptor, bytes(data)[:10])
        raise OSError(errno.ENOSPC, "no space")

    write = os.write
    monkeypatch.setattr(log, "_insert", insert)
    append(log, "poison")
    log._close_segment()
    rejected = log.folder / "rejected" / "rows.tsv"
    with monkeypatch.context() as disk:
        disk.setattr(prediction_log.os, "write", half)
        log._ship()
        assert "no space" in log.error
        assert rejected.read_bytes() == b""
        tried = len(tries)
        log._ship()  # too early
        assert len(tries) == tried
    log._not_before = 0.0
    log._ship()
    assert log.error is None
    assert names(rejected) == ["poison"]
    assert not list(log.folder.glob("*.ready"))


def test_nothing_refused_makes_no_file_of_refused_rows(log: Any, monkeypatch: Any) -> None:
    first = True

    def insert(_lines: list[bytes]) -> None:
        nonlocal first
        if first:
            first = False
            raise psycopg2.IntegrityError("once")

    monkeypatch.setattr(log, "_insert", insert)
    append(log, "taken", rows=2)
    log._close_segment()
    log._ship()
    assert not list((log.folder / "rejected").iterdir())


def test_a_disk_that_fails_even_to_undo_a_half_line_refuses_and_loses_nothing(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, "answered")
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        write(descriptor, bytes(data)[:10])
        raise OSError(errno.ENOSPC, "no space")

    def fails(descriptor: int, length: int) -> NoReturn:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as disk:
        disk.setattr(prediction_log.os, "write", half)
        disk.setattr(prediction_log.os, "ftruncate", fails)
        with pytest.raises(LogUnavailable, match="no space"):
            append(log, "refused")
    append(log, "after")
    log._close_segment()
    taken = [line for path in log._closed() for line in prediction_log._lines(path)]
    assert sorted(name_of(line) for line in taken) == ["after", "answered"]


def test_a_half_line_is_undone_where_the_disk_allows_it(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, "answered")
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        write(descriptor, bytes(data)[:10])
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as disk:
        disk.setattr(prediction_log.os, "write", half)
        with pytest.raises(LogUnavailable, match="no space"):
            append(log, "refused")
    append(log, "after")
    log._close_segment()
    (segment,) = log._closed()
    assert names(segment) == ["answered", "after"]


def test_a_refused_row_takes_no_other_row_with_it(log: Any, monkeypatch: Any) -> None:
    taken: list[str] = []

    def insert(lines: list[bytes]) -> None:
        if any(name_of(line).startswith("poison") for line in lines):
            raise psycopg2.DataError("no such purpose")
        taken.extend(name_of(line) for line in lines)

    monkeypatch.setattr(log, "_insert", insert)
    written = [f"poison-{number}" if number in (0, 6, 7) else str(number) for number in range(11)]
    for name in written:
        append(log, name)
    log._close_segment()
    log._ship()
    assert taken == [name for name in written if not name.startswith("poison")]
    assert names(log.folder / "rejected" / "rows.tsv") == ["poison-0", "poison-6", "poison-7"]


def test_what_is_answered_is_flushed_to_the_disk_before_it_waits_to_be_shipped(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    def flush(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return
        (path,) = log.folder.glob("*.open")
        assert os.fstat(descriptor).st_ino == path.stat().st_ino
        flushed.extend(names(path))

    monkeypatch.setattr(prediction_log, "flush", flush)
    append(log, "answered")
    log._close_segment()
    assert flushed == ["answered"]
    assert len(list(log.folder.glob("*.ready"))) == 1


def test_what_waits_in_one_file_while_postgres_is_away_is_flushed_too(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(prediction_log, "flush", flushed.append)
    log._waiting_segments = prediction_log.MAX_WAITING_SEGMENTS
    append(log, "answered")
    for _ in range(3):
        log._flush()
    assert len(flushed) == 2, "the file and its name, once for what was new"
    append(log, "another")
    log._flush()
    assert len(flushed) == 4
    assert not list(log.folder.glob("*.ready"))


def test_segments_are_shipped_in_the_order_in_which_they_were_answered(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped: list[str] = []
    monkeypatch.setattr(log, "_insert", lambda lines: shipped.extend(map(name_of, lines)))
    pids = iter((30, 4, 200, 1))
    monkeypatch.setattr(prediction_log.os, "getpid", lambda: next(pids))
    for name in ("first", "second", "third", "fourth"):
        append(log, name)
        log._close_segment()
    log._ship()
    assert shipped == ["first", "second", "third", "fourth"]


def test_requests_are_let_in_again_while_a_full_spool_is_shipped(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        append(log, f"r-{number}")
        log._close_segment()
    assert log.full() is None
    log.max_bytes = log._spooled_bytes + 10
    believed: list[bool] = []

    def insert(lines: list[bytes]) -> None:
        believed.append(log.full() is None)

    monkeypatch.setattr(log, "_insert", insert)
    monkeypatch.setattr(prediction_log, "SHIP_BYTES", 1)
    monkeypatch.setattr(prediction_log, "FEW_ROWS_BYTES", 100)
    log._ship()
    assert believed[0] is False
    assert all(believed[5:]), "there is room long before all is shipped"


def test_lines_of_an_earlier_payload_are_shipped_as_rows(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped: list[bytes] = []
    monkeypatch.setattr(log, "_insert", shipped.extend)
    facts = {"request_id": "old", "made_at": "2026-01-01T00:00:00+00:00", "period": "2026-01-01"}
    entry = {**facts, "purpose": "live", "version": "1", "rows": [[{"job": "a\tb"}, 0.25, 1]] * 2}
    (log.folder / "1-abc-2.ready").write_bytes(orjson.dumps(entry) + b"\n")
    log._ship()
    expected = format_lines(
        *(entry[name] for name in (*facts, "purpose", "version")), entry["rows"]
    )
    assert b"".join(shipped) == expected
    assert expected.count(b"\n") == 2
