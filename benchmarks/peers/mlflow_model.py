"""Writes the pipeline as an MLflow model: `python -m benchmarks.peers.mlflow_model FOLDER`."""

from __future__ import annotations

import sys

import mlflow
import pandas as pd

from benchmarks.bodies import TEXTS
from benchmarks.peers.records import NAMES, load_pipeline


def main(folder: str) -> None:
    """Save it with a signature, so that `mlflow models serve` checks what it is asked."""
    pipeline = load_pipeline()
    example = pd.DataFrame(
        {name: pd.Series(["a"] if name in TEXTS else [1.0]) for name in NAMES}
    ).astype({name: "float32" for name in NAMES if name not in TEXTS})
    signature = mlflow.models.infer_signature(example, pipeline.predict_proba(example))
    mlflow.sklearn.save_model(
        pipeline,
        folder,
        signature=signature,
        # The model is the benchmark's own; skops would refuse the XGBoost types.
        serialization_format="cloudpickle",
        pyfunc_predict_fn="predict_proba",
        pip_requirements=[],
    )


if __name__ == "__main__":
    main(sys.argv[1])
