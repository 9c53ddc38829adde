"""BentoML round a sklearn pipeline; `bentoml serve` runs it."""

from __future__ import annotations

import bentoml

from benchmarks.peers.records import Record, load_pipeline, score


@bentoml.service(workers=2)
class Classifier:
    """Two workers, no batching across requests: a request waits for nobody."""

    def __init__(self) -> None:
        self.pipeline = load_pipeline()

    @bentoml.api
    def predict(self, records: list[Record]) -> list[float]:
        """Return the probability of each record."""
        return score(self.pipeline, records)
