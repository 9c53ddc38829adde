"""The command line of the stack: `python -m mlops.stack up|down|status|…`, and what `make` calls.

It only wires: what a command needs to know stands in the modules beside it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import psycopg2
from pydantic import ValidationError
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from mlops.alerting.evaluator import hand_over
from mlops.alerting.heartbeat import forget_beat
from mlops.database import connect
from mlops.download import progress_lines
from mlops.orchestration.mage import (
    PIPELINES,
    MageError,
    trigger_pipeline,
    wait_for_run,
)
from mlops.serving import exchange
from mlops.settings import ROOT, Settings, get_settings
from mlops.stack import backup, checks, grafana, postgres, processes, prometheus, state
from mlops.stack.health import Health, last_lines, look
from mlops.stack.proxies import bypass
from mlops.stack.secrets import ensure_secrets
from mlops.stack.services import Service, services, watcher

console = Console(highlight=False, soft_wrap=True)

FAILED = 1
REFUSED = 2
_POLL_S = 0.5
_MOST_STARTS = 4
"""A service that supervisor has started that often within one `up` will not come up any more."""


class EnvironmentFileError(RuntimeError):
    """`.env` cannot be read or written."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for a failure, 2 for what the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (postgres.PostgresError, processes.SupervisorError, MageError) as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return FAILED
    except (
        state.StateError,
        EnvironmentFileError,
        backup.BackupError,
        exchange.ExchangeError,
    ) as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return REFUSED
    except ValidationError as error:
        for each in error.errors():  # not its `input`, which may be a secret
            variable = f"MLOPS_{'_'.join(str(part) for part in each['loc']).upper()}"
            console.print(f"[red]{variable}: {escape(each['msg'])}[/]")
        return REFUSED
    except KeyboardInterrupt:
        console.print("interrupted; `make status` shows what runs, `make down` stops it")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlops.stack", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add("secrets", run_secrets, "generate the secrets that are missing in .env")
    add("check", run_check, "say what would keep the stack from starting")
    add("up", run_up, "start whatever does not run, and wait until all is well")
    add("down", run_down, "stop everything, leftovers of a crash too")
    add("status", run_status, "show each server's state, health and memory")
    logs = add("logs", run_logs, "show the last lines of the logs")
    logs.add_argument("service", nargs="*", help="servers; default: all")
    logs.add_argument("-f", "--follow", action="store_true", help="go on showing new lines")
    logs.add_argument("-n", "--lines", type=int, default=40)
    clean = add("clean", run_clean, "stop everything and delete all state, models included")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    make_backup = add("backup", run_backup, "copy databases, models and reports into a folder")
    make_backup.add_argument("folder", nargs="?", type=Path, help="default: backups/<now>")
    restore = add("restore", run_restore, "fill an empty state from a backup; the stack is down")
    restore.add_argument("folder", type=Path)
    demo = add("demo", run_demo, "start the stack if need be, and run the whole loop once")
    demo.add_argument("--started", type=float, help="when the person pressed return (Unix s)")
    demo.add_argument("--installed", type=float, help="when the environments were there (Unix s)")
    run = add("run", run_pipeline, "run a pipeline in Mage and wait for its end")
    run.add_argument("pipeline", choices=PIPELINES)
    add("rollback", run_rollback, "put the former production version back, and hold the loop")
    add("release", run_release, "let the loop promote again")
    promotion = add("promote", run_promote, "put a version in production, whatever the gate says")
    promotion.add_argument("version", help="of the registry, such as 7")
    shadow = add("shadow", run_shadow, "say who is in shadow, or put a version there, or stop it")
    shadow.add_argument("version", nargs="?", help="of the registry, such as 7")
    shadow.add_argument("--since", default="", help="a month, to be scored whole from it on")
    shadow.add_argument("--stop", action="store_true", help="end the shadow")
    simulate = add("simulate", run_simulate, "play a month of the file as live traffic")
    simulate.add_argument("period", help="the month, such as 2009-03")
    return parser


