"""The API described for machines: OpenAPI 3.1, made from the `model.json` that answers.

What a schema bounds is what is refused; ranges and values of the training are documentation, since
what is unusual is answered. `page` makes a page for people of it.
"""

from __future__ import annotations

from typing import Any

from predictor.limits import Limits
from predictor.model import FLOAT32_MAX, MAX_TEXT

Json = dict[str, Any]

_FILES = {
    "text/csv": "CSV: a line of names, then a row a line.",
    "application/x-ndjson": "NDJSON: a record a line.",
    "application/vnd.apache.parquet": "Parquet: a column a field.",
}

CODES: dict[str, tuple[int, str]] = {
    "wrong_json": (400, "the body is no JSON; NaN and Infinity are none"),
    "unreadable_body": (400, "the body broke off, or its chunks or its packing are broken"),
    "wrong_header": (400, "a header of this API cannot be read"),
    "wrong_http": (400, "the request is no HTTP, or none that is read here"),
    "wrong_gzip": (400, "a file is no gzip, or breaks off"),
    "unauthorized": (401, "no API key, or a wrong one"),
    "not_found": (404, "no such address"),
    "method_not_allowed": (405, "another method; `Allow` names those that there are"),
    "too_slow": (408, "the request was not there in time"),
    "headers_too_large": (431, "more headers than are read"),
    "address_too_long": (414, "a longer address than is read"),
    "body_too_large": (413, "more bytes than are read"),
    "too_many_records": (413, "more records than are answered at once"),
    "wrong_content_type": (415, "another type of body"),
    "wrong_encoding": (415, "the body is packed in a way that is not read here"),
    "missing_field": (422, "a field is not there; `null` says that its value is unknown"),
    "unknown_field": (422, "a field that the model does not have"),
    "wrong_type": (422, "a value of another type; a number as text is one"),
    "too_long": (422, f"a text of more than {MAX_TEXT} characters"),
    "out_of_range": (422, "a number that a float32 does not hold"),
    "empty": (422, "a list without a record"),
    "not_one_record": (422, "a list, where one record is explained"),
    "too_many_differences": (422, "more fields than can be explained exactly are not typical"),
    "reserved_field": (422, "a file has a column that the answer adds"),
    "wrong_row": (422, "rows of a file cannot be told apart"),
    "wrong_parquet": (422, "a file is no Parquet"),
    "too_many_rejected": (422, "hardly a row of a file can be scored"),
    "busy": (429, "other files are being scored"),
    "rate_limited": (429, "over the client's rate; `Retry-After` says when to come again"),
    "internal": (500, "a fault of this server; its log has the details"),
    "no_room": (503, "a file cannot be kept while it is scored"),
    "log_unavailable": (503, "the answer could not be logged, so it was not given"),
}
"""Codes of errors: status, and when."""

_HEADERS: dict[str, Json] = {
    "RequestId": {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Names the request; a repeat of it is not logged twice. Default: made up.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"},
        "example": "order-4711",
    },
    "Period": {
        "name": "X-Period",
        "in": "header",
        "description": "The month that the request belongs to. Default: this one.",
        "schema": {
            "type": "string",
            "pattern": "^[1-9][0-9]{3}-(0[1-9]|1[0-2])$",
            "examples": ["2009-03"],
        },
    },
    "Purpose": {
        "name": "X-Purpose",
        "in": "header",
        "description": "Only live and simulated requests are watched for drift.",
        "schema": {"type": "string", "enum": ["live", "simulation", "test"], "default": "live"},
    },
}

_FACTS: Json = {"request_id": {"type": "string"}, "version": {"type": "string"}}
"""Of every answer about records."""


def describe(card: Json, limits: Limits) -> Json:
    """Return the OpenAPI document of the API while `card` (model.json) answers."""
    target = card["target"]
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": f"{card.get('title') or card['model']}: predict API",
            "version": str(card["version"]),
            "summary": target.get("question") or f"Is {target['name']} {target['positive']}?",
            "description": " ".join(
                [
                    card.get("description") or "",
                    f"Version {card['version']} answers {target['positive']!r} from a probability"
                    f" of {card['threshold']:g} on. What is unusual is answered, with a warning.",
                ]
            ).strip(),
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "Predict", "description": "Questions to the model."},
            {"name": "Model", "description": "What answers, and how to ask."},
            {"name": "Operate", "description": "For machines that watch; never asked for a key."},
        ],
        "paths": _paths(card, limits),
        "components": {
            "schemas": {
                "Record": _record(card),
                "Prediction": _prediction(card),
                "Warning": _warning(),
                "Error": _error(),
            },
            "parameters": _HEADERS,
            "headers": {
                "X-Request-Id": {
                    "description": "That of the request, or the one that it was given.",
                    "schema": {"type": "string"},
                },
                "Retry-After": {
                    "description": "Seconds after which to come again.",
                    "schema": {"type": "integer", "minimum": 1},
                },
                "WWW-Authenticate": {
                    "description": "What kind of key is asked for.",
                    "schema": {"type": "string"},
                },
            },
            "responses": _refusals(),
        },
    }
    if limits.api_key:
        document["security"] = [{"key": []}]
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "The key of this API."}
        }
    return document


