"""The predict API: answers questions to one ONNX model, and logs each answer before it is sent.

Self-contained: it is copied into every payload, runs from there under gunicorn (gunicorn.conf.py)
on flask, numpy, onnxruntime, orjson, prometheus_client, psycopg2 and pyarrow alone, and knows the
model only through `model.json` and `model.onnx` beside it. It never unpickles, never trains, and
never writes into its payload.

- A `Model` is loaded and tried before it answers anybody; `Service` swaps one reference.
- A `PredictionLog` appends every answer to a spool on disk before it is sent, and ships the spool
  to Postgres. What cannot be logged is refused with 503: the monitor misses no answer.
- Every fault of a caller is a 4xx whose JSON names the field and the row.

Environment, read when a worker starts:

- MLOPS_PREDICT_DB_PASSWORD with MLOPS_POSTGRES_{HOST,PORT,SSLMODE}, or PREDICT_LOG_DSN, name the
  log's database; neither: answers are not logged, and /health says so.
- MLOPS_STATE_DIR holds the spool, bounded by MLOPS_SPOOL_MAX_MB, files while they are scored, and
  the counters of /metrics.
- MLOPS_PREDICT_{API_KEY,RATE_LIMIT,RATE_BURST,MAX_RECORDS,MAX_BODY_MB,BATCH_MAX_MB,BODY_TIMEOUT_S}
  are the limits (predictor/limits.py); MLOPS_PREDICT_ACCESS_LOG says which requests get a line.
- gunicorn.conf.py reads MLOPS_HOST and MLOPS_PREDICT_{PORT,WORKERS}.
"""

from __future__ import annotations

import logging
import os
import runpy
from pathlib import Path
from typing import Any

import orjson
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from predictor import metrics, observer
from predictor.errors import PayloadError, RequestError, internal_error
from predictor.guard import Guard
from predictor.logs import AccessLog
from predictor.page import POLICY, docs_page
from predictor.quick import SECURITY_HEADERS, QuickPath
from predictor.service import Service
from predictor.uploads import score_file

logger = logging.getLogger("predict")


def _json(body: Any, status: int = 200) -> Response:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return Response(content, status=status, mimetype="application/json")


def _refused(fault: RequestError) -> Response:
    request.environ[observer.CODE] = fault.code
    response = _json(fault.body(), fault.status)
    response.headers.extend(fault.headers())
    return response


def create_app(service: Service) -> Flask:
    """Return the Flask app that answers for `service`."""
    app = Flask("predict", static_folder=None)

    @app.get("/health")
    def health() -> Response:
        return _json(service.health())

    @app.get("/ready")
    def ready() -> Response:
        return _json(*service.ready())

    @app.get("/metrics")
    def prometheus() -> Response:
        return Response(service.exposition(), content_type=metrics.CONTENT_TYPE)

    @app.get("/model")
    def model() -> Response:
        return _json(service.card())

    @app.get("/openapi.json")
    def openapi() -> Response:
        return _json(service.description())

    @app.get("/docs")
    def docs() -> Response:
        page = Response(docs_page(service.description()), content_type="text/html; charset=utf-8")
        page.headers["Content-Security-Policy"] = POLICY
        page.headers["Referrer-Policy"] = "no-referrer"
        return page

    @app.post("/predict")  # answered before it gets here, by QuickPath; Flask refuses other methods
    def predict() -> Response:
        return _json(service.predict(request.environ))

    @app.post("/predict/batch")
    def batch() -> Response:
        state = service.environment.get("MLOPS_STATE_DIR")
        return score_file(service.loaded(), service.log, service.limits, state)

    @app.post("/explain")
    def explain() -> Response:
        return _json(service.explain(request.environ))

    app.register_error_handler(RequestError, _refused)

    @app.errorhandler(HTTPException)
    def http_error(fault: HTTPException) -> Response:
        code = fault.name.lower().replace(" ", "_")
        allowed = ", ".join(sorted(getattr(fault, "valid_methods", None) or ()))
        way_out = f"it takes {allowed}" if allowed else "GET /docs lists what there is"
        message = f"{request.method} {request.path[:200]}: {fault.name}; {way_out}"
        response = _refused(RequestError(code, message, fault.code or 400))
        for name, value in fault.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def bug(fault: Exception) -> Response:
        logger.exception("unexpected fault", extra={"request_id": request.environ.get(observer.ID)})
        return _refused(internal_error())

    @app.after_request
    def secure(response: Response) -> Response:
        response.headers.extend(SECURITY_HEADERS)
        return response

    access_log = AccessLog(service.environment.get("MLOPS_PREDICT_ACCESS_LOG") or "errors")
    routes = [rule.rule for rule in app.url_map.iter_rules()]
    quick = QuickPath(app.wsgi_app, service)
    guarded = Guard(quick, service.limits)
    app.wsgi_app = observer.Observer(guarded, routes, access_log)
    return app


# gunicorn runs `app`; its configuration starts and stops `service` in each worker.
service = Service(
    Path(os.environ.get("PREDICT_PAYLOAD") or Path(__file__).absolute().parent), dict(os.environ)
)
app = create_app(service)


def check() -> str:
    """Prove over its own API that this payload runs; return its version, raise if it does not."""
    here = Path(__file__).resolve().parent
    runpy.run_path(str(here / "gunicorn.conf.py"))
    trial = Service(here, {})
    trial.load()
    client = create_app(trial).test_client()
    reference = orjson.dumps(trial.loaded().card["reference"])
    answer = client.post("/predict", data=reference, content_type="application/json")
    health = client.get("/health")
    if answer.status_code != 200 or health.status_code != 200:
        raise PayloadError(f"it answers {answer.status_code} to its own reference: {answer.text}")
    return trial.loaded().version


if __name__ == "__main__":
    print(f"version {check()} runs")
