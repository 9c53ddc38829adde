"""The whole loop, once, on screen: `make demo`. It decides nothing that the loop decides.

`python -m mlops.stack.demo` runs it on a stack that is up, as `make compose-demo` does inside the
container of Mage.

It presses the buttons that a person presses (run a pipeline, play a month of traffic) and then only
watches: the alert, the retrain and the new version have to come by themselves. Facts go to
`.stack/demo.json` as they become known, so an aborted demo leaves them too.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from psycopg2.extras import RealDictCursor
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from mlops.database import connect
from mlops.dataset.card import Card, load_card
from mlops.dataset.rows import periods_to_come
from mlops.dataset.sources import read_source
from mlops.orchestration import mage
from mlops.registry.models import current_deployment, retire_production
from mlops.serving.client import ApiUnavailable, PredictClient
from mlops.serving.traffic import forget_simulations, simulate_month
from mlops.settings import Settings, get_settings
from mlops.stack.grafana import remembered
from mlops.stack.proxies import bypass

PIPELINE_LIMIT_S = 900.0
ALERT_LIMIT_S = 180.0
QUIET_S = 60.0
"""After which a month without an alert is taken for one in which nothing has moved."""
POLL_S = 0.5
# The drift of the first month alone may be too small a sample to learn from; two give the
# challenger enough rows. If the gate still keeps the champion, life goes on by a month at a time.
FIRST_MONTHS = 2
MOST_MONTHS = 5


class LoopOpenError(RuntimeError):
    """The loop did not close; the message says at which point and what to look at."""


class Facts:
    """What the demo has found out, mirrored to a file after every change."""

    def __init__(self, path: Path, started: float) -> None:
        self._path = path
        self._started = started
        self.stages: dict[str, float] = {}
        self.results: dict[str, str] = {}
        self.values: dict[str, Any] = {
            "closed": False,
            "production_before": None,
            "production_after": None,
            "alert": None,
            "outcome": None,
            "champion_auc": None,
            "challenger_auc": None,
            "rows": None,
            "source": None,
        }

    def update(self, **values: Any) -> None:
        self.values.update(values)
        self.write()

    def write(self) -> None:
        """Replace the file by the present facts; a reader sees the old ones or the new ones."""
        facts = {
            **self.values,
            "stages": {name: round(seconds, 1) for name, seconds in self.stages.items()},
            "seconds": round(time.time() - self._started, 1),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(facts, indent=2, default=str) + "\n")
        temporary.replace(self._path)


class Demo:
    """One run of the demo against the stack that `settings` names, which is up."""

    def __init__(self, settings: Settings, console: Console, started: float) -> None:
        self.settings = settings
        self.console = console
        self.card: Card = load_card(settings.card)
        self.facts = Facts(settings.state_dir / "demo.json", started)
        self.played: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a stage under `name` (a second stay adds up) and show what it is doing."""
        began = time.monotonic()
        try:
            with self.console.status(f"{name} …") as status:
                yield lambda text: status.update(f"{name} · {text}")
        finally:
            seconds = time.monotonic() - began
            self.facts.stages[name] = self.facts.stages.get(name, 0.0) + seconds
            self.facts.write()
        result = self.facts.results.get(name, "")
        self.console.print(f"[green]✔[/] {name:<9} {seconds:6.1f} s  {result}", highlight=False)

    def row(self, sql: str, *parameters: Any) -> dict[str, Any] | None:
        """Return the first row of a query as a dict, or None."""
        with connect(settings=self.settings) as connection:
            cursor = connection.cursor(cursor_factory=RealDictCursor)
            cursor.execute(sql, parameters)
            found = cursor.fetchone()
        return dict(found) if found else None

    def pipeline(self, name: str, **variables: Any) -> None:
        with self.stage(name) as show:
            run = mage.trigger_pipeline(name, variables, self.settings)
            mage.wait_for_run(run, PIPELINE_LIMIT_S, progress=show, settings=self.settings)
            self.facts.results[name] = self._result_of(name, variables)

    def _result_of(self, name: str, variables: dict[str, Any]) -> str:
        if name == "prepare":
            found = self.row(
                "SELECT rows FROM ops.ingested_files WHERE card = %s"
                " ORDER BY ingested_at DESC LIMIT 1",
                self.card.name,
            )
            assert found is not None
            return f"{found['rows']:,} rows"
        if name == "train":
            found = self.row(
                "SELECT leaderboard FROM ops.trainings WHERE id = %s", variables["training_id"]
            )
            assert found is not None
            best = found["leaderboard"][0]
            auc = best["metrics"]["validation_roc_auc"]
            return (
                f"{len(found['leaderboard'])} candidates, best {best['candidate']} (AUC {auc:.3f})"
            )
        if name == "deploy":
            with connect(settings=self.settings) as connection:
                deployed = current_deployment(connection, self.card)
            if deployed is None:
                raise LoopOpenError(
                    "the gate let no candidate into production: see pipeline deploy in Mage"
                )
            version = deployed["model_version"]
            self.facts.update(production_before=version)
            return f"version {version} in production ({deployed['candidate']})"
        if name == "test":
            found = self.row(
                "SELECT count(*) AS months, sum(rows) AS rows, max(max_difference) AS difference"
                " FROM ops.test_results WHERE model_version = %s",
                self.facts.values["production_before"],
            )
            assert found is not None
            return (
                f"{found['rows'] or 0:,} rows of {found['months']} unseen months,"
                f" API and model within {found['difference'] or 0:.0e}"
            )
        if name == "monitor":
            found = self.row(
                "SELECT max(prediction_drift) AS drift FROM grafana.evidently_metrics"
                " WHERE model_version = %s",
                self.facts.values["production_before"],
            )
            assert found is not None
            return f"prediction drift up to {found['drift'] or 0:.2f}"
        return ""

    def start_over(self) -> None:
        """Take what earlier demos left out of the loop's way; people's own predictions stay.

        Simulated traffic is the file played back, so deleting it loses nothing, and the version in
        production is archived, not deleted: the API answers with it until the next deploy.
        """
        with self.stage("start over") as show:
            retired = self._retire()
            # With nothing in production the listener drops waiting alerts; what runs, runs on.
            deadline = time.monotonic() + PIPELINE_LIMIT_S
            while self.row(
                "SELECT id FROM ops.retrains WHERE card = %s AND finished_at IS NULL"
                " UNION ALL SELECT fingerprint FROM ops.alerts WHERE handled_at IS NULL",
                self.card.name,
            ):
                show("waiting for the alert or retrain that is under way")
                if time.monotonic() > deadline:
                    raise LoopOpenError(
                        "a retrain is still under way: see pipeline retrain in Mage"
                    )
                time.sleep(POLL_S)
            retired = self._retire() or retired
            with connect(settings=self.settings) as connection:
                forgotten = forget_simulations(connection)
            self.facts.results["start over"] = (
                f"version {retired} archived, {forgotten:,} simulated predictions forgotten"
                if retired
                else "nothing to forget"
            )

    def _retire(self) -> str | None:
        with connect(settings=self.settings) as connection:
            return retire_production(connection, self.card, settings=self.settings)

    def fetch(self) -> None:
        """Read the source here once: a download shows its progress, and prepare finds it cached."""
        with self.stage("data") as show:

            def progress(done: int, total: int | None) -> None:
                show(f"{done / 1e6:.1f} MB" + (f" of {total / 1e6:.1f} MB" if total else ""))

            raw = read_source(self.card, self.settings, progress)
            self.facts.update(rows=raw.rows, source=raw.origin)
            self.facts.results["data"] = f"{raw.origin}: {raw.source}"
        if raw.notice:
            self.console.print(f"[yellow]{escape(raw.notice)}[/]", highlight=False)

    def simulate(self, period: str) -> None:
        with self.stage("simulate") as show, connect(settings=self.settings) as connection:

            def progress(done: int, total: int) -> None:
                show(f"{period}: {done:,} of {total:,} requests")

            played = simulate_month(
                period, self.card, connection, settings=self.settings, progress=progress
            )
            self.played[period] = played.rows
            self.facts.results["simulate"] = (
                f"{' and '.join(self.played)}: {sum(self.played.values()):,} requests,"
                " labels delivered"
            )

    def wait_for_alert(self, since: datetime, last: bool) -> dict[str, Any] | None:
        """Return the alert that started a retrain after `since`; None if none comes.

        After the last month it is waited for longer, and LoopOpenError raised in place of None.
        """
        with self.stage("alert") as show:
            deadline = time.monotonic() + (ALERT_LIMIT_S if last else QUIET_S)
            while time.monotonic() < deadline:
                alert = self.row(
                    "SELECT * FROM ops.alerts WHERE decision = 'retrain' AND handled_at >= %s"
                    " ORDER BY handled_at DESC LIMIT 1",
                    since,
                )
                if alert:
                    labels = alert["body"].get("labels", {})
                    values = alert["body"].get("values") or {}
                    self.facts.update(
                        alert={
                            "rule": alert["rule"],
                            "fingerprint": alert["fingerprint"],
                            "starts_at": alert["starts_at"].isoformat(),
                            "period": labels.get("period"),
                            "value": values.get("B"),
                        }
                    )
                    self.facts.results["alert"] = (
                        f"{alert['rule']}, {labels.get('period')}: {values.get('B') or 0:.2f}"
                    )
                    return alert
                show("waiting for the alert rule to fire")
                time.sleep(POLL_S)
            if not last:
                self.facts.results["alert"] = "none: another month is played"
                return None
        if self.settings.in_containers:
            logs = "`docker compose logs` of grafana (or evaluator)"
        else:
            logs = f"`make logs` for {'grafana' if remembered(self.settings) else 'evaluator'}"
        raise LoopOpenError(
            f"no alert started a retrain within {ALERT_LIMIT_S:.0f} s of"
            f" {', '.join(self.played)}. If page Monitoring shows that nothing has moved, the model"
            " still holds, and there is nothing to close: `make run PIPELINE=retrain` retrains all"
            f" the same. If it shows an alarm, see {logs} and listener, and table ops.alerts"
        )

    def wait_for_retrain(self, retrain_id: str) -> dict[str, Any]:
        """Return the finished row of ops.retrains, or raise LoopOpenError."""
        with self.stage("retrain") as show:
            deadline = time.monotonic() + PIPELINE_LIMIT_S
            while time.monotonic() < deadline:
                retrain = self.row("SELECT * FROM ops.retrains WHERE id = %s", retrain_id)
                if retrain and retrain["finished_at"]:
                    self.facts.update(
                        outcome=retrain["outcome"],
                        champion_auc=retrain["champion_score"],
                        challenger_auc=retrain["challenger_score"],
                    )
                    self.facts.results["retrain"] = _describe(retrain)
                    return retrain
                show("training, gate, deployment, test, monitor (follow it in Mage)")
                time.sleep(POLL_S)
        raise LoopOpenError(f"retrain {retrain_id} did not finish: see pipeline retrain in Mage")

    def wait_until_served(self, version: str) -> None:
        client = PredictClient.of(self.settings)
        with self.stage("verify"):
            try:
                client.wait_for_version(version, self.settings.predict_workers, timeout=30)
            except (ApiUnavailable, TimeoutError) as error:
                raise LoopOpenError(
                    f"the API does not answer as version {version}: {error}"
                ) from error
            self.facts.results["verify"] = f"the API answers as version {version}"
        self.facts.update(production_after=version)

    def run(self) -> None:
        """Run the loop; return when it has closed, raise LoopOpenError or the fault if not."""
        since = self._now()
        self.fetch()
        self.start_over()
        self.pipeline("prepare")
        training_id = f"demo-{since:%Y%m%dT%H%M%S}"
        self.pipeline("train", training_id=training_id, cause="demo")
        self.pipeline("deploy", training_id=training_id, cause="demo")
        self.pipeline("test")
        with connect(settings=self.settings) as connection:
            to_come = periods_to_come(connection, self.card)[:MOST_MONTHS]
        if not to_come:
            raise LoopOpenError(
                f"{self.card.path.name} keeps no month back that could be played: set "
                "time.history_until to a month before the file's last ones"
            )
        played = 0
        while played < len(to_come):
            batch = to_come[played : played + (FIRST_MONTHS if played == 0 else 1)]
            for period in batch:
                self.simulate(period)
            played += len(batch)
            self.pipeline("monitor")
            alert = self.wait_for_alert(since, last=played == len(to_come))
            if alert is None:
                continue
            retrain = self.wait_for_retrain(alert["retrain"])
            since = self._now()
            if retrain["outcome"] == "promoted":
                self.wait_until_served(retrain["challenger"])
                self.facts.update(closed=True)
                return
            if retrain["outcome"] == "failed":
                raise LoopOpenError(f"the retrain failed: {retrain['reason']}")
            self.console.print(f"  the gate kept the champion ({retrain['reason']}); life goes on")
        raise LoopOpenError(f"no challenger was better within {played} months of traffic")

    def _now(self) -> datetime:
        found = self.row("SELECT clock_timestamp() AS now")
        assert found is not None
        return found["now"]


