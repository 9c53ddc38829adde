"""Whose folders are deleted, and how a change of settings is noticed."""

from __future__ import annotations

import fcntl
import shutil
import stat
from pathlib import Path

import pytest

from mlops.serving import exchange
from mlops.settings import ROOT, Settings, secret_names
from mlops.stack import __main__ as command_line
from mlops.stack import processes, state
from tests.fixtures.postgres import make_settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that the command line, run in this process, reads too."""
    found = make_settings(tmp_path)
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # the command line sets them: undone afterwards
    monkeypatch.setattr(command_line, "ensure_secrets", list)
    return found


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_clean_deletes_what_the_stack_wrote_and_nothing_else(settings: Settings) -> None:
    fill(settings.state_dir, "mlops-stack", "logs/mage.log", "postgres/PG_VERSION")
    fill(
        settings.payloads_dir,
        *("1/model.json", "12/model.json", ".3.0a1b2c3d.new/model.onnx"),
        *("README.md", "notes.txt", "photos/1.jpg", ".git/config", "2024/1.jpg"),
    )
    (settings.payloads_dir / "current").symlink_to("12")
    (settings.payloads_dir / ".current.0a1b2c3d.new").symlink_to("12")
    fill(settings.reports_dir, "1/2009-03.html", "1/.2009-04.html.77", "1/2009-03.evidently.html")
    fill(settings.reports_dir, "retrains/20260101T000000Z-1a2b3c.html", "retrains/.run-3.html.7")
    fill(settings.reports_dir, "assets/evidently-0.7.23.js")
    fill(settings.reports_dir, "mine.html", "final/1.html", "2024/tax.html")
    assert command_line.main(["clean", "--yes"]) == 0
    assert not settings.state_dir.exists()
    assert left(settings.payloads_dir) == {*("README.md", "notes.txt", "photos", ".git", "2024")}
    assert left(settings.reports_dir) == {"mine.html", "final", "2024"}


def test_clean_deletes_no_file_of_the_exchange(tmp_path: Path) -> None:
    for folder in ("data", "state/data"):
        settings = make_settings(tmp_path, exchange_dir=tmp_path / folder)
        state.claim(settings)
        exchange.make_folders(settings)
        (settings.exchange_dir / "outbox" / "customers.csv").touch()
        if folder == "data":
            assert not any(settings.exchange_dir.is_relative_to(p) for p in state.written(settings))
        else:
            with pytest.raises(state.StateError, match="MLOPS_EXCHANGE_DIR"):
                state.written(settings)


def test_clean_after_setup_alone_deletes_its_state(settings: Settings) -> None:
    fill(settings.state_dir, "logs/setup.log", "uv/bin/uv")
    assert command_line.main(["clean", "--yes"]) == 0
    assert not settings.state_dir.exists()


@pytest.mark.parametrize("command", [["up"], ["clean", "--yes"]])
def test_a_state_folder_of_somebody_else_is_left_as_it_is(
    settings: Settings, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(settings.state_dir, "thesis.tex", "logs/mine.log")
    fill(settings.payloads_dir, "1/model.json")
    settings.state_dir.chmod(0o755)
    assert command_line.main(command) == 2
    printed = capsys.readouterr().out
    assert f"{settings.state_dir} holds files that are not the stack's" in printed
    assert left(settings.state_dir) == {"thesis.tex", "logs"}
    assert stat.S_IMODE(settings.state_dir.stat().st_mode) == 0o755
    assert left(settings.payloads_dir) == {"1"}


@pytest.mark.parametrize(
    "names",
    [
        ("logs/mine.log",),
        ("logs/setup.log", "logs/mine.log"),
        ("logs",),
        ("uv/pyproject.toml",),
        ("lock", "status"),
        ("supervisord.conf",),
    ],
)
def test_a_folder_that_only_looks_like_the_stacks_is_left(
    settings: Settings, names: tuple[str, ...]
) -> None:
    fill(settings.state_dir, *names)
    assert command_line.main(["clean", "--yes"]) == 2
    assert all((settings.state_dir / name).is_file() for name in names)


def test_a_state_from_before_the_mark_is_still_the_stacks(settings: Settings) -> None:
    fill(settings.state_dir, "lock", "logs/mage.log")
    (settings.state_dir / "supervisord.conf").write_text(
        "[program:mage]\ncommand=python -m mlops.stack.launch mage\n"
    )
    assert command_line.main(["clean", "--yes"]) == 0
    assert not settings.state_dir.exists()


def test_a_state_folder_that_cannot_be_made_is_one_line(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.state_dir.write_text("a file")
    assert command_line.main(["up"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{settings.state_dir}: File exists: set MLOPS_STATE_DIR" in line


def test_clean_looks_for_what_to_delete_once_all_is_stopped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings.state_dir, "mlops-stack")
    fill(settings.payloads_dir, "1/model.json")
    stop = processes.stop_all

    def deploy_then_stop(settings: Settings) -> int:
        fill(settings.payloads_dir, "2/model.json")
        return stop(settings)

    monkeypatch.setattr(processes, "stop_all", deploy_then_stop)
    assert command_line.main(["clean", "--yes"]) == 0
    assert left(settings.payloads_dir) == set()


def test_clean_holds_the_lock_till_all_is_deleted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings.state_dir, "mlops-stack")
    delete = shutil.rmtree

    def delete_if_locked(path: Path) -> None:
        with (settings.state_dir / "lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        delete(path)

    monkeypatch.setattr(command_line.shutil, "rmtree", delete_if_locked)
    assert command_line.main(["clean", "--yes"]) == 0
    assert not settings.state_dir.exists()


def test_who_waited_for_clean_takes_a_lock_that_exists(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_ = fcntl.flock
    taken: list[int] = []

    def lock_after_a_clean(file: int, mode: int) -> None:
        lock_(file, mode)
        if not taken:
            shutil.rmtree(settings.state_dir)
        taken.append(mode)

    monkeypatch.setattr(command_line.fcntl, "flock", lock_after_a_clean)
    with command_line._only_one(settings):
        assert left(settings.state_dir) == {"lock", "mlops-stack"}
    assert len(taken) == 2


@pytest.mark.parametrize("folder", [ROOT, ROOT.parent, Path.home()])
def test_no_mark_makes_home_or_the_clone_deletable(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(state.StateError, match="not"):
        state.written(make_settings(tmp_path, state_dir=folder))


@pytest.mark.parametrize("name", ["data", "predict_workers", "postgres_password"])
def test_any_changed_setting_is_noticed_and_no_secret_is_kept(tmp_path: Path, name: str) -> None:
    settings = make_settings(tmp_path)
    settings.state_dir.mkdir()
    assert state.changed_settings(settings) is None
    state.remember_settings(settings)
    assert state.changed_settings(settings) == []
    values = {each: settings.secret(each) for each in secret_names(optional=False)}
    ports = {each: getattr(settings, each) for each in Settings.model_fields if "_port" in each}
    other = make_settings(tmp_path, **{**values, **ports, name: "7"})
    assert state.changed_settings(other) == [f"MLOPS_{name.upper()}"]
    (path,) = settings.state_dir.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(value in path.read_text() for value in values.values())


@pytest.mark.parametrize("text", ["", "4f" * 32, "12", "{}", "[]"])
def test_what_an_older_version_remembered_is_unknown(tmp_path: Path, text: str) -> None:
    settings = make_settings(tmp_path)
    settings.state_dir.mkdir()
    (settings.state_dir / "settings.digest").write_text(text)
    assert state.changed_settings(settings) is None
    assert state.ports_at_start(settings, ["MLOPS_MAGE_PORT"]) == {settings.mage_port}


def test_an_env_file_that_cannot_be_read_is_one_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> list[str]:
        raise PermissionError(13, "Permission denied", "/clone/.env")

    monkeypatch.setattr(command_line, "ensure_secrets", refuse)
    for command in (["up"], ["secrets"]):
        assert command_line.main(command) == 2
        printed = capsys.readouterr().out
        assert "/clone/.env: Permission denied" in printed
        assert len(printed.splitlines()) == 1
