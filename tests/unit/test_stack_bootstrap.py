"""Setup on a bare machine: what it finds, when it has nothing to do, and what it says if stuck."""

from __future__ import annotations

import importlib.util
import itertools
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mlops.settings import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what setup needs, and two environments that look installed but are empty."""
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "uv.lock", folder)
    for name in (".venv", ".venv-services"):
        (folder / name / "bin").mkdir(parents=True)
        (folder / name / "bin" / "python").symlink_to(sys.executable)
    return folder


@pytest.fixture
def bootstrap(clone: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delenv("MLOPS_STATE_DIR", raising=False)
    spec = importlib.util.spec_from_file_location("bootstrap", clone / "scripts" / "bootstrap.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def synced(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """What uv is asked for, in place of uv."""
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(bootstrap, "find_uv", lambda: ["uv"])

    def record(command: list[str], environment: dict[str, str], name: str) -> None:
        chosen = [part for flag, part in itertools.pairwise(command) if flag == "--group"]
        asked.append((name, chosen))

    monkeypatch.setattr(bootstrap, "_uv", record)
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return asked


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["scripts/bootstrap"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_second_run_does_nothing(bootstrap: ModuleType, synced: list[object]) -> None:
    assert bootstrap.main([]) == 0
    assert synced == [(".venv", ["orchestrator"]), (".venv-services", ["services"])]
    assert bootstrap.main([]) == 0
    assert len(synced) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [("~/state", "{home}/state"), ("state", "{clone}/state"), ("/srv/state", "/srv/state")],
)
def test_the_state_folder_is_the_one_that_the_settings_name(
    clone: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setenv("MLOPS_STATE_DIR", given)
    found = runpy.run_path(str(clone / "scripts" / "bootstrap.py"))["STATE"]
    assert found == Path(expected.format(home=Path.home(), clone=clone.resolve()))


def test_a_changed_lock_is_installed(
    bootstrap: ModuleType, synced: list[object], clone: Path
) -> None:
    bootstrap.main([])
    with (clone / "uv.lock").open("a") as lock:
        lock.write("# another\n")
    bootstrap.main([])
    assert len(synced) == 4


def test_another_python_is_taken_only_if_it_is_named(
    bootstrap: ModuleType, synced: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHON", raising=False)
    bootstrap.main([])
    monkeypatch.setattr(bootstrap.sys, "version_info", SimpleNamespace(major=3, minor=99))
    bootstrap.main([])
    assert len(synced) == 2
    monkeypatch.setenv("PYTHON", "/usr/bin/python3.12")
    bootstrap.main([])
    assert len(synced) == 4


def test_a_moved_clone_is_installed_again(
    bootstrap: ModuleType, synced: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.main([])
    moved = bootstrap.ROOT.rename(bootstrap.ROOT.with_name("moved"))
    monkeypatch.setattr(bootstrap, "ROOT", moved)
    monkeypatch.setattr(bootstrap, "LOG", moved / "setup.log")
    bootstrap.main([])
    assert len(synced) == 4


def test_test_tools_once_installed_stay(bootstrap: ModuleType, synced: list[object]) -> None:
    bootstrap.main([])
    bootstrap.main(["dev"])
    assert synced[2:] == [(".venv", ["orchestrator", "dev"])]
    bootstrap.main([])
    assert len(synced) == 3


def test_an_interrupted_install_is_done_again(
    bootstrap: ModuleType, synced: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise bootstrap.SetupError("no network")

    with monkeypatch.context() as broken:
        broken.setattr(bootstrap, "_uv", fail)
        assert bootstrap.main([]) == 2
    bootstrap.main([])
    assert len(synced) == 2


def test_a_full_disk_is_said_before_anything_is_installed(
    bootstrap: ModuleType,
    synced: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(bootstrap.ROOT / ".venv")
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: usage)
    assert bootstrap.main([]) == 2
    assert synced == []
    (line,) = capsys.readouterr().err.splitlines()
    assert "1.6 GB needed" in line
    assert "1.0 GB free" in line


def test_pips_index_is_uvs_index_too(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL", "SSL_CERT_FILE", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    configuration = tmp_path / "pip.conf"
    configuration.write_text("[global]\nindex-url = https://mirror.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    # An environment made by uv has no pip of its own; the Python below it mostly has.
    python = os.path.realpath(sys.executable)
    monkeypatch.setattr(bootstrap.sys, "executable", python)
    if subprocess.run([python, "-m", "pip", "--version"], check=False).returncode == 0:
        assert bootstrap.index_settings()["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert bootstrap.index_settings()["UV_DEFAULT_INDEX"] == "https://other.example/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv.example/simple")
    assert "UV_DEFAULT_INDEX" not in bootstrap.index_settings()


def test_an_index_of_ones_own_keeps_the_locks_hashes(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(
        bootstrap, "_uv", lambda command, environment, name: commands.append(command)
    )
    bootstrap.sync(
        ["uv"], {"UV_DEFAULT_INDEX": "https://mirror.example/simple"}, ".venv", ["orchestrator"]
    )
    assert [command[1] for command in commands] == ["export", "venv", "pip"]
    assert "--frozen" in commands[0]
    assert "--require-hashes" in commands[2]


def test_neither_venv_nor_pip_is_one_line_with_the_way_out(clone: Path, tmp_path: Path) -> None:
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("venv", "pip"):
        (stubs / f"{name}.py").write_text("raise SystemExit('not here')")
    done = run(clone, PYTHON=os.path.realpath(sys.executable), PYTHONPATH=str(stubs))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "apt install python3-venv" in line
    assert not (clone / ".stack" / "uv").exists()


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("status", 2, "nothing is set up yet: run `make setup`"),
        ("logs", 2, "nothing is set up yet: run `make setup`"),
        ("clean", 2, "nothing is set up yet: run `make setup`"),
        ("simulate", 2, "nothing is set up yet: run `make setup`"),
        ("down", 0, "nothing is set up, so nothing runs"),
    ],
)
def test_a_clone_without_environments_says_so(
    tmp_path: Path, target: str, code: int, said: str
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(
        ["make", target, "MONTH=2009-03"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == code
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    assert [line for line in lines if not line.startswith("make")] == [said]


def test_a_python_that_does_not_fit_is_named(clone: Path) -> None:
    done = run(clone, PYTHON="/bin/false")
    assert done.returncode == 2
    assert done.stderr.strip() == "setup: PYTHON=/bin/false is not a Python 3.10, 3.11 or 3.12"


def test_no_python_at_all_is_one_line(clone: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("dirname", "sh"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = run(clone, PATH=str(tools))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Python 3.10, 3.11 or 3.12 not found" in line