def _record(card: Json) -> Json:
    fields = card["inputs"]
    return {
        "type": "object",
        "title": "Record",
        "description": "One customer, as the model takes it."
        if not card.get("title")
        else f"One row of {card['title']}, as the model takes it.",
        "additionalProperties": False,
        "required": [each["name"] for each in fields if each.get("required", True)],
        "properties": {each["name"]: _field(each, card) for each in fields},
        "examples": [card["reference"]],
    }


def _field(field: Json, card: Json) -> Json:
    """Return the schema of a field: what is taken, and what was seen in training as words."""
    markers = sorted({str(each) for each in [*card.get("missing", []), *field.get("missing", [])]})
    number = field["kind"] == "number"
    words = [field.get("description") or field["name"]]
    if field.get("unit"):
        words[0] += f" ({field['unit']})"
    known: Json = {}
    if number and field.get("min") is not None:
        known = {"minimum": field["min"], "maximum": field["max"], "median": field.get("median")}
        words.append(f"In training {field['min']:g} to {field['max']:g}")
    elif field.get("values"):
        known = {"values": field["values"]}
        shown = field["values"][:40]
        more = len(field["values"]) - len(shown)
        words.append(f"In training {', '.join(shown)}{f' and {more} more' if more else ''}")
    if known and not field.get("warn", True):
        words.append("Others are no news, and get no warning")
    words.append(f"Missing: null{''.join(f', {text!r}' for text in markers)}")
    schema: Json = {"description": ". ".join(words) + "."}
    if number:
        schema["anyOf"] = [
            {
                "type": "integer" if field.get("integer") else "number",
                "minimum": -FLOAT32_MAX,
                "maximum": FLOAT32_MAX,
            },
            {"type": "null"},
            *([{"type": "string", "enum": markers}] if markers else []),
        ]
    else:
        schema |= {"type": ["string", "null"], "maxLength": MAX_TEXT, "pattern": "^[^\\u0000]*$"}
    if field.get("unit"):
        schema["x-unit"] = field["unit"]
    schema["x-missing"] = markers
    schema["x-training"] = known
    schema["examples"] = [card["reference"][field["name"]]]
    return schema


def _prediction(card: Json) -> Json:
    target = card["target"]
    return {
        "type": "object",
        "required": ["probability", "decision", "warnings"],
        "additionalProperties": False,
        "properties": {
            "probability": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": f"Of {target['name']} being {target['positive']}.",
            },
            "decision": {
                "enum": [str(target["negative"]), str(target["positive"])],
                "description": f"{target['positive']} from a probability of"
                f" {card['threshold']:g} on.",
            },
            "warnings": {"type": "array", "items": {"$ref": "#/components/schemas/Warning"}},
        },
    }


def _warning() -> Json:
    return {
        "type": "object",
        "description": "What is unusual about a value that was answered all the same.",
        "required": ["field", "value", "message"],
        "additionalProperties": False,
        "properties": {
            "field": {"type": "string"},
            "value": {"type": ["string", "number"]},
            "message": {"type": "string"},
        },
    }


def _error() -> Json:
    return {
        "type": "object",
        "required": ["error"],
        "additionalProperties": False,
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "field", "row", "message"],
                "additionalProperties": False,
                "properties": {
                    "code": {"type": "string", "examples": list(CODES)},
                    "field": {
                        "type": ["string", "null"],
                        "description": "The field or header that is wrong.",
                    },
                    "row": {
                        "type": ["integer", "null"],
                        "minimum": 0,
                        "description": "The record that is wrong, counted from 0.",
                    },
                    "message": {"type": "string", "minLength": 1},
                },
            }
        },
    }


