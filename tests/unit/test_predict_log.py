"""The spool of the predict API where its disk or its database fails at the worst moment."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import orjson
import psycopg2
import pytest

from predictor import prediction_log
from predictor.errors import LogUnavailable
from predictor.prediction_log import PredictionLog


def no_connection() -> NoReturn:
    raise psycopg2.OperationalError("Postgres is away")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Any]:
    """A log whose thread has ended: the test ships itself."""
    log = PredictionLog(tmp_path / "spool", no_connection, max_bytes=10_000)
    log._stop.set()
    log._thread.join()
    yield log
    log.close(patience=0)


def entry(name: str) -> dict[str, Any]:
    return {"request_id": name, "rows": [[{}, 0.5, 0]]}


def names(path: Path) -> list[str]:
    return [orjson.loads(line)["request_id"] for line in path.read_bytes().splitlines()]


def test_a_refused_row_is_kept_aside_once_though_postgres_goes_away_meanwhile(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    away = True

    def insert(lines: list[bytes]) -> None:
        found = [orjson.loads(line)["request_id"] for line in lines]
        if "poison" in found:
            raise psycopg2.DataError("no such purpose")
        if away and "last" in found:
            raise psycopg2.OperationalError("gone")
        taken.extend(found)

    monkeypatch.setattr(log, "_insert", insert)
    for name in ("first", "poison", "last"):
        log.append(entry(name))
    log._close_segment()
    (segment,) = log.folder.glob("*.ready")
    for _ in range(2):
        with pytest.raises(psycopg2.OperationalError):
            log._ship_segments([segment])
    away = False
    log._ship_segments([segment])
    assert not segment.exists()
    assert set(taken) == {"first", "last"}
    assert names(log.folder / "rejected" / "requests.jsonl") == ["poison"]
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
    log.append(entry("poison"))
    log._close_segment()
    rejected = log.folder / "rejected" / "requests.jsonl"
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
    log.append(entry("taken"))
    log._close_segment()
    log._ship()
    assert not list((log.folder / "rejected").iterdir())


def test_a_disk_that_fails_even_to_undo_a_half_line_refuses_and_loses_nothing(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(entry("answered"))
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
            log.append(entry("refused"))
    log.append(entry("after"))
    log._close_segment()
    taken = [line for path in log._closed() for line in prediction_log._lines(path)]
    assert sorted(orjson.loads(line)["request_id"] for line in taken) == ["after", "answered"]


def test_a_half_line_is_undone_where_the_disk_allows_it(
    log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(entry("answered"))
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        write(descriptor, bytes(data)[:10])
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as disk:
        disk.setattr(prediction_log.os, "write", half)
        with pytest.raises(LogUnavailable, match="no space"):
            log.append(entry("refused"))
    log.append(entry("after"))
    log._close_segment()
    (segment,) = log._closed()
    assert names(segment) == ["answered", "after"]
