"""Back up the embedded stack's state into a folder, and restore it into an empty state.

A backup holds what cannot be made again: the three databases, MLflow's artifacts, the deployed
payloads and the reports. It is for its owner only: what people have asked the API is in it, and
what Mage keeps of logins. The passwords of `.env` are not: roles get today's at each start.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlops.settings import Settings
from mlops.stack import postgres, state

DATABASES = ("mlops", "mlflow", "mage")
_DUMPS = tuple(f"{database}.dump" for database in DATABASES)
_MANIFEST = "backup.json"


class BackupError(RuntimeError):
    """A backup cannot be made or restored; the message says why, and what to do."""


def back_up(settings: Settings, folder: Path, progress: Callable[[str], object] = print) -> Path:
    """Write a backup of the running stack to `folder`, which must not be there yet; return it.

    The stack goes on meanwhile. Databases come first and files after them, so a version that a
    database names has its files; each database is as it stood at one moment. Written beside
    `folder` and renamed at the end: a folder of that name is a whole backup. Raises BackupError.
    """
    if folder.exists():
        raise BackupError(f"{folder} is there already: name another folder")
    if not postgres.is_ready(settings):
        raise BackupError("PostgreSQL does not run, which must be asked: `make up` starts it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: two backups at once must not write into one draft. For its owner only.
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise BackupError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        for database in DATABASES:
            progress(f"database {database}")
            _run(
                settings,
                "pg_dump",
                *["--format=custom", f"--file={draft / database}.dump", f"--dbname={database}"],
            )
        for name, source in _folders(settings).items():
            if source.is_dir():
                progress(name)
                shutil.copytree(source, draft / name, symlinks=True)
        facts = {
            "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "postgres": postgres.VERSION,
            "card": settings.card,
            "files": _checksums(draft),
        }
        (draft / _MANIFEST).write_text(json.dumps(facts, indent=2) + "\n")
        draft.rename(folder)
    except (OSError, shutil.Error) as error:
        raise BackupError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def check(folder: Path) -> None:
    """Raise BackupError unless `folder` is a whole backup that this PostgreSQL can read."""
    try:
        facts: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
        version, expected = int(facts["postgres"]), dict(facts["files"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackupError(f"{folder} is no backup: it has no readable {_MANIFEST}") from error
    if version > postgres.VERSION:
        raise BackupError(
            f"{folder} was made by PostgreSQL {version}, this one is {postgres.VERSION}: restore "
            "it with the project's version that made it"
        )
    found = _checksums(folder)
    for name, checksum in {**dict.fromkeys(_DUMPS), **expected}.items():
        if name not in found or name not in expected:
            raise BackupError(f"{folder} is not whole: {name} is missing; take another backup")
        if found[name] != checksum:
            raise BackupError(f"{folder} is damaged: {name} has changed; take another backup")


def restore(settings: Settings, folder: Path, progress: Callable[[str], object] = print) -> None:
    """Fill the state, which must be empty, from the backup in `folder`; the stack must be down.

    If it fails, the state is empty as before. Raises BackupError.
    """
    check(folder)
    folders = _folders(settings)
    mine = [postgres.data_dir(settings), folders["mlflow-artifacts"]]
    mine += [path for path in state.written(settings) if path != settings.state_dir]
    for path in mine:
        if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise BackupError(
                f"{path} is there: delete this state with `make clean`, or restore into another "
                "one (MLOPS_STATE_DIR, MLOPS_PAYLOADS_DIR, MLOPS_REPORTS_DIR)"
            )
    state.claim(settings)
    try:
        with postgres.running(settings):
            for database in DATABASES:
                progress(f"database {database}")
                dump = folder / f"{database}.dump"
                _run(
                    settings,
                    "pg_restore",
                    *["--create", "--clean", "--if-exists", "--exit-on-error"],
                    *["--dbname=postgres", str(dump)],
                )
            postgres.migrate(settings)  # to what this version of the project needs
        for name, target in folders.items():
            if (folder / name).is_dir():
                progress(name)
                shutil.copytree(folder / name, target, symlinks=True, dirs_exist_ok=True)
    except BaseException as error:
        for path in (*mine[:2], *state.written(settings)):
            if path == settings.state_dir:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if isinstance(error, (OSError, shutil.Error)):
            raise BackupError(f"{folder} cannot be restored: {error}") from error
        raise


def _folders(settings: Settings) -> dict[str, Path]:
    """Return the folders that are kept, by their name in a backup."""
    return {
        "mlflow-artifacts": settings.state_dir / "mlflow-artifacts",
        "payloads": settings.payloads_dir,
        "reports": settings.reports_dir,
    }


def _checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below `folder`, by its path there; links are not followed."""
    checksums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                digest = hashlib.sha256()
                while piece := file.read(1 << 20):
                    digest.update(piece)
            checksums[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return checksums


def _run(settings: Settings, program: str, *arguments: str) -> None:
    done = subprocess.run(
        [str(postgres.binary(program)), "--no-password", *arguments],
        env=postgres.client_environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BackupError(f"{program} failed: {' '.join(done.stderr.strip().splitlines()[-3:])}")
