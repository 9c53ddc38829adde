"""What fails in the middle of a retrain, on a real stack: the loop closes all the same.

Servers are killed (-9) in the middle of a retrain; candidates cannot be fitted; the disk is full;
MLflow refuses. One stack runs for the module, and each retrain is brought about by months that
drift. A plan of kills is one retrain with several of them, one a stage, and whether a kill came
while the block ran is counted. Always played is one plan, of the four kills that could do most
harm; `make faults` (`pytest --all-stages`) plays those that kill every server at every stage, too.
Nothing of this depends on a figure of a model: see tests/fixtures/loop.py.
"""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mlops.database import connect
from mlops.settings import Settings
from tests.fixtures.loop import (
    CANDIDATES,
    SERVERS,
    STAGES,
    Customers,
    Loop,
    killed,
    pid_of,
    refusing,
    write_world,
)
from tests.fixtures.stack import running_stack
from tests.fixtures.waiting import await_

pytestmark = pytest.mark.timeout(1200)  # above what is waited for, so that this speaks first

Plan = tuple[tuple[str, str], ...]
"""Kills of one retrain: stage and server."""

_STAGES = tuple(STAGES)


def _plans() -> list[Plan]:
    """Return plans of four kills each, at every other stage, that hold each pair exactly once."""
    plans = []
    for turn in range(len(SERVERS)):
        for first in (0, 1):
            plans.append(
                tuple(
                    (_STAGES[place], SERVERS[(place + turn) % len(SERVERS)])
                    for place in range(first, len(_STAGES), 2)
                )
            )
    return plans


PLANS = _plans()
ALWAYS: Plan = (
    ("fit", "mage"),  # the longest work is cut off
    ("leaderboard", "mlflow"),  # versions are being registered
    ("deploy", "postgres"),  # link, alias and history are to change together
    ("close", "listener"),  # the outcome is written, and alerts wait for it
)


def test_the_plans_hold_each_server_at_each_stage_once() -> None:
    pairs = [pair for plan in PLANS for pair in plan]
    assert sorted(pairs) == sorted((stage, server) for stage in STAGES for server in SERVERS)
    assert set(ALWAYS) <= set(pairs)


