"""When the watcher of the inbox has Mage run the pipeline, and when it waits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlops.orchestration import inbox, mage, watching
from mlops.orchestration.inbox import FIRST_PAUSE_S, LONGEST_PAUSE_S, InboxWatcher
from mlops.orchestration.mage import MageError, MageUnavailable
from mlops.serving.exchange import make_folders
from tests.fixtures.postgres import make_settings


class Mage:
    """What the watcher asks of Mage: runs that last until they are ended here."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.ended = True
        self.away = False

    def trigger_pipeline(self, pipeline: str, *_: object) -> int:
        assert pipeline == "score"
        if self.away:
            raise MageUnavailable("Mage does not answer")
        self.runs.append(len(self.runs) + 1)
        self.ended = False
        return self.runs[-1]

    def run_status(self, run_id: int, *_: object) -> SimpleNamespace:
        return SimpleNamespace(ended=self.ended)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Mage:
    made = Mage()
    monkeypatch.setattr(mage, "trigger_pipeline", made.trigger_pipeline)
    monkeypatch.setattr(mage, "run_status", made.run_status)
    return made


@pytest.fixture
def watcher(tmp_path: Path) -> InboxWatcher:
    settings = make_settings(tmp_path)
    make_folders(settings)
    return InboxWatcher(settings)


def put(watcher: InboxWatcher, name: str, content: str = "age\n40\n") -> Path:
    path: Path = watcher.settings.exchange_dir / "inbox" / name
    path.write_text(content)
    return path


def test_an_empty_inbox_asks_nothing_of_mage(watcher: InboxWatcher, stand_in: Mage) -> None:
    assert [watcher.look(now) for now in (0, 2, 4)] == [None] * 3
    assert stand_in.runs == []


def test_a_file_that_two_looks_have_seen_alike_starts_one_run(
    watcher: InboxWatcher, stand_in: Mage
) -> None:
    path = put(watcher, "rows.csv")
    assert watcher.look(0) is None
    put(watcher, "rows.csv", "age\n40\n41\n")
    assert watcher.look(2) is None, "it has grown"
    assert watcher.look(4) == 1
    assert watcher.look(6) is None, "the run is under way"
    path.unlink()
    stand_in.ended = True
    assert watcher.look(8) is None
    assert stand_in.runs == [1]


def test_files_that_a_run_leaves_are_tried_again_after_longer_and_longer_pauses(
    watcher: InboxWatcher, stand_in: Mage
) -> None:
    put(watcher, "rows.csv")
    started = []
    for second in range(0, 4000, 2):
        stand_in.ended = True
        if watcher.look(second) is not None:
            started.append(second)
    pauses = [later - earlier for earlier, later in pairwise(started)]
    assert pauses[0] == pytest.approx(FIRST_PAUSE_S, abs=2)
    assert all(later >= earlier for earlier, later in pairwise(pauses))
    assert max(pauses) == pytest.approx(LONGEST_PAUSE_S, abs=2)


def test_a_new_file_waits_for_no_pause(watcher: InboxWatcher, stand_in: Mage) -> None:
    put(watcher, "bad.csv")
    for now in (0, 2):
        watcher.look(now)
    stand_in.ended = True
    assert watcher.look(4) is None
    put(watcher, "good.csv")
    assert [watcher.look(now) for now in (6, 8)] == [None, 2]


def test_a_run_that_somebody_deleted_is_not_waited_for(
    watcher: InboxWatcher, stand_in: Mage, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(watcher, "rows.csv")
    assert [watcher.look(now) for now in (0, 2)] == [None, 1]

    def unknown(run_id: int, *_: object) -> None:
        raise MageError(f"Mage has no run {run_id}")

    monkeypatch.setattr(mage, "run_status", unknown)
    assert watcher.look(2 + FIRST_PAUSE_S) == 2


def test_mage_away_is_said_once_and_asked_again(
    watcher: InboxWatcher, stand_in: Mage, capsys: pytest.CaptureFixture[str]
) -> None:
    put(watcher, "rows.csv")
    stand_in.away = True
    for now in (0, 2, 4, 6):
        assert watcher.look(now) is None
    assert capsys.readouterr().out.count("Mage does not answer") == 1
    stand_in.away = False
    assert watcher.look(8) == 1


def test_the_watcher_ends_with_mage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parents = iter([7, 7, 7, 1])
    monkeypatch.setattr(watching.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(inbox, "get_settings", lambda: make_settings(tmp_path))
    monkeypatch.setattr(watching.time, "sleep", lambda _: None)
    inbox.main()
