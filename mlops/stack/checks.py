"""What would keep the stack from starting, found before anything starts; one line each.

A check only looks: it makes no folder that stays, stops nobody and repairs nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg2

from mlops.alerting.rules import (
    RULES_FOLDER,
    UnsupportedRuleError,
    load_provisioning,
    load_titles,
    provisioning_environment,
)
from mlops.database import connect
from mlops.dataset.card import CardError, load_card
from mlops.settings import ROOT, MissingSecretError, Settings
from mlops.stack import state
from mlops.stack.services import Service

FREE_BYTES_NEEDED = 1_000_000_000
"""Measured: 0.2 GB after the first loop; Postgres' log may take 0.5 GB more under load."""

_PYTHONS = ((3, 10), (3, 12))


def problems(settings: Settings, services: Iterable[Service], own_ports: set[int]) -> list[str]:
    """Return what stands in the way of a start, a line each; empty if the stack may start.

    `own_ports` are those that this very stack uses now, and gives back when it is restarted.
    """
    services = list(services)
    return [
        *python_problems(),
        *environment_problems(),
        *card_problems(settings),
        *data_problems(settings),
        *alert_rule_problems(
            settings, evaluated=any(each.name == "evaluator" for each in services)
        ),
        *alert_query_problems(settings, services),
        *folder_problems(settings),
        *disk_problems(settings),
        *port_problems(services, own_ports),
    ]


def python_problems() -> list[str]:
    """Return a line if this Python is not one that the lock is made for."""
    lowest, highest = _PYTHONS
    if lowest <= sys.version_info[:2] <= highest:
        return []
    return [
        f"Python {sys.version_info[0]}.{sys.version_info[1]} runs this, 3.10 to 3.12 is needed: "
        "make setup PYTHON=/path/to/python3.12"
    ]


def environment_problems() -> list[str]:
    """Return a line for each environment that is not there."""
    return [
        f"{ROOT / name} is missing: run `make setup`"
        for name in (".venv", ".venv-services")
        if not (ROOT / name / "bin" / "python").exists()
    ]


def card_problems(settings: Settings) -> list[str]:
    """Return a line if there is no such card, or if the state so far was made with another one.

    Versions and logged rows name no card, so two cards would be mixed up in one state. Where the
    database does not answer, only the payload is looked at.
    """
    try:
        name = load_card(settings.card).name
    except CardError as error:
        return [f"MLOPS_CARD: {error}"]
    others = sorted((_cards_of_payload(settings) | _cards_of_database(settings)) - {name})
    if not others:
        return []
    return [
        f"this state belongs to card {', '.join(others)}, not to {name}: go on with "
        f"CARD={others[0]} (or MLOPS_CARD in .env), delete this state with `make clean`, or keep "
        f"both: `make down`, then with MLOPS_STATE_DIR=.stack-{name} "
        f"MLOPS_PAYLOADS_DIR=.stack-{name}/payloads MLOPS_REPORTS_DIR=.stack-{name}/reports "
        "before each command of the new one"
    ]


def data_problems(settings: Settings) -> list[str]:
    """Return a line if `MLOPS_DATA` names no file that can be read, and no address."""
    given = settings.data
    if not given or given.startswith(("http://", "https://")):
        return []
    if "://" in given:
        return [f"MLOPS_DATA={given} is an address of an unknown kind: expected http or https"]
    path = Path(given)
    try:
        path.stat()
    except PermissionError:
        return [f"MLOPS_DATA: this user may not look into a folder above {path}: change its mode"]
    except OSError:
        return [f"MLOPS_DATA: there is no file {path}: correct it, or unset it for the public data"]
    if not path.is_file():
        return [f"MLOPS_DATA: {path} is a folder or device, expected a zip or CSV"]
    if not os.access(path, os.R_OK):
        return [f"MLOPS_DATA: {path} cannot be read by this user: change its mode or owner"]
    return []


def alert_rule_problems(
    settings: Settings, folder: Path = RULES_FOLDER, evaluated: bool = True
) -> list[str]:
    """Return what is wrong with the alert files of `folder`.

    The evaluator, where it watches (`evaluated`), refuses what it does not know; Grafana knows
    more, so then it is asked only that the rules' titles can be read, as the listener does.
    """
    try:
        environment = provisioning_environment(settings)
        if evaluated:
            load_provisioning(environment, folder)
        else:
            load_titles(folder, environment)
    except UnsupportedRuleError as error:
        return [str(error)]
    return []


