"""What a replay may know at the end of a month: labels that are due, and nothing later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlops.dataset.card import Card, load_card
from mlops.dataset.errors import DataError
from mlops.replay.world import World

CARD = Path(__file__).parent.parent / "data" / "cards" / "churn.yaml"
PERIODS = ("2019-10", "2019-11", "2019-12", "2020-01", "2020-02", "2020-03", "2020-04")


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card(CARD)


def rows(card: Card, sizes: dict[str, int]) -> pd.DataFrame:
    periods = [period for period, size in sizes.items() for _ in range(size)]
    frame = pd.DataFrame({"period": periods})
    for feature in card.features:
        frame[feature.name] = np.float32(1) if feature.kind == "number" else "basic"
    frame["target"] = (np.arange(len(frame)) % 2).astype(np.int8)
    return frame


def a_world(card: Card, delay: int = 0, **sizes: int) -> World:
    months = dict.fromkeys(PERIODS, 60)
    months |= {name.replace("_", "-").removeprefix("m"): size for name, size in sizes.items()}
    return World(card, rows(card, months), "2020-01", "2020-04", delay)


def test_traffic_has_no_label(card: Card) -> None:
    assert list(a_world(card).traffic("2020-01").columns) == card.feature_names


def test_labels_are_known_when_they_are_due_and_not_before(card: Card) -> None:
    world = a_world(card, delay=1)
    assert np.isnan(world.labels("2020-02", at="2020-02")).all()
    assert not np.isnan(world.labels("2020-02", at="2020-03")).any()
    assert not np.isnan(a_world(card).labels("2020-02", at="2020-02")).any()


@pytest.mark.parametrize(("delay", "end"), [(0, "2020-03"), (1, "2020-02"), (3, "2019-12")])
def test_no_row_is_learnt_before_its_label_is_due(card: Card, delay: int, end: str) -> None:
    world = a_world(card, delay)
    assert world.window("2020-03", months=3)[1] == end
    assert world.labelled("2019-10", "2020-04", at="2020-03")["period"].max() == end


def test_history_is_known_whatever_the_delay(card: Card) -> None:
    assert a_world(card, delay=6).history() == ("2019-10", "2019-12")


def test_a_window_ends_at_a_month_with_enough_rows_and_counts_months_that_have_any(
    card: Card,
) -> None:
    world = a_world(card, m2019_12=0, m2020_02=7)
    assert world.window("2020-02", months=2) == ("2019-11", "2020-01")
    assert world.window("2020-03", months=2) == ("2020-02", "2020-03")


def test_a_month_without_rows_is_not_played(card: Card) -> None:
    assert a_world(card, m2020_02=0).periods == ["2020-01", "2020-03", "2020-04"]


def test_what_cannot_be_played_is_refused(card: Card) -> None:
    frame = rows(card, {"2020-01": 60})
    with pytest.raises(DataError, match="none before 2020-01"):
        World(card, frame, "2020-01", "2020-02")
    with pytest.raises(ValueError, match="an end after the start"):
        World(card, frame, "2020-02", "2020-01")
    with pytest.raises(ValueError, match="0 or more"):
        World(card, frame, "2020-01", "2020-02", label_delay=-1)