def run_secrets(options: argparse.Namespace) -> int:
    """Generate missing secrets."""
    generated = _ensure_secrets()
    if generated:
        console.print(f".env: {len(generated)} secrets generated (mode 600)")
    return 0


def run_check(options: argparse.Namespace) -> int:
    """Print what stands in the way of a start."""
    settings = _settings()
    wanted = services(settings)
    if processes.supervisor_pid(settings) is None:
        # The next start decides anew; what it could still download is not known before.
        wanted = [*_unwatched(wanted), watcher(settings, grafana.find(settings).grafana)]
    found = _problems(settings, wanted)
    if not found:
        console.print("nothing stands in the way of `make up`")
    return REFUSED if found else 0


def run_up(options: argparse.Namespace) -> int:
    """Start what does not run, wait until it is well, print the addresses."""
    settings = _settings()
    wanted = services(settings)
    with _only_one(settings):
        changed = _changed_settings(settings)
        if changed:
            if _problems(settings, wanted):
                return REFUSED  # what runs goes on with its old settings
            console.print(f"{changed}: restarting")
            processes.stop_all(settings)
            postgres.stop(settings)
        if processes.supervisor_pid(settings) is None:
            # A supervisor that was killed leaves servers behind, which would hold the ports.
            ended = processes.end_leftovers(settings)
            postgres.stop(settings)
            if ended:
                console.print(f"{ended} processes of an earlier run were still there: ended")
            if _problems(settings, _unwatched(wanted)):
                return REFUSED  # before a download, which takes its time
            _choose_watcher(settings)
            choice = prometheus.find(settings)
            prometheus.remember(settings, choice.program)
            console.print(escape(choice.sentence))
            wanted = services(settings)
        if _problems(settings, wanted):
            return REFUSED
        started = time.monotonic()
        if not _start(settings, wanted):
            return REFUSED
        healths = _wait(settings, wanted)
        failed = [each for each in healths if not each.well]
    for each in failed:
        _show_failure(settings, each)
    _show_addresses(settings, wanted)
    if failed:
        names = ", ".join(each.service.name for each in failed)
        console.print(
            f"[red]not up: {names}[/] (the others run; logs in {settings.state_dir}/logs)"
        )
        return FAILED
    console.print(f"[green]up[/] after {time.monotonic() - started:.0f} s")
    return 0


def run_down(options: argparse.Namespace) -> int:
    """Stop everything."""
    settings = _settings()
    if not state.exists(settings.state_dir) or not state.is_ours(settings.state_dir):
        console.print("nothing runs")
        return 0
    with _only_one(settings):
        stopped = _stop(settings)
    if not stopped:
        return FAILED
    console.print("down")
    return 0


def run_status(options: argparse.Namespace) -> int:
    """Print a table of all servers; exit code 1 if one is not well."""
    settings = _settings()
    healths = look(settings, services(settings), memory=True)
    table = Table("service", "state", "pid", "port", "uptime", "health", "memory")
    for column in (2, 3, 4, 6):
        table.columns[column].justify = "right"
    for each in healths:
        running = each.state.pid is not None
        table.add_row(
            each.service.name,
            each.state.name.lower(),
            str(each.state.pid or ""),
            str(each.service.port or ""),
            _duration(each.state.uptime) if running else "",
            f"[{'green' if each.well else 'red'}]{escape(each.complaint or 'well')}[/]",
            f"{each.memory / 1e6:,.0f} MB" if running else "",
        )
    table.add_section()
    table.add_row("", "", "", "", "", "", f"{sum(each.memory for each in healths) / 1e6:,.0f} MB")
    console.print(table)
    orphans = [] if processes.supervisor_pid(settings) else processes.leftovers(settings)
    if orphans:
        console.print(
            f"[red]{len(orphans)} processes outlived their supervisor[/]: "
            "`make up` starts anew, `make down` ends them"
        )
    changed = _changed_settings(settings)
    if changed:
        console.print(f"{changed}: `make up` takes them over")
    return 0 if all(each.well for each in healths) else FAILED


