"""/explain over HTTP: it says why, agrees with /predict, and refuses what that refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
import requests

from mlops.database import connect
from mlops.serving.client import ApiError, PredictClient
from mlops.settings import Settings
from tests.fixtures.predict import PredictServer


def post(server: PredictServer, body: Any, **headers: str) -> requests.Response:
    named = {"Content-Type": "application/json"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return requests.post(f"{server.url}/explain", data=content, headers=named, timeout=30)


def unusual(record: dict[str, Any]) -> dict[str, Any]:
    """Return the reference record with a few values that it does not have."""
    return {**record, "age": 77, "job": "green", "housing": "never seen", "contact": None}


def test_explains_the_prediction_that_predict_gives(lone_api: PredictServer) -> None:
    reference = lone_api.reference()
    record = unusual(reference)
    answer = post(lone_api, record, X_Request_Id="why-1").json()
    assert list(answer) == [
        *("request_id", "version", "probability", "reference_probability", "decision"),
        *("contributions", "warnings"),
    ]
    assert (answer["request_id"], answer["version"]) == ("why-1", "1")
    predicted, typical = lone_api.post([record, reference]).json()["predictions"]
    assert answer["probability"] == pytest.approx(predicted["probability"], abs=1e-6)
    assert answer["reference_probability"] == pytest.approx(typical["probability"], abs=1e-6)
    assert (answer["decision"], answer["warnings"]) == (
        predicted["decision"],
        predicted["warnings"],
    )
    parts = {each["field"]: each for each in answer["contributions"]}
    assert set(parts) == set(record)
    for field, part in parts.items():
        assert (part["value"], part["reference"]) == (record[field], reference[field])
        if record[field] == reference[field]:
            assert part["contribution"] == 0
    assert sum(each["contribution"] for each in parts.values()) == pytest.approx(
        answer["probability"] - answer["reference_probability"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("change", "status", "code", "field"),
    [
        ({"age": "old"}, 422, "wrong_type", "age"),
        ({"shoe_size": 43}, 422, "unknown_field", "shoe_size"),
        ({"job": "x" * 300}, 422, "too_long", "job"),
    ],
)
def test_names_what_is_wrong_with_a_record(
    lone_api: PredictServer, change: dict[str, Any], status: int, code: str, field: str
) -> None:
    response = post(lone_api, {**lone_api.reference(), **change})
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["field"]) == (code, field)


def test_refuses_a_list_and_what_is_no_json(lone_api: PredictServer) -> None:
    record = lone_api.reference()
    for body in ([record], [record, record], []):
        response = post(lone_api, body)
        assert response.status_code == 422
        assert response.json()["error"]["code"] == "not_one_record"
        assert "one record" in response.json()["error"]["message"]
    assert post(lone_api, b"{").json()["error"]["code"] == "wrong_json"
    assert post(lone_api, record, X_Request_Id="a b").json()["error"]["code"] == "wrong_header"
    assert requests.get(f"{lone_api.url}/explain", timeout=10).status_code == 405


def test_client_explains_and_sends_nan_as_missing(lone_api: PredictServer) -> None:
    record = unusual(lone_api.reference())
    with PredictClient(lone_api.url) as client:
        answer = client.explain({**record, "age": np.float32("nan")})
        with pytest.raises(ApiError, match="age is") as caught:
            client.explain({**record, "age": "old"})
    assert next(e["value"] for e in answer["contributions"] if e["field"] == "age") is None
    assert (caught.value.code, caught.value.status) == ("wrong_type", 422)


def test_an_explanation_is_not_logged(predict_server: PredictServer, database: Settings) -> None:
    record = unusual(predict_server.reference())
    assert post(predict_server, record, X_Request_Id="explained").ok
    assert predict_server.post(record, X_Request_Id="predicted").ok
    predict_server.stop()  # which ships what is in the log
    with connect(settings=database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT request_id FROM serving.predictions")
        assert cursor.fetchall() == [("predicted",)]
