"""What a pipeline must and must not be able to learn, whatever the data set."""

import numpy as np
import pandas as pd
import pytest

from mlops.dataset.windows import split_window
from mlops.registry.gate import decide
from mlops.serving.export import export_onnx, score_onnx
from mlops.settings import Settings
from mlops.training.candidates import Candidate, load_candidates
from mlops.training.fit import (
    draw_by_weight,
    evaluate,
    fit_pipeline,
    learn,
    recency_weights,
    score_window,
)
from mlops.training.metrics import roc_auc
from tests.fixtures.churn import churn_card, churn_rows

SETTINGS = Settings(_env_file=None, search_trials=0)
CANDIDATES = load_candidates(SETTINGS.candidates)
LOGISTIC = CANDIDATES["LogisticRegression"]


@pytest.fixture
def card(tmp_path):
    return churn_card(tmp_path)


def window_of(frame, card):
    return split_window(frame, card.time.validation_months)


@pytest.mark.parametrize("name", list(CANDIDATES))
def test_every_candidate_finds_a_signal_and_passes_the_gate(card, name):
    window = window_of(churn_rows(rows_a_month=500), card)
    fitted = fit_pipeline(card, CANDIDATES[name], window.earlier, SETTINGS)
    scores = score_window(fitted.pipeline, card, window.validation)
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert evaluate(card, fitted, window, scores)["validation_roc_auc"] > 0.7
    base_rate = window.earlier["target"].mean()
    assert decide(scores, None, window.validation, card, base_rate, SETTINGS).promote


@pytest.mark.parametrize("name", list(CANDIDATES))
def test_every_candidate_says_the_same_in_onnx(card, name):
    window = window_of(churn_rows(), card)
    fitted = fit_pipeline(card, CANDIDATES[name], window.earlier, SETTINGS)
    odd = window.validation.copy()
    odd.loc[:9, "plan"] = "never seen"
    odd.loc[10:19, "spend"] = np.nan
    odd.loc[20:29, "spend"] = np.float32(1e9)
    exported = export_onnx(fitted.pipeline, card, odd, tolerance=1e-5)
    assert exported.max_difference <= 1e-5
    again = score_onnx(exported.content, card, odd)
    assert np.abs(again - score_window(fitted.pipeline, card, odd)).max() <= 1e-5


@pytest.mark.parametrize("name", ["LogisticRegression", "XGBClassifier"])
def test_a_column_that_is_empty_all_through_the_window_does_no_harm(card, name):
    frame = churn_rows()
    frame["spend"] = np.float32(np.nan)
    window = window_of(frame, card)
    fitted = fit_pipeline(card, CANDIDATES[name], window.earlier, SETTINGS)
    later = window.validation.assign(spend=np.float32(50))
    assert export_onnx(fitted.pipeline, card, later, tolerance=1e-5).max_difference <= 1e-5


def test_a_shuffled_target_gives_a_roc_auc_near_a_half_and_fails_the_gate(card):
    aucs, promoted = [], 0
    for seed in range(5):
        frame = churn_rows(rows_a_month=400)
        random = np.random.default_rng(seed)
        frame["target"] = random.permutation(frame["target"].to_numpy())
        window = window_of(frame, card)
        fitted = fit_pipeline(card, CANDIDATES["RandomForest"], window.earlier, SETTINGS)
        scores = score_window(fitted.pipeline, card, window.validation)
        aucs.append(roc_auc(window.validation["target"], scores))
        base_rate = window.earlier["target"].mean()
        promoted += decide(scores, None, window.validation, card, base_rate, SETTINGS).promote
    # 100 of 400 positive: the standard error of one ROC AUC is 0.034, of the mean of five 0.015.
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.05)
    assert promoted == 0


def test_a_constant_classifier_fails_the_gate(card):
    window = window_of(churn_rows(), card)
    constant = Candidate.model_validate(
        {"name": "Constant", "class": "sklearn.dummy.DummyClassifier"}
    )
    fitted = fit_pipeline(card, constant, window.earlier, SETTINGS)
    scores = score_window(fitted.pipeline, card, window.validation)
    assert len(set(scores)) == 1
    base_rate = window.earlier["target"].mean()
    decision = decide(scores, None, window.validation, card, base_rate, SETTINGS)
    assert not decision.promote
    assert "no better than a guess" in decision.reason