def run_logs(options: argparse.Namespace) -> int:
    """Show the ends of the logs, each under its name."""
    settings = _settings()
    folder = settings.state_dir / "logs"
    found = {path.stem: path for path in sorted(folder.glob("*.log"))}
    unknown = [name for name in options.service if name not in found]
    if unknown or not found:
        named = f"no log of {', '.join(unknown)}" if unknown else "no logs"
        console.print(f"{named} in {folder}; there are: {', '.join(found) or 'none'}")
        return REFUSED
    paths = [str(found[name]) for name in options.service or found]
    follow = ["-F"] if options.follow else []
    os.execvp("tail", ["tail", "-n", str(options.lines), *follow, *paths])  # noqa: S606


def run_clean(options: argparse.Namespace) -> int:
    """Stop everything and delete what it has written; `.env` and downloads stay."""
    settings = _settings()
    # Payloads and reports go too: they are numbered by the registry that is deleted.
    doomed = state.written(settings)
    if not doomed:
        console.print("nothing to delete")
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            console.print(
                "clean deletes all models, metrics and logs: say so with `make clean YES=1`"
            )
            return REFUSED
        names = "\n  ".join(str(path) for path in doomed)
        console.print(f"This deletes all models, metrics and logs:\n  {names}")
        if console.input("Go on? [y/N] ").strip().lower() != "y":
            return REFUSED
    with _only_one(settings):  # to the end: no `up` may start on what is being deleted
        if not _stop(settings):
            return FAILED
        closed = postgres.close_again(settings)
        if closed:
            console.print(f"chmod o-x {' '.join(str(path) for path in closed)}: as they were")
        doomed = state.written(settings)  # again: a version may have been deployed since
        for path in doomed:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    console.print(f"deleted {len(doomed)} files and folders")
    return 0


def run_backup(options: argparse.Namespace) -> int:
    """Back up the running stack."""
    now = datetime.now(timezone.utc)
    folder = options.folder or ROOT / "backups" / f"{now:%Y-%m-%dT%H-%M-%S}"
    with console.status("backup …") as status:
        made = backup.back_up(_settings(), folder, lambda part: status.update(f"backup: {part} …"))
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    console.print(f"{made}: {size / 1e6:,.0f} MB (.env, which holds the secrets, is not in it)")
    return 0


def run_restore(options: argparse.Namespace) -> int:
    """Fill an empty state from a backup."""
    settings = _settings()
    backup.check(options.folder)
    with _only_one(settings):
        if processes.supervisor_pid(settings) is not None:
            console.print("[red]the stack runs: `make down` first[/]")
            return REFUSED
        with console.status("restore …") as status:
            backup.restore(
                settings, options.folder, lambda part: status.update(f"restore: {part} …")
            )
    console.print("restored; `make up` starts it")
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """Bring the stack up and run the loop once; see demo.py."""
    from mlops.stack import demo

    now = time.time()
    started = options.started or now
    facts = _settings().state_dir / "demo.json"
    facts.unlink(missing_ok=True)  # those of an earlier demo say nothing of this one
    code = run_up(options)
    if code:
        if facts.parent.is_dir():
            demo.Facts(facts, started).update(error="the stack did not come up")
        return code
    stages = {"setup": (options.installed or now) - started, "up": time.time() - now}
    return demo.main(_settings(), started=started, stages=stages)


def run_pipeline(options: argparse.Namespace) -> int:
    """Run one pipeline in Mage, as its trigger there would, and say how it ended."""
    return _run_in_mage(options.pipeline, {}, _settings())


def run_promote(options: argparse.Namespace) -> int:
    """Put a version in production; by Mage, since it is exported anew."""
    asked = {"version": options.version, "cause": "make promote"}
    return _run_in_mage("promote", asked, _settings())


