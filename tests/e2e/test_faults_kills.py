"""Every server is killed (-9) at every stage of a retrain, and the loop closes all the same.

One stack runs for the module. Each plan is one retrain, brought about by a month that drifts, with
several kills, one a stage. The first two plans kill every server and touch every stage; all of them
together (`make faults`, or `pytest --all-stages`) kill every server at every stage. Nothing of
this depends on a figure of a model: see tests/fixtures/loop.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mlops.settings import Settings
from tests.fixtures.loop import SERVERS, STAGES, Customers, Loop, killed, write_world
from tests.fixtures.stack import running_stack
from tests.fixtures.waiting import await_

pytestmark = pytest.mark.timeout(420)

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
_ALWAYS = 2
"""So many of them touch every server and every stage."""


def test_the_plans_hold_each_server_at_each_stage_once() -> None:
    pairs = [pair for plan in PLANS for pair in plan]
    assert sorted(pairs) == sorted((stage, server) for stage in STAGES for server in SERVERS)
    always = [pair for plan in PLANS[:_ALWAYS] for pair in plan]
    assert {stage for stage, _ in always} == set(STAGES)
    assert {server for _, server in always} == set(SERVERS)


@pytest.fixture(scope="module")
def stack() -> Iterator[Settings]:
    with running_stack("mlops-kills-", write_world) as settings:
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
        pytest.param(plan, id=named(plan), marks=[] if i < _ALWAYS else [pytest.mark.all_stages])
        for i, plan in enumerate(PLANS)
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
        seen = {}
        with ExitStack() as restarts:
            for stage, server in plan:
                state = loop.await_stage(run, stage)
                restarts.enter_context(killed(loop.settings, server))
                seen[f"{server}@{stage}"] = f"{state}, {time.monotonic() - began:.0f} s"
            retrain = loop.await_end(known)
        loop.await_well()
        assert people.answered
        answered = len(people.answered)
        await_(lambda: len(people.answered) > answered, 20, "customers are answered again")
    print(
        json.dumps(
            {
                "seconds": round(time.monotonic() - began, 1),
                "monitored": round(monitored, 1),
                "alerted": round(alerted, 1),
                "killed": seen,
                "outcome": retrain["outcome"],
                "answered": len(people.answered),
                "unanswered": people.unanswered,
            }
        )
    )
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
