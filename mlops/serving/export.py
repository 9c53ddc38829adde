"""Turn a fitted sklearn Pipeline into ONNX, and prove that both score alike; never trains.

The ONNX model takes one input per feature, rows by 1: float32 for numbers (NaN is missing), string
for categories ("" is missing), and gives `probabilities`, rows by 2, the positive class last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pandas as pd

from mlops.dataset.card import Card
from mlops.training.fit import score_window

OUTPUT = "probabilities"

# Known to every skl2onnx and onnxruntime in use; newer ones add nothing that is needed here.
_OPSET = {"": 17, "ai.onnx.ml": 3}


class ExportError(RuntimeError):
    """A pipeline cannot be expressed in ONNX."""


class ParityError(ExportError):
    """ONNX and sklearn score a row differently."""


@dataclass(frozen=True)
class OnnxModel:
    """A model as bytes, with what was proved about it."""

    content: bytes
    max_difference: float
    """Largest absolute difference of probability from sklearn, over the validation rows."""
    inputs: dict[str, str]
    """Input → `float32` or `string`."""


def export_onnx(
    pipeline: Any, card: Card, validation_frame: pd.DataFrame, tolerance: float
) -> OnnxModel:
    """Return `pipeline` as ONNX, its scores compared on every row of `validation_frame`.

    Raises ExportError if the pipeline cannot be converted, and ParityError, naming the worst row,
    if any probability differs by more than `tolerance`.
    """
    content = _convert(pipeline, card)
    expected = score_window(pipeline, card, validation_frame)
    found = score_onnx(content, card, validation_frame)
    differences = np.abs(found - expected)
    # A NaN is no probability, however small its difference is.
    worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
    if not differences[worst] <= tolerance:
        row = validation_frame[card.feature_names].iloc[worst].to_dict()
        raise ParityError(
            f"validation row {validation_frame.index[worst]}: ONNX scores {found[worst]:.9f}, "
            f"sklearn {expected[worst]:.9f}; they differ by {differences[worst]:.2e}, allowed are "
            f"{tolerance:.0e} ({int((~(differences <= tolerance)).sum())} of {len(found)} rows "
            f"differ by more). Row: {row}. A scaler before trees rounds numbers across their "
            "thresholds: scale only for models that need it"
        )
    inputs = {
        feature.name: "float32" if feature.kind == "number" else "string"
        for feature in card.features
    }
    return OnnxModel(content, float(differences[worst]), inputs)


def score_onnx(content: bytes, card: Card, frame: pd.DataFrame) -> np.ndarray:
    """Return P(target = 1) of each row of `frame`: the double of the float32 that ONNX gives."""
    ort.disable_telemetry_events()  # 1.31 reports to its vendor unless told not to
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feeds = {
        feature.name: frame[[feature.name]].to_numpy(
            dtype=np.float32 if feature.kind == "number" else object
        )
        for feature in card.features
    }
    return np.asarray(session.run([OUTPUT], feeds)[0][:, 1], dtype=np.float64)


def _convert(pipeline: Any, card: Card) -> bytes:
    # Seconds of import that the API's clients, who share this package, do not pay.
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    _register_xgboost()
    if list(pipeline.classes_) != [0, 1]:
        raise ExportError(f"the classes are {list(pipeline.classes_)}, expected [0, 1]")
    types = [
        (
            feature.name,
            FloatTensorType([None, 1]) if feature.kind == "number" else StringTensorType([None, 1]),
        )
        for feature in card.features
    ]
    classifier = pipeline.steps[-1][1]
    try:
        graph = to_onnx(
            pipeline,
            initial_types=types,
            options={id(classifier): {"zipmap": False}},
            target_opset=_OPSET,
        )
    except Exception as fault:  # skl2onnx raises a dozen kinds
        raise ExportError(
            f"{type(classifier).__name__} cannot be expressed in ONNX: {fault}"
        ) from fault
    outputs = [output.name for output in graph.graph.output]
    if outputs[-1:] != [OUTPUT]:
        raise ExportError(f"the ONNX model gives {outputs}, expected {OUTPUT} last")
    return bytes(graph.SerializeToString())


def _register_xgboost() -> None:
    """Teach skl2onnx the classifier that it does not know; harmless if done before."""
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
    from xgboost import XGBClassifier

    update_registered_converter(
        XGBClassifier,
        "XGBoostXGBClassifier",
        calculate_linear_classifier_output_shapes,
        convert_xgboost,
        options={"nocl": [True, False], "zipmap": [True, False, "columns"]},
    )