def run_rollback(options: argparse.Namespace) -> int:
    """Put the former production version back; without Mage, if its payload is there."""
    settings = _settings()
    # Imported here, as with everything that needs seconds for it.
    from mlflow.exceptions import MlflowException

    from mlops.dataset.card import CardError, load_card
    from mlops.registry.stays import former_stays
    from mlops.serving.deployment import DeploymentError
    from mlops.serving.payload import is_payload
    from mlops.serving.rollback import RollbackError, roll_back

    cause = "make rollback"
    try:
        card = load_card(settings.card)
        with connect(settings=settings) as connection:
            stays = former_stays(connection, card)
            connection.commit()
            if stays and not is_payload(settings.payloads_dir / stays[-1]["model_version"]):
                version = stays[-1]["model_version"]
                console.print(f"the payload of version {version} is gone: Mage exports it anew")
                return _run_in_mage("rollback", {"cause": cause}, settings)
            done = roll_back(
                connection, card, settings, lambda line: console.print(escape(str(line))), cause
            )
    except (RollbackError, DeploymentError, CardError, MlflowException) as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return FAILED
    except psycopg2.OperationalError as error:
        return _no_database(error)
    console.print(f"{done.seconds:.1f} s")
    return 0


def run_release(options: argparse.Namespace) -> int:
    """Let the loop promote again."""
    settings = _settings()
    from mlops.dataset.card import CardError, load_card
    from mlops.serving.rollback import release

    try:
        card = load_card(settings.card)
        with connect(settings=settings) as connection:
            release(connection, card, "make release", lambda line: console.print(escape(str(line))))
    except CardError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return FAILED
    except psycopg2.OperationalError as error:
        return _no_database(error)
    return 0


def run_shadow(options: argparse.Namespace) -> int:
    """Put a version in shadow, which Mage does, or stop it; and say who is there."""
    settings = _settings()
    from mlops.dataset.card import CardError, load_card
    from mlops.registry.shadows import current_shadow, stop_shadow

    if options.version and not options.stop:
        asked = {"version": options.version, "since": options.since}
        if code := _run_in_mage("shadow", asked, settings):
            return code
    try:
        card = load_card(settings.card)
        with connect(settings=settings) as connection:
            stopped = stop_shadow(connection, card) if options.stop else None
            shadow = current_shadow(connection, card)
    except CardError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return FAILED
    except psycopg2.OperationalError as error:
        return _no_database(error)
    if stopped is not None:
        console.print(f"version {stopped.version} is in shadow no more")
    elif shadow is None:
        console.print("nobody is in shadow: make shadow VERSION=7")
    else:
        console.print(
            f"version {shadow.version} ({shadow.candidate}) is in shadow since "
            f"{shadow.started_at:%Y-%m-%d %H:%M} UTC, by {shadow.started_by}: "
            f"{settings.streamlit_url}/shadow"
        )
    return 0


def run_simulate(options: argparse.Namespace) -> int:
    """Play one month as live traffic and deliver its labels."""
    settings = _settings()
    # Imported here: `status` and `down` need not wait for pandas.
    from mlops.dataset.card import CardError, load_card
    from mlops.dataset.timeline import month_start
    from mlops.serving.client import ApiUnavailable
    from mlops.serving.traffic import TrafficError, simulate_month

    try:
        month_start(options.period)
        card = load_card(settings.card)
    except (ValueError, CardError) as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return REFUSED
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn())
    try:
        with connect(settings=settings) as connection, Progress(*columns, console=console) as bar:
            task = bar.add_task(f"{options.period}: requests", total=None)
            played = simulate_month(
                options.period,
                card,
                connection,
                progress=lambda sent, rows: bar.update(task, completed=sent, total=rows),
                settings=settings,
            )
    except (TrafficError, ApiUnavailable) as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return FAILED
    except psycopg2.OperationalError as error:
        return _no_database(error)
    console.print(
        f"{played.period}: {played.rows:,} requests, {played.labelled:,} labels delivered, "
        f"{played.warned:,} answered with a warning, {played.seconds:.1f} s"
    )
    return 0


def _run_in_mage(pipeline: str, variables: dict[str, str], settings: Settings) -> int:
    """Run a pipeline with `variables`, wait for its end, and return the exit code."""
    try:
        run = trigger_pipeline(pipeline, variables, settings=settings)
        with console.status(f"{pipeline} …") as status:
            wait_for_run(run, progress=status.update, settings=settings)
    except MageError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return FAILED
    console.print(f"{pipeline}: completed (run {run}: {settings.mage_url})")
    return 0