def alert_query_problems(
    settings: Settings, services: Iterable[Service], folder: Path = RULES_FOLDER
) -> list[str]:
    """Return a line for each rule of `folder` whose query the database would refuse.

    Only where the evaluator watches, and the database answers: Grafana knows macros.
    """
    if not any(each.name == "evaluator" for each in services):
        return []
    found = []
    try:
        rules = load_provisioning(provisioning_environment(settings), folder).rules
        with connect(role="grafana", settings=settings) as connection:
            for rule in rules:
                try:
                    connection.cursor().execute(f"EXPLAIN {rule.sql}")
                except psycopg2.OperationalError:
                    raise
                except psycopg2.Error as error:
                    reason = str(error).strip().splitlines()[0]
                    found.append(f"{rule.file}: the query of {rule.title!r} fails: {reason}")
                    connection.rollback()
    except (UnsupportedRuleError, psycopg2.OperationalError, MissingSecretError):
        return found  # what is wrong with a file stands in its own line
    return found


def folder_problems(settings: Settings) -> list[str]:
    """Return a line for each folder that cannot be written."""
    found = []
    folders = {
        "MLOPS_STATE_DIR": settings.state_dir,
        "MLOPS_PAYLOADS_DIR": settings.payloads_dir,
        "MLOPS_REPORTS_DIR": settings.reports_dir,
        "MLOPS_CACHE_DIR": settings.cache_dir,
        "MLOPS_EXCHANGE_DIR": settings.exchange_dir,
    }
    for setting, folder in folders.items():
        existing = _existing(folder)
        if not existing.is_dir():
            found.append(f"{existing} is a file, but {setting} needs a folder there")
        elif not os.access(existing, os.W_OK | os.X_OK):
            found.append(
                f"{existing} cannot be written by this user: change its owner or set {setting}"
            )
    return found


def disk_problems(settings: Settings) -> list[str]:
    """Return a line if the disk of the state folder has too little room for a start."""
    free = shutil.disk_usage(_existing(settings.state_dir)).free
    if free >= FREE_BYTES_NEEDED:
        return []
    return [
        f"{free / 1e9:.1f} GB free at {settings.state_dir}, {FREE_BYTES_NEEDED / 1e9:.1f} GB "
        "needed: free some disk, or set MLOPS_STATE_DIR to a folder on another one"
    ]


def port_problems(services: Iterable[Service], own_ports: set[int]) -> list[str]:
    """Return a line for each port that another program uses, or that two services are to share."""
    found = []
    owners: defaultdict[int, list[Service]] = defaultdict(list)
    for service in services:
        if service.port is None:
            continue
        owners[service.port].append(service)
        if service.port in own_ports:
            continue
        complaint = _port_complaint(service.port)
        if complaint:
            found.append(
                f"port {service.port} ({service.name}) {complaint}: "
                f"stop that program, or set {service.port_setting} to another port"
            )
    for port, sharing in owners.items():
        if len(sharing) > 1:
            found.append(
                f"port {port} is set for {' and '.join(each.name for each in sharing)}: change "
                f"{' or '.join(str(each.port_setting) for each in sharing)}"
            )
    return found


def _cards_of_payload(settings: Settings) -> set[str]:
    """Return the card of the model that answers, as its payload names it."""
    try:
        described = json.loads((settings.payloads_dir / "current" / "model.json").read_text())
        return {str(described["model"])}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _cards_of_database(settings: Settings) -> set[str]:
    """Return the cards whose files or versions stand in the database, if it answers."""
    try:
        with connect(settings=settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT card FROM ops.deployments UNION SELECT card FROM ops.ingested_files"
            )
            return {card for (card,) in cursor.fetchall()}
    except (psycopg2.Error, MissingSecretError):
        return set()


def _port_complaint(port: int) -> str | None:
    """Return why nothing can listen on the loopback port, or None."""
    with socket.socket() as client:
        client.settimeout(1.0)
        # macOS lets one bind to loopback beside a program that listens on all addresses: so ask.
        if client.connect_ex(("127.0.0.1", port)) == 0:
            return f"is in use by {_program_on(port)}"
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except PermissionError:
            return "is not open to this user"
        except OSError:
            return f"is in use by {_program_on(port)}"
    return None


def _program_on(port: int) -> str:
    """Return the program that listens on `port`, as well as this user may know it."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("inet"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                if connection.pid is None:
                    break
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another program (of another user)"


def _existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists, as far as this user can see."""
    while not state.exists(path):
        path = path.parent
    return path
