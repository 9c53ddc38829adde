"""The mean of the best candidates: of whom, of what, as what it is stored, and what is refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import skops.io

from mlops.dataset.card import SCORE, TARGET, Card, load_card
from mlops.settings import Settings
from mlops.training.candidates import Candidate
from mlops.training.ensemble import blend, choose, has_ensemble
from mlops.training.errors import TrainingError
from mlops.training.fit import learn, score_window
from mlops.training.metrics import brier, expected_profit, roc_auc
from mlops.training.tracking import Logged, trusted_types
from tests.fixtures.predict import make_rows

CARD: Card = load_card("bank_marketing")
SETTINGS = Settings(_env_file=None, search_trials=0, ensemble_size=2)
MEMBERS = {
    "Linear": {"class": "sklearn.linear_model.LogisticRegression", "scale": True},
    "Boosted": {"class": "xgboost.XGBClassifier", "params": {"n_estimators": 20}},
    "Small": {"class": "sklearn.tree.DecisionTreeClassifier", "params": {"max_depth": 2}},
}


def window() -> pd.DataFrame:
    """Rows of two months, of which the latter is validation."""
    return pd.concat(
        [
            make_rows(CARD, seed=1).assign(period="2009-01"),
            make_rows(CARD, rows=300, seed=2).assign(period="2009-02"),
        ],
        ignore_index=True,
    )


@cache
def learnt(name: str) -> Logged:
    candidate = Candidate.model_validate({"name": name, **MEMBERS[name]})
    return learn(CARD, candidate, window(), SETTINGS)


@cache
def blended() -> Logged:
    return blend({name: learnt(name) for name in ("Boosted", "Linear")}, window(), SETTINGS)


def test_scores_are_the_mean_of_the_members_in_and_out_of_fold() -> None:
    members = [learnt("Boosted"), learnt("Linear")]
    both = blended()
    out_of_fold = np.mean([each.reference[SCORE] for each in members], axis=0)
    np.testing.assert_array_equal(both.reference[SCORE], out_of_fold)
    unseen = make_rows(CARD, seed=9)
    expected = np.mean([score_window(each.pipeline, CARD, unseen) for each in members], axis=0)
    assert score_window(both.pipeline, CARD, unseen) == pytest.approx(expected, abs=1e-12)
    assert (both.pipeline.predict(unseen[CARD.feature_names]) == (expected > 0.5)).all()


def test_metrics_are_those_of_the_mean_at_a_threshold_of_its_own() -> None:
    both = blended()
    target, scores = both.reference[TARGET].to_numpy(), both.reference[SCORE].to_numpy()
    metrics = both.metrics
    assert metrics["validation_brier"] == pytest.approx(brier(target, scores))
    assert metrics["validation_roc_auc"] == pytest.approx(roc_auc(target, scores))
    profit = expected_profit(target, scores, metrics["validation_threshold"], CARD.costs)
    assert metrics["validation_profit"] == pytest.approx(profit)
    assert set(metrics) == set(learnt("Boosted").metrics), "the leaderboard shows them side by side"
    assert metrics["validation_rows"] == 300
    assert metrics["sampled_rows"] == metrics["fitting_rows"], "nobody drew rows for it"
    assert both.params["members"] == "Boosted, Linear"
    assert both.digest == learnt("Linear").digest
    again = blend({n: learnt(n) for n in ("Boosted", "Linear")}, window()[::-1], SETTINGS)
    assert {**again.metrics, "fit_seconds": 0} == {**metrics, "fit_seconds": 0}


def test_it_is_stored_without_a_pickle_and_answers_alike() -> None:
    both = blended()
    content = skops.io.dumps(both.pipeline)
    loaded = skops.io.loads(content, trusted=trusted_types(content))
    unseen = make_rows(CARD, seed=9)
    np.testing.assert_array_equal(
        score_window(loaded, CARD, unseen), score_window(both.pipeline, CARD, unseen)
    )


def test_rows_that_are_not_the_same_have_no_mean() -> None:
    other = learnt("Linear")
    changed = other.reference.copy()
    changed.loc[5, TARGET] = 1 - changed.loc[5, TARGET]
    odd = Logged(CARD, other.candidate, other.pipeline, changed, {}, {}, other.digest)
    with pytest.raises(TrainingError, match="Boosted and Linear were scored on different rows"):
        blend({"Boosted": learnt("Boosted"), "Linear": odd}, window(), SETTINGS)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, []), (1, []), (2, ["a", "c"]), (3, ["a", "c", "b"]), (9, 3)]
)
def test_the_best_by_the_ranking_are_chosen(size: int, expected: list[str] | int) -> None:
    metrics = {
        name: {"validation_brier": value} for name, value in (("a", 0.12), ("b", 0.15), ("c", 0.1))
    }
    settings = SETTINGS.model_copy(update={"ensemble_size": size})
    # The file's first stays first: the others are not better beyond chance.
    chosen = choose(metrics, lambda name: np.array([0.1, 0.3, 0.0]), settings)
    assert chosen == expected or len(chosen) == expected


def test_one_candidate_is_no_ensemble() -> None:
    assert not has_ensemble(["a"], SETTINGS)
    assert choose({"a": {"validation_brier": 0.1}}, lambda name: np.zeros(3), SETTINGS) == []
