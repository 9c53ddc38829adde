"""What a pipeline must and must not be able to learn, whatever the data set."""

import numpy as np
import pytest

from mlops.dataset.windows import split_window
from mlops.registry.gate import decide
from mlops.serving.export import export_onnx, score_onnx
from mlops.settings import Settings
from mlops.training.candidates import Candidate, load_candidates
from mlops.training.fit import evaluate, fit_pipeline, score_window
from mlops.training.metrics import roc_auc
from tests.fixtures.churn import churn_card, churn_rows

SETTINGS = Settings(_env_file=None)
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


def test_a_candidate_that_takes_few_rows_gets_the_latest(card, caplog):
    window = window_of(churn_rows(), card)
    few = LOGISTIC.model_copy(update={"max_rows": 200})
    first, again, other = (
        fit_pipeline(card, few, window.earlier, SETTINGS.model_copy(update={"seed": seed})).rows
        for seed in (1, 1, 2)
    )
    assert len(first) == 200
    assert first.equals(again)
    assert not first.equals(other)
    assert set(first["period"]) == {window.earlier["period"].max()}
    assert "latest 200 of 750 rows" in caplog.text


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
