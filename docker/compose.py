"""The stack in containers, for `make compose-up`, `compose-demo` and `compose-down`.

    python3 docker/compose.py up [service ...]

It needs Docker with compose v2 and no package. What it adds to `docker compose` itself: secrets in
`.env`, a data file that lies anywhere, Grafana or the evaluator but not both, the handing over from
the evaluator to Grafana, and the addresses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlops.stack.secrets import ensure_secrets  # noqa: E402 - it needs no package either

COMPOSE = ["docker", "compose"]
EXCHANGE = "/srv/mlops/exchange"
EVALUATOR = ["--profile", "evaluator"]
REFUSED = 2
WAIT_LIMIT_S = "600"

LOGINS = {
    "adminer": "system PostgreSQL, server postgres, user mlops, MLOPS_POSTGRES_PASSWORD in .env",
    "grafana": "admin, MLOPS_GRAFANA_ADMIN_PASSWORD in .env",
    "listener": "bearer token MLOPS_WEBHOOK_TOKEN in .env",
    "mage": "{email}, MLOPS_MAGE_OWNER_PASSWORD in .env",
    "postgres": "roles mlops, grafana, mlflow, predict; passwords in .env",
}


class ComposeError(Exception):
    """What the user can mend, in one line."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for what the user can mend, else Docker's."""
    parser = argparse.ArgumentParser(prog="docker/compose.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "demo"):
        command = commands.add_parser(name)
        command.add_argument("services", nargs="*", help="start only these; default: all")
    commands.add_parser("down")
    options = parser.parse_args(arguments)
    try:
        if options.command == "down":
            return down()
        return up(options.services) if options.command == "up" else demo(options.services)
    except ComposeError as error:
        print(error, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted; `docker compose ps` shows what runs", file=sys.stderr)
        return 130


def up(services: list[str]) -> int:
    """Make secrets, build and start, wait until all are healthy, print the addresses."""
    generated = ensure_secrets()
    if generated:
        print(f".env: {len(generated)} secrets generated (mode 600)")
    configuration = configure()
    check_readable(ROOT / "grafana")
    check_readable(ROOT / "prometheus")
    provide_data(configuration)
    provide_exchange(configuration)
    wanted = services or choose_services(configuration)
    # Two would post the same alert twice.
    unwanted = {"grafana", "evaluator"} - set(wanted)
    if unwanted == {"evaluator"} and (code := hand_over(configuration)):
        return code
    if len(unwanted) == 1:
        run([*EVALUATOR, "rm", "--stop", "--force", *unwanted], quiet=True)
    started = run(["up", "--detach", "--build", "--wait", "--wait-timeout", WAIT_LIMIT_S, *wanted])
    if started:
        run([*EVALUATOR, "ps", "--all", "--format", "table {{.Service}}\t{{.Status}}"])
        print("a server's log: docker compose logs <service>", file=sys.stderr)
        return started
    show_addresses(configuration, wanted)
    return 0


def demo(services: list[str]) -> int:
    """Start the stack and run the loop once, inside the container of Mage."""
    began = time.time()
    code = up(services)
    if code:
        return code
    terminal = [] if sys.stdin.isatty() and sys.stdout.isatty() else ["--no-TTY"]
    # Of libraries, about one another: not for who watches the demo.
    quiet = ["-W", "ignore::UserWarning"]
    command = ["python", *quiet, "-m", "mlops.stack.demo", "--started", f"{began:.1f}"]
    return run(["exec", *terminal, "mage", *command, "--up", f"{time.time() - began:.1f}"])


def down() -> int:
    """Stop and remove the containers; volumes and images stay."""
    if not (ROOT / ".env").exists():
        print("nothing is set up, so nothing runs")
        return 0
    return run([*EVALUATOR, "down"])


def hand_over(configuration: dict[str, Any]) -> int:
    """Stop the evaluator and let Grafana take over from it; return the exit code.

    Its states are forgotten and the alerts that it has told end: nobody else would ever end them.
    Without Grafana's image it watches on. Its container stays here, so that the next `up` does all
    of it again if a step fails.
    """
    # With neither (after `down`) nobody knows who watched last. Twice does no harm.
    if has_container("grafana") and not has_container("evaluator"):
        return 0
    image = configuration["services"]["grafana"]["image"]
    there = ["docker", "image", "inspect", "--format", "{{.Id}}", image]
    missing = subprocess.run(there, capture_output=True, check=False).returncode
    if missing and (code := run(["pull", "grafana"])):
        print(
            f"{image} cannot be had, so nothing was changed: an evaluator that runs watches on."
            " `MLOPS_GRAFANA=off make compose-up` does without Grafana",
            file=sys.stderr,
        )
        return code
    program = ["python", "evaluator", "-m", "mlops.alerting.evaluator", "--hand-over"]
    for step in (
        ["build", "postgres", "listener"],  # the listener's image is the evaluator's
        [*EVALUATOR, "stop", "evaluator"],
        ["up", "--detach", "--wait", "--wait-timeout", WAIT_LIMIT_S, "postgres"],
        [*EVALUATOR, "run", "--rm", "--no-deps", "-T", "--entrypoint", *program],
    ):
        if code := run(step):
            print(
                "the evaluator has not handed over, so Grafana is not started, and nobody may be"
                " watching the rules: mend what is said above, then `make compose-up` again",
                file=sys.stderr,
            )
            return code
    return 0


def has_container(service: str) -> bool:
    """Return whether there is a container of `service`, be it stopped."""
    command = [*COMPOSE, *EVALUATOR, "ps", "--all", "--quiet", service]
    return bool(subprocess.run(command, cwd=ROOT, capture_output=True, check=False).stdout.strip())


def configure() -> dict[str, Any]:
    """Return docker-compose.yml as compose understands it, with .env and the environment."""
    command = [*COMPOSE, *EVALUATOR, "config", "--format", "json"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        raise ComposeError("docker is not there: install Docker with compose v2") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        if "is not a docker command" in said or "unknown flag" in said:
            raise ComposeError(
                f"this docker has no compose v2 ({said.splitlines()[0]}): install it"
            )
        raise ComposeError(said)
    return dict(json.loads(done.stdout))


def choose_services(configuration: dict[str, Any]) -> list[str]:
    """Return the services to start: all, but for what is off.

    Without Grafana the evaluator runs, without Prometheus nobody collects metrics.
    """
    told = configuration["services"]["streamlit"]["environment"]
    left_out = {"grafana" if told.get("MLOPS_GRAFANA") == "off" else "evaluator"}
    if told.get("MLOPS_PROMETHEUS") == "off":
        left_out.add("prometheus")
    return sorted(set(configuration["services"]) - left_out)


def provide_data(configuration: dict[str, Any]) -> None:
    """See to it that the file that MLOPS_DATA names is mounted, wherever it lies.

    Raises ComposeError if there is no such file, or if the containers' user may not read it.
    """
    folder = ROOT / "data"
    if not folder.exists():  # Docker would make it, as root
        folder.mkdir()
        folder.chmod(0o755)
    mage = configuration["services"]["mage"]
    data = (mage["environment"].get("MLOPS_DATA") or "").strip()
    mounts = [each["source"] for each in mage["volumes"] if each["target"] != EXCHANGE]
    mounted_elsewhere = str(folder) not in mounts
    if not data or "://" in data or mounted_elsewhere:  # by MLOPS_DATA_MOUNT
        return
    path = ROOT / Path(data).expanduser()
    if not path.is_file():
        raise ComposeError(f"MLOPS_DATA: there is no file {path}")
    check_readable(path)
    if folder not in path.parents or Path(data).is_absolute():
        os.environ["MLOPS_DATA"] = os.environ["MLOPS_DATA_MOUNT"] = str(path.resolve())


def provide_exchange(configuration: dict[str, Any]) -> None:
    """Make the folders of files to be scored, for this user and, by their group, for Mage's.

    Mage's container gets the group in addition, so nobody else of this machine needs a right. What
    is put there must be readable for the group, as most files are.

    Raises ComposeError if a folder cannot be made or is not this user's to change.
    """
    mounts = configuration["services"]["mage"]["volumes"]
    above = Path(next(each["source"] for each in mounts if each["target"] == EXCHANGE))
    for name in (".", "inbox", "outbox", "rejected", "done"):
        folder = above / name
        needed = 0o050 if name == "." else 0o2070  # what is made there gets its group as well
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mode = folder.stat().st_mode & 0o7777
            if mode & needed != needed:
                folder.chmod(mode | needed)
        except OSError as error:
            raise ComposeError(
                f"{folder}: {error.strerror}; files to be scored are put there: make it yours, or "
                "set MLOPS_EXCHANGE_DIR to another folder"
            ) from None
    os.environ["MLOPS_EXCHANGE_GROUP"] = str((above / "inbox").stat().st_gid)


def check_readable(path: Path) -> None:
    """Raise ComposeError if a container, which is a user of its own, may not read all of `path`."""
    for each in (path, *path.rglob("*")):
        needed = 0o005 if each.is_dir() else 0o004
        if each.stat().st_mode & needed != needed:
            raise ComposeError(
                f"the containers run as users of their own, who may not read {each}: "
                f"chmod -R o+rX {path}"
            )


def show_addresses(configuration: dict[str, Any], services: list[str]) -> None:
    """Print where each service is published, and who may log in."""
    email = configuration["services"]["mage"]["environment"].get("MLOPS_MAGE_OWNER_EMAIL")
    for name in services:
        for port in configuration["services"][name].get("ports", []):
            scheme = "" if name == "postgres" else "http://"
            address = f"{scheme}{port['host_ip']}:{port['published']}"
            login = LOGINS.get(name, "none (this machine only)")
            print(f"{name:<10} {address:<24} {login.format(email=email or 'see .env.example')}")


def run(arguments: list[str], quiet: bool = False) -> int:
    """Run `docker compose` with `arguments`; return its exit code."""
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(
        [*COMPOSE, *arguments], cwd=ROOT, stdout=output, stderr=output, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
