"""Secrets that are missing, generated into `.env`; never printed, nor changed once there.

    python3 -m mlops.stack.secrets

It needs no package, so that who runs the stack in containers needs no environment to begin with.
What is a secret, the template says: a line of `.env.example` such as `MLOPS_WEBHOOK_TOKEN=`.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent.parent
_ENTROPY_BYTES = 24
_SECRET = re.compile(r"MLOPS_[A-Z_]+_(PASSWORD|TOKEN|SECRET_KEY)=")
# A comment after an empty value begins with a space; a value may begin with the sign itself.
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?(?P<name>\w+)\s*=(?P<value>.*?)(?:\s+#.*)?\s*")


def ensure_secrets(
    env_file: Path = _ROOT / ".env",
    template: Path = _ROOT / ".env.example",
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """Fill the secrets that neither `env_file` nor `environment` has; return their variables.

    A missing file starts as a copy of `template`. Other lines, comments and values stay as they
    are. The file is replaced in one step and readable by its owner only, whatever it was before.
    """
    wanted = template.read_text(encoding="utf-8").splitlines()
    lines = env_file.read_text(encoding="utf-8").splitlines() if env_file.exists() else wanted[:]
    places, present = _assignments(lines)
    generated = []
    for variable in [line.split("=")[0] for line in wanted if _SECRET.match(line)]:
        if variable in present or environment.get(variable):
            continue
        line = f"{variable}={secrets.token_urlsafe(_ENTROPY_BYTES)}"
        if variable in places:
            lines[places[variable]] = line
        else:
            lines.append(line)
        generated.append(variable)
    if generated or not env_file.exists():
        _replace(env_file, "\n".join(lines) + "\n")
    elif env_file.stat().st_mode & 0o077:
        env_file.chmod(0o600)
    return generated


def _assignments(lines: list[str]) -> tuple[dict[str, int], set[str]]:
    """Return the place of each variable that is set, and those that have a value."""
    places, present = {}, set()
    for place, line in enumerate(lines):
        match = _ASSIGNMENT.fullmatch(line)
        if match:
            places[match["name"]] = place
            if match["value"].strip().strip("'\""):
                present.add(match["name"])
    return places, present


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


if __name__ == "__main__":
    try:
        made = ensure_secrets()
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f".env, which holds the settings and secrets: {error}")
    if made:
        print(f".env: {len(made)} secrets generated (mode 600)")
