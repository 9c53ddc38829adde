"""The folders that the stack writes: whether one is the stack's, and what of it may be deleted.

It also keeps digests of the settings that the running servers were started with, and their ports.
It never deletes anything itself.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlops.reporting.library import ASSETS, CARDS, RETRAINS
from mlops.settings import ROOT, Settings

_MARK = "mlops-stack"
"""The file that marks a state folder as the stack's, written when the stack first uses it."""
_MARK_TEXT = "The MLOps stack keeps its state in this folder; `make clean` deletes all of it.\n"
_NUMBERED = re.compile(r"[0-9]+")
_PAYLOAD_DRAFT = re.compile(r"\.(?:[0-9]+|current)\.[0-9a-f]+\.(?:new|old)")
_REPORT = re.compile(r"(\.)?[0-9]{4}-[0-9]{2}(\.evidently)?\.html(?(1)\.[0-9]+)")
_SHARED_REPORTS = {
    RETRAINS: re.compile(r"(\.)?[A-Za-z0-9][A-Za-z0-9_-]*\.html(?(1)\.[0-9]+)"),
    CARDS: re.compile(r"(\.)?[0-9]+\.(html|pdf)(?(1)\.[0-9]+)"),
    ASSETS: re.compile(r"(\.)?evidently-[0-9.]+\.js(?(1)\.[0-9]+)"),
}


class StateError(RuntimeError):
    """A folder that is set for the stack's state is somebody else's; one line, with the way out."""


def exists(path: Path) -> bool:
    """Return whether this user can see `path`; Path.exists raises where a folder above is closed.

    (Before Python 3.12.)
    """
    return os.path.exists(path)  # noqa: PTH110


def is_ours(folder: Path) -> bool:
    """Return whether the state folder is the stack's, or is free for it: missing or empty.

    What `scripts/bootstrap` has put there leaves it free. Raises StateError if it cannot be read.
    """
    if exists(folder / _MARK) or _is_of_older_stack(folder):
        return True
    if not exists(folder) or not folder.is_dir():
        return True
    return _names(folder) <= {"logs", "uv"} and _is_of_setup(folder)


def check_ours(settings: Settings) -> None:
    """Raise StateError if the state folder holds what the stack has not written."""
    folder = settings.state_dir
    if not is_ours(folder):
        raise StateError(
            f"{folder} holds files that are not the stack's: set MLOPS_STATE_DIR to a folder that "
            "is empty or does not exist"
        )


def claim(settings: Settings) -> None:
    """Make the state folder, if need be, and mark it as the stack's; for this user only.

    Raises StateError if it is somebody else's, or cannot be made or written.
    """
    check_ours(settings)
    folder = settings.state_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Root's Postgres passes through as another user; nobody else has anything to do in here.
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        if not (folder / _MARK).exists():
            (folder / _MARK).write_text(_MARK_TEXT)
    except OSError as error:
        raise _unusable(folder, error) from error


def written(settings: Settings) -> list[Path]:
    """Return the files and folders that the stack has written, all that `clean` may delete.

    Of payloads and reports only what a version names and looks like one; what else lies there
    stays. Raises StateError if the state folder is not the stack's, or holds more than it.
    """
    check_ours(settings)
    state = settings.state_dir
    home = Path.home()
    if state.resolve() in {ROOT, *ROOT.parents, home, *home.parents}:
        raise StateError(f"{state} is not only the stack's: not deleted")
    if settings.exchange_dir.resolve().is_relative_to(state.resolve()):
        raise StateError(
            f"{settings.exchange_dir}, which holds files of yours, lies in {state}: set "
            "MLOPS_EXCHANGE_DIR to a folder elsewhere, and move them there"
        )
    return [
        *(path for path in _children(settings.payloads_dir) if _is_payload(path)),
        *(path for path in _children(settings.reports_dir) if _is_reports(path)),
        *([state] if exists(state) else []),  # last: its mark and lock hold till then
    ]


def remember_settings(settings: Settings) -> None:
    """Write down what the servers are about to be started with, for this user only.

    Ports stand in the clear; of all else, which may be a secret or an address with a password in
    it, there is a salted digest.
    """
    salt = secrets.token_hex(16)
    path = _memory_path(settings)
    path.touch(mode=0o600)
    path.chmod(0o600)
    ports = {
        name: int(value) for name, value in settings.environment().items() if name.endswith("_PORT")
    }
    kept = {"salt": salt, "digests": _digests(settings, salt), "ports": ports}
    path.write_text(json.dumps(kept, indent=1))


def changed_settings(settings: Settings) -> list[str] | None:
    """Return the variables that have changed since the servers were started.

    None if it is not known what these were started with, as after a start by an older version.
    """
    kept = _remembered(settings)
    if kept is None:
        return None
    then, now = kept["digests"], _digests(settings, kept["salt"])
    return sorted(name for name in {*then, *now} if then.get(name) != now.get(name))


def ports_at_start(settings: Settings, variables: Iterable[str | None]) -> set[int]:
    """Return the ports that `variables`, such as MLOPS_MAGE_PORT, named at the servers' start.

    Today's, where it is not known what the servers were started with.
    """
    kept = _remembered(settings)
    ports = kept["ports"] if kept else settings.environment()
    return {int(ports[name]) for name in variables if name and name in ports}


def _is_of_older_stack(folder: Path) -> bool:
    """Whether a stack from before the mark has been started here."""
    try:
        return "mlops.stack.launch" in (folder / "supervisord.conf").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _is_of_setup(folder: Path) -> bool:
    """Whether `logs` and `uv` in `folder`, if they are there, are those of `scripts/bootstrap`."""
    logs = folder / "logs"
    if os.path.lexists(logs) and (not logs.is_dir() or not _names(logs) <= {"setup.log"}):
        return False
    return not os.path.lexists(folder / "uv") or (logs / "setup.log").is_file()


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> StateError:
    return StateError(
        f"{error.filename or folder}: {error.strerror}: set MLOPS_STATE_DIR to a folder that this "
        "user can read and write"
    )


def _memory_path(settings: Settings) -> Path:
    return settings.state_dir / "settings.digest"


def _remembered(settings: Settings) -> dict[str, Any] | None:
    """Return what `remember_settings` wrote, or None if that is not there or cannot be read."""
    try:
        kept = json.loads(_memory_path(settings).read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and {"salt", "digests", "ports"} <= set(kept) else None


def _digests(settings: Settings, salt: str) -> dict[str, str]:
    return {
        name: hmac.new(salt.encode(), value.encode(), hashlib.sha256).hexdigest()
        for name, value in settings.environment().items()
    }


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if exists(folder) and folder.is_dir() else []


def _is_payload(path: Path) -> bool:
    """Whether `path` is a version's payload, the link to one, or a draft of either."""
    if path.name == "current":
        return path.is_symlink()
    if _NUMBERED.fullmatch(path.name):
        return (path / "model.json").is_file()  # a payload is renamed when it is complete
    return bool(_PAYLOAD_DRAFT.fullmatch(path.name))


def _is_reports(path: Path) -> bool:
    """Whether `path` holds a version's monthly reports and nothing else, or those of retrains."""
    if path.name in _SHARED_REPORTS and path.is_dir() and not path.is_symlink():
        looks = _SHARED_REPORTS[path.name]
        return all(looks.fullmatch(each.name) for each in path.iterdir())
    if not _NUMBERED.fullmatch(path.name) or not path.is_dir():
        return False
    return all(_REPORT.fullmatch(each.name) for each in path.iterdir())
