"""Months played in memory, with real learning, signals, rules, listener decisions and gate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from mlops.dataset.card import PERIOD, TARGET, Card, load_card
from mlops.dataset.errors import DataError
from mlops.dataset.rows import from_features
from mlops.replay.engine import replay
from mlops.replay.figures import POLICIES, Policy, Replayed, figures
from mlops.replay.learning import Challenger, Learner, learning
from mlops.replay.watch import Watch
from mlops.replay.world import World
from mlops.settings import Settings
from mlops.training.metrics import brier, expected_profit, roc_auc
from tests.fixtures.loop import CANDIDATES, customers, months_from, write_world

START, END = "2020-01", "2020-06"
FLIP = "2020-02"
"""From this month on the other half of the customers leaves."""
ROWS = 260


@pytest.fixture
def settings(database: Settings, tmp_path: Path) -> Settings:
    """The tests' Postgres, one quick candidate, and windows of two months."""
    values = write_world(tmp_path)
    quick = {name: CANDIDATES[name] for name in ("LogisticRegression",)}
    Path(values["candidates"]).write_text(yaml.safe_dump(quick))
    card = yaml.safe_load(Path(values["card"]).read_text())
    card["costs"] = {"contact": 5, "success": 50, "unit": "euros"}
    Path(values["card"]).write_text(yaml.safe_dump(card))
    return database.model_copy(update=values)


@pytest.fixture
def card(settings: Settings) -> Card:
    return load_card(settings.card)


@pytest.fixture
def learner(card: Card, settings: Settings) -> Iterator[Learner]:
    with learning(card, settings, processes=1) as found:
        yield found


def rows(card: Card) -> pd.DataFrame:
    months = []
    for number, period in enumerate(months_from("2019-09", 10)):
        records = customers(ROWS, flipped=period >= FLIP, seed=number)
        month = from_features(card, records)
        month[TARGET] = np.array([each["left"] for each in records], dtype=np.int8)
        month[PERIOD] = period
        months.append(month)
    return pd.concat(months, ignore_index=True)


def played(
    policy: Policy,
    frame: pd.DataFrame,
    card: Card,
    learner: Learner,
    settings: Settings,
    delay: int = 0,
) -> Replayed:
    world = World(card, frame, START, END, delay)
    watch = Watch(card, settings) if policy == "alert" else None
    return replay(policy, world, learner, settings, watch)


def test_retraining_on_alert_follows_a_world_that_flips_and_rests_when_it_does_not(
    card: Card, learner: Learner, settings: Settings
) -> None:
    frame = rows(card)
    alert = played("alert", frame, card, learner, settings)
    static = played("static", frame, card, learner, settings)
    by_period = {month.period: month for month in alert.months}
    assert by_period["2020-01"].alerts == ()
    assert by_period[FLIP].retrain is not None
    assert by_period[FLIP].retrain.cause.startswith("alert: ")
    assert by_period[FLIP].roc_auc is not None
    assert by_period[FLIP].roc_auc < 0.5
    assert by_period[END].roc_auc is not None
    assert by_period[END].roc_auc > 0.7
    assert figures(alert, card)["roc_auc"] > figures(static, card)["roc_auc"] + 0.2
    # The last month's drift would be answered after the replay.
    assert alert.months[-1].retrain is None
    assert 1 <= figures(alert, card)["retrains"] <= 4
    assert figures(static, card)["retrains"] == 0


def test_what_is_promoted_answers_from_the_next_month_on(
    card: Card, learner: Learner, settings: Settings
) -> None:
    found = played("monthly", rows(card), card, learner, settings)
    assert [month.retrain is not None for month in found.months] == [True] * 5 + [False]
    for month, following in zip(found.months[:-1], found.months[1:], strict=True):
        assert month.retrain is not None
        assert month.retrain.window_end == month.period
        promoted = month.retrain.outcome == "promoted"
        assert following.version == (month.retrain.version if promoted else month.version)
    assert figures(found, card)["versions"] > 1


