"""Turn a fitted sklearn Pipeline into ONNX, and prove that both score alike; never trains.

The ONNX model takes one input per feature, rows by 1: float32 for numbers (NaN is missing), string
for categories ("" is missing), and gives `probabilities`, rows by 2, the positive class last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pandas as pd
from sklearn.ensemble import VotingClassifier

from mlops.dataset.card import Card
from mlops.training.fit import score_window

OUTPUT = "probabilities"

# Known to every skl2onnx and onnxruntime in use; newer ones add nothing that is needed here.
_OPSET = {"": 17, "ai.onnx.ml": 3}


class ExportError(RuntimeError):
    """A pipeline cannot be expressed in ONNX."""


class ParityError(ExportError):
    """ONNX and sklearn score a row differently."""


_FLOAT = np.finfo(np.float32)
_EXTREMES = np.array(
    [
        *(sign * float(value) for value in (_FLOAT.max, 1e30, 1e10, 1e6, 1) for sign in (1, -1)),
        *(sign * float(value) for value in (_FLOAT.tiny, 1e-45, 0) for sign in (1, -1)),
        *(np.nan, 0.5, 2**24),
    ],
    dtype=np.float32,
)
"""Ends of float32, its smallest numbers with and without all digits, both zeros, missing."""

_TEXTS = (
    *("", " ", "never seen", "NEVER SEEN ", "nan", "None", "0", "1e5", "a,b;c\"d'e", "\t\r\n"),
    *("\u00e9", "e\u0301", "\U0001f600", "\u202e\u2066", "\ufeff", "\u4e2d\u6587", "x" * 256),
)
"""Categories that no training has seen, and all that a text can hold besides letters."""

_THRESHOLD_ROWS = 3000
_MIXED_ROWS = 150


@dataclass(frozen=True)
class OnnxModel:
    """A model as bytes, with what was proved about it."""

    content: bytes
    max_difference: float
    """Largest absolute difference of probability from sklearn, over the validation rows."""
    inputs: dict[str, str]
    """Input → `float32` or `string`."""
    hostile_rows: int
    """How many rows were made to tell the two apart (`hostile_rows`), and scored as well."""
    hostile_difference: float
    """The largest difference on these."""


def export_onnx(
    pipeline: Any, card: Card, validation_frame: pd.DataFrame, tolerance: float
) -> OnnxModel:
    """Return `pipeline` as ONNX, its scores compared on `validation_frame` and on hostile rows.

    Raises ExportError if the pipeline cannot be converted, and ParityError, naming the worst row,
    if any probability differs by more than `tolerance`, is none, or is none that sklearn gives.
    """
    content = _convert(pipeline, card)
    difference = _compare(
        pipeline, content, card, validation_frame, tolerance, "validation row {}".format
    )
    hostile = hostile_rows(card, validation_frame, tree_thresholds(content, card))
    hostile_difference = _compare(
        pipeline, content, card, hostile, tolerance, "hostile row ({})".format
    )
    inputs = {
        feature.name: "float32" if feature.kind == "number" else "string"
        for feature in card.features
    }
    return OnnxModel(content, difference, inputs, len(hostile), hostile_difference)


def _compare(
    pipeline: Any,
    content: bytes,
    card: Card,
    frame: pd.DataFrame,
    tolerance: float,
    name: Callable[[Any], str],
) -> float:
    """Return the largest difference over `frame`; raises ParityError, naming the worst row."""

    def shown(row: int) -> str:
        return f"Row: {frame[card.feature_names].iloc[row].to_dict()}"

    found = score_onnx(content, card, frame)
    try:
        expected = score_window(pipeline, card, frame)
    except ValueError as fault:  # sklearn refuses what has become infinite on its way
        row = _first_refused(pipeline, card, frame)
        raise ParityError(
            f"{name(frame.index[row])}: sklearn cannot score it ({str(fault).splitlines()[0]}), "
            f"ONNX answers {found[row]:.9f}. {shown(row)}. Numbers must be bounded before they "
            "are scaled: train it again, as training does so"
        ) from fault
    differences = np.abs(found - expected)
    # A NaN is no probability, however small its difference is.
    worst = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
    if not differences[worst] <= tolerance:
        raise ParityError(
            f"{name(frame.index[worst])}: ONNX scores {found[worst]:.9f}, "
            f"sklearn {expected[worst]:.9f}; they differ by {differences[worst]:.2e}, allowed are "
            f"{tolerance:.0e} ({int((~(differences <= tolerance)).sum())} of {len(found)} rows "
            f"differ by more). {shown(worst)}. A scaler before trees rounds numbers across their "
            "thresholds: scale only for models that need it"
        )
    return float(differences[worst])


def _first_refused(pipeline: Any, card: Card, frame: pd.DataFrame) -> int:
    """Return the place of the first row that sklearn does not score."""
    low, high = 0, len(frame)  # the rows before `low` are scored, those before `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            score_window(pipeline, card, frame.iloc[low:middle])
            low = middle
        except ValueError:
            high = middle
    return low


def hostile_rows(
    card: Card, frame: pd.DataFrame, thresholds: dict[str, np.ndarray] | None = None
) -> pd.DataFrame:
    """Return rows that are made to tell ONNX from sklearn; the same for the same arguments.

    Rows of `frame` in which columns, one and all, hold what a request may hold but no data does:
    the ends of float32, numbers on `thresholds` and the float32 beside them, categories never seen,
    texts of all kinds, nothing. The index says what a row holds.
    """
    random = np.random.default_rng(0)
    nothing = {
        **dict.fromkeys(card.numbers, np.float32("nan")),
        **dict.fromkeys(card.categories, ""),
    }
    made: list[tuple[str, dict[str, Any]]] = [("all missing", nothing)]
    for column in card.feature_names:
        made.append((f"only {column}", {k: v for k, v in nothing.items() if k != column}))
    for column in card.numbers:
        made += [(f"{column} {value:.9g}", {column: value}) for value in _EXTREMES]
    for column in card.categories:
        made += [(f"{column} {text[:12]!r}", {column: text}) for text in _TEXTS]
    for number in range(_MIXED_ROWS):
        mixed: dict[str, Any] = {column: random.choice(_EXTREMES) for column in card.numbers}
        if number % 2:
            mixed |= {column: str(random.choice(_TEXTS)) for column in card.categories}
        made.append((f"mixture {number}", mixed))
    made += _on_thresholds(thresholds or {}, random)
    base = frame[card.feature_names].iloc[random.integers(0, len(frame), len(made))]
    rows = base.astype(dict.fromkeys(card.categories, object)).reset_index(drop=True)
    for column in card.feature_names:
        own = rows[column].to_numpy(copy=True)
        for row, (_, values) in enumerate(made):
            if column in values:
                own[row] = values[column]
        rows[column] = own
    return rows.set_axis([label for label, _ in made])


def _on_thresholds(
    thresholds: dict[str, np.ndarray], random: np.random.Generator
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows of which every number lies on a threshold or beside it, all alike often."""
    near = {}
    for column, values in thresholds.items():
        around = [np.nextafter(values, np.float32(side)) for side in (-np.inf, np.inf)]
        near[column] = random.permutation(np.concatenate([values, *around]))
    rows = min(_THRESHOLD_ROWS, max(map(len, near.values()), default=0))
    for row in range(rows):
        yield f"thresholds {row}", {name: each[row % len(each)] for name, each in near.items()}