def _describe(retrain: dict[str, Any]) -> str:
    if retrain["outcome"] == "failed":
        return f"failed: {retrain['reason']}"
    champion, challenger = retrain["champion_score"], retrain["challenger_score"]
    scores = f"AUC {challenger:.3f} against {champion:.3f}" if champion and challenger else ""
    return f"{retrain['outcome'].replace('_', ' ')}: {scores}"


def show_stages(demo: Demo) -> None:
    """Print the table of stages, and whether the data is real."""
    facts, console = demo.facts, demo.console
    table = Table("stage", "seconds", "result", title="The loop", title_justify="left")
    table.columns[1].justify = "right"
    for name, seconds in facts.stages.items():
        table.add_row(name, f"{seconds:.1f}", facts.results.get(name, ""))
    console.print(table)
    if facts.values["source"] == "generated":
        console.print("[yellow]The data is GENERATED: no figure here is of real customers.[/]")


def show_addresses(demo: Demo) -> None:
    """Print where a person finds the servers."""
    settings, console = demo.settings, demo.console
    addresses = Table.grid(padding=(0, 2))
    for name, url in (
        ("Mage", settings.mage_url),
        ("MLflow", settings.mlflow_url),
        ("Streamlit", settings.streamlit_url),
        ("Monitoring", f"{settings.streamlit_url}/monitoring"),
        *([("Grafana", settings.grafana_url)] if remembered(settings) else []),
        ("predict", settings.predict_url),
    ):
        addresses.add_row(name, url)
    addresses.add_row(
        "login", "Mage: MLOPS_MAGE_OWNER_EMAIL and MLOPS_MAGE_OWNER_PASSWORD, in the file .env"
    )
    console.print(Panel(addresses, title="It stays up until `make down`", expand=False))