def _refusals() -> Json:
    """Return a response for each status that refuses: its codes, and an example."""
    responses: Json = {}
    for status in sorted({status for status, _ in CODES.values()}):
        codes = {code: when for code, (its, when) in CODES.items() if its == status}
        headers = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
        if status in (429, 503):
            headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
        if status == 401:
            headers["WWW-Authenticate"] = {"$ref": "#/components/headers/WWW-Authenticate"}
        responses[str(status)] = {
            "description": "; ".join(f"`{code}`: {when}" for code, when in codes.items()) + ".",
            "headers": headers,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/Error"},
                    "examples": {
                        code: {
                            "value": {
                                "error": {"code": code, "field": None, "row": None, "message": when}
                            }
                        }
                        for code, when in codes.items()
                    },
                }
            },
        }
    return responses


def _paths(card: Json, limits: Limits) -> Json:
    guarded = [*([401] if limits.api_key else []), *([429] if limits.rate else [])]
    asked = [400, 408, 413, 415, 422, 500, *guarded]
    told = [500, *guarded]
    return {
        "/predict": _predict(card, limits, [*asked, 503]),
        "/predict/batch": _batch(limits, [*{*asked, 429, 503}]),
        "/explain": _explain(card, asked),
        "/model": _model(told),
        "/openapi.json": _openapi(told),
        "/docs": _docs(told),
        "/health": _health(),
        "/ready": _ready(),
        "/metrics": _metrics(),
    }


def _predict(card: Json, limits: Limits, refusals: list[int]) -> Json:
    record = {"$ref": "#/components/schemas/Record"}
    decisions = _prediction(card)["properties"]["decision"]["enum"]
    example = {
        "request_id": "5f37fcff25004e988d1288918a0cac3a",
        "version": str(card["version"]),
    }
    return _post(
        "predict",
        "Score records",
        f"One record, or a list of 1 to {limits.max_records:,}; JSON of at most"
        f" {limits.max_body_bytes >> 20} MB. Each answer is logged before it is sent.",
        _json_body(
            {
                "oneOf": [
                    record,
                    {
                        "type": "array",
                        "items": record,
                        "minItems": 1,
                        "maxItems": limits.max_records,
                    },
                ]
            },
            {"one": {"value": card["reference"]}, "list": {"value": [card["reference"]]}},
        ),
        _json_answer(
            _object(
                _FACTS
                | {
                    "predictions": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"$ref": "#/components/schemas/Prediction"},
                    }
                }
            ),
            "A prediction a record, in their order.",
            example
            | {
                "predictions": [
                    {
                        "probability": 0.12,
                        "decision": decisions[card["threshold"] <= 0.12],
                        "warnings": [],
                    }
                ]
            },
        ),
        refusals,
    )


def _batch(limits: Limits, refusals: list[int]) -> Json:
    return _post(
        "predictBatch",
        "Score a file",
        "CSV or NDJSON, also packed (`Content-Encoding: gzip`), or Parquet, of at most"
        f" {limits.batch_max_bytes >> 20} MB unpacked. `Accept` naming the type of the file"
        " gives the predictions alone. Bad rows are told with their lines, the others scored.",
        {
            "required": True,
            "content": {
                media: {"schema": {"type": "string", "format": "binary", "description": words}}
                for media, words in _FILES.items()
            },
        },
        {
            "description": "Three parts: `predictions` (as what came, each row with `row`,"
            " `probability`, `decision` and the number of its `warnings`), `rejected` (NDJSON:"
            " `line`, `field`, `code`, `message`), and `summary` (JSON), which comes last:"
            " without it the answer broke off.",
            "content": {
                media: {"schema": {"type": "string", "format": "binary"}}
                for media in ("multipart/mixed", *_FILES)
            },
        },
        refusals,
    )


def _explain(card: Json, refusals: list[int]) -> Json:
    record = {"$ref": "#/components/schemas/Record"}
    value = {"type": ["number", "string", "null"]}
    return _post(
        "explain",
        "Explain a score",
        "What each field of one record adds to its score, against the reference record: exact"
        " Shapley contributions, the largest first. It is logged nowhere.",
        _json_body(record, {"one": {"value": card["reference"]}}),
        _json_answer(
            _object(
                _FACTS
                | {
                    "probability": {"type": "number", "minimum": 0, "maximum": 1},
                    "reference_probability": {"type": "number", "minimum": 0, "maximum": 1},
                    "decision": _prediction(card)["properties"]["decision"],
                    "contributions": {
                        "type": "array",
                        "items": _object(
                            {
                                "field": {"type": "string"},
                                "value": value,
                                "reference": value,
                                "contribution": {"type": "number"},
                            }
                        ),
                    },
                    "warnings": _prediction(card)["properties"]["warnings"],
                }
            ),
            "Contributions, which sum to `probability - reference_probability`.",
        ),
        refusals,
    )


