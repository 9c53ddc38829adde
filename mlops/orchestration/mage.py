"""Mage from outside: start a pipeline, follow its run, say what failed; never what a pipeline does.

A run is started over Mage's API, as the listener and a person's script would; it is followed in
Mage's own database, where states stand the moment that they change and no login is needed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import requests

from mlops.database import connect
from mlops.orchestration.server import PROJECT
from mlops.settings import Settings, get_settings

PIPELINES = (
    *("prepare", "train", "deploy", "test", "monitor", "retrain", "score"),
    *("promote", "rollback", "release", "shadow", "evidence"),
)

# The trigger that each pipeline's triggers.yaml defines.
TRIGGER = "api"

_ENDED = ("completed", "failed", "cancelled")
_POLL_S = 0.2
_LOG_LINES = 25
_MAGES_OWN = re.compile(r"^(Start|Finish) executing block |^\[DynamicChildItemCounter")


class MageError(RuntimeError):
    """Mage answered, and not what was asked for."""


class MageUnavailable(MageError):
    """Mage, or the database that it lives in, does not answer."""


class PipelineFailed(MageError):
    """A run ended otherwise than completed, or not in time.

    `block` is the first block that failed, or None; `reason` its exception, or how the run ended;
    `log` the last lines that it printed, and `log_path` where the rest is.
    """

    def __init__(self, run: Run, block: str | None, reason: str, log: str, log_path: Path | None):
        self.run, self.block, self.reason, self.log, self.log_path = (
            run,
            block,
            reason,
            log,
            log_path,
        )
        where = f", block {block}" if block else ""
        lines = [f"pipeline {run.pipeline}, run {run.id}{where}: {reason}"]
        if log:
            lines.append(f"it had printed:\n{log}")
        if log_path:
            lines.append(f"log: {log_path}")
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Run:
    """One run of a pipeline, as it stands now.

    `status` and the values of `blocks` (state by block, in order of their start) are Mage's words
    in lower case: initial, queued, running, completed, failed, cancelled, upstream_failed.
    """

    id: int
    pipeline: str
    status: str
    partition: str
    blocks: dict[str, str]

    @property
    def ended(self) -> bool:
        return self.status in _ENDED

    @property
    def progress(self) -> str:
        """What is under way, in a few words: `fit_candidate:SVC, fit_candidate:MLPClassifier`."""
        under_way = [name for name, state in self.blocks.items() if state in ("running", "queued")]
        names = ", ".join(name.rpartition("/")[2] for name in under_way)
        return names or ("waiting for Mage" if self.status == "initial" else self.status)


def trigger_pipeline(
    pipeline: str,
    variables: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    role: str = "mlops",
) -> int:
    """Start `pipeline` with `variables` and return the id of its run.

    `role` is the one by which Mage's database is read: the app has none but `grafana`.
    Raises MageUnavailable if Mage is away, MageError if it does not know the pipeline or refuses
    the token.
    """
    settings = settings or get_settings()
    schedule = _schedule_of(pipeline, settings, role)
    # Without block runs: Mage's scheduler makes them when it starts the run. Made here too, they
    # sometimes stand there twice, and the pipeline runs twice at once.
    asked = {"variables": dict(variables or {}), "create_block_runs": False}
    try:
        response = requests.post(
            f"{settings.mage_url}/api/pipeline_schedules/{schedule}/api_trigger",
            headers={"Authorization": f"Bearer {settings.secret('mage_trigger_token')}"},
            json={"pipeline_run": asked},
            timeout=(3, 30),
        )
    except requests.RequestException as error:
        raise MageUnavailable(f"Mage does not answer at {settings.mage_url}: {error}") from error
    try:
        answer = response.json()
    except ValueError:
        answer = {}
    # A wrong token is answered with status 200 and an error in the body.
    fault = answer.get("error") if isinstance(answer, dict) else None
    if not fault and response.ok and "pipeline_run" in answer:
        return int(answer["pipeline_run"]["id"])
    said = (fault or {}).get("exception") or f"status {response.status_code} {response.reason}"
    raise MageError(
        f"Mage refuses to start pipeline {pipeline}: {said} (tokens are set by `make up`)"
    )


def run_status(run_id: int, settings: Settings | None = None, role: str = "mlops") -> Run:
    """Return the run as it stands now.

    Raises MageUnavailable, or MageError if there is no such run.
    """
    found = _rows(
        "SELECT r.pipeline_uuid, lower(r.status::text), r.variables ->> 'execution_partition',"
        " b.block_uuid, lower(b.status::text)"
        " FROM pipeline_run r LEFT JOIN block_run b ON b.pipeline_run_id = r.id"
        " WHERE r.id = %s ORDER BY b.started_at NULLS LAST, b.id",
        (run_id,),
        settings or get_settings(),
        role,
    )
    if not found:
        raise MageError(f"Mage has no run {run_id}")
    pipeline, status, partition = found[0][:3]
    blocks = {block: state for *_, block, state in found if block}
    return Run(run_id, pipeline, status, partition or "", blocks)


def find_run(
    pipeline: str, variables: Mapping[str, Any], settings: Settings | None = None
) -> int | None:
    """Return the latest run of `pipeline` that was started with (at least) `variables`, or None."""
    found = _rows(
        "SELECT max(id) FROM pipeline_run"
        " WHERE pipeline_uuid = %s AND variables::jsonb @> %s::jsonb",
        (pipeline, json.dumps(dict(variables))),
        settings or get_settings(),
    )
    return found[0][0]


def wait_for_run(
    run_id: int,
    timeout: float = 1800.0,
    progress: Callable[[str], object] | None = None,
    settings: Settings | None = None,
) -> Run:
    """Return the run when it is completed; `progress` is told what is under way when that changes.

    A Mage that is away for a while is waited for, as it goes on with its runs when it is back.
    Raises PipelineFailed if the run fails, is cancelled, or takes more than `timeout` seconds.
    """
    settings = settings or get_settings()
    deadline = time.monotonic() + timeout
    told = None
    run = None
    while True:
        try:
            run = run_status(run_id, settings)
        except MageUnavailable:
            if time.monotonic() > deadline:
                raise
        else:
            if run.status == "completed":
                return run
            if run.ended:
                raise _failure(run, f"the run ended {run.status}", settings)
            if progress and run.progress != told:
                told = run.progress
                progress(told)
        if time.monotonic() > deadline and run is not None:
            raise _failure(run, f"still {run.status} after {timeout:.0f} s", settings)
        time.sleep(_POLL_S)


def set_trigger_tokens(settings: Settings | None = None) -> None:
    """Give our API trigger of each pipeline our token; make those that are missing.

    Triggers that a person has made in Mage keep theirs.

    Call it when Mage is up: it reads the triggers from the pipelines' files by then, and keeps a
    token that it finds. Repeating it changes nothing. Raises MageUnavailable.
    """
    settings = settings or get_settings()
    token = settings.secret("mage_trigger_token")
    try:
        with connect("mage", settings=settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE pipeline_schedule SET token = %s"
                " WHERE schedule_type = 'API' AND name = %s AND pipeline_uuid = ANY(%s)"
                " AND token IS DISTINCT FROM %s",
                (token, TRIGGER, list(PIPELINES), token),
            )
            cursor.execute(
                "INSERT INTO pipeline_schedule"
                " (created_at, updated_at, name, pipeline_uuid, schedule_type, status, token,"
                "  variables, settings, repo_path, last_enabled_at)"
                " SELECT now(), now(), %(name)s, missing, 'API', 'ACTIVE', %(token)s,"
                "  '{}', '{}', %(project)s, now()"
                " FROM unnest(%(pipelines)s) AS missing WHERE NOT EXISTS ("
                "  SELECT FROM pipeline_schedule WHERE pipeline_uuid = missing AND name = %(name)s"
                "  AND schedule_type = 'API' AND repo_path = %(project)s)",
                {
                    "name": TRIGGER,
                    "token": token,
                    "project": str(PROJECT),
                    "pipelines": list(PIPELINES),
                },
            )
    except psycopg2.Error as error:
        raise MageUnavailable(f"Mage's database is not ready: {error}") from error


def wait_until_ready(timeout: float = 120.0, settings: Settings | None = None) -> None:
    """Return when Mage answers, its scheduler runs, and it has read the triggers of all pipelines.

    Raises MageUnavailable after `timeout` seconds, naming what is missing.
    """
    settings = settings or get_settings()
    deadline = time.monotonic() + timeout
    while missing := _missing(settings):
        if time.monotonic() > deadline:
            raise MageUnavailable(f"Mage is not ready after {timeout:.0f} s: {missing}")
        time.sleep(_POLL_S)


def _missing(settings: Settings) -> str | None:
    """Return what Mage still lacks before it can take a run, or None."""
    try:
        response = requests.get(f"{settings.mage_url}/api/statuses", timeout=(3, 10))
        scheduler = response.json()["statuses"][0]["scheduler_status"]
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return f"no answer at {settings.mage_url}"
    if scheduler != "running":
        return f"its scheduler is {scheduler}"
    try:
        lacking = [name for name in PIPELINES if _schedule_id(name, settings) is None]
    except MageUnavailable as error:
        return str(error)
    return f"no trigger yet for {', '.join(lacking)}" if lacking else None


def _schedule_of(pipeline: str, settings: Settings, role: str) -> int:
    schedule = _schedule_id(pipeline, settings, role)
    if schedule is None:
        raise MageError(
            f"Mage knows no trigger {TRIGGER!r} of pipeline {pipeline!r}; there are: "
            f"{', '.join(PIPELINES)}"
        )
    return schedule


def _schedule_id(pipeline: str, settings: Settings, role: str = "mlops") -> int | None:
    # The clone may have been moved: Mage keeps the triggers of the old place.
    found = _rows(
        "SELECT max(id) FROM pipeline_schedule"
        " WHERE pipeline_uuid = %s AND name = %s AND schedule_type = 'API' AND repo_path = %s",
        (pipeline, TRIGGER, str(PROJECT)),
        settings,
        role,
    )
    return found[0][0]


def _rows(
    query: str, parameters: tuple[Any, ...], settings: Settings, role: str = "mlops"
) -> list[tuple[Any, ...]]:
    try:
        with connect("mage", role, settings=settings) as connection, connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall()
    except psycopg2.Error as error:
        raise MageUnavailable(f"Mage's database does not answer: {error}") from error


def _failure(run: Run, said: str, settings: Settings) -> PipelineFailed:
    states = run.blocks.items()
    block = next((name for name, state in states if state == "failed"), None)
    path = None
    if block is not None:
        folder = settings.state_dir / "mage" / PROJECT.name / "pipelines" / run.pipeline / ".logs"
        # Mage's own rule: what is no letter, digit or underscore becomes an underscore.
        name = "".join(each if each.isalnum() else "_" for each in block).lower()
        path = folder / run.partition / f"{name}.log"
        path = path if path.is_file() else None
    printed, fault = _read_log(path)
    return PipelineFailed(run, block, fault or said, printed, path)


def _read_log(path: Path | None) -> tuple[str, str]:
    """Return what a block printed (its last lines) and the text of the exception that ended it."""
    if path is None:
        return "", ""
    printed: list[str] = []
    fault = ""
    for line in path.read_text(errors="replace").splitlines():
        _, brace, rest = line.partition(" {")
        try:
            record = json.loads("{" + rest) if brace else {}
        except ValueError:
            continue
        if record.get("level") == "EXCEPTION":
            # The first: what comes after it is the fault of a callback.
            fault = fault or _exception_of(str(record.get("error", "")))
        elif record.get("level") == "INFO" and not _MAGES_OWN.search(record.get("message", "")):
            printed.append(str(record.get("message", "")))
    return "\n".join(printed[-_LOG_LINES:]), fault


def _exception_of(traceback: str) -> str:
    """Return the exception's own text: what stands unindented after the last frame."""
    lines = traceback.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  File ")]
    after = frames[-1] + 1 if frames else 0
    while after < len(lines) and lines[after].startswith(" "):
        after += 1
    return "\n".join(lines[after:])
