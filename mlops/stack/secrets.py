"""Secrets that are missing, generated into `.env`; never printed, nor changed once there."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from pathlib import Path

from dotenv import dotenv_values
from pydantic import SecretStr

from mlops.settings import ROOT, Settings

_ENTROPY_BYTES = 24


def secret_names() -> list[str]:
    """Return the names of the settings that are secrets, as they stand in `Settings`."""
    return [
        name
        for name, field in Settings.model_fields.items()
        if field.annotation in (SecretStr, SecretStr | None)
    ]


def ensure_secrets(
    env_file: Path = ROOT / ".env", template: Path = ROOT / ".env.example"
) -> list[str]:
    """Fill the secrets that neither `env_file` nor the environment has; return their names.

    A missing file starts as a copy of `template`. Other lines, comments and values stay as they
    are. The file is replaced in one step and readable by its owner only, whatever it was before.
    """
    source = env_file if env_file.exists() else template
    lines = source.read_text(encoding="utf-8").splitlines()
    present = {name for name, value in dotenv_values(env_file).items() if value}
    from_environment = Settings(_env_file=None)
    generated = []
    for name in secret_names():
        variable = f"MLOPS_{name.upper()}"
        if variable in present or getattr(from_environment, name) is not None:
            continue
        line = f"{variable}={secrets.token_urlsafe(_ENTROPY_BYTES)}"
        empty = re.compile(rf"\s*(export\s+)?{variable}\s*=")
        place = next((i for i, text in enumerate(lines) if empty.match(text)), None)
        if place is None:
            lines.append(line)
        else:
            lines[place] = line
        generated.append(name)
    if generated or not env_file.exists():
        _replace(env_file, "\n".join(lines) + "\n")
    elif env_file.stat().st_mode & 0o077:
        env_file.chmod(0o600)
    return generated


def _replace(path: Path, text: str) -> None:
    """Write `text` to `path`, mode 600, so that a reader sees the old file or the new one."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")  # mode 600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink()
        raise
