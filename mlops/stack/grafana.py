"""Which Grafana watches the alert rules: one that is there, the pinned archive, or none.

It finds, downloads, unpacks and remembers; it never starts Grafana (services.py, processes.py), and
never touches a Grafana that it has not unpacked itself. Without one, the alert evaluator watches.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlops.download import Progress, TooBigError, UnreachableError, download
from mlops.settings import Settings

OLDEST_MAJOR = 11
"""What `grafana/` is written for; tests/unit/test_stack_grafana.py holds the pin to it."""

MOST_BYTES = 1 << 29
"""Of an archive; those of 12.4 have about 200 MB."""

FREE_BYTES_NEEDED = 1_500_000_000
"""An archive and what it unpacks to, about 0.8 GB, lie side by side for a moment."""

_SYSTEM_HOME = Path("/usr/share/grafana")
_VERSION = re.compile(r"[Vv]ersion v?((\d+)\.\d+\.\S+)")
_VERSION_LIMIT_S = 20.0


@dataclass(frozen=True)
class Grafana:
    """A Grafana that can be started; `home` holds its `conf/defaults.ini` and `public/`."""

    program: Path
    home: Path
    version: str


@dataclass(frozen=True)
class Archive:
    """An official archive for one platform."""

    version: str
    url: str
    sha256: str


@dataclass(frozen=True)
class Choice:
    """The Grafana that is used, if any, and why others are not."""

    grafana: Grafana | None
    reasons: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """One line for the person who starts the stack."""
        if self.grafana is None:
            return f"Grafana: {'; '.join(self.reasons)}: the alert evaluator watches the rules"
        passed_over = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        used = f"{self.grafana.version} of {self.grafana.home} watches the rules"
        return f"Grafana: {used}{passed_over}"


def _archive(version: str, build: str, name: str, sha256: str) -> Archive:
    folder = f"https://dl.grafana.com/grafana/release/{version}"
    return Archive(version, f"{folder}/grafana_{version}_{build}_{name}.tar.gz", sha256)


# Checksums as packagers of these archives state them (12.4.2: Arch Linux' grafana-bin; 12.4.1 for
# macOS, for which none of 12.4.2 was to be had: kmgowda/sbk-dashboard). If one were wrong, its
# archive would be refused.
PINNED = {
    "linux_amd64": _archive(
        "12.4.2",
        "23531306697",
        "linux_amd64",
        "f240b200a803bf64592fae645331750c2681df5f07496743d714db12393a591f",
    ),
    "linux_arm64": _archive(
        "12.4.2",
        "23531306697",
        "linux_arm64",
        "28f37f0952e923e90aed02c7d71cef7443705a9a37ba5439b76d7f72aeb1a63f",
    ),
    "darwin_amd64": _archive(
        "12.4.1",
        "22846628243",
        "darwin_amd64",
        "8073ea4316f410f8ad0bff9e9be743781a2d44b34ce0f21c8e0269f358aff438",
    ),
    "darwin_arm64": _archive(
        "12.4.1",
        "22846628243",
        "darwin_arm64",
        "8efe6fff62b1f0a67b95de1705a4937946b6ebdbf299e6c627a4ed6d86e7382e",
    ),
}


class _UnusableError(Exception):
    """Why a Grafana cannot be used, in a few words."""


def platform_name() -> str:
    """Return this machine as archives name it, such as linux_amd64."""
    machine = platform.machine().lower()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    return f"{platform.system().lower()}_{machine}"


def find(settings: Settings) -> Choice:
    """Return the Grafana that is there: of MLOPS_GRAFANA_HOME, on PATH, or unpacked earlier.

    What is there and cannot be used is a reason, and the next one is looked at.
    """
    if settings.grafana == "off":
        return Choice(None, ("off (MLOPS_GRAFANA)",))
    reasons: list[str] = []
    for program in _programs(settings):
        try:
            return Choice(_inspect(program), tuple(reasons))
        except _UnusableError as error:
            reasons.append(str(error))
    return Choice(None, tuple(reasons))


def provide(settings: Settings, progress: Progress | None = None) -> Choice:
    """Return the Grafana to use; if none is there, the pinned archive, downloaded into the cache.

    Whatever hinders that is a reason, never an error: the evaluator can watch the rules, too.
    """
    choice = find(settings)
    if choice.grafana is not None or settings.grafana == "off":
        return choice
    name = platform_name()
    archive = PINNED.get(name)
    if archive is None:
        reason = f"no archive is pinned for {name} (MLOPS_GRAFANA_HOME may name another)"
        return Choice(None, (*choice.reasons, reason))
    try:
        _fetch(archive, _cached(settings, archive), progress)
        return Choice(_inspect(_cached(settings, archive) / "bin" / "grafana"), choice.reasons)
    except _UnusableError as error:
        return Choice(None, (*choice.reasons, str(error)))


def remember(settings: Settings, grafana: Grafana | None) -> None:
    """Write down which one watches from now on: `grafana`, or the evaluator if that is None."""
    facts = {"watcher": "evaluator"}
    if grafana is not None:
        facts = {
            "watcher": "grafana",
            "program": str(grafana.program),
            "home": str(grafana.home),
            "version": grafana.version,
        }
    draft = _memory_path(settings).with_suffix(".new")
    draft.write_text(json.dumps(facts, indent=1))
    draft.replace(_memory_path(settings))


def remembered(settings: Settings) -> Grafana | None:
    """Return the Grafana that watches since the stack's last start; None: the evaluator does."""
    try:
        facts = json.loads(_memory_path(settings).read_text())
        if facts["watcher"] != "grafana":
            return None
        return Grafana(Path(facts["program"]), Path(facts["home"]), str(facts["version"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _memory_path(settings: Settings) -> Path:
    return settings.state_dir / "watcher.json"


def _programs(settings: Settings) -> Iterator[Path]:
    if settings.grafana_home is not None:
        yield settings.grafana_home / "bin" / "grafana"
    on_path = shutil.which("grafana")
    if on_path is not None:
        yield Path(on_path).absolute()
    archive = PINNED.get(platform_name())
    if archive is not None and os.access(_cached(settings, archive), os.F_OK):
        yield _cached(settings, archive) / "bin" / "grafana"


def _inspect(program: Path) -> Grafana:
    """Return the Grafana of `program`. Raises _UnusableError."""
    if not _runs(program):
        raise _UnusableError(f"there is no program {program}")
    home = _home_of(program)
    if home is None:
        raise _UnusableError(f"{program} has no folder with conf/defaults.ini and public")
    if _runs(home / "bin" / "grafana"):
        # Packages for Debian and Red Hat put a script on PATH that adds settings of its own.
        program = home / "bin" / "grafana"
    version = _version_of(program)
    if version is None:
        raise _UnusableError(f"{program} does not tell its version")
    if int(version[2]) < OLDEST_MAJOR:
        raise _UnusableError(
            f"{program} is version {version[1]}, {OLDEST_MAJOR} or later is needed"
        )
    return Grafana(program, home, version[1])


def _runs(program: Path) -> bool:
    # Asked first: before Python 3.12, is_file raises where a folder above is closed to this user.
    return os.access(program, os.X_OK) and program.is_file()


def _home_of(program: Path) -> Path | None:
    """Return the folder that `program` belongs to: unpacked, Homebrew's or Nix's, a package's."""
    resolved = program.resolve()
    homes = (
        resolved.parent.parent,
        program.parent.parent / "share" / "grafana",
        resolved.parent.parent / "share" / "grafana",
        _SYSTEM_HOME,
    )
    return next((home for home in homes if _is_home(home)), None)


def _is_home(folder: Path) -> bool:
    needed = (folder / "conf" / "defaults.ini", folder / "public")
    return all(os.access(each, os.R_OK) for each in needed)


def _version_of(program: Path) -> re.Match[str] | None:
    """Return what `grafana --version` says: "grafana version 12.4.2"."""
    try:
        said = subprocess.run(
            [str(program), "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_VERSION_LIMIT_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return _VERSION.search(said.decode(errors="replace"))


def _cached(settings: Settings, archive: Archive) -> Path:
    """Return the folder that `archive` is unpacked to; it is there as a whole or not at all."""
    return settings.cache_dir / f"grafana-{archive.version}-{archive.sha256[:12]}"


def _fetch(archive: Archive, target: Path, progress: Progress | None) -> None:
    """Download `archive`, check it, unpack it to `target`. Raises _UnusableError."""
    cache = target.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / "grafana.lock"):
            if _is_home(target) and _runs(target / "bin" / "grafana"):
                return  # another clone's stack was quicker
            shutil.rmtree(target, ignore_errors=True)  # damaged since
            for left in cache.glob("grafana-draft-*"):  # by one that was killed
                shutil.rmtree(left, ignore_errors=True)
            free = shutil.disk_usage(cache).free
            if free < FREE_BYTES_NEEDED:
                raise _UnusableError(
                    f"{free / 1e9:.1f} GB free at {cache}, {FREE_BYTES_NEEDED / 1e9:.1f} GB needed "
                    "to download and unpack it (MLOPS_CACHE_DIR)"
                )
            draft = Path(tempfile.mkdtemp(prefix="grafana-draft-", dir=cache))
            try:
                _download(archive, draft / "archive", progress)
                _unpack(draft / "archive", draft / "unpacked").replace(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise _UnusableError(
            f"{error.filename or cache}: {error.strerror or error} (MLOPS_CACHE_DIR)"
        ) from error


def _download(archive: Archive, path: Path, progress: Progress | None) -> None:
    try:
        with path.open("wb") as file:
            found = download(archive.url, file, MOST_BYTES, progress)
    except (UnreachableError, TooBigError) as error:
        raise _UnusableError(f"{archive.version} cannot be downloaded ({error})") from error
    if found != archive.sha256:
        raise _UnusableError(
            f"{archive.url} has the sha256 {found[:12]}…, expected {archive.sha256[:12]}…, and is "
            "not used (MLOPS_GRAFANA=off downloads no more)"
        )


def _unpack(path: Path, folder: Path) -> Path:
    """Unpack the archive at `path` into `folder`; return the Grafana home in it."""
    folder.mkdir()
    try:
        with tarfile.open(path) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(folder, filter="data")
            else:  # Python before 3.10.12 or 3.11.4
                archive.extractall(folder, members=_plain(archive, folder))  # noqa: S202
    except (tarfile.TarError, EOFError) as error:
        raise _UnusableError(f"the archive cannot be unpacked: {error}") from error
    homes = [each for each in folder.iterdir() if _is_home(each)]
    if len(homes) != 1:
        raise _UnusableError("the archive holds no Grafana")
    return homes[0]


def _plain(archive: tarfile.TarFile, folder: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the files and folders of `archive` that stay in `folder`: no links, no devices."""
    for member in archive:
        inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
        if inside and (member.isfile() or member.isdir()):
            member.mode &= 0o755
            yield member


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock `path`: stacks of several clones share a cache."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
