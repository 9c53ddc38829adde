"""What is sent to each kind of server, and how its answers are read; knows nothing else of them.

Encoders take records as a caller would write them (null is missing). Decoders take the parsed
answer and return the model's version and the probabilities, in the records' order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

TEXTS = ("job", "housing", "contact", "month", "poutcome")
"""The text columns of the card that is measured with."""


def encode_ours(records: list[dict[str, Any]]) -> bytes:
    """One record by itself, or a list."""
    return orjson.dumps(records[0] if len(records) == 1 else records)


def decode_ours(answer: Any) -> tuple[str, Sequence[float]]:
    """`{"version", "predictions": [{"probability", …}]}`."""
    return answer["version"], [one["probability"] for one in answer["predictions"]]


def encode_mlflow(records: list[dict[str, Any]]) -> bytes:
    """`dataframe_records`; a model's signature has no missing texts: they are "", as fitted."""
    rows = [
        {name: "" if value is None and name in TEXTS else value for name, value in one.items()}
        for one in records
    ]
    return orjson.dumps({"dataframe_records": rows})


def decode_mlflow(answer: Any) -> tuple[str, Sequence[float]]:
    """Rows of both classes' probabilities."""
    return "1", [row[1] for row in answer["predictions"]]


def encode_bentoml(records: list[dict[str, Any]]) -> bytes:
    """Arguments of the service's method by name."""
    return orjson.dumps({"records": records})


def decode_bentoml(answer: Any) -> tuple[str, Sequence[float]]:
    """A bare list."""
    return "1", answer


def encode_fastapi(records: list[dict[str, Any]]) -> bytes:
    """A bare list."""
    return orjson.dumps(records)


def decode_fastapi(answer: Any) -> tuple[str, Sequence[float]]:
    """`{"probabilities": […]}`."""
    return "1", answer["probabilities"]