@pytest.fixture(scope="module")
def small_disk() -> Iterator[Path | None]:
    """A folder on a disk of its own, of 16 MB; None where mounting is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="mlops-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture(scope="module")
def stack(small_disk: Path | None) -> Iterator[Settings]:
    def values(folder: Path) -> dict[str, Any]:
        disk = {"payloads_dir": small_disk / "payloads"} if small_disk else {}
        return {**write_world(folder), **disk}

    with running_stack("mlops-faults-", values) as settings:
        yield settings


@pytest.fixture(scope="module")
def loop(stack: Settings) -> Loop:
    found = Loop(stack)
    found.begin()
    return found


def named(plan: Plan) -> str:
    return "+".join(f"{server}_at_{stage}" for stage, server in plan)


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(ALWAYS, id=named(ALWAYS)),
        *(pytest.param(plan, id=named(plan), marks=pytest.mark.all_stages) for plan in PLANS),
    ],
)
def test_the_loop_closes_with_servers_killed_on_its_way(loop: Loop, plan: Plan) -> None:
    began = time.monotonic()
    loop.await_well()
    before = loop.agreed_version()
    known, last = loop.known_retrains(), loop.latest_run()
    with Customers(loop.settings) as people:
        months = loop.play()
        loop.run("monitor")
        monitored = time.monotonic() - began
        run = loop.await_retrain(last)
        alerted = time.monotonic() - began
        kills = {}
        with ExitStack() as restarts:
            for stage, server in plan:
                loop.await_stage(run, stage)
                restarts.enter_context(killed(loop.settings, server))
                kills[stage] = time.time()
            retrain = loop.await_end(known)
        loop.await_well()
        assert people.answered
        answered = len(people.answered)
        await_(lambda: len(people.answered) > answered, 20, "customers are answered again")
    await_(lambda: loop.ended_at(run), 60, "the run in Mage ends")
    # What Mage wrote tells whether a stage was over before the server died.
    late = {stage: at - loop.ended_at(run, stage) for stage, at in kills.items()}
    print(
        json.dumps(
            {
                "seconds": round(time.monotonic() - began, 1),
                "monitored": round(monitored, 1),
                "alerted": round(alerted, 1),
                "killed": {
                    f"{server}@{stage}": f"{-late[stage]:.1f} s before the stage was over"
                    for stage, server in plan
                },
                "outcome": retrain["outcome"],
                "answered": len(people.answered),
                "unanswered": people.unanswered,
            }
        )
    )
    hit = [stage for stage in late if late[stage] < 0]
    assert len(hit) > len(plan) / 2, f"most kills came too late, by so many seconds: {late}"
    assert retrain["outcome"] in ("promoted", "kept_champion"), retrain
    version = loop.agreed_version()
    assert (version == retrain["challenger"]) == (retrain["outcome"] == "promoted")
    assert (version == before) == (retrain["outcome"] == "kept_champion")
    await_(
        lambda: people.logged() == len(people.answered),
        60,
        lambda: f"{people.logged()} of {len(people.answered)} answered requests are logged",
    )
    alerts = loop.rows(
        "SELECT decision, retrain, handled_at, body->'labels'->>'period' AS period"
        " FROM ops.alerts WHERE body->'labels'->>'period' = ANY(%s)",
        months,
    )
    assert all(alert["handled_at"] for alert in alerts)
    assert [alert["retrain"] for alert in alerts if alert["decision"] == "retrain"] == [
        retrain["id"]
    ]
    runs = loop.rows(
        "SELECT id, pipeline_uuid, lower(status::text) AS status FROM pipeline_run"
        " WHERE pipeline_uuid = 'retrain' AND id > %s",
        last,
        database="mage",
    )
    await_(
        lambda: (
            [
                each["status"]
                for each in loop.rows(
                    "SELECT lower(status::text) AS status FROM pipeline_run"
                    " WHERE pipeline_uuid = 'retrain' AND id > %s",
                    last,
                    database="mage",
                )
            ]
            == ["completed"]
        ),
        60,
        lambda: f"the run ends once: {runs}",
    )


def await_failure(loop: Loop, known: set[str]) -> dict[str, Any]:
    """Return the first new retrain once it has failed."""

    def failed() -> dict[str, Any] | None:
        found = loop.rows("SELECT * FROM ops.retrains WHERE finished_at IS NOT NULL")
        new = [row for row in found if row["id"] not in known]
        assert not [row for row in new if row["outcome"] != "failed"], new
        return new[0] if new else None

    retrain: dict[str, Any] = await_(failed, 120, "the retrain fails")
    return retrain


def await_success(loop: Loop, known: set[str]) -> dict[str, Any]:
    """Return the retrain that has answered the alerts after those that failed."""

    def done() -> dict[str, Any] | None:
        found = loop.rows("SELECT * FROM ops.retrains WHERE outcome <> 'failed'")
        new = [row for row in found if row["id"] not in known]
        assert len(new) <= 1, new
        return new[0] if new else None

    retrain: dict[str, Any] = await_(done, 240, loop.why_no_retrain)
    waiting = "SELECT 1 FROM ops.alerts WHERE handled_at IS NULL"
    await_(lambda: not loop.rows(waiting), 60, "all alerts are handled")
    return retrain


@contextmanager
def candidates(loop: Loop, **changed: dict[str, Any]) -> Iterator[None]:
    """Have other candidates for a while: a training reads them when it starts."""
    path = loop.settings.candidates
    text = path.read_text()
    path.write_text(yaml.safe_dump({**CANDIDATES, **changed}))
    try:
        yield
    finally:
        path.write_text(text)


@contextmanager
def full_disk(loop: Loop, small_disk: Path | None) -> Iterator[int]:
    """Leave no room for a payload; yield what the system answers to who writes one."""
    if small_disk is not None:
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"0" * shutil.disk_usage(small_disk).free)
        try:
            yield errno.ENOSPC
        finally:
            ballast.unlink()
        return
    # No disk of our own to fill: whatever Mage writes may be no larger than this instead.
    server = psutil.Process(pid_of(loop.settings, "mage"))
    family = [server, *server.children(recursive=True)]
    limits = {each: each.rlimit(psutil.RLIMIT_FSIZE) for each in family}
    for each, (_, hard) in limits.items():
        each.rlimit(psutil.RLIMIT_FSIZE, (2_000, hard))
    try:
        yield errno.EFBIG
    finally:
        for each, limit in limits.items():
            if each.is_running():
                each.rlimit(psutil.RLIMIT_FSIZE, limit)


@contextmanager
def no_registration(loop: Loop) -> Iterator[None]:
    """Have MLflow answer with an error whenever a version is to be registered, and then only."""
    table = "INSERT ON model_versions"
    with connect("mlflow", settings=loop.settings) as connection:
        connection.cursor().execute(f"REVOKE {table} FROM mlflow")
    try:
        yield
    finally:
        with connect("mlflow", settings=loop.settings) as connection:
            connection.cursor().execute(f"GRANT {table} TO mlflow")


def test_a_candidate_that_cannot_be_fitted_is_named_and_the_others_go_on(loop: Loop) -> None:
    """It is so in every training of this module that comes to anything."""
    trainings = loop.rows(
        "SELECT leaderboard FROM ops.trainings"
        " WHERE leaderboard @? '$[*] ? (@.status == \"finished\")'"
    )
    assert trainings
    for training in trainings:
        entries = {each["candidate"]: each for each in training["leaderboard"]}
        assert {name: each["status"] for name, each in entries.items()} == {
            "LogisticRegression": "finished",
            "Tree": "finished",
            "Unfit": "failed",
        }
        assert "'max_depth' parameter" in entries["Unfit"]["reason"]


def test_a_retrain_that_fails_keeps_the_champion_and_is_tried_again_until_it_succeeds(
    loop: Loop, small_disk: Path | None
) -> None:
    """No candidate can be fitted; then the disk is full at the export; then MLflow refuses."""
    loop.await_well()
    before = loop.agreed_version()
    known, last = loop.known_retrains(), loop.latest_run()
    unfit = {"class": "sklearn.linear_model.LogisticRegression", "params": {"C": -1.0}}
    with Customers(loop.settings) as people:
        with candidates(loop, LogisticRegression=unfit, Tree=CANDIDATES["Unfit"]):
            loop.play()
            loop.run("monitor")
            loop.await_retrain(last)
            none_fitted = await_failure(loop, known)
        with full_disk(loop, small_disk) as code:
            assert loop.agreed_version() == before
            disk_full = await_failure(loop, {*known, none_fitted["id"]})
        with no_registration(loop):
            assert loop.agreed_version() == before
            refused = await_failure(loop, {*known, none_fitted["id"], disk_full["id"]})
        assert loop.agreed_version() == before
        retrain = await_success(loop, known)
    version = loop.agreed_version()
    assert (version == retrain["challenger"]) == (retrain["outcome"] == "promoted")
    assert not people.unanswered
    await_(lambda: people.logged() == len(people.answered), 60, "what was answered is logged")

    assert "block train/leaderboard" in none_fitted["reason"]
    for said in ("LogisticRegression: ", "'C' parameter", "Tree: ", "Unfit: ", "'max_depth'"):
        assert said in none_fitted["reason"]
    assert "block deploy/deploy" in disk_full["reason"]
    assert f"[Errno {code}]" in disk_full["reason"]
    drafts = [each.name for each in loop.settings.payloads_dir.iterdir() if each.name[0] == "."]
    assert not [name for name in drafts if name.endswith(".new")], drafts
    assert "block train/leaderboard" in refused["reason"]
    assert "model_versions" in refused["reason"]
    tries = [none_fitted, disk_full, refused, retrain]
    # Alerts that began together are answered together, and any of them may name a try.
    assert len({each["alert"].partition("/")[2] for each in tries}) == 1
    assert ["try" in each["cause"] for each in tries] == [False, True, True, True]


@pytest.mark.all_stages
def test_an_mlflow_that_fails_for_a_while_costs_time_only(loop: Loop) -> None:
    """It answers 500, as it does while its database is away: that is tried again."""
    loop.await_well()
    known, last = loop.known_retrains(), loop.latest_run()
    loop.play()
    loop.run("monitor")
    run = loop.await_retrain(last)
    loop.await_stage(run, "leaderboard")
    with refusing(loop.settings, "mlflow", 500) as asked:
        await_(lambda: len(asked) >= 2, 60, "it is asked, and asked again")
    retrain = loop.await_end(known)
    assert retrain["outcome"] in ("promoted", "kept_champion"), retrain
    loop.agreed_version()


@pytest.mark.all_stages
def test_two_stacks_on_one_machine_leave_one_another_alone(loop: Loop) -> None:
    loop.await_well()
    version, known = loop.agreed_version(), loop.known_retrains()
    pids = {name: pid_of(loop.settings, name) for name in SERVERS}
    predictions = "SELECT count(*) AS n FROM serving.predictions"
    logged = loop.rows(predictions)
    with running_stack("mlops-second-", write_world) as settings:
        second = Loop(settings)
        second.begin()
        first_of_second = second.agreed_version()
        last, none = second.latest_run(), second.known_retrains()
        second.play()
        second.run("monitor")
        second.await_retrain(last)
        retrain = second.await_end(none)
        assert retrain["outcome"] == "promoted", retrain
        assert second.agreed_version() != first_of_second
        # The first has noticed nothing, and its own loop turns beside the other.
        assert (loop.agreed_version(), loop.known_retrains()) == (version, known)
        assert loop.rows(predictions) == logged
        last = loop.latest_run()
        loop.play()
        loop.run("monitor")
        loop.await_retrain(last)
        loop.await_end(known)
        second.await_well()
        assert second.known_retrains() == {retrain["id"]}
    loop.await_well()
    assert {name: pid_of(loop.settings, name) for name in SERVERS} == pids
    loop.agreed_version()
