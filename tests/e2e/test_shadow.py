"""`make shadow` on a running Mage, and the watcher beside it, without the other servers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops.dataset.card import load_card
from mlops.settings import ROOT, Settings
from mlops.stack import __main__ as command_line
from tests.fixtures.predict import make_payload
from tests.fixtures.shadow import log, rows_of
from tests.fixtures.stack import few_services
from tests.fixtures.waiting import await_

CARD = load_card("bank_marketing")
SCORED = "SELECT count(*) FROM serving.shadow_predictions WHERE model_version = '2'"


@pytest.fixture
def mage() -> Iterator[Settings]:
    """A running Postgres and Mage."""

    def values(folder: Path) -> dict[str, Any]:
        (folder / "no.csv").touch()  # nothing is prepared, and nothing downloaded
        return {"data": str(folder / "no.csv")}

    with (
        pytest.MonkeyPatch.context() as patch,
        few_services(patch, ("postgres", "mage"), values) as settings,
    ):
        assert command_line.main(["up"]) == 0
        yield settings


def make_shadow(*arguments: str) -> str:
    """Run `make shadow` with variables, and return what it printed."""
    done = subprocess.run(
        ["make", "--no-print-directory", "shadow", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_a_person_puts_a_version_in_shadow_and_ends_it(mage: Settings) -> None:
    assert "nobody is in shadow" in make_shadow()
    make_payload(mage.payloads_dir, "1", seed=1)
    make_payload(mage.payloads_dir, "2", seed=2)
    log(mage, CARD, 100)
    said = make_shadow("VERSION=2", "SINCE=2009-03")
    assert "version 2 (LogisticRegression) is in shadow since" in said
    assert rows_of(mage, SCORED) == [(100,)], "the run in Mage has scored what was there"
    (compared,) = rows_of(mage, "SELECT champion, row_count FROM grafana.shadow_comparison")
    assert compared == ("1", 100)

    log(mage, CARD, 30, seed=8)
    await_(
        lambda: rows_of(mage, SCORED) == [(130,)], 120, "the watcher beside Mage scores the rest"
    )

    assert "version 2 is in shadow no more" in make_shadow("STOP=1")
    assert "nobody is in shadow" in make_shadow()