def _no_database(error: psycopg2.OperationalError) -> int:
    """Say that Postgres does not answer; return the exit code."""
    reason = str(error).strip().splitlines()[0]
    console.print(f"[red]{escape(reason)}[/]: is the stack up? `make status`, `make up`")
    return FAILED


def _ensure_secrets() -> list[str]:
    try:
        return ensure_secrets()
    except (OSError, UnicodeDecodeError) as error:
        path = getattr(error, "filename", None) or ROOT / ".env"
        reason = getattr(error, "strerror", None) or error
        raise EnvironmentFileError(
            f"{path}: {reason}; it holds the settings and secrets"
        ) from error


def _settings() -> Settings:
    """Return the settings, with the secrets that may just have been generated.

    From here on this process asks the stack's servers directly, whatever proxy is set.
    """
    _ensure_secrets()
    get_settings.cache_clear()
    settings = get_settings()
    os.environ.update(bypass(os.environ, settings))
    return settings


def _problems(settings: Settings, wanted: list[Service]) -> list[str]:
    """Print and return what stands in the way of a start."""
    running = {name for name, found in processes.states(settings).items() if found.pid}
    variables = [each.port_setting for each in wanted if each.name in running]
    # Those of the start: a service that runs says nothing about a port that is set only now.
    own_ports = state.ports_at_start(settings, variables)
    found = checks.problems(settings, wanted, own_ports)
    for line in found:
        console.print(f"[red]{escape(line)}[/]")
    return found


def _unwatched(wanted: list[Service]) -> list[Service]:
    """Return the servers that run whatever is decided at the start."""
    decided = ("grafana", "evaluator", "prometheus")
    return [each for each in wanted if each.name not in decided]


def _choose_watcher(settings: Settings) -> None:
    """Decide whether Grafana or the evaluator watches until the next start; say so in one line."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("Grafana: download, then unpacking", total=None)
    lines = progress_lines(lambda line: console.print(f"Grafana: {line}"))

    def progress(done: int, total: int | None) -> None:
        if console.is_interactive:
            bar.start()  # now: mostly there is nothing to download, and nothing is shown
            bar.update(task, completed=done, total=total)
        else:
            lines(done, total)

    try:
        choice = grafana.provide(settings, progress)
    finally:
        if console.is_interactive:
            bar.stop()
    grafana.remember(settings, choice.grafana)
    console.print(escape(choice.sentence))


def _changed_settings(settings: Settings) -> str:
    """Return what to say if servers run that were started with other settings, else ""."""
    if processes.supervisor_pid(settings) is None:
        return ""
    changed = state.changed_settings(settings)
    if changed == []:
        return ""
    return (
        f"settings have changed since the start ({', '.join(changed or ['which, is not known'])})"
    )


def _stop(settings: Settings) -> bool:
    """Stop everything, with the stack's lock held; return whether nothing is left."""
    ended = processes.stop_all(settings)
    postgres.stop(settings)
    left = processes.leftovers(settings)
    if ended:
        console.print(f"{ended} processes outlived their supervisor: ended")
    if left:
        console.print(f"[red]still there: {', '.join(str(each.pid) for each in left)}[/]")
    return not left


def _start(settings: Settings, wanted: list[Service]) -> bool:
    """Start supervisor, then Postgres, then, on a migrated database, all others at once.

    Returns False, with everything stopped again, if the database belongs to another card.
    """
    for folder in (settings.state_dir, settings.payloads_dir, settings.reports_dir):
        folder.mkdir(parents=True, exist_ok=True)
    exchange.make_folders(settings)
    for name in ("logs", "mage", "mlflow-artifacts", "grafana"):
        (settings.state_dir / name).mkdir(exist_ok=True)
        (settings.state_dir / name).chmod(0o700)
    if processes.supervisor_pid(settings) is None:
        postgres.initialise(settings)
        state.remember_settings(settings)  # first: nothing may run with other ones than these
        processes.start_supervisor(settings, [_program(each) for each in wanted])
        forget_beat(settings)  # an earlier evaluator's says nothing about this one
    processes.start(settings, "postgres")
    try:
        postgres.wait_until_ready(settings)
    except postgres.PostgresError:
        console.print("\n".join(escape(line) for line in last_lines(settings, "postgres")))
        raise
    postgres.migrate(settings)
    # Looked at before too, but then the database may not have run.
    problems = [*checks.card_problems(settings), *checks.alert_query_problems(settings, wanted)]
    for line in problems:
        console.print(f"[red]{escape(line)}[/]")
    if problems:
        processes.stop_all(settings)
        postgres.stop(settings)
        return False
    if any(each.name == "grafana" for each in wanted):
        with connect(settings=settings) as connection:
            hand_over(connection)
    for service in wanted:
        processes.start(settings, service.name)
    return True


