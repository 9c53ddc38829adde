"""What a container may do, and what it knows: as little as it needs, whatever runs in it."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from mlops.serving.client import PredictClient
from mlops.settings import secret_names
from tests.compose.conftest import Loop
from tests.compose.engine import SERVICES, Stack
from tests.fixtures.waiting import await_

SECRETS = {
    "postgres": {
        "postgres_password",
        "grafana_db_password",
        "mlflow_db_password",
        "predict_db_password",
    },
    "adminer": set(),
    "prometheus": set(),
    "grafana": {
        "grafana_admin_password",
        "grafana_secret_key",
        "grafana_db_password",
        "webhook_token",
    },
    "mlflow": {"mlflow_db_password"},
    "mage": {"postgres_password", "mage_owner_password", "mage_trigger_token"},
    "predict": {"predict_db_password"},
    "listener": {"postgres_password", "webhook_token", "mage_trigger_token"},
    "evaluator": {"postgres_password", "grafana_db_password", "webhook_token"},
    "streamlit": {"grafana_db_password"},
}
"""The secrets that each container needs: all that it may have."""

MAY_NOT_REACH = {
    "predict": ("mlflow:5000", "listener:6790"),
    "streamlit": ("mlflow:5000", "listener:6790"),
}
"""What faces the people has no way to what trusts its callers."""


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, stack: Stack) -> str:
    if request.param in stack.left_out:
        pytest.skip(f"{request.param} is left out (the first lines say why)")
    return str(request.param)


def test_container_is_healthy(stack: Stack, service: str) -> None:
    assert stack.is_healthy(service), stack.inspect(service)["State"]


def test_no_process_has_a_right_that_it_does_not_need(stack: Stack, service: str) -> None:
    """Asked of the kernel, about every process that runs, not only of the settings."""
    read = "for p in /proc/[0-9]*; do echo; cat $p/status 2>/dev/null; done"
    text = stack.exec(service, "sh", "-c", read).stdout
    processes = [
        dict(line.split(":\t", 1) for line in each.splitlines() if ":\t" in line)
        for each in text.split("\n\n")
        if "CapEff" in each
    ]
    assert len(processes) >= 2, text  # the server and the shell that asks
    for process in processes:
        assert "0" not in process["Uid"].split(), process
        # Grafana's own image puts its user into root's group.
        assert service == "grafana" or "0" not in process["Gid"].split(), process
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(process[capabilities], 16) == 0, process
        assert process["NoNewPrivs"] == "1", process


def test_nothing_can_be_written_but_what_is_meant_to(stack: Stack, service: str) -> None:
    assert stack.inspect(service)["HostConfig"]["ReadonlyRootfs"] is True
    for folder in ("/", "/etc", "/usr", "/srv", "/srv/mlops", "/srv/predict"):
        # As root, who would be let through by the folder's own rights.
        found = stack.exec(service, "test", "-d", folder, user="0", check=False)
        if found.returncode:
            continue
        wrote = stack.exec(service, "touch", f"{folder}/proof", user="0", check=False)
        assert wrote.returncode != 0, folder
        assert "Read-only file system" in wrote.stderr, wrote.stderr
    assert stack.exec(service, "touch", "/tmp/proof").returncode == 0


def test_settings_of_the_container_keep_it_in_bounds(stack: Stack, service: str) -> None:
    found = stack.inspect(service)
    host = found["HostConfig"]
    assert found["Config"]["User"] not in ("", "0", "root")
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    assert not host["Privileged"]
    assert host["PidMode"] != "host"
    assert host["NetworkMode"] != "host"
    assert 0 < host["Memory"] <= 8 * 2**30
    assert 0 < host["PidsLimit"] <= 1024
    assert host["LogConfig"]["Type"] == "json-file"
    assert {"max-size", "max-file"} <= host["LogConfig"]["Config"].keys()
    assert host["RestartPolicy"]["Name"] == "unless-stopped"


def test_only_this_machine_reaches_the_ports(stack: Stack, service: str) -> None:
    ports = stack.inspect(service)["NetworkSettings"]["Ports"]
    published = [place for places in ports.values() for place in places or []]
    assert {place["HostIp"] for place in published} <= {"127.0.0.1"}
    assert len(published) == (0 if service == "evaluator" else 1)


def test_mounts_show_no_more_of_this_machine_than_files_to_read(stack: Stack, service: str) -> None:
    """But for the folders of files to be scored, which is what they are for."""
    exchange = (str(stack.settings.exchange_dir), "/srv/mlops/exchange")
    for mount in stack.inspect(service)["Mounts"]:
        assert "docker.sock" not in mount["Source"] + mount["Destination"], mount
        if service == "mage" and (mount["Source"], mount["Destination"]) == exchange:
            continue
        assert mount["Type"] == "volume" or not mount["RW"], mount


def test_a_file_of_this_machine_is_scored_by_itself(stack: Stack, loop: Loop) -> None:
    settings = stack.settings
    with PredictClient(settings.predict_url) as client:
        record = client.model()["reference"]
    with (settings.exchange_dir / "inbox" / ".customers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, record)
        writer.writeheader()
        writer.writerows([record] * 20)
    Path(file.name).rename(settings.exchange_dir / "inbox" / "customers.csv")
    result = settings.exchange_dir / "outbox" / "customers.csv"
    await_(result.exists, 60, "the file is scored")
    assert len(result.read_text().splitlines()) == 21
    done = settings.exchange_dir / "done" / "customers.csv"
    await_(done.exists, 10, "the file is put away")
    for path in (result, done):
        assert path.stat().st_gid == os.getgid()


def test_container_has_the_secrets_that_it_needs_and_no_other(stack: Stack, service: str) -> None:
    environment = "\n".join(stack.inspect(service)["Config"]["Env"])
    has = {
        name for name in secret_names(optional=False) if stack.settings.secret(name) in environment
    }
    assert has == SECRETS[service]


def test_no_secret_stands_where_others_look(stack: Stack, service: str, loop: Loop) -> None:
    """After a whole loop: in an image, its history, a command line, a log."""
    container = stack.inspect(service)
    image = container["Image"]
    places = {
        "command": json.dumps([container["Path"], container["Args"], container["Config"]["Cmd"]]),
        "labels": json.dumps(container["Config"]["Labels"]),
        "health check": json.dumps(container["State"]["Health"]),
        "processes": stack.docker("top", container["Id"]).stdout,
        "log": stack.compose("logs", "--no-color", service).stdout,
        "image": stack.docker("image", "inspect", image).stdout,
        "history": stack.docker("history", "--no-trunc", "--format", "json", image).stdout,
    }
    assert len(places["log"]) > 0
    for place, text in places.items():
        found = [
            name for name in secret_names(optional=False) if stack.settings.secret(name) in text
        ]
        assert not found, f"{place} of {service} shows {found}"


@pytest.mark.parametrize("service", MAY_NOT_REACH)
def test_what_faces_people_cannot_reach_what_trusts_its_callers(stack: Stack, service: str) -> None:
    def reaches(place: str) -> bool:
        server, port = place.split(":")
        connect = f"exec 3<>/dev/tcp/{server}/{port}"
        return not stack.exec(
            service, "timeout", "5", "bash", "-c", connect, check=False
        ).returncode

    assert reaches("postgres:5432")  # so that the refusals below mean something
    assert [place for place in MAY_NOT_REACH[service] if reaches(place)] == []


def test_predict_has_neither_sklearn_nor_mlflow_nor_pandas(stack: Stack) -> None:
    assert unwanted_modules(stack.exec("predict", "python", "-c", _FIND).stdout) == []


def unwanted_modules(printed: str) -> list[str]:
    return [name for name in json.loads(printed) if name != "onnxruntime"]


_FIND = (
    "import importlib.util as u, json; names = ['onnxruntime', 'sklearn', 'mlflow', 'pandas',"
    " 'xgboost', 'skl2onnx', 'scipy', 'mage_ai', 'mlops'];"
    " print(json.dumps([n for n in names if u.find_spec(n)]))"
)
