"""ONNX scores as sklearn does, for every kind of candidate, or is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import FunctionTransformer

from mlops.dataset.card import load_card
from mlops.serving.export import ExportError, ParityError, export_onnx, score_onnx
from mlops.settings import Settings
from mlops.training.candidates import load_candidates
from mlops.training.fit import fit_pipeline, score_window
from tests.fixtures.predict import exported, make_model, make_rows

CARD = load_card("bank_marketing")
CANDIDATES = load_candidates(Settings(_env_file=None).candidates)


@pytest.mark.parametrize("name", sorted(CANDIDATES))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_candidate_scores_alike_in_onnx(name: str) -> None:
    fitting, unseen = make_rows(CARD, seed=1), make_rows(CARD, rows=400, seed=2)
    unseen.loc[::5, CARD.categories[0]] = "never seen"
    unseen.loc[::7, CARD.numbers[0]] = 1e6
    pipeline = fit_pipeline(CARD, CANDIDATES[name], fitting, seed=0).pipeline
    onnx = export_onnx(pipeline, CARD, unseen, tolerance=1e-5)
    assert 0 <= onnx.max_difference <= 1e-5
    assert list(onnx.inputs) == CARD.feature_names
    assert set(onnx.inputs.values()) == {"float32", "string"}
    found = score_onnx(onnx.content, CARD, unseen)
    assert np.abs(found - score_window(pipeline, CARD, unseen)).max() == onnx.max_difference
    assert np.unique(found).size > 10, "a constant would agree with anything"


def test_a_column_that_was_empty_all_through_is_an_input_all_the_same() -> None:
    fitting = make_rows(CARD, seed=1)
    fitting[CARD.numbers[-1]] = np.float32("nan")
    fitting[CARD.categories[-1]] = ""
    pipeline = fit_pipeline(CARD, CANDIDATES["LogisticRegression"], fitting, seed=0).pipeline
    onnx = export_onnx(pipeline, CARD, make_rows(CARD, seed=2), tolerance=1e-5)
    assert list(onnx.inputs) == CARD.feature_names


def test_difference_over_tolerance_is_refused_and_the_worst_row_named() -> None:
    card, frame, pipeline, onnx = exported(0)

    class Off:
        """Scores as the pipeline, but for one row."""

        classes_ = pipeline.classes_

        def __getattr__(self, name: str) -> Any:
            return getattr(pipeline, name)

        def predict_proba(self, features: Any) -> np.ndarray:
            scores = pipeline.predict_proba(features)
            scores[17] += 0.2
            return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlops.serving.export._convert", lambda *_: onnx.content)
        with pytest.raises(ParityError, match=r"validation row 17: .*2\.00e-01") as caught:
            export_onnx(Off(), card, frame, 1e-5)
    assert f"'age': {frame['age'][17]}" in str(caught.value)


def test_scaler_before_trees_is_caught() -> None:
    """The trap of float32 at tree thresholds: real, not made up."""
    random = np.random.default_rng(0)
    frame = make_rows(CARD, rows=3000, seed=3)
    for name in CARD.numbers:
        frame[name] = random.integers(-8000, 100_000, len(frame)).astype(np.float32)
    frame["target"] = random.integers(0, 2, len(frame)).astype(np.int8)
    scaled = make_model(CARD, frame, RandomForestClassifier(30, random_state=0))
    with pytest.raises(ParityError, match="scale only for models that need it"):
        export_onnx(scaled, CARD, frame, 1e-5)


def test_what_onnx_cannot_express_is_named() -> None:
    card, frame, *_ = exported(0)
    pipeline = make_model(card, frame)
    pipeline.steps.insert(1, ("odd", FunctionTransformer(np.tanh)))
    with pytest.raises(ExportError, match="LogisticRegression cannot be expressed in ONNX"):
        export_onnx(pipeline, card, frame, 1e-5)


def test_labels_other_than_0_and_1_are_refused() -> None:
    card, frame, *_ = exported(0)
    frame = frame.assign(target=np.where(frame["target"] == 1, 2, 1))
    with pytest.raises(ExportError, match="classes"):
        export_onnx(make_model(card, frame), card, frame, 1e-5)