def test_a_retrain_that_failed_is_not_tried_again_a_month_later(
    card: Card, learner: Learner, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it live: there, all its tries are of one month, or its rows were refused."""
    learn = learner.challenger

    def first_only(frame: pd.DataFrame, start: str, end: str) -> Challenger:
        if end >= START:
            raise DataError("the rows", ["too strange"])
        return learn(frame, start, end)

    monkeypatch.setattr(learner, "challenger", first_only)
    alert = played("alert", rows(card), card, learner, settings)
    retrains = {month.period: month.retrain for month in alert.months if month.retrain}
    assert len(retrains) > 1
    for period, retrain in retrains.items():
        assert retrain.outcome == "failed"
        assert period in retrain.cause
        assert "try" not in retrain.cause


@pytest.mark.parametrize("policy", POLICIES)
def test_a_changed_future_changes_no_past_score(
    policy: Policy, card: Card, learner: Learner, settings: Settings
) -> None:
    """Features and labels of all months after a cut are other ones, and their number too."""
    frame = rows(card)
    cut = "2020-03"
    random = np.random.default_rng(1)
    future = frame[PERIOD] > cut
    other = frame[future].sample(frac=0.8, random_state=2)
    for name in (*card.feature_names, TARGET):
        other[name] = random.permutation(other[name].to_numpy())
    other[TARGET] = 1 - other[TARGET]
    changed = pd.concat([frame[~future], other]).sort_values(PERIOD, kind="stable")

    before = played(policy, frame, card, learner, settings)
    after = played(policy, changed.reset_index(drop=True), card, learner, settings)

    past = [month.period for month in before.months if month.period <= cut]
    for one, two in zip(before.scored[: len(past)], after.scored[: len(past)], strict=True):
        np.testing.assert_array_equal(one.score, two.score)
    # The retrain at the end of the cut knows nothing later either.
    assert before.months[: len(past)] == after.months[: len(past)]
    assert not np.array_equal(before.scored[-1].score, after.scored[-1].score)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_label_that_has_not_come_changes_no_score(
    policy: Policy, card: Card, learner: Learner, settings: Settings
) -> None:
    """With a delay of a month, what happens at a month's end knows the labels before it only."""
    frame = rows(card)
    cut = "2020-03"
    changed = frame.copy()
    unknown = frame[PERIOD] >= cut
    changed.loc[unknown, TARGET] = 1 - frame.loc[unknown, TARGET]

    before = played(policy, frame, card, learner, settings, delay=1)
    after = played(policy, changed, card, learner, settings, delay=1)

    for one, two in zip(before.scored, after.scored, strict=True):
        if one.period <= "2020-04":
            np.testing.assert_array_equal(one.score, two.score)
    if policy == "monthly":  # and where they have come, they count
        assert not np.array_equal(before.scored[-1].score, after.scored[-1].score)


def test_figures_are_those_of_the_scores_that_were_given(
    card: Card, learner: Learner, settings: Settings
) -> None:
    found = played("monthly", rows(card), card, learner, settings)
    told = figures(found, card)
    score = np.concatenate([each.score for each in found.scored])
    target = np.concatenate([each.target for each in found.scored])
    assert told["rows"] == len(score) == 6 * ROWS
    assert told["roc_auc"] == roc_auc(target, score)
    assert told["brier"] == brier(target, score)
    assert card.costs is not None
    earned = [
        len(each.score) * expected_profit(each.target, each.score, month.threshold, card.costs)
        for each, month in zip(found.scored, found.months, strict=True)
    ]
    assert told["profit"] == pytest.approx(sum(earned) / len(score))
    assert told["mean_monthly_auc"] == pytest.approx(
        np.mean([roc_auc(each.target, each.score) for each in found.scored])
    )


def test_a_window_is_learnt_once_for_all_policies(
    card: Card, learner: Learner, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = rows(card)
    played("monthly", frame, card, learner, settings)

    def refuse(*_: object) -> None:
        raise AssertionError("learnt again")

    monkeypatch.setattr("mlops.replay.learning.learn", refuse)
    assert figures(played("alert", frame, card, learner, settings), card)["retrains"] > 0


def test_processes_learn_what_one_process_learns(card: Card, settings: Settings) -> None:
    frame = rows(card)
    window = frame[frame[PERIOD] < START].reset_index(drop=True)
    scores = []
    for processes in (1, 2):
        with learning(card, settings, processes) as learner:
            found = learner.challenger(window, "2019-09", "2019-12")
        scores.append(found.logged.reference["score"].to_numpy())
    np.testing.assert_array_equal(*scores)