def test_a_candidate_that_takes_few_rows_gets_each_month_by_what_it_counts(card):
    window = window_of(churn_rows(rows_a_month=400), card)
    few = LOGISTIC.model_copy(update={"max_rows": 300})
    first, again, other = (
        fit_pipeline(card, few, window.earlier, SETTINGS.model_copy(update={"seed": seed})).rows
        for seed in (1, 1, 2)
    )
    assert first.equals(again)
    assert not first.equals(other)
    assert len(first) == pytest.approx(300, abs=60)


def test_it_is_said_that_a_candidate_is_fitted_on_a_draw(card, caplog):
    frame = churn_rows(rows_a_month=400)
    logged = learn(card, LOGISTIC.model_copy(update={"max_rows": 300}), frame, SETTINGS)
    sampled = logged.metrics["sampled_rows"]
    assert f"fitted on {sampled:.0f} of {len(frame)} rows" in caplog.text


def test_a_draw_keeps_what_each_part_counts():
    weights = np.repeat([4.0, 1.0, 0.01], [100, 1000, 20_000])
    kept, counts = draw_by_weight(weights, 1000, seed=0)
    assert len(kept) == pytest.approx(1000, abs=100)
    assert (np.diff(kept) > 0).all()
    assert (kept < 100).sum() == 100  # the heavy ones are all there
    part = np.digitize(kept, [100, 1100])
    shares = np.bincount(part, counts) / counts.sum()
    whole = np.array([400, 1000, 200]) / 1600
    assert shares == pytest.approx(whole, abs=0.02)


def test_the_same_rows_in_another_order_give_the_same_model(card):
    frame = churn_rows(rows_a_month=120)
    shuffled = frame.sample(frac=1, random_state=1, ignore_index=True)
    for name in ("XGBClassifier", "RandomForest"):
        one, other = (learn(card, CANDIDATES[name], rows, SETTINGS) for rows in (frame, shuffled))
        rows = frame[frame["period"] == frame["period"].max()]
        assert np.array_equal(
            score_window(one.pipeline, card, rows), score_window(other.pipeline, card, rows)
        )
        assert one.metrics["validation_brier"] == other.metrics["validation_brier"]


def test_no_row_is_scored_by_a_fit_that_knew_it(card):
    frame = churn_rows(rows_a_month=400)
    frame["target"] = np.random.default_rng(0).permutation(frame["target"].to_numpy())
    tree = Candidate.model_validate(
        {"name": "Tree", "class": "sklearn.tree.DecisionTreeClassifier"}
    )
    for folds in (1, 3):
        learnt = learn(card, tree, frame, SETTINGS.model_copy(update={"validation_folds": folds}))
        rows = learnt.reference
        # There is nothing to learn but the rows themselves, and this tree learns them by heart.
        assert roc_auc(rows["target"], score_window(learnt.pipeline, card, rows)) > 0.9
        assert roc_auc(rows["target"], rows["score"]) < 0.6


def test_a_row_counts_half_for_each_half_life_of_its_age():
    periods = pd.Series(["2020-01", "2020-03", "2020-03", "2020-02"])
    weights = recency_weights(periods, 1.0)
    assert weights.mean() == pytest.approx(1)
    assert weights / weights.max() == pytest.approx([0.25, 1, 1, 0.5])
    assert (recency_weights(periods, 0) == 1).all()


@pytest.mark.parametrize("name", list(CANDIDATES))
def test_the_same_seed_gives_the_same_scores(card, name):
    window = window_of(churn_rows(rows_a_month=120), card)
    first, again = (
        score_window(
            fit_pipeline(card, CANDIDATES[name], window.earlier, SETTINGS).pipeline,
            card,
            window.validation,
        )
        for _ in range(2)
    )
    assert np.array_equal(first, again)
