"""A list of records, read and scored by columns: as one by one, in two thirds of the time.

It decides nothing: what is wrong, or not certain, is read again by `Model.read`, which says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from predictor.batch import score
from predictor.columns import ABSENT, Column, from_objects
from predictor.model import Model

FEW = 32
"""Fewer records are read one by one: columns cost some 200 microseconds before the first row."""

Read = tuple[dict[str, Any], list[dict[str, Any]]]


def read_and_score(model: Model, records: list[Any]) -> tuple[list[Read], list[float]]:
    """Return what `Model.read` gives for each record, and each one's P(positive).

    Raises RequestError for the first record that is wrong. Records are changed: what counts as
    missing becomes None.
    """
    columns = _columns(model, records) if len(records) >= FEW else None
    if columns is None:
        read = [model.read(record, row) for row, record in enumerate(records)]
        return read, model.score([record for record, _ in read])
    warnings: list[list[dict[str, Any]]] = [[] for _ in records]
    for each, column in zip(model.inputs, columns, strict=True):
        if column.missing.any():
            for row in np.flatnonzero(column.missing[column.codes]).tolist():
                records[row][each.name] = None
        if column.unusual.any():
            for row in np.flatnonzero(column.unusual[column.codes]).tolist():
                value = records[row][each.name]
                warnings[row].append(
                    {"field": each.name, "value": value, "message": each.warn(value)}
                )
    scores = score(model, columns, [column.codes for column in columns])
    return list(zip(records, warnings, strict=True)), scores.tolist()


def _columns(model: Model, records: list[Any]) -> list[Column] | None:
    """Return the records' columns, or None if any of them might be wrong."""
    if set(map(type, records)) != {dict}:
        return None
    if not model.names.issuperset(set().union(*records)):
        return None
    columns = [
        from_objects(each, [record.get(each.name, ABSENT) for record in records])
        for each in model.inputs
    ]
    return columns if all(column.good.all() for column in columns) else None
