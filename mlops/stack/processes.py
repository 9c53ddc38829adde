"""The stack's processes under supervisor: configured, started, asked, and stopped to the last.

Supervisor restarts what dies. This module never decides what runs (services.py), and writes no
secret. Every process inherits the stack's mark in its environment, so that what outlives a killed
supervisor is found and ended too.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil

from mlops.settings import ROOT, Settings

MARK = "MLOPS_STACK_ID"
"""Name of the variable that marks a process as this stack's; its value is the state folder."""

SERVICE_MARK = "MLOPS_STACK_SERVICE"
"""Name of the variable that tells which service a process was launched as, or by."""

# Supervisor binds "<path>.<pid>" first; Linux allows 107 bytes, macOS 103.
_LONGEST_SOCKET = 103 - len(".4194304")


class SupervisorError(RuntimeError):
    """Supervisor cannot be started or does not answer."""


@dataclass(frozen=True)
class Program:
    """What supervisor is told about one server."""

    name: str
    command: tuple[str, ...]
    stop_signal: str = "TERM"
    stop_seconds: int = 15
    first: bool = False  # started with supervisor, and stopped after all others


@dataclass(frozen=True)
class State:
    """What supervisor says about one server; `name` is supervisor's word, such as RUNNING."""

    name: str
    pid: int | None
    uptime: float
    detail: str


def log_path(settings: Settings, name: str) -> Path:
    """Return the file that holds the output of the server `name`."""
    return settings.state_dir / "logs" / f"{name}.log"


def start_supervisor(settings: Settings, programs: Iterable[Program]) -> None:
    """Start supervisor with `programs`; those that are `first` start at once.

    Raises SupervisorError with its complaint if it does not come up.
    """
    configuration = _configuration_path(settings)
    _forget_socket(settings)
    address = _socket_path(settings)
    text = _configuration(settings, list(programs), address)
    configuration.touch(mode=0o600)
    configuration.chmod(0o600)
    configuration.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration)],
        cwd=ROOT,
        env={**os.environ, **settings.environment(), MARK: _identity(settings)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    deadline = time.monotonic() + 15
    while done.returncode == 0 and time.monotonic() < deadline:
        if _call(settings, "getState") is not None:
            return
        time.sleep(0.05)
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()] or ["it does not answer"]
    complaint = next((line for line in lines if line.startswith("Error")), lines[-1])
    raise SupervisorError(
        f"supervisor did not start: {complaint}; see {log_path(settings, 'supervisord')}"
    )


def supervisor_pid(settings: Settings) -> int | None:
    """Return the pid of this stack's supervisor, or None if it does not run."""
    try:
        pid = int((settings.state_dir / "supervisord.pid").read_text())
        # The file outlives a kill -9, and its pid may be somebody else's by now.
        if str(_configuration_path(settings)) in psutil.Process(pid).cmdline():
            return pid
    except (OSError, ValueError, psutil.Error):
        pass
    return None


def states(settings: Settings) -> dict[str, State]:
    """Return the state of each server by name; empty if supervisor does not run."""
    answer = _call(settings, "getAllProcessInfo")
    if not isinstance(answer, list):
        return {}
    return {
        each["name"]: State(
            each["statename"],
            each["pid"] or None,
            max(0.0, float(each["now"] - each["start"])) if each["pid"] else 0.0,
            each["description"] if not each["pid"] else each["spawnerr"],
        )
        for each in answer
    }


def start(settings: Settings, name: str) -> None:
    """Start the server `name` if it does not run; return without waiting for it."""
    found = states(settings).get(name)
    if found is None:
        raise SupervisorError(f"supervisor knows no {name!r}: `make down up` tells it anew")
    if found.name in ("RUNNING", "STARTING", "BACKOFF"):
        return
    group = "first" if f"first:{name}" in _full_names(settings) else "services"
    with suppress(Fault):  # it came up by itself in between
        _proxy(settings).supervisor.startProcess(f"{group}:{name}", False)


def stop(settings: Settings, name: str) -> None:
    """Stop the server `name` and wait until it is gone; it stays down until it is started again.

    Raises SupervisorError if supervisor does not know it.
    """
    full = next((full for full in _full_names(settings) if full.partition(":")[2] == name), None)
    if full is None:
        raise SupervisorError(f"supervisor knows no {name!r}")
    with suppress(Fault):  # it does not run
        _proxy(settings).supervisor.stopProcess(full, True)


def stop_all(settings: Settings, timeout: float = 90.0, patience: float = 10.0) -> int:
    """Stop supervisor and all it runs within `timeout` s, then whatever else is left of the stack.

    What is left is asked to stop and, after `patience` s, killed. Returns how many
    processes had to be ended one by one. Works also where supervisor is dead.
    """
    pid = supervisor_pid(settings)
    if pid is not None:
        with suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(pid)
            supervisor.terminate()
            with suppress(psutil.TimeoutExpired):
                supervisor.wait(timeout)
            if supervisor.is_running():
                supervisor.kill()
    ended = end_leftovers(settings, patience)
    _forget_socket(settings)
    (settings.state_dir / "supervisord.pid").unlink(missing_ok=True)
    return ended


