"""Play policies in memory, on a Postgres that is started for it: `--fast`, and the benchmark.

The playing is the engine's; this is only its ground, and is stopped whatever happens.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.dataset.card import PERIOD, Card
from mlops.dataset.sources import read_source
from mlops.replay.engine import plan, replay
from mlops.replay.figures import POLICIES, Month, Policy, Replayed
from mlops.replay.ground import own_candidates, own_settings
from mlops.replay.learning import learning
from mlops.replay.report import result_of
from mlops.replay.watch import Watch
from mlops.replay.world import World
from mlops.settings import Settings
from mlops.stack.postgres import running


@dataclass(frozen=True)
class Asked:
    """What is to be played: policies, months, label delay (months), and what is to be otherwise.

    `changes` are settings and parts of the card (`own_settings`), `thresholds` of rules by title,
    `candidates` those that are learnt (none: all of the file).
    """

    start: str
    policies: Sequence[Policy] = POLICIES
    end: str | None = None
    label_delay: int = 0
    changes: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    candidates: Sequence[str] = ()
    processes: int = 2

    @property
    def told(self) -> dict[str, str]:
        """What is other than usual, for the report."""
        return {
            **self.changes,
            **{f"threshold of {rule}": f"{value:g}" for rule, value in self.thresholds.items()},
            **({"candidates": ", ".join(self.candidates)} if self.candidates else {}),
        }


@contextmanager
def own_ground(asked: Asked) -> Iterator[tuple[Settings, Card]]:
    """Yield settings and card of a folder that is deleted afterwards; raises as `own_settings`."""
    folder = Path(tempfile.mkdtemp(prefix="mlops-replay-"))
    folder.chmod(0o711)  # root's Postgres passes through it as another user
    try:
        settings, card = own_settings(folder, asked.changes)
        yield own_candidates(settings, asked.candidates, folder), card
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def play_fast(
    asked: Asked,
    settings: Settings,
    card: Card,
    progress: Callable[[Policy, Month], object] = lambda policy, month: None,
) -> dict[str, Any]:
    """Play what was asked for on this ground; return the result as `replay.json` has it.

    Raises DataError if the source cannot be used or has no month before the first one.
    """
    raw = read_source(card, settings)
    world = World(
        card, raw.frame, asked.start, asked.end or str(raw.frame[PERIOD].max()), asked.label_delay
    )
    with running(settings):
        played = play_policies(asked, asked.policies, world, settings, progress)
    return result_of(played, card, **about(asked, world, raw.origin, "fast"))


def play_policies(
    asked: Asked,
    policies: Sequence[Policy],
    world: World,
    settings: Settings,
    progress: Callable[[Policy, Month], object],
) -> list[Replayed]:
    """Play policies one after the other on the running Postgres of `settings`, which is emptied."""
    played = []
    with learning(world.card, settings, asked.processes) as learner:
        if "monthly" in policies:
            plan(world, learner, settings)
        for policy in policies:
            watch = Watch(world.card, settings, asked.thresholds) if policy == "alert" else None

            def tell(month: Month, policy: Policy = policy) -> None:
                progress(policy, month)

            played.append(replay(policy, world, learner, settings, watch, tell))
    return played


def about(asked: Asked, world: World, origin: str, mode: str) -> dict[str, Any]:
    """Return what a result says about how it was played."""
    return {
        "mode": mode,
        "start": world.start,
        "end": world.end,
        "label_delay": world.label_delay,
        "source": origin,
        "changed": asked.told,
    }
