"""What skl2onnx does not know, or answers otherwise than sklearn: converters of our own, no more.

- XGBoost's classifier is known to onnxmltools only.
- Thresholds of histogram gradient boosting are doubles, which skl2onnx rounds to the nearest
  float32: a number beside one then takes the other branch. Rounded down, as here, no comparison of
  a float32 with them changes.
- A support vector machine is a sum of thousands of terms that nearly cancel: in float32, as
  onnxruntime has it, the score is off by 4e-5 where `C` is 10. Here it is computed in doubles.
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
from sklearn.svm import SVC

_CLASSIFIER = {"zipmap": [True, False, "columns"], "nocl": [True, False]}
_LABELLED = _CLASSIFIER | {"output_class_labels": [False, True]}


def register() -> None:
    """Teach skl2onnx; harmless if done before."""
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
    from xgboost import XGBClassifier

    scored = _LABELLED | {"raw_scores": [True, False]}
    boosting, calibrated = HistGradientBoostingClassifier, CalibratedClassifierCV
    for kind, alias, convert, options in (
        (XGBClassifier, "XGBoostXGBClassifier", convert_xgboost, _CLASSIFIER),
        (SVC, "SklearnSVC", _convert_support_vectors, scored),
        (boosting, f"Sklearn{boosting.__name__}", _convert_histogram_boosting, scored),
        (calibrated, f"Sklearn{calibrated.__name__}", _convert_calibrated, _LABELLED),
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


def _convert_support_vectors(scope: Any, operator: Any, container: Any) -> None:
    """Convert the decision function of an RBF kernel: the sum of a exp(-gamma |x - v|²), and b."""
    from onnx import TensorProto
    from skl2onnx.operator_converters.support_vector_machines import (
        convert_sklearn_svm_classifier,
    )

    model = operator.raw_operator
    asked = container.get_options(model, {"raw_scores": False})
    if model.kernel != "rbf" or len(model.classes_) != 2 or not asked["raw_scores"]:
        convert_sklearn_svm_classifier(scope, operator, container)
        return
    graph = _Graph(scope, container)
    vectors, gamma = np.asarray(model.support_vectors_, dtype=np.float64), model._gamma
    x = graph.add("Cast", operator.inputs[0].full_name, to=TensorProto.DOUBLE)
    # -gamma |x - v|² = gamma (2 x·v - |v|²) - gamma |x|²
    near = graph.add("MatMul", x, graph.constant(2 * gamma * vectors.T))
    near = graph.add("Sub", near, graph.constant(gamma * (vectors**2).sum(axis=1)))
    length = graph.add("ReduceSumSquare", x, axes=[1], keepdims=1)
    length = graph.add("Mul", length, graph.constant([gamma]))
    kernel = graph.add("Exp", graph.add("Sub", near, length))
    score = graph.add("MatMul", kernel, graph.constant(model.dual_coef_.reshape(-1, 1)))
    score = graph.add("Add", score, graph.constant(model.intercept_))
    graph.answer(operator, graph.add("Neg", score), score)


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

    graph = _Graph(scope, container)
    answers = []
    for calibrated in operator.raw_operator.calibrated_classifiers_:
        [curve] = calibrated.calibrators  # of two classes, that of the positive one
        scores = _scores(scope, operator, container, calibrated.estimator)
        last = graph.add("Gather", scores, graph.constant([1], TensorProto.INT64), axis=1)
        answers.append(_follow(graph, curve, graph.add("Cast", last, to=TensorProto.DOUBLE)))
    positive = graph.add("Sum", *answers)  # onnxruntime has no Mean of doubles
    positive = graph.add("Mul", positive, graph.constant([1 / len(answers)]))
    graph.answer(operator, graph.add("Sub", graph.constant([1.0]), positive), positive)


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


def _follow(graph: _Graph, curve: IsotonicRegression, scores: str) -> str:
    """Return where the values of `curve` at `scores` are found: doubles, rows by 1.

    From the first knot's value on, each part between two knots adds its slope times how far it was
    gone: bounded, so that beyond the last knot its value stays.
    """
    x = np.asarray(curve.X_thresholds_, dtype=np.float64)
    y = np.asarray(curve.y_thresholds_, dtype=np.float64)
    lengths = np.diff(x, append=x[-1] + 1)
    rises = np.diff(y, append=y[-1])  # a last part that rises by nothing: there may be one knot
    gone = graph.add("Sub", scores, graph.constant(x))
    gone = graph.add("Max", gone, graph.constant([0.0]))
    gone = graph.add("Min", gone, graph.constant(lengths))
    risen = graph.add("MatMul", gone, graph.constant((rises / lengths).reshape(-1, 1)))
    return graph.add("Add", risen, graph.constant(y[:1]))


class _Graph:
    """Nodes of a converter, in the versions of operators of opset 17."""

    def __init__(self, scope: Any, container: Any) -> None:
        self._scope = scope
        self._container = container

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of what it gives."""
        output = output or self._scope.get_unique_variable_name(kind.lower())
        self._container.add_node(
            kind,
            list(inputs),
            [output],
            name=self._scope.get_unique_operator_name(kind),
            op_version=14 if kind in ("Add", "Sub", "Mul") else 13,
            **attributes,
        )
        return output

    def constant(self, values: Any, kind: int | None = None) -> str:
        """Add numbers (doubles if no `kind` is given), and return their name."""
        from onnx import TensorProto

        name = str(self._scope.get_unique_variable_name("constant"))
        array = np.asarray(values)
        kind = TensorProto.DOUBLE if kind is None else kind
        self._container.add_initializer(name, kind, array.shape, array.ravel().tolist())
        return name

    def answer(self, operator: Any, negative: str, positive: str) -> None:
        """Give both columns of doubles as the operator's float32, and which is the larger."""
        from onnx import TensorProto

        label, scores = (output.full_name for output in operator.outputs)
        both = self.add("Concat", negative, positive, axis=1)
        self.add("Cast", both, output=scores, to=TensorProto.FLOAT)
        self.add("ArgMax", scores, output=label, axis=1, keepdims=0)
