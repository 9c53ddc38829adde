"""What the peers with sklearn share: the pipeline, and its frame from a caller's records."""

from __future__ import annotations

import os
from typing import Any

import joblib
import numpy as np
import pandas as pd
from pydantic import BaseModel

from benchmarks.bodies import TEXTS


class Record(BaseModel):
    """A customer of Bank Marketing; null is missing."""

    age: float | None
    job: str | None
    balance: float | None
    housing: str | None
    contact: str | None
    day: float | None
    month: str | None
    campaign: float | None
    pdays: float | None
    previous: float | None
    poutcome: str | None


NAMES = list(Record.model_fields)


def load_pipeline() -> Any:
    """Return the pipeline of this run, which the benchmark itself has written."""
    return joblib.load(os.environ["BENCHMARK_PIPELINE"])


def score(pipeline: Any, records: list[Record]) -> list[float]:
    """Return the probability of the positive answer for each record."""
    columns = {name: [getattr(record, name) for record in records] for name in NAMES}
    frame = pd.DataFrame(
        {
            name: [value or "" for value in values]
            if name in TEXTS
            else np.array(values, dtype=np.float32)
            for name, values in columns.items()
        }
    )
    probabilities: list[float] = pipeline.predict_proba(frame)[:, 1].tolist()
    return probabilities
