"""Whatever a caller sends, the answer is a prediction or a 4xx that names what is wrong."""

from __future__ import annotations

import gzip
import socket
from typing import Any

import orjson
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops.serving.client import ApiError, PredictClient
from tests.fixtures.predict import PredictServer, exported


@pytest.fixture
def record(lone_api: PredictServer) -> dict[str, Any]:
    return lone_api.reference()


def error_of(response: requests.Response) -> dict[str, Any]:
    assert response.headers["Content-Type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "field", "row", "message"}
    assert error["message"]
    return error


def test_runs_alone_and_says_that_it_logs_nothing(lone_api: PredictServer) -> None:
    health = requests.get(f"{lone_api.url}/health", timeout=10).json()
    assert health["status"] == "ok"
    assert health["log"] == {"enabled": False, "pending": 0}
    assert "NOT logged" in lone_api.output
    assert not lone_api.spool.exists()


def test_answers_one_record_and_lists(lone_api: PredictServer, record: dict[str, Any]) -> None:
    one = lone_api.post(record).json()
    assert set(one) == {"request_id", "version", "predictions"}
    assert len(one["request_id"]) == 32
    assert [set(each) for each in one["predictions"]] == [{"probability", "decision", "warnings"}]
    many = lone_api.post([record] * 10_000)
    assert many.status_code == 200
    # A matrix of one row may be multiplied in another order than one of many: a float32's last bit.
    predictions = many.json()["predictions"]
    probabilities = {each.pop("probability") for each in predictions}
    assert len(probabilities) == 1
    assert probabilities.pop() == pytest.approx(one["predictions"][0].pop("probability"), abs=1e-6)
    assert predictions == one["predictions"] * 10_000


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "wrong_json"),
        (b"{", "wrong_json"),
        (b'{"age": NaN}', "wrong_json"),
        (b'{"age": Infinity}', "wrong_json"),
        (b'{"age": 1e999}', "wrong_json"),
        (b'{"age": "\\ud800"}', "wrong_json"),
        (b"\xff\xfe{}", "wrong_json"),
        (b"[" * 5000 + b"]" * 5000, "wrong_json"),
        (b"age=40", "wrong_json"),
    ],
)
def test_refuses_what_is_no_json(lone_api: PredictServer, body: bytes, code: str) -> None:
    response = lone_api.post(body)
    assert response.status_code == 400
    assert error_of(response)["code"] == code


@pytest.mark.parametrize("body", [1, "text", None, True, [1], ["text"], [None], [[]], [[{}]]])
def test_refuses_json_that_is_no_record(lone_api: PredictServer, body: Any) -> None:
    error = error_of(lone_api.post(orjson.dumps(body)))
    assert (error["code"], error["row"]) == ("wrong_type", 0)


def test_refuses_an_empty_list_and_too_many_records(
    lone_api: PredictServer, record: dict[str, Any]
) -> None:
    empty = lone_api.post([])
    assert (empty.status_code, error_of(empty)["code"]) == (422, "empty")
    many = lone_api.post([record] * 10_001)
    assert (many.status_code, error_of(many)["code"]) == (413, "too_many_records")


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("age", "40", "wrong_type"),
        ("age", True, "wrong_type"),
        ("age", [40], "wrong_type"),
        ("age", {"value": 40}, "wrong_type"),
        ("age", 40.5, "wrong_type"),
        ("age", 1e300, "out_of_range"),
        ("age", -(10**200), "out_of_range"),
        ("job", 3, "wrong_type"),
        ("job", False, "wrong_type"),
        ("job", ["admin."], "wrong_type"),
        ("job", "x" * 257, "too_long"),
        ("job", "a\x00b", "wrong_type"),
    ],
)
def test_names_field_and_row_of_a_wrong_value(
    lone_api: PredictServer, record: dict[str, Any], field: str, value: Any, code: str
) -> None:
    response = lone_api.post([record, {**record, field: value}])
    assert response.status_code == 422
    error = error_of(response)
    assert (error["code"], error["field"], error["row"]) == (code, field, 1)
    assert field in error["message"]


def test_names_missing_and_unknown_fields(lone_api: PredictServer, record: dict[str, Any]) -> None:
    without = {name: value for name, value in record.items() if name != "age"}
    error = error_of(lone_api.post([record, record, without]))
    assert (error["code"], error["field"], error["row"]) == ("missing_field", "age", 2)
    for extra in ("duration", "y" * 1000, "", "\x00", "<script>"):
        error = error_of(lone_api.post({**record, extra: 1}))
        assert (error["code"], error["field"], error["row"]) == ("unknown_field", extra[:256], 0)
    error = error_of(lone_api.post({**without, "Age": 40}))
    assert (error["code"], error["field"]) == ("missing_field", "age")


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"X_Period": "2009"}, "X-Period"),
        ({"X_Period": "2009-13"}, "X-Period"),
        ({"X_Period": "0000-01"}, "X-Period"),
        ({"X_Period": "2009-01-01"}, "X-Period"),
        ({"X_Purpose": "training"}, "X-Purpose"),
        ({"X_Request_Id": "a b"}, "X-Request-Id"),
        ({"X_Request_Id": ""}, "X-Request-Id"),
        ({"X_Request_Id": "x" * 129}, "X-Request-Id"),
        ({"X_Request_Id": "'; DROP TABLE"}, "X-Request-Id"),
    ],
)
def test_names_a_wrong_header(
    lone_api: PredictServer, record: dict[str, Any], headers: dict[str, str], field: str
) -> None:
    response = lone_api.post(record, **headers)
    assert response.status_code == 400
    assert error_of(response)["field"] == field