def leftovers(settings: Settings, service: str | None = None) -> list[psutil.Process]:
    """Return the processes of this stack that run now, except supervisor's own and the caller.

    With `service`, only those that were launched as that service, or by it.
    """
    identity = _identity(settings)
    caller = psutil.Process()
    spared = {caller.pid, supervisor_pid(settings), *(each.pid for each in caller.parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        with suppress(psutil.Error, OSError):
            marks = process.environ()
            if marks.get(MARK) == identity and service in (None, marks.get(SERVICE_MARK)):
                found.append(process)
    return found


def end_predecessors(settings: Settings, service: str) -> int:
    """Kill what a killed server of that name has left behind; return how many processes that were.

    Called before the service starts again. The child of an MLflow that was killed, for one, would
    hold its port for ever, and answer for it.
    """
    found = leftovers(settings, service)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=5)
    return len(found)


def end_leftovers(settings: Settings, patience: float = 10.0) -> int:
    """End what is left of the stack, politely first; return how many processes that were."""
    ended: set[int] = set()
    for round_ in range(20):
        alive = leftovers(settings)
        if not alive:
            break
        for process in alive:
            ended.add(process.pid)
            with suppress(psutil.NoSuchProcess):
                if round_ > 0:
                    process.kill()
                elif process.name() == "postgres":
                    process.send_signal(signal.SIGINT)  # a fast, clean shutdown
                else:
                    process.terminate()
        # A killed parent may have left children that were not yet there: look again.
        psutil.wait_procs(alive, patience if round_ == 0 else 2.0)
    return len(ended)


def _identity(settings: Settings) -> str:
    return str(settings.state_dir.resolve())


def _configuration_path(settings: Settings) -> Path:
    return settings.state_dir / "supervisord.conf"


def _socket_path(settings: Settings) -> Path:
    """Return where supervisor listens: in the state folder, or if too deep in a private folder."""
    path = settings.state_dir / "supervisor.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        # Another user must not be able to put a socket there first: the name is random, mode 700.
        path = Path(tempfile.mkdtemp(prefix="mlops-", dir="/tmp")) / path.name
    (settings.state_dir / "supervisor.address").write_text(str(path))
    return path


def _forget_socket(settings: Settings) -> None:
    note = settings.state_dir / "supervisor.address"
    try:
        path = Path(note.read_text())
    except OSError:
        return
    path.unlink(missing_ok=True)
    if path.parent.name.startswith("mlops-") and path.parent != settings.state_dir:
        shutil.rmtree(path.parent, ignore_errors=True)
    note.unlink(missing_ok=True)


def _proxy(settings: Settings) -> Any:
    try:
        path = (settings.state_dir / "supervisor.address").read_text()
    except OSError as error:
        raise SupervisorError("supervisor does not run") from error
    # Here, since a container launches its server with this module, and has no supervisor.
    from supervisor.xmlrpc import SupervisorTransport

    # The address is a formality: the transport speaks over the socket.
    return ServerProxy("http://127.0.0.1", SupervisorTransport(None, None, f"unix://{path}"))


def _call(settings: Settings, method: str) -> Any:
    """Return supervisor's answer, or None if it gives none."""
    try:
        return getattr(_proxy(settings).supervisor, method)()
    except (SupervisorError, OSError, HTTPException, Fault):
        return None


def _full_names(settings: Settings) -> set[str]:
    answer = _call(settings, "getAllProcessInfo") or []
    return {f"{each['group']}:{each['name']}" for each in answer}


def _configuration(settings: Settings, programs: list[Program], address: Path) -> str:
    state = settings.state_dir
    lines = [
        "; Written at every start.",
        "[supervisord]",
        f"logfile={_checked(log_path(settings, 'supervisord'))}",
        "logfile_maxbytes=10MB",
        "logfile_backups=2",
        f"pidfile={_checked(state / 'supervisord.pid')}",
        f"childlogdir={_checked(state / 'logs')}",
        f"directory={_checked(ROOT)}",
        "nocleanup=true",
        "minfds=1024",
        *(["user=root"] if os.geteuid() == 0 else []),  # without it, it warns about being root
        "",
        "[unix_http_server]",
        f"file={_checked(address)}",
        "chmod=0700",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for program in programs:
        command = " ".join(shlex.quote(part) for part in program.command)
        lines += [
            "",
            f"[program:{program.name}]",
            f"command={_checked(command)}",
            f"autostart={'true' if program.first else 'false'}",
            "autorestart=true",
            "startsecs=2",
            "startretries=3",
            f"stopsignal={program.stop_signal}",
            f"stopwaitsecs={program.stop_seconds}",
            "stopasgroup=true",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile={_checked(log_path(settings, program.name))}",
            "stdout_logfile_maxbytes=10MB",
            "stdout_logfile_backups=3",
        ]
    # Groups are stopped one after another, the highest priority first, their members side by side.
    for group, priority, members in (
        ("first", 1, [each.name for each in programs if each.first]),
        ("services", 2, [each.name for each in programs if not each.first]),
    ):
        if members:
            lines += ["", f"[group:{group}]", f"programs={','.join(members)}"]
            lines += [f"priority={priority}"]
    return "\n".join(lines) + "\n"


def _checked(value: object) -> str:
    """Return `value` for supervisor's file, where % begins an expansion and " ;" a comment.

    Doubling the % does not help: supervisor expands some values twice.
    """
    text = str(value)
    for trap in ("%", " ;", "\n"):
        if trap in text:
            raise SupervisorError(
                f"supervisor cannot take {trap!r} in a path: move the clone, or set "
                f"MLOPS_STATE_DIR, away from {text}"
            )
    return text
