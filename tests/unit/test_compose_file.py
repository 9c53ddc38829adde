"""docker-compose.yml as a text: what every container is held to, and what it is told."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from mlops.settings import ROOT, Settings, secret_names
from mlops.stack.grafana import PINNED
from mlops.stack.services import services

FILE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
CONTAINERS: dict[str, dict[str, Any]] = FILE["services"]
OURS = {each.name: each for each in services(Settings(_env_file=None))}  # type: ignore[call-arg]

FIXED_INSIDE = {
    # Where things lie and listen in a container, which its image or the file itself says.
    "in_containers",
    *("host", "state_dir", "payloads_dir", "reports_dir", "cache_dir", "streamlit_host"),
    *(f"{name}_port" for name in ("listener", "streamlit", "predict", "prometheus")),
    # Of the stack without Docker.
    *("grafana_home", "prometheus_home"),
}


def environment(name: str) -> dict[str, Any]:
    return CONTAINERS[name].get("environment", {})


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_is_hardened_limited_and_asked_for_its_health(name: str) -> None:
    container = CONTAINERS[name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["restart"] == "unless-stopped"
    assert container["pids_limit"]
    assert container["mem_limit"]
    assert container["logging"]["options"]["max-size"]
    assert container["healthcheck"]["test"]
    assert "privileged" not in container
    volumes = container.get("volumes", [])
    mounts = [each if isinstance(each, str) else each["source"] for each in volumes]
    assert not [mount for mount in mounts if "docker.sock" in mount]


@pytest.mark.parametrize("name", CONTAINERS)
def test_ports_are_published_on_this_machine_only(name: str) -> None:
    for port in CONTAINERS[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", sorted(set(CONTAINERS) & set(OURS) - {"postgres"}))
def test_container_gets_the_secrets_of_its_service_and_no_others(name: str) -> None:
    wanted = {f"MLOPS_{secret.upper()}" for secret in OURS[name].secrets}
    secrets = {f"MLOPS_{secret.upper()}" for secret in secret_names()}
    assert set(environment(name)) & secrets == wanted


def test_secrets_have_no_default_and_say_where_they_come_from() -> None:
    secrets = "|".join(name.upper() for name in secret_names())
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    uses = re.findall(rf"\$\{{MLOPS_(?:{secrets})[^}}]*\}}", text)
    assert uses
    assert [use for use in uses if ":?run make compose-up" not in use] == []


def test_every_setting_reaches_a_container() -> None:
    """A new setting is to be passed on, or named above as one that containers have no use for."""
    told = {name for container in CONTAINERS for name in environment(container)}
    settings = set(Settings.model_fields) - set(secret_names()) - FIXED_INSIDE
    assert sorted(name for name in settings if f"MLOPS_{name.upper()}" not in told) == []


def test_grafana_is_the_one_that_the_stack_without_docker_downloads() -> None:
    assert CONTAINERS["grafana"]["image"] == f"grafana/grafana:{PINNED['linux_amd64'].version}"


def test_images_of_others_are_pinned() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docker").glob("*.dockerfile")]
    images = [
        line.split()[1] for text in texts for line in text.splitlines() if line[:5] == "FROM "
    ]
    images += [each["image"] for each in CONTAINERS.values() if "build" not in each]
    ours = "${COMPOSE_PROJECT_NAME:-mlops}-"
    assert [image for image in images if not re.search(r":v?\d", image) and ours not in image] == []