def _model(refusals: list[int]) -> Json:
    return _get(
        "model",
        "The model",
        "`model.json`: fields, ranges, values, threshold, metrics, window, run.",
        _json_answer(
            {
                "type": "object",
                "required": ["model", "version", "threshold", "target", "inputs", "reference"],
            },
            "The model that answers.",
        ),
        refusals,
    )


def _openapi(refusals: list[int]) -> Json:
    return _get(
        "openapi",
        "This description",
        "OpenAPI 3.1, made from the model that answers.",
        _json_answer({"type": "object", "required": ["openapi", "paths"]}, "OpenAPI 3.1."),
        refusals,
    )


def _docs(refusals: list[int]) -> Json:
    return _get(
        "docs",
        "This description, for people",
        "One page that needs nothing from elsewhere.",
        {
            "description": "A page.",
            "content": {"text/html": {"schema": {"type": "string"}}},
        },
        refusals,
    )


def _health() -> Json:
    return _operate(
        "health",
        "Is it alive?",
        "`degraded` with the reason if a new version could not be loaded; the old one answers.",
        _json_answer(
            _object(
                {
                    "status": {"enum": ["ok", "degraded"]},
                    "version": {"type": "string"},
                    "pid": {"type": "integer"},
                    "workers": {"type": "integer"},
                    "load_error": {"type": ["string", "null"]},
                    "log": {
                        "type": "object",
                        "required": ["enabled", "pending"],
                        "properties": {
                            "enabled": {"type": "boolean"},
                            "pending": {"type": "integer", "description": "Rows on their way."},
                            "rejected": {"type": "integer"},
                            "error": {"type": ["string", "null"]},
                        },
                    },
                }
            ),
            "The worker that answers is alive.",
        ),
    )


def _ready() -> Json:
    return _operate(
        "ready",
        "Is it fit for traffic?",
        "Model loaded, and the log takes answers.",
        _json_answer(_readiness(), "Send requests."),
        {"503": _json_answer(_readiness(), "Send none: `reason` says why.")},
    )


def _metrics() -> Json:
    return _operate(
        "metrics",
        "Metrics",
        "For Prometheus, of all workers.",
        {
            "description": "Text format of Prometheus.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
    )


def _post(
    name: str, summary: str, text: str, body: Json, answer: Json, refusals: list[int]
) -> Json:
    """Return the path of a question to the model."""
    headers = [{"$ref": f"#/components/parameters/{each}"} for each in _HEADERS]
    operation = _operation(name, "Predict", summary, text, answer, refusals)
    return {"post": operation | {"parameters": headers, "requestBody": body}}


def _get(name: str, summary: str, text: str, answer: Json, refusals: list[int]) -> Json:
    """Return the path of something to know about the model."""
    return {"get": _operation(name, "Model", summary, text, answer, refusals)}


def _operate(name: str, summary: str, text: str, answer: Json, others: Json | None = None) -> Json:
    """Return the path of what is asked by machines that watch, without a key."""
    operation = _operation(name, "Operate", summary, text, answer, [500])
    operation["responses"] |= others or {}
    return {"get": operation | {"security": []}}


def _readiness() -> Json:
    return {
        "type": "object",
        "required": ["ready", "version"],
        "additionalProperties": False,
        "properties": {
            "ready": {"type": "boolean"},
            "version": {"type": "string"},
            "reason": {"type": "string"},
        },
    }


def _operation(
    name: str, tag: str, summary: str, text: str, answer: Json, refusals: list[int]
) -> Json:
    given = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    refused = {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(refusals)
    }
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "description": text,
        "responses": {"200": {**answer, "headers": given}, **refused},
    }


def _object(properties: Json) -> Json:
    return {
        "type": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


def _json_body(schema: Json, examples: Json) -> Json:
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "examples": examples}},
    }


def _json_answer(schema: Json, text: str, example: Json | None = None) -> Json:
    content: Json = {"schema": schema}
    if example is not None:
        content["example"] = example
    return {"description": text, "content": {"application/json": content}}
