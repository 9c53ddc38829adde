"""Makes the two environments from uv.lock; brings uv along where there is none.

Runs before anything is installed, so it uses the standard library only and imports nothing of the
project. Run again on environments that are up to date, it does nothing and takes no time. What it
is asked for: `bootstrap.py [dev] [peers]`, with `dev` for the tools of the tests and of linting,
with `peers` for one environment more, of what the benchmarks compare with.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / Path(os.environ.get("MLOPS_STATE_DIR") or ".stack").expanduser()
"""As mlops/settings.py takes it: a relative path from the clone, ~ as home."""
UV_HOME = STATE / "uv"
LOG = STATE / "logs" / "setup.log"

UV_VERSION = "0.13.9"
"""What is installed where there is no uv; at least `UV_MINIMUM`, which can read the lock."""
UV_MINIMUM = (0, 8, 0)

ENVIRONMENTS = {
    ".venv": ["orchestrator"],
    ".venv-services": ["services"],
}
PEERS = {".venv-peers": ["peers"]}
NEEDED_BYTES = {
    ".venv": 1_600_000_000,
    ".venv-services": 1_000_000_000,
    ".venv-peers": 900_000_000,
}
"""Measured (1.45, 0.95 and 0.78 GB with Python 3.11 on Linux), rounded up."""
DEV_BYTES = 400_000_000


class SetupError(Exception):
    """Setup cannot go on; the message is one line, with the way out."""


def main(arguments: list[str]) -> int:
    """Bring the environments up to date. Returns the exit code; 2 is for the user to mend."""
    unknown = set(arguments) - {"dev", "peers"}
    if unknown:
        print(f"setup: unknown argument {' '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    started = time.monotonic()
    groups = {name: list(values) for name, values in ENVIRONMENTS.items()}
    if "dev" in arguments or _stamped_groups(".venv") == ["orchestrator", "dev"]:
        groups[".venv"].append("dev")  # once there, the test tools stay
    if "peers" in arguments:
        groups |= PEERS
    stale = [name for name in groups if not _is_current(name, groups[name])]
    if not stale:
        return 0
    try:
        _check_disk(stale, groups)
        LOG.parent.mkdir(parents=True, exist_ok=True)
        uv, settings = find_uv(), index_settings()
        for name in stale:
            sync(uv, settings, name, groups[name])
    except (SetupError, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    print(f"environments ready in {time.monotonic() - started:.0f} s", flush=True)
    return 0


def find_uv() -> list[str]:
    """Return the command of a uv that can read the lock: the one on PATH, ours, or a new one."""
    ours = [UV_HOME / "bin" / "uv", UV_HOME / "wheel" / "bin" / "uv"]
    on_path = shutil.which("uv")
    for candidate in ([Path(on_path)] if on_path else []) + ours:
        if _uv_version(candidate) >= UV_MINIMUM:
            return [str(candidate)]
    print(f"installing uv {UV_VERSION} into {UV_HOME}", flush=True)
    if UV_HOME.exists():
        shutil.rmtree(UV_HOME)
    tried = []
    # A virtual environment where that works; else pip's --target, which also an externally managed
    # pip allows and which touches nothing but its folder.
    venv = [sys.executable, "-m", "venv", str(UV_HOME)]
    tried.append(_run(venv))
    if not tried[-1]:
        tried.append(_run([str(UV_HOME / "bin" / "python"), "-m", "pip", *_install()]))
        if not tried[-1]:
            return [str(ours[0])]
    shutil.rmtree(UV_HOME, ignore_errors=True)
    if _run([sys.executable, "-m", "pip", "--version"]):
        raise SetupError(
            f"neither venv nor pip works in {sys.executable}: install one of them "
            "(Debian, Ubuntu: `apt install python3-venv`), or uv (https://docs.astral.sh/uv/)"
        )
    target = ["--target", str(UV_HOME / "wheel")]
    tried.append(_run([sys.executable, "-m", "pip", *_install(), *target]))
    if not tried[-1]:
        return [str(ours[1])]
    raise SetupError(f"uv cannot be installed: {_reason(tried[-1])}; the whole of it is in {LOG}")


def index_settings() -> dict[str, str]:
    """Return pip's index and certificates (environment, pip.conf) as uv's variables.

    What is set for uv already is kept. Extra indexes are left out: the lock needs none.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    # Lines such as  global.index-url='https://…'  and  :env:.cert='…', the stronger ones later.
    found = {}
    for line in sorted(done.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        match = re.fullmatch(r"(?:global|install|:env:)\.([\w-]+)=(['\"])(.*)\2", line.strip())
        if match:
            found[match[1]] = match[3]
    for name in ("index-url", "cert"):
        value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        if value:
            found[name] = value
    variables = {
        "UV_DEFAULT_INDEX": found.get("index-url"),
        "SSL_CERT_FILE": found.get("cert"),
    }
    if os.environ.get("UV_INDEX_URL"):
        variables.pop("UV_DEFAULT_INDEX")
    return {name: value for name, value in variables.items() if value and name not in os.environ}


def sync(uv: list[str], settings: dict[str, str], name: str, groups: list[str]) -> None:
    """Make the environment `name` hold exactly what the lock says for `groups`.

    With the public index that is one command. With an index of the user's own the lock is exported
    first, versions and hashes, since its file addresses are those of the public one.
    """
    folder = ROOT / name
    environment = {
        **os.environ,
        **settings,
        "UV_PROJECT_ENVIRONMENT": str(folder),
        "UV_LINK_MODE": os.environ.get("UV_LINK_MODE", _link_mode()),
        "UV_HTTP_TIMEOUT": os.environ.get("UV_HTTP_TIMEOUT", "120"),
    }
    environment.pop("VIRTUAL_ENV", None)
    chosen = [part for group in groups for part in ("--group", group)]
    quiet = ["--no-progress"] if not sys.stderr.isatty() else []
    print(f"{name}: installing {', '.join(groups)} from uv.lock", flush=True)
    if environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL"):
        with tempfile.TemporaryDirectory() as temporary:
            wanted = Path(temporary) / "requirements.txt"
            export = ["export", "--frozen", "--quiet", "--no-emit-project", "--no-annotate"]
            commands = [
                [*uv, *export, *chosen, "--output-file", str(wanted)],
                [*uv, "venv", "--allow-existing", "--python", sys.executable, str(folder)],
                [
                    *[*uv, "pip", "sync", "--require-hashes", *quiet],
                    *["--python", str(folder / "bin" / "python"), str(wanted)],
                ],
            ]
            for command in commands:
                _uv(command, environment, name)
    else:
        command = [*uv, "sync", "--frozen", "--python", sys.executable, *quiet, *chosen]
        _uv(command, environment, name)
    _stamp(name).write_text(json.dumps(_fingerprint(groups)))


def _uv(command: list[str], environment: dict[str, str], name: str) -> None:
    """Run uv, its output on screen and in the log. Raises SetupError with its first complaint."""
    lines: list[str] = []
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        # A terminal sees uv's own progress bars; without one, its lines are passed on.
        terminal = sys.stderr.isatty()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            errors="replace",
            stdout=subprocess.DEVNULL if terminal else subprocess.PIPE,
            stderr=None if terminal else subprocess.STDOUT,
        )
        for line in process.stdout or ():
            log.write(line)
            if not line.startswith((" + ", " - ", " ~ ", "   Downloaded")):  # hundreds of lines
                lines.append(line.strip())
                print(f"  {line.rstrip()}", flush=True)
        code = process.wait()
    if code:
        if terminal:
            raise SetupError(f"{name} cannot be installed: uv says above why")
        complaint = _reason("\n".join(lines))
        raise SetupError(f"{name} cannot be installed: {complaint}; the whole of it is in {LOG}")