def main(
    settings: Settings | None = None,
    *,
    started: float | None = None,
    stages: dict[str, float] | None = None,
    console: Console | None = None,
    addresses: bool = True,
) -> int:
    """Run the demo on a stack that is up; return the exit code, 0 only if the loop closed.

    `started` (Unix seconds) is when the person pressed return, and `stages` the seconds already
    spent before (setup, up), so that the table tells all of it. Without `addresses` it does not
    say where the servers are: in a container it does not know under which port they are published.
    """
    settings = settings or get_settings()
    console = console or Console()
    demo = Demo(settings, console, started or time.time())
    demo.facts.stages.update(stages or {})
    demo.facts.write()
    # The notice of generated data is printed where a person looks, and need not be logged too.
    logging.getLogger("mlops").addHandler(logging.NullHandler())
    console.rule("[bold]The loop")
    try:
        demo.run()
    except KeyboardInterrupt:
        console.print("\nloop: open (interrupted)")
        return 130
    except Exception as error:
        # A person wants the reason, whoever mends it the traceback: one each to screen and log.
        log = settings.state_dir / "logs" / "demo.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc())
        demo.facts.update(error=f"{type(error).__name__}: {error}")
        show_stages(demo)
        if addresses:
            show_addresses(demo)
        console.print(f"[red]{escape(str(error))}[/]  (traceback: {log})", highlight=False)
        console.print("loop: open")
        return 1
    show_stages(demo)
    if addresses:
        show_addresses(demo)
    console.print("loop: closed")
    return 0


def _run(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mlops.stack.demo", description=__doc__)
    parser.add_argument("--started", type=float, help="when the person pressed return (Unix s)")
    parser.add_argument("--up", type=float, help="seconds that it took until the stack was up")
    options = parser.parse_args(arguments)
    settings = get_settings()
    os.environ.update(bypass(os.environ, settings))
    stages = {} if options.up is None else {"up": options.up}
    return main(settings, started=options.started, stages=stages, addresses=False)


if __name__ == "__main__":
    sys.exit(_run())