def _program(service: Service) -> processes.Program:
    return processes.Program(
        service.name,
        (sys.executable, "-m", "mlops.stack.launch", service.name),
        service.stop_signal,
        service.stop_seconds,
        first=service.name == "postgres",
    )


def _wait(settings: Settings, wanted: list[Service]) -> list[Health]:
    """Wait until each service is well or has failed for good; return how they are then."""
    columns = (SpinnerColumn(finished_text="[green]✓[/]"), TextColumn("{task.description}"))
    progress = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    tasks = {each.name: progress.add_task(f"{each.name:<10}", total=1, note="") for each in wanted}
    settled: dict[str, Health] = {}
    pids: dict[str, set[int]] = defaultdict(set)
    started = time.monotonic()
    with Live(progress, console=console, refresh_per_second=8, transient=not console.is_terminal):
        while len(settled) < len(wanted):
            waited = time.monotonic() - started
            for health in look(settings, [each for each in wanted if each.name not in settled]):
                name = health.service.name
                if health.state.pid:
                    pids[name].add(health.state.pid)
                hopeless = (
                    health.state.name == "FATAL"
                    or len(pids[name]) >= _MOST_STARTS
                    or waited > health.service.start_seconds
                )
                note = health.complaint or ""
                if health.well or hopeless:
                    settled[name] = health
                    if not health.well:
                        note = f"[red]failed: {escape(note)}[/]"
                    if not console.is_terminal:
                        console.print(f"{name:<10} {waited:4.0f} s  {note or 'well'}")
                    progress.stop_task(tasks[name])
                progress.update(tasks[name], completed=int(health.well), note=note)
            time.sleep(_POLL_S)
    return [settled[each.name] for each in wanted]


def _show_failure(settings: Settings, health: Health) -> None:
    name = health.service.name
    console.print(f"\n[red]{name}: {health.state.name.lower()}, {health.complaint}[/]")
    for line in last_lines(settings, name):
        console.print(f"  {escape(line)}")
    console.print(f"  ({processes.log_path(settings, name)})\n")
    if name == "grafana":
        console.print("the alert evaluator can watch instead: MLOPS_GRAFANA=off make up\n")


def _show_addresses(settings: Settings, wanted: list[Service]) -> None:
    table = Table("server", "address", "login")
    logins = {
        "grafana": "admin, MLOPS_GRAFANA_ADMIN_PASSWORD in .env",
        "mage": f"{settings.mage_owner_email}, MLOPS_MAGE_OWNER_PASSWORD in .env",
        "listener": "bearer token MLOPS_WEBHOOK_TOKEN in .env",
        "postgres": "roles mlops, grafana, mlflow, predict; passwords in .env",
    }
    for each in wanted:
        address = each.address or (f"{settings.postgres_host}:{each.port}" if each.port else None)
        if address:
            table.add_row(each.name, address, logins.get(each.name, "none (this machine only)"))
    console.print(table)


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the stack's lock, so that two `up` or `down` do not work against each other."""
    path = settings.state_dir / "lock"
    while True:
        state.claim(settings)
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                console.print("another `up`, `down` or `clean` is at work: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            # A `clean` deletes the lock with all else: what was waited for may be nobody's now.
            if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                continue
            yield
            return


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


if __name__ == "__main__":
    sys.exit(main())