def _run(command: list[str]) -> str:
    """Run `command` quietly. Returns "" if it worked, else its output, which the log has too."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        output, code = done.stdout, done.returncode
    except OSError as error:
        output, code = str(error), 1
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n{output}")
    return (output.strip() or f"exit code {code}") if code else ""


def _install() -> list[str]:
    return ["install", "--quiet", "--disable-pip-version-check", "--no-deps", f"uv=={UV_VERSION}"]


def _reason(output: str) -> str:
    """Return the line of `output` that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.match(r"(error|ERROR|\u00d7|x )", line):
            return f"{line} ({following})" if following.startswith("cause:") else line
    return lines[-1] if lines else "no message"


def _uv_version(program: Path) -> tuple[int, ...]:
    try:
        done = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, check=False
        )
    except OSError:
        return (0,)
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(int(part) for part in match.groups()) if match else (0,)


def _link_mode() -> str:
    """Hard links save 2 GB where the cache is on the same disk; elsewhere uv warns at each file."""
    cache = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache")
    while not cache.exists():
        cache = cache.parent
    return "hardlink" if cache.stat().st_dev == ROOT.stat().st_dev else "copy"


def _fingerprint(groups: list[str]) -> dict[str, object]:
    lock = hashlib.sha256((ROOT / "uv.lock").read_bytes()).hexdigest()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"lock": lock, "groups": groups, "root": str(ROOT), "python": python}


def _stamp(name: str) -> Path:
    return ROOT / name / "mlops-lock.json"


def _stamped_groups(name: str) -> list[str]:
    try:
        return list(json.loads(_stamp(name).read_text())["groups"])
    except (OSError, ValueError, KeyError):
        return []


def _is_current(name: str, groups: list[str]) -> bool:
    """Whether the environment was made from this lock, in this place, and its Python still runs.

    Another Python than it was made with counts only if PYTHON names it.
    """
    try:
        found = json.loads(_stamp(name).read_text())
    except (OSError, ValueError):
        return False
    wanted = _fingerprint(groups)
    if not os.environ.get("PYTHON"):
        wanted["python"] = found.get("python")
    return found == wanted and (ROOT / name / "bin" / "python").exists()


def _check_disk(stale: list[str], groups: dict[str, list[str]]) -> None:
    needed = sum(NEEDED_BYTES[name] for name in stale if not (ROOT / name).exists())
    needed += DEV_BYTES if "dev" in groups[".venv"] else 0
    free = shutil.disk_usage(ROOT).free
    if free < needed:
        raise SetupError(
            f"{needed / 1e9:.1f} GB needed for the environments, {free / 1e9:.1f} GB free at "
            f"{ROOT}: free some disk, or clone to another one"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
