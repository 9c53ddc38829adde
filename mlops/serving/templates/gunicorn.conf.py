"""How gunicorn runs the predict API: `gunicorn -c payloads/current/gunicorn.conf.py`.

The code comes from the payload that `current` names when gunicorn starts or is reloaded (SIGHUP),
the model from the one that it names at any moment: a worker that is replaced in between imports
code that is known to run, even while `current` points at a broken payload.
"""

import mmap
import os
import sys
from pathlib import Path

_link = Path(__file__).absolute().parent
_folder = _link.resolve(strict=True)

sys.dont_write_bytecode = True  # a payload stays as it was rendered
_others = [path for path in sys.path if not (Path(path) / "model.onnx").exists()]
sys.path[:] = [str(_folder), *_others]  # after a reload the payload before this one is gone
for _name in [name for name in sys.modules if name.partition(".")[0] == "predictor"]:
    del sys.modules[_name]  # the master imports its worker class, and hands it on to workers
os.environ["PREDICT_PAYLOAD"] = str(_link)
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime 1.31 starts it when it is imported


class _NoPandas:
    """Hides pandas, which pyarrow would import in a request: seconds of nobody answered."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name == "pandas":
            raise ModuleNotFoundError("the predict API does without", name=name)


if not any(type(finder).__name__ == _NoPandas.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _NoPandas())  # once, however often it is reloaded

# Shared by the master and every worker it forks: the payload that answered last, for a worker that
# has to start while `current` is broken.
_last_good = mmap.mmap(-1, 4096)


def _remember(folder: Path) -> None:
    name = os.fsencode(folder)
    if len(name) < len(_last_good):
        _last_good[: len(name) + 1] = name + b"\0"


_remember(_folder)

# Where workers count for /metrics (predictor.metrics). Named before prometheus_client is imported,
# made when the master starts, and the same after a reload.
if os.environ.get("PREDICT_MASTER") != str(os.getpid()):
    os.environ["PREDICT_MASTER"] = str(os.getpid())
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = ""

from gunicorn import glogging  # noqa: E402

from predictor import limits, logs, metrics  # noqa: E402 - once their folder is on the path


class logger_class(glogging.Logger):  # type: ignore[misc]
    """gunicorn's messages as JSON; requests are logged by predictor.observer."""

    def _set_handler(self, log, output, fmt, stream=None):  # type: ignore[no-untyped-def]
        super()._set_handler(log, output, logs.JsonFormatter(), stream)

    def access(self, resp, req, environ, request_time):  # type: ignore[no-untyped-def]
        pass


# When each client may come next, shared by the workers; made anew, all full, by a reload.
_arrivals = limits.Arrivals()

wsgi_app = "predict:app"
bind = f"{os.environ.get('MLOPS_HOST', '127.0.0.1')}:{os.environ.get('MLOPS_PREDICT_PORT', '9696')}"
workers = int(os.environ.get("MLOPS_PREDICT_WORKERS", "2"))
worker_class = "predictor.worker.PredictWorker"
threads = 4
keepalive = 10
timeout = 60
# What has begun is finished, a file too (a million rows take some 10 s). Idle connections are
# closed long before (predictor.worker).
graceful_timeout = 30
max_requests = 0
preload_app = False
control_socket_disable = True
proc_name = "predict"
if os.path.isdir("/dev/shm"):  # noqa: S108, PTH112 - heartbeats belong in memory
    worker_tmp_dir = "/dev/shm"  # noqa: S108


def _open_metrics(server):  # type: ignore[no-untyped-def]
    if not os.environ["PROMETHEUS_MULTIPROC_DIR"]:
        state = os.environ.get("MLOPS_STATE_DIR")
        folder = metrics.open_folder(Path(state) / "metrics" if state else None)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


on_starting = on_reload = _open_metrics


def child_exit(server, worker):  # type: ignore[no-untyped-def]
    metrics.retire_workers(set(server.WORKERS))


def on_exit(server):  # type: ignore[no-untyped-def]
    if os.environ["PROMETHEUS_MULTIPROC_DIR"]:
        metrics.close_folder(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))


def post_worker_init(worker):  # type: ignore[no-untyped-def]
    import predict

    logs.configure(worker.log.error_log)
    last = Path(os.fsdecode(_last_good[:].split(b"\0", 1)[0]))
    predict.service.start(
        workers=worker.cfg.workers, fallback=last, last_good=_remember, arrivals=_arrivals
    )


def worker_exit(server, worker):  # type: ignore[no-untyped-def]
    if "predict" in sys.modules:
        sys.modules["predict"].service.stop()
