"""A replay on a stack of its own, and the same months in memory: they come to the same."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from mlops.dataset.sources import read_source
from mlops.replay.fast import Asked, own_ground, play_policies
from mlops.replay.figures import Replayed
from mlops.replay.live import changes_for_live, own_stack, play_live
from mlops.replay.world import World
from mlops.stack.postgres import running
from tests.fixtures.loop import CANDIDATES, CARD, customers, months_from

pytestmark = [pytest.mark.timeout(900), pytest.mark.all_stages]  # `make faults`: minutes

START, END = "2020-02", "2020-04"
ROWS = 260


def write_source(folder: Path) -> dict[str, str]:
    """Write card, data and candidates; from the second month played on, the world is another.

    The candidates' scores depend on no order of rows: live traffic has none.
    """
    card = yaml.safe_load(CARD.read_text())
    card["name"] = "flips"
    (folder / "flips.yaml").write_text(yaml.safe_dump(card))
    (folder / "candidates.yaml").write_text(yaml.safe_dump(CANDIDATES))
    with (folder / "flips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["customer", "day", "spend", "visits", "plan", "left"])
        for number, period in enumerate(months_from("2019-11", 6)):
            year, _, month = period.partition("-")
            for i, each in enumerate(customers(ROWS, flipped=period > START, seed=number)):
                writer.writerow([f"{number}-{i}", f"15.{month}.{year}", *each.values()])
    return {
        "card": str(folder / "flips.yaml"),
        "data": str(folder / "flips.csv"),
        "candidates": str(folder / "candidates.yaml"),
        "retrain_window_months": "2",
        "test_months": "1",
    }


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Replayed, Replayed]]:
    """Policy `alert`, played live and in memory."""
    with tempfile.TemporaryDirectory(prefix="mlops-replayed-") as name:
        asked = Asked(start=START, end=END, changes=write_source(Path(name)), processes=1)
        changes = {**asked.changes, **changes_for_live(START)}
        with own_ground(replace(asked, changes=changes)) as (settings, card):
            with own_stack(settings, print):
                live = play_live(asked, settings, card, print, print)
            left = [each for each in psutil.process_iter(["cmdline"]) if _is_of(each, settings)]
            assert left == []
        with own_ground(asked) as (settings, card), running(settings):
            world = World(card, read_source(card, settings).frame, START, END)
            (fast,) = play_policies(asked, ["alert"], world, settings, lambda *_: None)
        yield live, fast


def _is_of(process: psutil.Process, settings: object) -> bool:
    folder = str(settings.state_dir)
    return any(folder in word for word in process.info["cmdline"] or [])


def test_live_and_fast_retrain_in_the_same_months_on_the_same_windows(
    both: tuple[Replayed, Replayed],
) -> None:
    live, fast = (
        [
            (month.period, month.alerts, month.retrain and _of(month.retrain))
            for month in each.months
        ]
        for each in both
    )
    assert live == fast
    assert any(retrain and "promoted" in retrain for _, _, retrain in live)


def _of(retrain: object) -> tuple[object, ...]:
    return tuple(
        getattr(retrain, name) for name in ("window_start", "window_end", "candidate", "outcome")
    )


def test_live_and_fast_give_each_customer_the_same_score(
    both: tuple[Replayed, Replayed],
) -> None:
    for live, fast in zip(*(each.scored for each in both), strict=True):
        assert live.period == fast.period
        np.testing.assert_array_equal(live.target, fast.target)
        np.testing.assert_allclose(live.score, fast.score, rtol=0, atol=1e-5)


def test_live_and_fast_measure_drift_alike(both: tuple[Replayed, Replayed]) -> None:
    """Not quite the same: the reference is scored out of fold, and rows are dealt to folds by the
    order in which they came, which live traffic has none of.
    """
    for live, fast in zip(*(each.months for each in both), strict=True):
        assert live.candidate == fast.candidate
        assert live.prediction_drift == pytest.approx(fast.prediction_drift, abs=0.2)
