"""The payload as an image of its own: built from its folder alone, run without anything else."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlops.serving.client import ApiUnavailable, PredictClient
from tests.compose.conftest import Loop
from tests.compose.engine import Stack
from tests.compose.test_containers import _FIND, unwanted_modules
from tests.fixtures.postgres import free_ports
from tests.fixtures.waiting import await_


@dataclass(frozen=True)
class Alone:
    """The payload's container, which no network of the stack reaches."""

    image: str
    container: str
    url: str


@pytest.fixture(scope="module")
def alone(stack: Stack, loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    folder = tmp_path_factory.mktemp("elsewhere")
    stack.compose("cp", "mage:/srv/mlops/payloads", str(folder))
    payload = folder / "payloads" / "current"
    image = name = f"{stack.name}-payload-{secrets.token_hex(2)}"
    (port,) = free_ports(1)
    try:
        with stack.report.stage("build the payload"):
            build(stack, image, payload)
        sizes = stack.report.facts.setdefault("image_megabytes", {})
        size = stack.docker("image", "inspect", "-f", "{{.Size}}", image).stdout
        sizes["payload"] = round(int(size) / 1e6, 1)
        stack.docker(
            *["run", "--detach", "--name", name, "--publish", f"127.0.0.1:{port}:9696"],
            *["--cap-drop", "ALL", "--security-opt", "no-new-privileges", image],
        )
        yield Alone(image, name, f"http://127.0.0.1:{port}")
    finally:
        stack.docker("rm", "--force", "--volumes", name, check=False)
        stack.docker("image", "rm", "--force", image, check=False)


def build(stack: Stack, image: str, payload: Path) -> None:
    """As the README of the payload and the head of its predict.dockerfile say it."""
    stack.docker(
        *["build", "-t", image, "-f", str(payload / "predict.dockerfile"), str(payload)],
        timeout=1800,
    )


def answers(client: PredictClient) -> bool:
    try:
        return client.health()["status"] == "ok"
    except ApiUnavailable:
        return False


def test_payload_answers_alone_as_it_does_in_the_stack(stack: Stack, alone: Alone) -> None:
    client = PredictClient(alone.url)
    await_(lambda: answers(client), 60, lambda: stack.docker("logs", alone.container).stderr)
    inside = PredictClient(stack.settings.predict_url)
    record = client.model()["reference"]
    assert client.model() == inside.model()
    assert client.predict(record)["predictions"] == inside.predict(record)["predictions"]
    assert client.health()["log"]["enabled"] is False


def test_payload_needs_no_root_and_no_volume(stack: Stack, alone: Alone) -> None:
    ids = stack.docker("exec", alone.container, "id", "-u").stdout.strip()
    assert ids != "0"
    mounts = stack.docker("inspect", "-f", "{{json .Mounts}}", alone.container).stdout
    assert mounts.strip() == "[]"


def test_payload_is_well_by_its_own_health_check(stack: Stack, alone: Alone) -> None:
    def health() -> str:
        state = "{{.State.Health.Status}}"
        return stack.docker("inspect", "-f", state, alone.container).stdout.strip()

    await_(lambda: health() == "healthy", 60, health)


def test_payload_has_neither_sklearn_nor_mlflow_nor_pandas(stack: Stack, alone: Alone) -> None:
    assert (
        unwanted_modules(stack.docker("exec", alone.container, "python", "-c", _FIND).stdout) == []
    )
