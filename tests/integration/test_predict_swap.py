"""A new version takes over without failing a request; a broken one never answers."""

from __future__ import annotations

import threading

import requests

from mlops.serving.client import PredictClient
from mlops.serving.payload import switch_current
from tests.fixtures.predict import PredictServer, await_, exported, make_payload


def test_answers_as_the_model_that_it_was_given(predict_server: PredictServer) -> None:
    card, frame, pipeline, _ = exported(0)
    with PredictClient(predict_server.url) as client:
        health, model = client.health(), client.model()
        records = frame[card.feature_names].where(frame[card.feature_names].notna(), None)
        answer = client.predict(records.to_dict("records"))
    assert health["version"] == model["version"] == answer["version"] == "1"
    expected = pipeline.predict_proba(frame[card.feature_names])[:, 1]
    found = [each["probability"] for each in answer["predictions"]]
    assert max(abs(expected - found)) < 1e-5
    decisions = [each["decision"] for each in answer["predictions"]]
    assert decisions == ["yes" if p >= model["threshold"] else "no" for p in found]
