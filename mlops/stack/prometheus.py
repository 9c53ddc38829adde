"""Which Prometheus collects the predict API's metrics, and how it is started.

It takes one that is there and downloads none: unlike Grafana and evaluator, nothing in the loop
waits for it. It never changes `prometheus/prometheus.yml`, which containers read as it is; the
stack's own Prometheus gets a copy with the API's address.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mlops.settings import ROOT, Settings

CONFIGURATION = ROOT / "prometheus" / "prometheus.yml"
TARGET = "predict:9696"
"""The API's address in that file, as it is among containers."""

OLDEST = (2, 37)
"""An LTS version, whose configuration, queries and HTTP API are all that is used here."""

RETENTION_TIME = "15d"
RETENTION_SIZE = "512MB"

_VERSION = re.compile(r"version (\d+)\.(\d+)\S*")
_VERSION_LIMIT_S = 20.0


@dataclass(frozen=True)
class Choice:
    """The Prometheus that is used, if any, and the line for who starts the stack."""

    program: Path | None
    sentence: str


def find(settings: Settings) -> Choice:
    """Return the Prometheus of MLOPS_PROMETHEUS_HOME, else the one on PATH, else none."""
    if settings.prometheus == "off":
        return Choice(None, "Prometheus: MLOPS_PROMETHEUS is off: no metrics are collected")
    found: Path | None = None
    if settings.prometheus_home is not None:
        found = settings.prometheus_home / "prometheus"
    elif on_path := shutil.which("prometheus"):
        found = Path(on_path).absolute()
        # Packages start theirs, on this very port: no reason for the stack not to start.
        if _is_taken(settings):
            return _none(
                f"port {settings.prometheus_port} is taken, maybe by the system's own; set "
                "MLOPS_PROMETHEUS_PORT to another"
            )
    if found is None:
        return _none(
            "none is on PATH; unpack one from prometheus.io and name its folder in "
            "MLOPS_PROMETHEUS_HOME, or install your system's"
        )
    version = _version_of(found)
    if version is None:
        return _none(f"{found} is no program that tells its version")
    if version < OLDEST:
        text, oldest = (".".join(map(str, each)) for each in (version, OLDEST))
        return _none(f"{found} is version {text}, {oldest} or later is needed")
    return Choice(found, f"Prometheus: {found} collects the metrics of predict")


def remember(settings: Settings, program: Path | None) -> None:
    """Write down which one runs until the stack's next start; None: none does."""
    path = _memory_path(settings)
    if program is None:
        path.unlink(missing_ok=True)
        return
    draft = path.with_suffix(".new")
    draft.write_text(str(program))
    draft.replace(path)


def remembered(settings: Settings) -> Path | None:
    """Return the program that runs since the stack's last start, or None."""
    try:
        return Path(_memory_path(settings).read_text())
    except OSError:
        return None


def server_command(settings: Settings, program: Path) -> list[str]:
    """Write the configuration, and return the command that runs `program` with it."""
    folder = settings.state_dir / "prometheus"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = folder / "prometheus.yml"
    configuration.write_text(configured(settings))
    return [
        str(program),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--storage.tsdb.retention.time={RETENTION_TIME}",
        f"--storage.tsdb.retention.size={RETENTION_SIZE}",
        f"--web.listen-address={settings.host}:{settings.prometheus_port}",
    ]


def configured(settings: Settings) -> str:
    """Return the configuration for the API of `settings`."""
    return CONFIGURATION.read_text().replace(TARGET, settings.predict_url.partition("://")[2])


def _none(reason: str) -> Choice:
    return Choice(None, f"Prometheus: {reason}: no metrics are collected")


def _is_taken(settings: Settings) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.prometheus_port))
        except OSError:
            return True
    return False


def _version_of(program: Path) -> tuple[int, int] | None:
    if not os.access(program, os.X_OK) or not program.is_file():
        return None
    try:
        answer = subprocess.run(
            [str(program), "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(answer.stdout + answer.stderr)
    return (int(found[1]), int(found[2])) if found else None


def _memory_path(settings: Settings) -> Path:
    return settings.state_dir / "prometheus.program"
