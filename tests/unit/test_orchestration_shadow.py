"""When the watcher of the shadow looks at the latest rows, and when at the whole log."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlops.orchestration import shadow as watching
from mlops.orchestration.shadow import FIRST_PAUSE_S, LOOK_S, RECENT_S, SWEEP_S, ShadowWatcher
from mlops.registry.shadows import PERSON, Shadow
from mlops.serving import comparison
from mlops.serving import shadow as shadowing
from tests.fixtures.postgres import make_settings


class World:
    """What the watcher asks of the others."""

    def __init__(self) -> None:
        self.shadow: Shadow | None = None
        self.looks: list[float | None] = []
        self.compared = 0
        self.away = False

    def put(self, version: str) -> None:
        began = datetime(2026, 1, int(version), tzinfo=timezone.utc)
        self.shadow = Shadow(int(version), version, began, PERSON, None, None, 0.5, None)

    @contextmanager
    def connect(self, **_: Any) -> Iterator[None]:
        if self.away:
            raise ConnectionError("Postgres is away")
        yield

    def score(self, *_: Any, recent_s: float | None = None) -> SimpleNamespace:
        self.looks.append(recent_s)
        return SimpleNamespace(rows=7)

    def compare(self, *_: Any) -> None:
        self.compared += 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(watching, "connect", made.connect)
    monkeypatch.setattr(watching, "current_shadow", lambda *_: made.shadow)
    monkeypatch.setattr(shadowing, "score_shadow", made.score)
    monkeypatch.setattr(comparison, "compare_shadow", made.compare)
    return made


@pytest.fixture
def watcher(tmp_path: Path, world: World) -> ShadowWatcher:
    return ShadowWatcher(make_settings(tmp_path))


def test_without_a_shadow_nothing_is_scored(watcher: ShadowWatcher, world: World) -> None:
    assert [watcher.look(now) for now in (0, 3, 6)] == [0, 0, 0]
    assert world.looks == []


def test_the_whole_log_is_looked_at_first_and_then_every_minute(
    watcher: ShadowWatcher, world: World
) -> None:
    world.put("7")
    for now in range(0, int(2 * SWEEP_S) + 1, int(LOOK_S)):
        assert watcher.look(now) == 7
    whole = [place * LOOK_S for place, seen in enumerate(world.looks) if seen is None]
    assert whole == [0, SWEEP_S, 2 * SWEEP_S]
    assert set(world.looks) == {None, RECENT_S}
    assert world.compared == 3


def test_a_look_at_the_whole_log_that_takes_long_is_made_seldom(
    watcher: ShadowWatcher, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put("7")
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(watching.time, "monotonic", lambda: next(clock))
    for now in (0, 61, 990):
        watcher.look(now)
    assert world.looks == [None, RECENT_S, RECENT_S], "20 s are 2 % of 1,000 s"


def test_another_version_or_month_is_scored_at_once(watcher: ShadowWatcher, world: World) -> None:
    world.put("7")
    watcher.look(0)
    world.put("8")
    watcher.look(3)
    assert world.looks == [None, None]


def test_when_the_shadow_is_over_the_process_gives_its_memory_back(
    watcher: ShadowWatcher, world: World
) -> None:
    world.put("7")
    watcher.look(0)
    world.shadow = None
    with pytest.raises(SystemExit) as ended:
        watcher.look(3)
    assert ended.value.code == 0


def test_what_is_wrong_is_said_once_and_tried_again_later(
    watcher: ShadowWatcher, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.put("7")
    world.away = True
    tried = []
    for now in range(0, 60, 3):
        before = watcher._not_before
        watcher.look(now)
        if watcher._not_before != before:
            tried.append(now)
    assert capsys.readouterr().out.count("Postgres is away") == 1
    assert tried == [0, 6, 18, 39], "after longer and longer pauses"
    assert tried[1] >= FIRST_PAUSE_S
    world.away = False
    assert watcher.look(1000) == 7


def test_the_watcher_costs_little_as_long_as_nobody_is_in_shadow() -> None:
    code = "import sys, mlops.orchestration.shadow; print('sklearn' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "False"
