"""How the services are: asked of supervisor, of the services and of the system, in parallel."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import psutil

from mlops.settings import Settings
from mlops.stack.processes import State, log_path, states
from mlops.stack.services import Service

WAITING = "waits for the first deployment"


@dataclass(frozen=True)
class Health:
    """One service at one moment; `memory` is in bytes, shared pages counted once."""

    service: Service
    state: State
    complaint: str | None
    memory: int = 0

    @property
    def well(self) -> bool:
        """Whether the service does what it can do by now."""
        return self.state.name == "RUNNING" and self.complaint in (None, WAITING)


def look(settings: Settings, services: Iterable[Service], memory: bool = False) -> list[Health]:
    """Return the health of each of `services`, all asked at the same time."""
    services = list(services)
    found = states(settings)
    absent = State("STOPPED", None, 0.0, "supervisor does not run")

    def one(service: Service) -> Health:
        state = found.get(service.name, absent)
        complaint: str | None = "does not run"
        if state.name == "RUNNING":
            if service.waits_for and not service.waits_for.exists():
                complaint = WAITING
            else:
                complaint = service.health() if service.health else None
        return Health(service, state, complaint, _memory(state.pid) if memory else 0)

    with ThreadPoolExecutor(max(1, len(services))) as pool:
        return list(pool.map(one, services))


def last_lines(settings: Settings, name: str, count: int = 15) -> list[str]:
    """Return the last lines that the service `name` wrote."""
    try:
        with log_path(settings, name).open(errors="replace") as log:
            return [line.rstrip() for line in deque(log, maxlen=count)]
    except FileNotFoundError:
        return ["(no log)"]


def _memory(pid: int | None) -> int:
    """Return the bytes of the process and its children: PSS where the system tells, else RSS."""
    total = 0
    if pid is None:
        return total
    with suppress(psutil.Error):
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            try:
                total += process.memory_full_info().pss
            except (psutil.Error, AttributeError):
                with suppress(psutil.Error):
                    total += process.memory_info().rss
    return total
