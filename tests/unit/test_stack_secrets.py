"""Secrets in `.env`: generated where missing, otherwise left alone, and for nobody else to read."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from mlops.settings import ROOT, MissingSecretError, Settings, secret_names
from mlops.stack.secrets import ensure_secrets


@pytest.fixture(autouse=True)
def no_secrets_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in secret_names():
        monkeypatch.delenv(f"MLOPS_{name.upper()}", raising=False)


def test_every_secret_is_generated_and_different(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    generated = ensure_secrets(env_file)
    settings = Settings(_env_file=env_file)
    values = [settings.secret(name) for name in secret_names(optional=False)]
    assert set(generated) == {f"MLOPS_{name.upper()}" for name in secret_names(optional=False)}
    assert len(set(values)) == len(values)
    assert all(len(value) >= 32 for value in values)
    assert settings.predict_api_key is None, "an API key is a person's own choice"


@pytest.mark.parametrize("mode", [None, 0o644, 0o666])
def test_the_file_is_for_its_owner_only_whatever_it_was(tmp_path: Path, mode: int | None) -> None:
    env_file = tmp_path / ".env"
    ensure_secrets(env_file)
    if mode is not None:
        env_file.chmod(mode)
    ensure_secrets(env_file)
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


def test_what_a_person_wrote_stays_line_by_line(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    mine = [
        "# my notes",
        "MLOPS_DATA=/data/bank.zip",
        "",
        "export MLOPS_WEBHOOK_TOKEN = 'my own'  # kept",
        "MLOPS_POSTGRES_PASSWORD=",
        "OTHER=1",
    ]
    env_file.write_text("\n".join(mine) + "\n")
    generated = ensure_secrets(env_file)
    lines = env_file.read_text().splitlines()
    assert lines[:4] == mine[:4]
    assert lines[5] == mine[5]
    assert "MLOPS_WEBHOOK_TOKEN" not in generated
    assert dotenv_values(env_file)["MLOPS_POSTGRES_PASSWORD"]


@pytest.mark.parametrize("value", ["#abc", '"#abc"', "'#a b'", "a#b # mine", "  x"])
def test_a_secret_of_a_persons_own_is_kept_however_it_is_written(
    tmp_path: Path, value: str
) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(f"MLOPS_WEBHOOK_TOKEN={value}\n")
    assert "MLOPS_WEBHOOK_TOKEN" not in ensure_secrets(env_file)
    assert env_file.read_text().splitlines()[0] == f"MLOPS_WEBHOOK_TOKEN={value}"


@pytest.mark.parametrize("value", ["", "   ", " # to be filled in", '""', "''"])
def test_a_secret_that_is_only_named_is_generated(tmp_path: Path, value: str) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(f"MLOPS_WEBHOOK_TOKEN={value}\n")
    assert "MLOPS_WEBHOOK_TOKEN" in ensure_secrets(env_file)
    assert dotenv_values(env_file)["MLOPS_WEBHOOK_TOKEN"]


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    ensure_secrets(env_file)
    before = env_file.read_bytes(), env_file.stat().st_mtime_ns
    assert ensure_secrets(env_file) == []
    assert (env_file.read_bytes(), env_file.stat().st_mtime_ns) == before


def test_a_secret_from_the_environment_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_WEBHOOK_TOKEN", "from outside")
    env_file = tmp_path / ".env"
    assert "MLOPS_WEBHOOK_TOKEN" not in ensure_secrets(env_file)
    assert "from outside" not in env_file.read_text()


def test_secrets_are_generated_without_any_package(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "mlops" / "stack", tmp_path / "mlops" / "stack")
    shutil.copy(ROOT / "mlops" / "__init__.py", tmp_path / "mlops")
    shutil.copy(ROOT / ".env.example", tmp_path)
    # -S: without site-packages, as on a machine where nothing is installed.
    command = [sys.executable, "-S", "-m", "mlops.stack.secrets"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    values = dotenv_values(tmp_path / ".env")
    assert all(values[f"MLOPS_{name.upper()}"] for name in secret_names(optional=False))
    assert not any(value in done.stdout for value in values.values() if value)


def test_the_template_names_every_secret_and_has_none() -> None:
    template = dotenv_values(ROOT / ".env.example")
    assert {f"MLOPS_{name.upper()}" for name in secret_names()} <= set(template)
    settings = Settings(_env_file=ROOT / ".env.example")
    for name in secret_names(optional=False):
        with pytest.raises(MissingSecretError, match="make setup"):
            settings.secret(name)


def test_the_template_names_only_settings_that_exist() -> None:
    known = {f"MLOPS_{name.upper()}" for name in Settings.model_fields}
    text = (ROOT / ".env.example").read_text()
    named = {
        line.lstrip("#").split("=")[0]
        for line in text.splitlines()
        if line.lstrip("#").startswith("MLOPS_")
    }
    assert named <= known


def test_printed_settings_show_no_secret(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    ensure_secrets(env_file)
    settings = Settings(_env_file=env_file)
    for name in secret_names(optional=False):
        assert settings.secret(name) not in repr(settings)
