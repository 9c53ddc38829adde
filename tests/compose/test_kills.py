"""Servers are killed, and the loop closes all the same.

Each is killed at the moment at which the loop needs it: MLflow while candidates are fitted, the API
while a version is deployed, Postgres while customers ask, the listener before its alert, Mage in
the middle of a retrain. `docker compose kill` sets no restart policy going: a person sees a
container that has exited, and types `docker compose up -d --wait`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import psycopg2
import pytest
import requests
from rich.console import Console

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.dataset.rows import periods_to_come
from mlops.orchestration import mage
from mlops.serving.client import PredictClient
from mlops.serving.traffic import simulate_month
from mlops.stack.demo import Demo
from tests.compose.conftest import Loop
from tests.compose.engine import Stack
from tests.fixtures.waiting import await_

PIPELINE_LIMIT_S = 300
ALERT_LIMIT_S = 120


@pytest.fixture(autouse=True)
def leave_it_well(stack: Stack) -> Iterator[None]:
    """A test that fails half-way leaves servers dead, which is no fault of the next one's."""
    yield
    stack.up()


@contextmanager
def killed(stack: Stack, *services: str) -> Iterator[None]:
    """Have `services` dead inside, and up again after; the others notice nothing of either."""
    others = [name for name in stack.services if name not in services]
    before = {name: stack.started_at(name) for name in others}
    with stack.report.stage(f"killed: {', '.join(services)}"):
        stack.kill(*services)
        yield
        stack.up()
    assert {name: stack.started_at(name) for name in others} == before


def await_fitting(stack: Stack, run_id: int) -> None:
    """Wait until a candidate is being fitted."""

    def at_work() -> bool:
        run = mage.run_status(run_id, stack.settings)
        assert not run.ended, run
        return any(
            "fit_candidate" in name and state == "running" for name, state in run.blocks.items()
        )

    await_(at_work, 60, "a candidate is fitted")


def await_running(stack: Stack, run_id: int) -> None:
    """Wait until Mage has begun with the run; its blocks, all in one process, may take a second."""
    await_(lambda: mage.run_status(run_id, stack.settings).status != "initial", 60, "run begins")


def finish(stack: Stack, run_id: int) -> None:
    mage.wait_for_run(run_id, PIPELINE_LIMIT_S, settings=stack.settings)


def logged(stack: Stack) -> dict[str, int]:
    (found,) = stack.rows(
        "SELECT count(*) AS rows, count(DISTINCT request_id) AS requests, count(label) AS labels"
        " FROM serving.predictions WHERE purpose = 'simulation'"
    )
    return found


