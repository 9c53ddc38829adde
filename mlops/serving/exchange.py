"""The folders through which files are scored: what lies in the inbox, and names that are free.

    inbox/      where people and programs put files
    outbox/     predictions, and the rows that were bad
    rejected/   files that could not be scored, each with its reason
    done/       files of the inbox that were scored

It opens no file, and knows neither API nor database. Whoever watches the inbox needs no more.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from mlops.settings import Settings

FORMATS = (".csv", ".csv.gz", ".ndjson", ".ndjson.gz", ".parquet")
"""How the name of a file that can be scored ends; upper case counts as well."""

QUIET_S = 2.0
"""Seconds without a change after which a file counts as finished."""

FOLDERS = ("inbox", "outbox", "rejected", "done")

REJECTED_ROWS = ".rejected.ndjson"
REASON = ".reason.json"

_LONGEST_NAME = 255 - len(REJECTED_ROWS)
"""Bytes: what file systems allow, less what is put behind a name."""

# What browsers, editors and copying programs call a file that they are not done with.
_UNFINISHED = (".part", ".tmp", ".partial", ".filepart", ".crdownload", ".download", ".swp", "~")


class ExchangeError(RuntimeError):
    """A folder of the exchange cannot be used; names it, and the way out."""


@dataclass(frozen=True)
class Waiting:
    """A file of the inbox as it was seen.

    `mark` changes with every change of the file: inode, bytes, and the times (ns) of content and
    of the file's record, of which the kernel sets the second and nobody can set it back.
    """

    path: Path
    bytes: int
    changed_at: float
    mark: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """The file's name as text that can be stored and shown, whatever its bytes are."""
        return text(self.path.name)


def text(name: str) -> str:
    """Return a file's name as UTF-8 has it; bytes that are none are written as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def folder(settings: Settings, name: str) -> Path:
    """Return one of `FOLDERS`."""
    return settings.exchange_dir / name


def make_folders(settings: Settings) -> None:
    """Make the folders that are missing. Raises ExchangeError if one cannot be made or written."""
    for name in FOLDERS:
        path = folder(settings, name)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExchangeError(f"{path} cannot be made: {error.strerror}") from error
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise ExchangeError(
                f"{path} cannot be written by the user that scores (id {os.geteuid()}): "
                + (
                    "`make compose-up` gives it the folder's group"
                    if settings.in_containers
                    else "change its owner, or set MLOPS_EXCHANGE_DIR to another folder"
                )
            )


def look(settings: Settings) -> list[Waiting]:
    """Return the files of the inbox, the one that has waited longest first.

    Links, folders, hidden files and those that a program names as unfinished are none. A missing
    inbox is empty. Raises OSError if it cannot be read.
    """
    found = []
    try:
        entries = list(os.scandir(folder(settings, "inbox")))
    except FileNotFoundError:
        return []
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower().endswith(_UNFINISHED):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # taken away since
            continue
        if stat.S_ISREG(status.st_mode):
            found.append(_waiting(Path(entry.path), status))
    return sorted(found, key=lambda each: (each.changed_at, each.path.name))


def still(seen: Waiting) -> bool | None:
    """Return whether the file is as it was `seen`; None if it is not there any more."""
    try:
        status = seen.path.lstat()
    except FileNotFoundError:
        return None
    return _waiting(seen.path, status).mark == seen.mark


def same_content(path: Path, seen: Waiting) -> bool:
    """Return whether what was moved to `path` is what was `seen`: as long, and written then."""
    status = path.lstat()
    return (status.st_size, status.st_mtime_ns) == seen.mark[1:3]


def finished(settings: Settings) -> list[Waiting]:
    """Return the files of the inbox that nobody has changed for `QUIET_S`.

    It looks twice, if need be, so that what was just put there is found as well.
    """
    seen = look(settings)
    if all(each.changed_at <= time.time() - QUIET_S for each in seen):
        return seen
    time.sleep(QUIET_S)
    # Compared, not dated: the clock of a folder on another machine may be ahead of ours.
    return unchanged(look(settings), seen)


def unchanged(seen: list[Waiting], before: list[Waiting]) -> list[Waiting]:
    """Return the files that are as they were in the look `before`."""
    marks = {each.path: each.mark for each in before}
    return [each for each in seen if marks.get(each.path) == each.mark]


def ending(name: str) -> str:
    """Return the end of `name` that tells its format, "" if none does."""
    return next((name[-len(end) :] for end in FORMATS[::-1] if name.lower().endswith(end)), "")


def free_path(place: Path, name: str, *tails: str) -> Path:
    """Return the path of `name` in the folder `place`, where it and `name` + each tail are free.

    Where one is taken a number is put in: `customers-2.csv`.
    """
    end = ending(name) or Path(name).suffix
    stem = name.removesuffix(end)
    number = 1
    while True:
        mark = "" if number == 1 else f"-{number}"
        shortened = stem
        while len(os.fsencode(shortened + mark + end)) > _LONGEST_NAME and shortened:
            shortened = shortened[:-1]
        path = place / f"{shortened}{mark}{end}"
        if not any(os.path.lexists(f"{path}{tail}") for tail in ("", *tails)):
            return path
        number += 1


def _waiting(path: Path, status: os.stat_result) -> Waiting:
    mark = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return Waiting(path, status.st_size, status.st_ctime, mark)
