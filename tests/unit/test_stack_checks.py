"""What is found before a start, each in one line with the way out."""

from __future__ import annotations

import os
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from mlops.settings import ROOT
from mlops.stack import checks
from mlops.stack.services import services
from tests.fixtures.postgres import make_settings


def test_a_port_in_use_names_port_service_program_and_setting(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with socket.socket() as server:
        server.bind(("127.0.0.1", settings.mlflow_port))
        server.listen()
        (line,) = checks.port_problems(services(settings), set())
    assert f"port {settings.mlflow_port} (mlflow) is in use by" in line
    assert f"(pid {os.getpid()})" in line
    assert "MLOPS_MLFLOW_PORT" in line
    assert "\n" not in line


def test_a_port_taken_on_all_addresses_is_found_too(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with socket.socket() as server:
        server.bind(("0.0.0.0", settings.mage_port))
        server.listen()
        (line,) = checks.port_problems(services(settings), set())
    assert f"port {settings.mage_port} (mage)" in line


def test_the_stacks_own_servers_are_not_in_its_way(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with socket.socket() as server:
        server.bind(("127.0.0.1", settings.mlflow_port))
        server.listen()
        assert checks.port_problems(services(settings), {settings.mlflow_port}) == []


def test_a_port_that_is_set_anew_is_not_the_stacks_own(tmp_path: Path) -> None:
    old, new = make_settings(tmp_path), make_settings(tmp_path)
    with socket.socket() as server:
        server.bind(("127.0.0.1", new.mlflow_port))
        server.listen()
        (line,) = checks.port_problems(services(new), {old.mlflow_port})
    assert f"port {new.mlflow_port} (mlflow) is in use" in line


def test_free_ports_are_no_problem(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    assert checks.port_problems(services(settings), set()) == []


def test_two_services_on_one_port_are_named(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    settings = settings.model_copy(update={"mage_port": settings.mlflow_port})
    (line,) = checks.port_problems(services(settings), set())
    assert "mlflow and mage" in line
    assert "MLOPS_MLFLOW_PORT or MLOPS_MAGE_PORT" in line


def test_a_full_disk_is_said_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 10**10, 3 * 10**8))
    (line,) = checks.disk_problems(make_settings(tmp_path))
    assert "0.3 GB free" in line
    assert "1.0 GB needed" in line
    assert "MLOPS_STATE_DIR" in line


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    (line,) = checks.folder_problems(make_settings(tmp_path))
    assert str(tmp_path / "state") in line
    assert "MLOPS_STATE_DIR" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        lines = checks.folder_problems(make_settings(tmp_path / "below"))
    finally:
        tmp_path.chmod(0o700)
    assert any("MLOPS_STATE_DIR" in line and str(tmp_path) in line for line in lines)


def test_below_a_folder_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    look = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        # As it is for an ordinary user; root, which may run this, can look everywhere.
        if str(path).startswith(f"{closed}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **options)

    settings = make_settings(closed, data=str(closed / "bank.zip"))
    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)
    lines = checks.folder_problems(settings)
    assert f"{closed} cannot be written by this user" in lines[0]
    assert "MLOPS_STATE_DIR" in lines[0]
    assert checks.disk_problems(settings) == []
    (line,) = checks.data_problems(settings)
    assert f"MLOPS_DATA: this user may not look into a folder above {closed}/bank.zip" in line


def test_a_card_that_does_not_exist_is_named(tmp_path: Path) -> None:
    (line,) = checks.card_problems(make_settings(tmp_path, card="no_such_card"))
    assert "MLOPS_CARD: no card 'no_such_card'" in line
    assert "bank_marketing" in line


def test_a_payload_of_another_card_is_refused_with_the_way_out(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    current = settings.payloads_dir / "current"
    current.mkdir(parents=True)
    (current / "model.json").write_text('{"model": "bank_marketing"}')
    assert checks.card_problems(settings) == []
    (current / "model.json").write_text('{"model": "churn"}')
    (line,) = checks.card_problems(settings)
    assert "belongs to card churn, not to bank_marketing" in line
    assert "MLOPS_STATE_DIR" in line
    assert "make clean" in line


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("{folder}/none.zip", "there is no file {folder}/none.zip"),
        ("{folder}", "{folder} is a folder"),
        ("ftp://example.org/bank.zip", "expected http or https"),
    ],
)
def test_data_that_cannot_be_read_is_found_before_a_start(
    tmp_path: Path, given: str, expected: str
) -> None:
    settings = make_settings(tmp_path, data=given.format(folder=tmp_path))
    (line,) = checks.data_problems(settings)
    assert "MLOPS_DATA" in line
    assert expected.format(folder=tmp_path) in line


@pytest.mark.parametrize("given", [None, "", "https://example.org/bank.zip", "{folder}/bank.csv"])
def test_data_that_may_be_there_is_no_problem(tmp_path: Path, given: str | None) -> None:
    (tmp_path / "bank.csv").write_text("")
    settings = make_settings(tmp_path, data=given and given.format(folder=tmp_path))
    assert checks.data_problems(settings) == []


def test_a_relative_file_is_taken_from_the_repository(tmp_path: Path) -> None:
    assert make_settings(tmp_path, data="README.md").data == str(ROOT / "README.md")
    assert checks.data_problems(make_settings(tmp_path, data="README.md")) == []


def test_an_alert_file_that_the_evaluator_would_refuse_is_found(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    assert checks.alert_rule_problems(settings) == []
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "mine.yaml").write_text("apiVersion: 1\nfolders: []\n")
    (text,) = checks.alert_rule_problems(settings, rules)
    assert "mine.yaml" in text
    assert "folders" in text


def test_another_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.python_problems() == []
    monkeypatch.setattr(checks.sys, "version_info", (3, 13, 0))
    (line,) = checks.python_problems()
    assert "Python 3.13" in line
    assert "3.10 to 3.12" in line
