"""What skl2onnx does not know, or answers otherwise than sklearn: converters of our own, no more.

- XGBoost's classifier is known to onnxmltools only.
- Thresholds of histogram gradient boosting are doubles, which skl2onnx rounds to the nearest
  float32: a number beside one then takes the other branch. Rounded down, as here, no comparison of
  a float32 with them changes.
- Of an isotonic calibration skl2onnx answers the nearest knot's value, where sklearn draws a line
  from knot to knot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.isotonic import IsotonicRegression

_CLASSIFIER = {"zipmap": [True, False, "columns"], "nocl": [True, False]}
_LABELLED = _CLASSIFIER | {"output_class_labels": [False, True]}


def register() -> None:
    """Teach skl2onnx; harmless if done before."""
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
    from xgboost import XGBClassifier

    for kind, alias, convert, options in (
        (XGBClassifier, "XGBoostXGBClassifier", convert_xgboost, _CLASSIFIER),
        (
            HistGradientBoostingClassifier,
            "SklearnHistGradientBoostingClassifier",
            _convert_histogram_boosting,
            _LABELLED | {"raw_scores": [True, False]},
        ),
        (
            CalibratedClassifierCV,
            "SklearnCalibratedClassifierCV",
            _convert_calibrated,
            _LABELLED,
        ),
    ):
        update_registered_converter(
            kind, alias, calculate_linear_classifier_output_shapes, convert, options=options
        )


def float32_below(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 that is not above each of `thresholds`."""
    nearest = thresholds.astype(np.float32)
    above = nearest > thresholds
    nearest[above] = np.nextafter(nearest[above], np.float32(-np.inf))
    return nearest


def _convert_histogram_boosting(scope: Any, operator: Any, container: Any) -> None:
    from onnx import helper
    from skl2onnx.operator_converters.random_forest import (
        convert_sklearn_random_forest_classifier,
    )

    convert_sklearn_random_forest_classifier(scope, operator, container)
    trees = [tree for trees in operator.raw_operator._predictors for tree in trees]
    nodes = np.concatenate([tree.nodes for tree in trees])
    if nodes["is_categorical"].any():
        raise NotImplementedError("splits by categories: the vectoriser makes them columns")
    thresholds = np.where(nodes["is_leaf"], 0, nodes["num_threshold"])
    [values] = [each for each in container.nodes[-1].attribute if each.name == "nodes_values"]
    values.CopyFrom(helper.make_attribute("nodes_values", float32_below(thresholds).tolist()))


def _convert_calibrated(scope: Any, operator: Any, container: Any) -> None:
    from skl2onnx.operator_converters.calibrated_classifier_cv import (
        convert_sklearn_calibrated_classifier_cv,
    )

    model = operator.raw_operator
    if model.method != "isotonic":
        convert_sklearn_calibrated_classifier_cv(scope, operator, container)
        return
    _convert_isotonic(scope, operator, container)


def _convert_isotonic(scope: Any, operator: Any, container: Any) -> None:
    """Convert what answers the mean of its calibrated classifiers, of two classes."""
    from onnx import TensorProto

    def add(kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or scope.get_unique_variable_name(kind.lower())
        name = scope.get_unique_operator_name(kind)
        container.add_node(kind, inputs, [output], name=name, **attributes)
        return output

    def constant(values: Any, kind: int = TensorProto.DOUBLE) -> str:
        name: str = scope.get_unique_variable_name("constant")
        array = np.asarray(values)
        container.add_initializer(name, kind, array.shape, array.ravel().tolist())
        return name

    answers = []
    for calibrated in operator.raw_operator.calibrated_classifiers_:
        [curve] = calibrated.calibrators  # of two classes, that of the positive one
        scores = _scores(scope, operator, container, calibrated.estimator)
        last = add("Gather", [scores, constant([1], TensorProto.INT64)], axis=1, op_version=13)
        scores = add("Cast", [last], to=TensorProto.DOUBLE, op_version=13)
        answers.append(_follow(add, constant, curve, scores))
    positive = add("Sum", answers, op_version=13)  # onnxruntime has no Mean of doubles
    positive = add("Mul", [positive, constant([1 / len(answers)])], op_version=14)
    negative = add("Sub", [constant([1.0]), positive], op_version=14)
    both = add("Concat", [negative, positive], axis=1, op_version=13)
    label, probabilities = (output.full_name for output in operator.outputs)
    add("Cast", [both], probabilities, to=TensorProto.FLOAT, op_version=13)
    add("ArgMax", [probabilities], label, axis=1, keepdims=0, op_version=13)


def _scores(scope: Any, operator: Any, container: Any, estimator: Any) -> str:
    """Return where the classifier's scores are found, a column a class, as sklearn asks for them.

    CalibratedClassifierCV takes `decision_function` of those that have one.
    """
    from skl2onnx._supported_operators import sklearn_operator_name_map
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType

    inner = scope.declare_local_operator(sklearn_operator_name_map[type(estimator)], estimator)
    if hasattr(estimator, "decision_function"):
        container.add_options(id(estimator), {"raw_scores": True})
        scope.add_options(id(estimator), {"raw_scores": True})
    inner.inputs = operator.inputs
    inner.outputs.append(scope.declare_local_variable("label", Int64TensorType()))
    inner.outputs.append(scope.declare_local_variable("scores", FloatTensorType()))
    return str(inner.outputs[1].full_name)


def _follow(add: Any, constant: Any, curve: IsotonicRegression, scores: str) -> str:
    """Return where the values of `curve` at `scores` are found: doubles, rows by 1.

    From the first knot's value on, each part between two knots adds its slope times how far it was
    gone: bounded, so that beyond the last knot its value stays.
    """
    x = np.asarray(curve.X_thresholds_, dtype=np.float64)
    y = np.asarray(curve.y_thresholds_, dtype=np.float64)
    if len(x) == 1:
        nothing = add("Mul", [scores, constant([0.0])], op_version=14)
        return str(add("Add", [nothing, constant(y)], op_version=14))
    lengths = np.diff(x)
    gone = add("Sub", [scores, constant(x[:-1])], op_version=14)
    gone = add("Max", [gone, constant([0.0])], op_version=13)
    gone = add("Min", [gone, constant(lengths)], op_version=13)
    slopes = (np.diff(y) / lengths).reshape(-1, 1)
    risen = add("MatMul", [gone, constant(slopes)], op_version=13)
    return str(add("Add", [risen, constant(y[:1])], op_version=14))
