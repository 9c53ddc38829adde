"""What each server of the stack is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops.stack.secrets import secret_names
from mlops.stack.services import launch_environment, services
from tests.fixtures.postgres import make_settings


def test_no_command_line_holds_a_secret(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    secrets = [settings.secret(name) for name in secret_names()]
    for service in services(settings):
        line = " ".join(service.command())
        assert not any(secret in line for secret in secrets), service.name


def test_predict_knows_no_secret_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)  # as supervisor has them
    predict = next(each for each in services(settings) if each.name == "predict")
    values = " ".join(launch_environment(predict, settings).values())
    assert [name for name in secret_names() if settings.secret(name) in values] == [
        "predict_db_password"
    ]


def test_a_launched_server_reads_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path, predict_workers=5)
    mage = next(each for each in services(settings) if each.name == "mage")
    for name, value in launch_environment(mage, settings).items():
        if name.startswith("MLOPS_"):
            monkeypatch.setenv(name, value)
    assert type(settings)(_env_file=None).model_dump(
        exclude=set(secret_names())
    ) == settings.model_dump(exclude=set(secret_names()))


def test_every_server_listens_on_loopback_and_says_which_setting_moves_it(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    for service in services(settings):
        if service.port is None:
            continue
        assert service.port_setting
        assert service.port_setting.removeprefix("MLOPS_").lower() in type(settings).model_fields
        assert "0.0.0.0" not in " ".join(service.command())
