"""What Prometheus reads of this server: counters of all workers, kept in files that they share.

Each worker counts into mapped files of its own (prometheus_client's multiprocess mode), so that a
count is there at once and survives the kill of its worker; whoever is asked for `/metrics` adds all
files up. gunicorn's master makes the folder clean when it starts, and folds the files of a worker
that has left into one. Labels have few values each: routes, status and error codes of this API,
fields of the model, versions. It never sees a value of a field, and knows no Flask.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Set by gunicorn.conf.py before prometheus_client is imported; not set: one process counts."""

OTHER = "other"
BUCKETS = (
    *(0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds: one row takes some 0.3 ms, 10,000 rows some 0.1 s, a file of rows as long as it is."""

MOMENTARY = {
    "predict_log_pending_rows": "Answered rows that are not in Postgres yet.",
    "predict_log_rejected_rows": "Rows that Postgres refused for good, kept in spool/rejected.",
    "predict_log_spool_bytes": "Size of the spool, where answers wait for Postgres.",
    "predict_log_spool_limit_bytes": "Size at which requests are refused (MLOPS_SPOOL_MAX_MB).",
}
"""Gauges that are read when they are asked for, and what they mean."""

# Of this module's own: it is imported anew after a reload, in a process that had it before.
_registry = CollectorRegistry()
_requests = Counter(
    "predict_requests", "Requests answered.", ["route", "status"], registry=_registry
)
_seconds = Histogram(
    "predict_request_duration_seconds",
    "From the request's arrival at the application until its answer is complete.",
    ["route"],
    buckets=BUCKETS,
    registry=_registry,
)
_rows = Counter("predict_rows", "Rows scored.", ["route", "version"], registry=_registry)
_errors = Counter(
    "predict_errors", "Requests refused, by the code in the answer.", ["code"], registry=_registry
)
_unusual = Counter(
    "predict_input_unusual",
    "Values that the fitting data did not hold: unseen, out_of_range or missing.",
    ["field", "kind"],
    registry=_registry,
)
_loads = Counter(
    "predict_model_loads",
    "Attempts of a worker to take a payload: loaded or failed.",
    ["outcome"],
    registry=_registry,
)
_logged = Counter(
    "predict_log_rows",
    "Logged rows that have left the spool: shipped to Postgres, or rejected by it.",
    ["outcome"],
    registry=_registry,
)
_workers = Gauge(
    "predict_workers",
    "Workers that answer with this version.",
    ["model", "version", "candidate"],
    multiprocess_mode="livesum",
    registry=_registry,
)

# Looking a child up by its labels costs more than counting: each is looked up once.
_requests_of: dict[tuple[str, int], Callable[[], None]] = {}
_seconds_of: dict[str, Callable[[float], None]] = {}
_rows_of: dict[tuple[str, str], Callable[[float], None]] = {}
_unusual_of: dict[tuple[str, str], Callable[[float], None]] = {}


def observe_request(route: str, status: int, seconds: float) -> None:
    """Count a request answered with `status` after `seconds`; `route` is one of the API's own."""
    try:
        count, observe = _requests_of[route, status], _seconds_of[route]
    except KeyError:
        count = _requests_of[route, status] = _requests.labels(route, str(status)).inc
        observe = _seconds_of.setdefault(route, _seconds.labels(route).observe)
    count()
    observe(seconds)


def count_rows(route: str, version: str, rows: int) -> None:
    """Count `rows` that `version` has scored for `route`."""
    try:
        count = _rows_of[route, version]
    except KeyError:
        count = _rows_of[route, version] = _rows.labels(route, version).inc
    count(rows)


def count_error(code: str) -> None:
    """Count a refused request by the `code` of its answer."""
    _errors.labels(code).inc()


def count_unusual(field: str, kind: str, n: int = 1) -> None:
    """Count `n` values of `field` that are `unseen`, `out_of_range` or `missing`."""
    try:
        count = _unusual_of[field, kind]
    except KeyError:
        count = _unusual_of[field, kind] = _unusual.labels(field, kind).inc
    count(n)


def count_inputs(
    kinds: Mapping[str, str],
    read: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
) -> None:
    """Count what is unusual or missing in records and warnings, as `Model.read` gives them.

    `kinds` says of each field what its unusual values are called.
    """
    found: dict[tuple[str, str], int] = {}
    for record, warnings in read:
        for each in warnings:
            of = each["field"], kinds[each["field"]]
            found[of] = found.get(of, 0) + 1
        if None in record.values():
            for field, value in record.items():
                if value is None:
                    found[field, "missing"] = found.get((field, "missing"), 0) + 1
    for (field, kind), n in found.items():
        count_unusual(field, kind, n)


def count_logged(shipped: int, rejected: int = 0) -> None:
    """Count rows that Postgres has taken, and those that it has refused for good."""
    _logged.labels("shipped").inc(shipped)
    _logged.labels("rejected").inc(rejected)


_answers: list[Any] = []


def model_loaded(card: Mapping[str, Any]) -> None:
    """Say that this worker now answers with the model that `card` (model.json) describes."""
    while _answers:
        _answers.pop().set(0)
    labels = [str(card.get(name, "")) for name in ("model", "version", "candidate")]
    _answers.append(_workers.labels(*labels))
    _answers[0].set(1)
    _loads.labels("loaded").inc()
    # There from the start: Prometheus does not see the step from nothing to 1.
    _loads.labels("failed").inc(0)
    _logged.labels("shipped").inc(0)
    _logged.labels("rejected").inc(0)


def model_failed() -> None:
    """Count a payload that this worker could not take."""
    _loads.labels("failed").inc()


def exposition(momentary: Mapping[str, float] | None = None) -> bytes:
    """Return all workers' metrics in Prometheus' text format, with gauges named in MOMENTARY."""
    return generate_latest(_Collected(momentary or {}))


class _Collected:
    """What a scrape gets, in the form that prometheus_client writes out."""

    def __init__(self, momentary: Mapping[str, float]) -> None:
        self.momentary = momentary

    def collect(self) -> Iterator[Metric]:
        for metric in sorted(_counted(), key=lambda each: each.name):
            if metric.name == "predict_workers":
                yield from _by_version(metric)
            else:
                yield metric
        for name, value in self.momentary.items():
            yield GaugeMetricFamily(name, MOMENTARY[name], value=value)


def _counted() -> list[Metric]:
    if not values.ValueClass._multiprocess:
        return list(_registry.collect())
    folder = os.environ[FOLDER_VARIABLE]
    with _files(folder, fcntl.LOCK_SH):
        for _ in range(3):
            # A file that a worker has just made is empty for some microseconds.
            with suppress(struct.error):
                return list(MultiProcessCollector(None, folder).collect())
            time.sleep(0.01)
        return list(MultiProcessCollector(None, folder).collect())


def _by_version(workers: Metric) -> Iterator[Metric]:
    """Yield workers by version, and what each version is; none that nobody answers with any more.

    A label that has been used stays in a worker's file with the value 0.
    """
    info = GaugeMetricFamily(
        "predict_model_info",
        "1 for each version that a worker answers with.",
        labels=["model", "version", "candidate"],
    )
    count = GaugeMetricFamily(workers.name, workers.documentation, labels=["version"])
    for sample in workers.samples:
        if sample.value > 0:
            labels = sample.labels
            info.add_metric([labels["model"], labels["version"], labels["candidate"]], 1)
            count.add_metric([labels["version"]], sample.value)
    yield info
    yield count


# What gunicorn's master does for its workers' files

_RETIRED = "retired"


def open_folder(preferred: Path | None) -> Path:
    """Return a clean folder for the workers' files: `preferred`, or one in the temporary folder.

    The latter where `preferred` cannot be written, as in a container with a read-only root and no
    volume, or belongs to another server that runs. It stays this process' as long as that lives.
    """
    if preferred is not None:
        with suppress(OSError):
            preferred.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = os.open(preferred / "owner.lock", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for path in preferred.glob("*.db"):
                    path.unlink()
                return preferred  # with the lock held: the descriptor is never closed
            except OSError:
                os.close(owner)
    return Path(tempfile.mkdtemp(prefix="predict-metrics-"))


def close_folder(folder: Path) -> None:
    """Delete the files, when the last worker has gone, and the folder, if it held nothing else."""
    with suppress(OSError):
        for path in (*folder.glob("*.db"), *folder.glob("*.lock"), *folder.glob("*.draft")):
            path.unlink()
        folder.rmdir()


def retire_workers(living: set[int]) -> None:
    """Fold the files of workers that are not among `living` into one, so that files do not pile up.

    What they were (gauges) is forgotten at once. What they have counted stays counted; it is folded
    when another worker leaves if somebody reads the files just now: gunicorn's master never waits.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    counts = []
    for path in Path(folder).glob("*.db"):
        kind, _, owner = path.stem.rpartition("_")
        if not owner.isdecimal() or int(owner) in living:
            continue
        if kind in ("counter", "histogram"):
            counts.append((path, path.with_name(f"{kind}_{_RETIRED}.db")))
        else:
            mark_process_dead(int(owner), folder)
    with suppress(OSError), _files(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for path, total in counts:
            _add(path, total)
            path.unlink()


def _add(path: Path, total: Path) -> None:
    """Add the values of `path` to those of `total`."""
    draft = total.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    if total.exists():
        shutil.copyfile(total, draft)
    try:
        counted = [
            (key, value) for key, value, *_ in MmapedDict.read_all_values_from_file(str(path))
        ]
    except (struct.error, RuntimeError):  # killed before it had counted anything
        counted = []
    sums = MmapedDict(str(draft))
    for key, value in counted:
        before, _ = sums.read_value(key)
        sums.write_value(key, before + value, 0.0)
    sums.close()
    draft.replace(total)


@contextmanager
def _files(folder: str, how: int) -> Iterator[None]:
    """Hold the files of `folder` still: many may read them, or one may fold them."""
    descriptor = os.open(Path(folder) / "files.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
