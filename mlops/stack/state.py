"""The folders that the stack writes: whether one is the stack's, and what of it may be deleted.

It also keeps a digest of the settings that the running servers were started with. It never deletes
anything itself.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from pathlib import Path

from mlops.settings import ROOT, Settings

_MARKS = ("lock", "supervisord.conf")
"""Files that only the stack writes into its state folder, the first at its first start."""
_OF_SETUP = frozenset({"uv", "logs"})
"""What `scripts/bootstrap` may have put there before."""
_NUMBERED = re.compile(r"[0-9]+")
_PAYLOAD_DRAFT = re.compile(r"\.(?:[0-9]+|current)\.[0-9a-f]+\.(?:new|old)")
_REPORT = re.compile(r"[0-9]{4}-[0-9]{2}\.html|\.[0-9]{4}-[0-9]{2}\.html\.[0-9]+")


class StateError(RuntimeError):
    """A folder that is set for the stack's state is somebody else's; one line, with the way out."""


def is_ours(folder: Path) -> bool:
    """Return whether the state folder is the stack's, or is free for it: missing or empty."""
    if any((folder / mark).is_file() for mark in _MARKS):
        return True
    return not folder.is_dir() or {path.name for path in folder.iterdir()} <= _OF_SETUP


def check_ours(settings: Settings) -> None:
    """Raise StateError if the state folder holds what the stack has not written."""
    folder = settings.state_dir
    if not is_ours(folder):
        raise StateError(
            f"{folder} holds files that are not the stack's: set MLOPS_STATE_DIR to a folder that "
            "is empty or does not exist"
        )


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
    return [
        *([state] if state.exists() else []),
        *(path for path in _children(settings.payloads_dir) if _is_payload(path)),
        *(path for path in _children(settings.reports_dir) if _is_reports(path)),
    ]


def remember_settings(settings: Settings) -> None:
    """Write down what the servers are being started with, as a digest, for this user only."""
    path = _digest_path(settings)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(_digest(settings))


def settings_changed(settings: Settings) -> bool:
    """Return whether the servers were started with other settings than these."""
    try:
        found = _digest_path(settings).read_text()
    except OSError:
        return True
    return not hmac.compare_digest(found, _digest(settings))


def _digest_path(settings: Settings) -> Path:
    return settings.state_dir / "settings.digest"


def _digest(settings: Settings) -> str:
    text = json.dumps(settings.environment(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_payload(path: Path) -> bool:
    """Whether `path` is a version's payload, the link to one, or a draft of either."""
    if path.name == "current":
        return path.is_symlink()
    if _NUMBERED.fullmatch(path.name):
        return (path / "model.json").is_file()  # a payload is renamed when it is complete
    return bool(_PAYLOAD_DRAFT.fullmatch(path.name))


def _is_reports(path: Path) -> bool:
    """Whether `path` holds a version's monthly reports and nothing else."""
    if not _NUMBERED.fullmatch(path.name) or not path.is_dir():
        return False
    return all(_REPORT.fullmatch(each.name) for each in path.iterdir())