def test_loop_closes_with_each_server_killed_where_it_is_needed(stack: Stack, loop: Loop) -> None:
    settings, card = stack.settings, load_card("bank_marketing")
    demo = Demo(settings, Console(), time.time())
    demo.start_over()

    # The loop does not need the page.
    with killed(stack, "streamlit"):
        finish(stack, mage.trigger_pipeline("prepare", settings=settings))
    assert requests.get(f"http://127.0.0.1:{settings.streamlit_port}", timeout=10).ok

    # Candidates are fitted, and log to it.
    variables = {"training_id": f"kills-{stack.name}", "cause": "test"}
    run = mage.trigger_pipeline("train", variables, settings)
    await_fitting(stack, run)
    with killed(stack, "mlflow"):
        pass
    finish(stack, run)

    # Deploy waits for it to answer as the new version.
    run = mage.trigger_pipeline("deploy", variables, settings)
    await_running(stack, run)
    with killed(stack, "predict"):
        pass
    finish(stack, run)
    champion = PredictClient(settings.predict_url).model()["version"]
    assert stack.rows("SELECT model_version FROM ops.deployments WHERE retired_at IS NULL") == [
        {"model_version": champion}
    ]

    # Customers go on being answered, and none of their predictions is lost or written twice.
    first, second, *later = periods_to_come_of(stack)
    in_files = rows_of_month(stack, first) + rows_of_month(stack, second)
    demo.simulate(first)
    client = PredictClient(settings.predict_url)
    record, alone = client.model()["reference"], uuid.uuid4().hex

    def kill_midway(done: int, total: int) -> None:
        if stack.inspect("postgres")["State"]["Running"]:
            stack.kill("postgres")
            client.predict(record, request_id=alone)

    with killed(stack, "postgres"):
        pass  # once at rest, so that the others have new connections to make
    with stack.report.stage("killed: postgres, in traffic"):
        with pytest.raises(psycopg2.Error), connect(settings=settings) as connection:
            simulate_month(second, card, connection, kill_midway, settings)
        stack.up()
        await_(lambda: logged(stack)["rows"] == in_files, 60, lambda: str(logged(stack)))
    assert stack.rows("SELECT row FROM serving.predictions WHERE request_id = %s", alone)
    demo.simulate(second)  # again, for the labels: the same traffic adds no row
    assert logged(stack) == dict.fromkeys(("rows", "requests", "labels"), in_files)

    # Nobody looks at the rules while the month is measured, nobody answers when the alert comes.
    since = now(stack)
    with killed(stack, stack.watcher, "listener"):
        finish(stack, mage.trigger_pipeline("monitor", settings=settings))
        stack.compose("up", "-d", "--wait", "--no-deps", stack.watcher)
        assert not stack.inspect("listener")["State"]["Running"]
        await_(lambda: stack.rule_fires(since), ALERT_LIMIT_S, "the rule fires")
        assert stack.rows("SELECT 1 FROM ops.alerts WHERE received_at > %s", since) == []

    while True:
        alert = demo.wait_for_alert(since)
        run = await_(
            lambda alert=alert: mage.find_run("retrain", {"retrain_id": alert["retrain"]}, settings)
        )
        await_fitting(stack, run)
        with killed(stack, "mage"):
            pass
        retrain = demo.wait_for_retrain(alert["retrain"])
        assert retrain["outcome"] != "failed", retrain["reason"]
        if retrain["outcome"] == "promoted":
            break
        # The gate kept the champion, as it may; life goes on by a month.
        since = now(stack)
        demo.simulate(later.pop(0))
        demo.pipeline("monitor")
    demo.wait_until_served(retrain["challenger"])
    assert retrain["challenger"] != champion


def now(stack: Stack) -> datetime:
    """Return the time by Postgres' clock."""
    (found,) = stack.rows("SELECT clock_timestamp() AS now")
    time_there: datetime = found["now"]
    return time_there


def periods_to_come_of(stack: Stack) -> list[str]:
    with connect(settings=stack.settings) as connection:
        return periods_to_come(connection, load_card("bank_marketing"))


def rows_of_month(stack: Stack, period: str) -> int:
    (found,) = stack.rows(
        "SELECT count(*) AS rows FROM data.bank_marketing WHERE period = %s", f"{period}-01"
    )
    return int(found["rows"])


def test_servers_that_die_at_once_come_back_by_themselves(stack: Stack, loop: Loop) -> None:
    """Without a person: the restart policy. All at once, so that none finds the others there."""
    restarts = {name: stack.inspect(name)["RestartCount"] for name in stack.services}
    with stack.report.stage("all servers die"):
        for name in stack.services:
            # Not process 1, which nothing inside can kill, but the server that it watches.
            main = "kill -9 $(cat /proc/1/task/1/children)"
            stack.exec(name, "sh", "-c", main, check=False)  # dies with its container
        for name in stack.services:
            await_(
                lambda name=name: stack.inspect(name)["RestartCount"] > restarts[name],
                60,
                f"{name} restarted",
            )
        stack.await_healthy(*stack.services)
    finish(stack, mage.trigger_pipeline("monitor", settings=stack.settings))
    client = PredictClient(stack.settings.predict_url)
    model = client.model()
    assert client.predict(model["reference"])["version"] == model["version"]
