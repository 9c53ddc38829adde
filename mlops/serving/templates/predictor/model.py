"""One payload as it answers: what its fields may hold, and its ONNX session."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson

from predictor.errors import PayloadError, RequestError, shown

MAX_TEXT = 256  # characters of a category; longer is no category but a mistake
FLOAT32_MAX = float(np.finfo(np.float32).max)

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


class Input:
    """One field of a record: what it may hold, and what it is when it is missing."""

    def __init__(self, spec: dict[str, Any], markers: list[str]) -> None:
        self.name: str = spec["name"]
        self.is_number = spec["kind"] == "number"
        self.required: bool = spec.get("required", True)
        self.integer: bool = spec.get("integer", False)
        self.warns: bool = spec.get("warn", True)
        self.unusual_kind = "out_of_range" if self.is_number else "unseen"
        self.low, self.high = spec.get("min"), spec.get("max")
        self.values = frozenset(spec.get("values", ()))
        # Texts that mean missing; for a number also the numbers that they write ("-1" and -1).
        self.missing_texts = frozenset(map(str, [*markers, *spec.get("missing", [])]))
        self.missing_numbers = (
            frozenset(map(float, filter(_NUMBER.fullmatch, self.missing_texts)))
            if self.is_number
            else frozenset()
        )

    def read(self, value: Any, row: int) -> float | int | str | None:
        """Return the value as the model takes it, None if missing; raises RequestError."""
        if value is None:
            return None
        if isinstance(value, str):
            if value in self.missing_texts or (not value and not self.is_number):
                return None
            if not self.is_number:
                return self._text(value, row)
        if not self.is_number:
            raise self._wrong_type(value, row, "a string")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong_type(value, row, "a whole number" if self.integer else "a number")
        if abs(value) > FLOAT32_MAX:
            raise RequestError(
                "out_of_range",
                f"row {row}: {self.name} is {value:g}, beyond what a float32 holds",
                field=self.name,
                row=row,
            )
        if value in self.missing_numbers:
            return None
        if self.integer and not float(value).is_integer():
            raise self._wrong_type(value, row, "a whole number")
        return value

    def warn(self, value: float | int | str) -> str | None:
        """Return what is unusual about a value that is answered all the same, or None."""
        if not self.warns:
            return None
        if isinstance(value, str):
            if value not in self.values:
                return f"{self.name} was never {shown(value)} in training"
        elif self.low is not None and self.high is not None and not self.low <= value <= self.high:
            return (
                f"{self.name} lay between {self.low:g} and {self.high:g} in training, not {value:g}"
            )
        return None

    def _text(self, value: str, row: int) -> str:
        if len(value) > MAX_TEXT:
            raise RequestError(
                "too_long",
                f"row {row}: {self.name} has {len(value)} characters, at most {MAX_TEXT} are read",
                field=self.name,
                row=row,
            )
        if "\x00" in value:
            raise RequestError(
                "wrong_type",
                f"row {row}: {self.name} holds a NUL character, expected text",
                field=self.name,
                row=row,
            )
        return value

    def _wrong_type(self, value: Any, row: int, expected: str) -> RequestError:
        return RequestError(
            "wrong_type",
            f"row {row}: {self.name} is {shown(value)}, expected {expected} or null",
            field=self.name,
            row=row,
        )


class Model:
    """One payload, loaded and tried: card, ONNX session and the digest of the code beside it."""

    def __init__(self, folder: Path) -> None:
        """Load `folder`; raises PayloadError, naming what is wrong, if it must not answer."""
        self.folder = folder
        try:
            self.card_json = (folder / "model.json").read_bytes()
            self.card: dict[str, Any] = orjson.loads(self.card_json)
            self.version = str(self.card["version"])
            self.threshold = float(self.card["threshold"])
            self.decisions = (
                str(self.card["target"]["negative"]),
                str(self.card["target"]["positive"]),
            )
            markers = self.card.get("missing", [])  # in any field; a field's own stand with it
            self.inputs = [Input(spec, markers) for spec in self.card["inputs"]]
            self.names = frozenset(each.name for each in self.inputs)
            self.unusual_kinds = {each.name: each.unusual_kind for each in self.inputs}
            self.code = code_digest(folder)
            ort.disable_telemetry_events()
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            self.session = ort.InferenceSession(
                (folder / "model.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
            )
            self.output: str = self.card["onnx"]["output"]
            self._feeds = [
                (each.name, np.float32, math.nan) if each.is_number else (each.name, object, "")
                for each in self.inputs
            ]
            self._try()
        except PayloadError:
            raise
        except Exception as fault:  # whatever is wrong with a payload, the old one goes on
            raise PayloadError(f"{type(fault).__name__}: {fault}") from fault

    def _try(self) -> None:
        declared = self.card["onnx"]["inputs"]
        found = {
            each.name: "string" if each.type == "tensor(string)" else "float32"
            for each in self.session.get_inputs()
        }
        if found != declared or set(found) != self.names:
            raise PayloadError(f"model.onnx takes {found}, model.json says {declared}")
        record, _ = self.read(self.card["reference"], 0)
        for _ in range(2):
            probability = self.score([record])[0]
            if not 0.0 <= probability <= 1.0:
                raise PayloadError(f"the reference record scored {probability}, no probability")

    def read(
        self, record: Any, row: int
    ) -> tuple[dict[str, float | int | str | None], list[dict[str, Any]]]:
        """Return the record as the model takes it and its warnings; raises RequestError."""
        if not isinstance(record, dict):
            raise RequestError(
                "wrong_type",
                f"row {row} is {shown(record)}, expected an object of fields and values",
                row=row,
            )
        values: dict[str, float | int | str | None] = {}
        warnings = []
        for each in self.inputs:
            if each.name in record:
                value = each.read(record[each.name], row)
            elif each.required:
                raise RequestError(
                    "missing_field",
                    f"row {row}: {each.name} is missing (null says that its value is unknown)",
                    field=each.name,
                    row=row,
                )
            else:
                value = None
            values[each.name] = value
            if value is not None and (unusual := each.warn(value)):
                warnings.append({"field": each.name, "value": value, "message": unusual})
        if len(record) > len(self.names) or not self.names.issuperset(record):
            extra = next(name for name in record if name not in self.names)
            raise RequestError(
                "unknown_field",
                f"row {row}: {shown(extra)} is no field of {self.card['model']};"
                f" its fields are {', '.join(each.name for each in self.inputs)}",
                field=extra[:MAX_TEXT],
                row=row,
            )
        return values, warnings

    def score(self, records: list[dict[str, float | int | str | None]]) -> list[float]:
        """Return P(positive) of each record, as the double of the float32 that ONNX gives."""
        feeds = {}
        for name, kind, missing in self._feeds:
            # Nested as the model takes it: a reshape would cost as much as the array.
            column = [
                (missing if (value := record[name]) is None else value,) for record in records
            ]
            feeds[name] = np.array(column, dtype=kind)
        scores = self.session.run([self.output], feeds)[0]
        return scores[:, 1].astype(np.float64).tolist()


def code_digest(folder: Path) -> str:
    """Return a digest of the code of a payload; another digest asks for new workers."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
