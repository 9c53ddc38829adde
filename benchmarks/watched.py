"""Run a command and know what it took: seconds, processor time, memory of all its processes.

It knows nothing of what the command does, and ends whatever the command has started.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from mlops.settings import ROOT

_EVERY_S = 0.1


@dataclass(frozen=True)
class Watched:
    """What a command came to.

    `cpu_s` counts the processes that were waited for. `peak_mb` is the highest sum, over its
    processes at one time, of their PSS: pages that forked processes share count once; `peak_rss_mb`
    counts them in each.
    """

    seconds: float
    cpu_s: float
    peak_mb: float
    peak_rss_mb: float
    output: str
    returncode: int | None
    """None if it was ended because its time was over."""


def run_watched(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    limit_s: float = 1800.0,
    limit_mb: float | None = None,
) -> Watched:
    """Run `command` from the repository's root, and return what it took and said (stdout).

    What stands in `environment` is added to this process's own. After `limit_s` seconds, or beyond
    `limit_mb` (PSS), it is ended with all its children (`returncode` is then None).
    """
    used = _children_cpu_s()
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    peak = peak_rss = 0.0
    over = False
    try:
        # Its output is a few lines: the pipe holds them until it has ended.
        while process.poll() is None:
            mb, rss_mb = _memory_mb(process.pid)
            peak, peak_rss = max(peak, mb), max(peak_rss, rss_mb)
            over = time.monotonic() - began > limit_s or (limit_mb is not None and mb > limit_mb)
            if over:
                break
            time.sleep(_EVERY_S)
        seconds = time.monotonic() - began
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
    return Watched(
        seconds=seconds,
        cpu_s=_children_cpu_s() - used,
        peak_mb=peak,
        peak_rss_mb=peak_rss,
        output=output,
        returncode=None if over else process.returncode,
    )


def _memory_mb(pid: int) -> tuple[float, float]:
    """Return PSS and RSS of a process and its descendants, each summed up."""
    pss = rss = 0.0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for each in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                info = each.memory_full_info()
                pss += getattr(info, "pss", None) or info.uss
                rss += info.rss
    return pss / 1e6, rss / 1e6


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