def tree_thresholds(content: bytes, card: Card) -> dict[str, np.ndarray]:
    """Return at which float32 the trees of a model split each number column; empty without trees.

    Trees see the vectorised row, in which the numbers come first, in the card's order.
    """
    import onnx

    found: dict[str, set[float]] = {}
    for node in onnx.load_from_string(content).graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        values = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        for place, value, mode in zip(
            values["nodes_featureids"], values["nodes_values"], values["nodes_modes"], strict=True
        ):
            if mode != b"LEAF" and place < len(card.learnt_numbers):
                found.setdefault(card.learnt_numbers[place], set()).add(value)
    return {name: np.array(sorted(each), dtype=np.float32) for name, each in found.items()}


def score_onnx(content: bytes, card: Card, frame: pd.DataFrame) -> np.ndarray:
    """Return P(target = 1) of each row of `frame`: the double of the float32 that ONNX gives."""
    return score_session(open_session(content), card, frame)


def open_session(content: bytes) -> ort.InferenceSession:
    """Return the model ready to score, on one thread, as the API has it."""
    ort.disable_telemetry_events()  # 1.31 reports to its vendor unless told not to
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def score_session(session: ort.InferenceSession, card: Card, frame: pd.DataFrame) -> np.ndarray:
    """Do as `score_onnx`, with a model that is open."""
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

    from mlops.serving.converters import register

    register()
    if list(pipeline.classes_) != [0, 1]:
        raise ExportError(f"the classes are {list(pipeline.classes_)}, expected [0, 1]")
    classifier = pipeline.steps[-1][1]
    if isinstance(classifier, VotingClassifier):
        return _mean([_convert(member, card) for member in classifier.estimators_])
    types = [
        (
            feature.name,
            FloatTensorType([None, 1]) if feature.kind == "number" else StringTensorType([None, 1]),
        )
        for feature in card.features
    ]
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


def _mean(contents: list[bytes]) -> bytes:
    """Return the models as one, which answers the mean of theirs; inputs and outputs stay."""
    import onnx
    from onnx.compose import add_prefix

    first = onnx.load_from_string(contents[0])
    label, probabilities = first.graph.output
    members = [
        add_prefix(onnx.load_from_string(content), f"member_{place}_", rename_inputs=False).graph
        for place, content in enumerate(contents)
    ]
    graph = onnx.helper.make_graph(
        [
            *(node for member in members for node in member.node),
            onnx.helper.make_node(
                "Mean", [member.output[1].name for member in members], [OUTPUT], name="mean"
            ),
            onnx.helper.make_node(
                "ArgMax", [OUTPUT], [label.name], name="label", axis=1, keepdims=0
            ),
        ],
        "mean",
        first.graph.input,
        [label, probabilities],
        [each for member in members for each in member.initializer],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=first.opset_import, ir_version=first.ir_version
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