def test_refuses_other_types_methods_and_paths(
    lone_api: PredictServer, record: dict[str, Any]
) -> None:
    assert lone_api.post(orjson.dumps(record), Content_Type="text/plain").status_code == 415
    assert lone_api.post(orjson.dumps(record), Content_Encoding="gzip").status_code == 415
    got = requests.get(f"{lone_api.url}/predict", timeout=10)
    assert (got.status_code, error_of(got)["code"]) == (405, "method_not_allowed")
    assert "POST" in got.headers["Allow"]
    for path in ("/", "/nothing", "/predict/", "/../etc/passwd", "/%00"):
        lost = requests.get(lone_api.url + path, timeout=10)
        assert (lost.status_code, error_of(lost)["code"]) == (404, "not_found")


@pytest.mark.parametrize("chunked", [False, True])
def test_refuses_a_body_over_10_mb(lone_api: PredictServer, chunked: bool) -> None:
    body = b" " * (10 * 1024 * 1024 + 1)
    data = (body[start : start + 65536] for start in range(0, len(body), 65536))
    response = requests.post(
        f"{lone_api.url}/predict",
        data=data if chunked else body,
        headers={"Content-Type": "application/json"},
        timeout=30,
    )
    assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nZZ\r\n{}\r\n",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Content-Length: abc\r\nConnection: close\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ],
)
def test_survives_broken_http(lone_api: PredictServer, raw: bytes) -> None:
    host, port = lone_api.settings.host, lone_api.settings.predict_port
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert not answer or answer.split()[1].startswith(b"4"), answer
    assert requests.get(f"{lone_api.url}/health", timeout=10).ok


def test_answers_the_unusual_and_warns_of_it(
    lone_api: PredictServer, record: dict[str, Any]
) -> None:
    unusual = {**record, "job": "astronaut", "age": 4000}
    warnings = lone_api.post([record, unusual]).json()["predictions"]
    assert warnings[0]["warnings"] == []
    assert [(each["field"], each["value"]) for each in warnings[1]["warnings"]] == [
        ("age", 4000),
        ("job", "astronaut"),
    ]
    assert all(each["field"] in each["message"] for each in warnings[1]["warnings"])


def test_warns_of_no_month_that_has_come_since(
    lone_api: PredictServer, record: dict[str, Any]
) -> None:
    card, *_ = exported(0)
    calendar = {each.name: each.kind for each in card.features if not each.drift}
    assert calendar
    later = {name: 4000 if kind == "number" else "later" for name, kind in calendar.items()}
    answered = lone_api.post({**record, **later}).json()["predictions"][0]
    assert answered["warnings"] == []


def test_reads_null_and_the_cards_markers_as_missing(
    lone_api: PredictServer, record: dict[str, Any]
) -> None:
    card, *_ = exported(0)
    absent = lone_api.post({**record, "job": None, "pdays": None}).json()["predictions"][0]
    assert absent["warnings"] == []
    for job, pdays in (("unknown", -1), ("", -1.0), ("NaN", "-1")):
        marked = lone_api.post({**record, "job": job, "pdays": pdays})
        assert marked.json()["predictions"][0] == absent
    nothing = dict.fromkeys(card.feature_names)
    assert lone_api.post(nothing).status_code == 200


def test_client_raises_what_the_api_says(lone_api: PredictServer, record: dict[str, Any]) -> None:
    with PredictClient(lone_api.url) as client, pytest.raises(ApiError, match="age") as caught:
        client.predict([record, {**record, "age": "old"}])
    assert (caught.value.status, caught.value.code) == (422, "wrong_type")
    assert (caught.value.field, caught.value.row) == ("age", 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_never_fails_whatever_the_json(lone_api: PredictServer, data: st.DataObject) -> None:
    typical = lone_api_reference(lone_api)
    changed = st.dictionaries(st.sampled_from(sorted(typical)), JSON, max_size=4)
    body = data.draw(
        JSON
        | changed.map(lambda values: {**typical, **values})
        | st.lists(changed.map(lambda values: {**typical, **values}), max_size=4)
    )
    try:
        raw = orjson.dumps(body)  # a NaN becomes null
    except (TypeError, orjson.JSONEncodeError):  # lone surrogates
        raw = str(body).encode("utf-8", "surrogatepass")
    response = lone_api.post(raw)
    assert response.status_code < 500, response.text
    if response.ok:
        assert all(0 <= each["probability"] <= 1 for each in response.json()["predictions"])
    else:
        error_of(response)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.binary(max_size=200))
def test_never_fails_whatever_the_bytes(lone_api: PredictServer, body: bytes) -> None:
    assert lone_api.post(body).status_code < 500


_references: dict[str, dict[str, Any]] = {}


def lone_api_reference(server: PredictServer) -> dict[str, Any]:
    return _references.setdefault(server.url, server.reference())


def test_an_address_that_is_none_and_a_method_that_it_does_not_take_say_what_there_is(
    lone_api: PredictServer,
) -> None:
    absent = requests.get(f"{lone_api.url}/", timeout=10)
    assert (absent.status_code, "/docs" in absent.json()["error"]["message"]) == (404, True)
    asked = requests.get(f"{lone_api.url}/predict", timeout=10)
    assert (asked.status_code, "POST" in asked.json()["error"]["message"]) == (405, True)


def test_a_packed_file_that_is_not_said_to_be_one_gets_the_way_out(lone_api: PredictServer) -> None:
    answer = requests.post(
        f"{lone_api.url}/predict/batch",
        data=gzip.compress(b"age,job\n1,clerk\n" * 1000),
        headers={"Content-Type": "text/csv"},
        timeout=10,
    )
    assert answer.status_code == 415
    assert "Content-Encoding: gzip" in answer.json()["error"]["message"]
