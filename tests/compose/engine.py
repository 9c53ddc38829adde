"""One compose project of the tests' own, run by the commands that a person would type.

It has its own name, ports, secrets and volumes, takes nothing from `.env`, and is taken away whole.
What a test thinks of what it sees is no business of this module.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import requests
import yaml
from psycopg2.extras import RealDictCursor

from mlops.database import database_url
from mlops.settings import ROOT, Settings, secret_names
from tests.fixtures.waiting import await_

SERVICES: tuple[str, ...] = tuple(
    yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
)
"""As in docker-compose.yml. Grafana and evaluator never run at once."""

STAND_IN = {"grafana": "evaluator"}
"""Who runs where an image cannot be had; for the others nobody does."""

UP_LIMIT_S = 300
_BUILD_LIMIT_S = 3600
_PULL_LIMIT_S = 300
_COMMAND_LIMIT_S = 180


class ComposeError(AssertionError):
    """A command of docker failed; the message has the end of what it said."""


def missing_engine() -> str | None:
    """Return why no stack can be run here, or None if one can."""
    if shutil.which("docker") is None:
        return "no Docker: there is no `docker` on PATH"
    for command, what in (
        (["docker", "info"], "no Docker engine: `docker info` says"),
        (["docker", "compose", "version"], "no compose v2: `docker compose version` says"),
    ):
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if asked.returncode:
            said = (asked.stderr or asked.stdout).strip().splitlines()
            return f"{what} {said[-1] if said else 'nothing'}"
    return None


class Report:
    """What a run took and found, printed as it comes about and written to `path` at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        self.facts: dict[str, Any] = {}
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line with the time since the beginning."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside as `name`; a second stay adds up."""
        self.say(f"{name} ...")
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)
            self.say(f"{name}: {seconds:.1f} s")

    def write(self, exit_code: int) -> str:
        """Write the report; return it as one line of JSON."""
        facts = {
            "passed": exit_code == 0,
            "seconds": round(time.monotonic() - self._began, 1),
            "stages": self.seconds,
            **self.facts,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return json.dumps(facts)


class Stack:
    """The project `name`; `settings` are as seen from this machine: published ports, all secrets.

    `settings.data` names a file of this machine, which is mounted, or an address.
    """

    def __init__(self, name: str, settings: Settings, adminer_port: int, report: Report) -> None:
        self.name = name
        self.settings = settings
        self.report = report
        self._adminer_port = adminer_port
        self.services: list[str] = []
        self.images: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        """Services without an image, and why."""

    @property
    def watcher(self) -> str:
        """Who watches the alert rules."""
        return "evaluator" if "grafana" in self.left_out else "grafana"

    @property
    def environment(self) -> dict[str, str]:
        """What the commands run in: nothing of the caller's own settings, nothing of `.env`."""
        others = ("MLOPS_", "COMPOSE_", "GF_", "PG")
        data = self.settings.data or ""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(others)},
            **{
                f"MLOPS_{name.upper()}": self.settings.secret(name)  # each is needed
                for name in secret_names(optional=False)
            },
            **{
                f"MLOPS_{name.upper()}": str(getattr(self.settings, name))
                for name in type(self.settings).model_fields
                if name.endswith("_port")
            },
            "MLOPS_ADMINER_PORT": str(self._adminer_port),
            "MLOPS_GRAFANA": "auto" if self.watcher == "grafana" else "off",
            "MLOPS_DATA": data,
            "MLOPS_EXCHANGE_DIR": str(self.settings.exchange_dir),
            "MLOPS_EXCHANGE_GROUP": str(os.getgid()),
            **({} if "://" in data else {"MLOPS_DATA_MOUNT": data}),
            # The second retrain is to wait for the first one, not for a minute.
            "MLOPS_RETRAIN_COOL_DOWN_S": "5",
            "COMPOSE_PROJECT_NAME": self.name,
            "COMPOSE_PROFILES": "evaluator",  # so that `ps` and `down` see it as well
        }

    def compose(
        self,
        *arguments: str,
        timeout: float = _COMMAND_LIMIT_S,
        check: bool = True,
        show: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker compose ...`; what takes longer than `timeout` seconds is killed.

        Raises ComposeError if it fails, unless `check` is False. `show` prints its output, too.
        """
        project = ["--project-directory", str(ROOT), "--env-file", os.devnull]
        command = ["docker", "compose", "--ansi", "never", *project, *arguments]
        return self._run(command, timeout, check, show)

    def docker(
        self, *arguments: str, timeout: float = _COMMAND_LIMIT_S, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker ...`, as `compose` does."""
        return self._run(["docker", *arguments], timeout, check)

    def _run(
        self, command: Sequence[str], timeout: float, check: bool, show: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; `show` prints each line as it comes, and has stderr within stdout."""
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if show else subprocess.PIPE,
            text=True,
        ) as process:
            limit = threading.Timer(timeout, process.kill)
            limit.start()
            try:
                if show and process.stdout:
                    lines = []
                    for line in process.stdout:
                        print(line, end="", flush=True)
                        lines.append(line)
                    output, errors = "".join(lines), ""
                else:
                    output, errors = process.communicate()
            except BaseException:
                process.terminate()  # so that docker takes back what it has begun
                raise
            finally:
                limit.cancel()
        done = subprocess.CompletedProcess(command, process.wait(), output, errors)
        if check and done.returncode:
            said = "\n".join((output + errors).strip().splitlines()[-40:])
            raise ComposeError(f"`{' '.join(command)}` ended with {done.returncode}:\n{said}")
        return done

    # ---- images

    def choose_services(self) -> None:
        """Find out which images can be had, and with it which services run."""
        model = json.loads(self.compose("config", "--format", "json").stdout)["services"]
        for name in SERVICES:
            image = model[name]["image"]
            ours = image.startswith(f"{self.name}-")
            if ours or not self.docker("image", "inspect", image, check=False).returncode:
                continue
            pulled = self._pull(name)
            if pulled is not None:
                self.left_out[name] = f"{image} cannot be had: {pulled}"
        for name in STAND_IN:
            if name not in self.left_out:
                self.left_out[STAND_IN[name]] = f"{name} runs instead"
        self.services = [name for name in SERVICES if name not in self.left_out]
        self.images = {name: model[name]["image"] for name in self.services}

    def _pull(self, service: str) -> str | None:
        """Return why the image of `service` cannot be pulled, or None once it is here."""
        pulled = self.compose("pull", "--quiet", service, timeout=_PULL_LIMIT_S, check=False)
        said = (pulled.stderr or pulled.stdout).strip().splitlines()
        return (said[-1] if said else "no answer") if pulled.returncode else None

    def build(self) -> None:
        """Build the images of the services that run."""
        steps = ["--progress", "plain", "build", *self.services]
        self.compose(*steps, timeout=_BUILD_LIMIT_S, show=True)

    def image_megabytes(self) -> dict[str, float]:
        """Return the size of each image, without the project's name, in 10^6 bytes."""
        return {
            image.removeprefix(f"{self.name}-"): round(
                int(self.docker("image", "inspect", "-f", "{{.Size}}", image).stdout) / 1e6, 1
            )
            for image in sorted(set(self.images.values()))
        }

    # ---- life

    def up(self) -> None:
        """Start what does not run, or runs by other settings, and wait until all are healthy."""
        wait = ["--wait", "--wait-timeout", str(UP_LIMIT_S)]
        try:
            self.compose("up", "-d", *wait, *self.services, timeout=UP_LIMIT_S + 60)
        except ComposeError as error:
            raise ComposeError(f"{error}\n{self.compose('ps', '-a').stdout}") from None

    def down(self) -> None:
        """Take containers and networks away; the volumes stay."""
        self.compose("down", "--remove-orphans")

    def kill(self, *services: str) -> None:
        """Kill containers as `docker compose kill` does, after which no restart policy counts."""
        self.compose("kill", *services)
        for service in services:
            assert not self.inspect(service)["State"]["Running"], service

    def remove(self, logs: Path) -> None:
        """Leave nothing behind but the containers' logs, in `logs`: no volume, no image of ours."""
        logs.mkdir(parents=True, exist_ok=True)
        for service in self.services:
            written = self.compose("logs", "--no-color", "--timestamps", service, check=False)
            (logs / f"{service}.log").write_text(written.stdout, encoding="utf-8")
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)
        own = self.docker("image", "ls", "-q", "--filter", f"reference={self.name}-*").stdout
        if own.split():
            self.docker("image", "rm", "--force", *set(own.split()), check=False)

    # ---- looking

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine says about the container of `service`, running or not."""
        container = self.compose("ps", "-a", "-q", service).stdout.split()
        assert len(container) == 1, f"{service} has {len(container)} containers"
        return dict(json.loads(self.docker("inspect", container[0]).stdout)[0])

    def is_healthy(self, service: str) -> bool:
        """Whether the container runs and its own check says so."""
        state = self.inspect(service)["State"]
        return bool(state["Running"]) and state.get("Health", {}).get("Status") == "healthy"

    def started_at(self, service: str) -> str:
        """Return when the container last started: another moment means that it was restarted."""
        return str(self.inspect(service)["State"]["StartedAt"])

    def exec(
        self,
        service: str,
        *command: str,
        user: str | None = None,
        timeout: float = _COMMAND_LIMIT_S,
        check: bool = True,
        show: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the container of `service`."""
        inside = ["exec", "-T", *(["--user", user] if user else []), service, *command]
        return self.compose(*inside, timeout=timeout, check=check, show=show)

    def rows(
        self, query: str, *parameters: Any, database: str = "mlops", role: str = "mlops"
    ) -> list[dict[str, Any]]:
        """Return the rows of a query, asked over the published port and committed."""
        url = database_url(database, role, self.settings)
        connection = psycopg2.connect(url, connect_timeout=5)
        try:
            with connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
                cursor.execute(query, parameters)
                return [dict(row) for row in cursor.fetchall()] if cursor.description else []
        finally:
            connection.close()

    def grafana(self, path: str) -> Any:
        """Return the JSON that Grafana answers its administrator at `path`."""
        response = requests.get(
            f"http://127.0.0.1:{self.settings.grafana_port}{path}",
            auth=("admin", self.settings.secret("grafana_admin_password")),
            timeout=30,
        )
        assert response.ok, f"{path}: {response.status_code} {response.text[:500]}"
        return response.json()

    def rule_states(self) -> list[str]:
        """Return the state of each alert rule in Grafana: inactive, pending, firing."""
        groups = self.grafana("/api/prometheus/grafana/api/v1/rules")["data"]["groups"]
        return [str(rule["state"]) for group in groups for rule in group["rules"]]

    def rule_fires(self, since: datetime) -> bool:
        """Whether an alert fires, by whoever watches the rules; not whether it could be told."""
        if self.watcher == "grafana":
            return "firing" in self.rule_states()
        firing = "SELECT 1 FROM ops.alert_states WHERE state = 'firing' AND fired_at > %s"
        return bool(self.rows(firing, since))

    def await_healthy(self, *services: str, timeout: float = UP_LIMIT_S) -> None:
        """Wait until containers are healthy that come back by themselves."""
        for service in services:
            await_(
                lambda service=service: self.is_healthy(service),
                timeout,
                lambda service=service: f"{service} healthy: {self.inspect(service)['State']}",
            )
