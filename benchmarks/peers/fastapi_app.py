"""FastAPI round a sklearn pipeline, as its tutorial would write it; uvicorn runs it."""

from __future__ import annotations

from fastapi import FastAPI

from benchmarks.peers.records import Record, load_pipeline, score

app = FastAPI()
pipeline = load_pipeline()


@app.post("/predict")
def predict(records: list[Record]) -> dict[str, list[float]]:
    """Return the probability of each record."""
    return {"probabilities": score(pipeline, records)}
