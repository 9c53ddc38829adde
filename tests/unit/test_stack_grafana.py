"""Which Grafana is used, and what the stack does without one.

No real Grafana is at hand here: a stand-in has its folders and tells a version (see
tests/fixtures/grafana_standin.py), and archives are downloaded from a server of the test's own.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import threading
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops.settings import ROOT, Settings, secret_names
from mlops.stack import checks, grafana
from mlops.stack.grafana import Archive, Choice, Grafana, find, provide, remember, remembered
from mlops.stack.services import Service, launch_environment, services, watcher
from tests.fixtures.grafana_standin import make_archive, make_home, make_program, program_text
from tests.fixtures.postgres import make_settings

PINS = dict(grafana.PINNED)


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a Grafana, for which no archive is pinned."""
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.setattr(grafana, "_SYSTEM_HOME", tmp_path / "system")
    monkeypatch.setattr(grafana, "PINNED", {})


class _Server(ThreadingHTTPServer):
    content: bytes = b""
    sent: int | None = None  # bytes of it, if the connection ends too early
    requests: int = 0


@pytest.fixture
def server() -> Iterator[_Server]:
    """A web server with one archive."""

    class Handler(BaseHTTPRequestHandler):
        server: _Server

        def do_GET(self) -> None:
            self.server.requests += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.end_headers()
            self.wfile.write(self.server.content[: self.server.sent])

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with _Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def pinned(server: _Server, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """The archive of `server`, pinned for this machine."""
    server.content, sha256 = make_archive("12.4.2")
    url = f"http://127.0.0.1:{server.server_address[1]}/grafana.tar.gz"
    archive = Archive("12.4.2", url, sha256)
    monkeypatch.setattr(grafana, "PINNED", {grafana.platform_name(): archive})
    return archive


def auto(tmp_path: Path, **values: Any) -> Settings:
    return make_settings(tmp_path, **{"grafana": "auto", "cache_dir": tmp_path / "cache", **values})


def in_cache(settings: Settings) -> list[str]:
    """Return what lies in the cache, but for the lock, which is no part of an archive."""
    return sorted(path.name for path in settings.cache_dir.iterdir() if path.suffix != ".lock")


def test_the_one_in_grafana_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path / "opt")
    found = find(auto(tmp_path, grafana_home=home)).grafana
    assert found == Grafana(home / "bin" / "grafana", home, "12.4.2")
    monkeypatch.setenv("GRAFANA_HOME", str(home))  # Grafana's own name for it
    assert find(auto(tmp_path)).grafana == found


def test_one_that_is_unpacked_and_linked_on_path_is_found(tmp_path: Path) -> None:
    home = make_home(tmp_path / "opt")
    (tmp_path / "path" / "bin").mkdir(parents=True)
    (tmp_path / "path" / "bin" / "grafana").symlink_to(home / "bin" / "grafana")
    assert find(auto(tmp_path)).grafana == Grafana(home / "bin" / "grafana", home, "12.4.2")


def test_one_on_path_with_its_files_under_share_is_found(tmp_path: Path) -> None:
    home = make_home(tmp_path / "path" / "share" / "grafana")
    shutil.rmtree(home / "bin")
    program = make_program(tmp_path / "path" / "bin" / "grafana", program_text("11.6.0"))
    assert find(auto(tmp_path)).grafana == Grafana(program, home, "11.6.0")


def test_the_script_of_a_system_package_is_passed_by(tmp_path: Path) -> None:
    # It would add a --config and paths of its own to what it is told.
    home = make_home(tmp_path / "system")
    make_program(tmp_path / "path" / "bin" / "grafana", "#!/bin/sh\nexit 5\n")
    assert find(auto(tmp_path)).grafana == Grafana(home / "bin" / "grafana", home, "12.4.2")


def test_one_that_is_too_old_is_named_with_its_version_and_the_next_is_taken(
    tmp_path: Path,
) -> None:
    old = make_home(tmp_path / "old", "10.4.19")
    settings = auto(tmp_path, grafana_home=old)
    choice = provide(settings)
    assert choice.grafana is None
    assert f"{old}/bin/grafana is version 10.4.19, 11 or later is needed" in choice.sentence
    make_home(tmp_path / "path", "13.0.1+security-01")
    choice = provide(settings)
    assert choice.grafana is not None
    assert choice.grafana.version == "13.0.1+security-01"
    assert "10.4.19" in choice.sentence


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "there is no program"),
        ("#!/bin/sh\nexit 1\n", "does not tell its version"),
        ("#!/bin/sh\necho hello\n", "does not tell its version"),
        ("not even a script", "does not tell its version"),
    ],
)
def test_what_is_no_grafana_is_said(tmp_path: Path, text: str | None, complaint: str) -> None:
    home = make_home(tmp_path / "opt")
    (home / "bin" / "grafana").unlink()
    if text is not None:
        make_program(home / "bin" / "grafana", text)
    choice = find(auto(tmp_path, grafana_home=home))
    assert choice.grafana is None
    assert complaint in choice.sentence


def test_a_program_without_its_files_is_said(tmp_path: Path) -> None:
    make_program(tmp_path / "path" / "bin" / "grafana", program_text("12.4.2"))
    assert "no folder with conf/defaults.ini and public" in find(auto(tmp_path)).sentence


def test_the_pinned_archive_is_downloaded_once_with_progress(
    tmp_path: Path, server: _Server, pinned: Archive
) -> None:
    settings = auto(tmp_path)
    assert find(settings).grafana is None, "looking downloads nothing"
    assert server.requests == 0
    steps: list[tuple[int, int | None]] = []
    choice = provide(settings, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (len(server.content), len(server.content))
    (name,) = in_cache(settings)
    assert choice.grafana is not None
    assert choice.grafana.home == settings.cache_dir / name
    assert choice.grafana.version == "12.4.2"
    assert choice.reasons == ()
    server.content = b""  # as without network
    assert provide(settings) == find(settings) == choice
    assert server.requests == 1


def test_an_archive_with_a_wrong_checksum_is_refused_and_nothing_is_left(
    tmp_path: Path, server: _Server, pinned: Archive
) -> None:
    settings = auto(tmp_path)
    server.content = make_archive("12.4.3")[0]
    choice = provide(settings)
    assert choice.grafana is None
    assert f"expected {pinned.sha256[:12]}…, and is not used" in choice.sentence
    assert "\n" not in choice.sentence
    assert in_cache(settings) == []


def test_a_download_that_ends_too_early_leaves_nothing(
    tmp_path: Path, server: _Server, pinned: Archive
) -> None:
    settings = auto(tmp_path)
    server.sent = len(server.content) // 2
    choice = provide(settings)
    assert choice.grafana is None
    assert "12.4.2 cannot be downloaded" in choice.sentence
    assert in_cache(settings) == []
    server.sent = None
    assert provide(settings).grafana is not None


def test_an_interrupted_unpacking_leaves_nothing_half_there(
    tmp_path: Path, pinned: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = auto(tmp_path)
    unpack = tarfile.TarFile.extractall

    def interrupt(self: tarfile.TarFile, *args: Any, **options: Any) -> None:
        unpack(self, *args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", interrupt)
        with pytest.raises(KeyboardInterrupt):
            provide(settings)
    assert in_cache(settings) == []
    # Killed, it could not even clean up: the next one does.
    (settings.cache_dir / "grafana-draft-killed" / "unpacked").mkdir(parents=True)
    assert find(settings).grafana is None
    assert provide(settings).grafana is not None
    assert len(in_cache(settings)) == 1


def test_stacks_of_two_clones_download_once(
    tmp_path: Path, server: _Server, pinned: Archive
) -> None:
    settings = auto(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(provide, [settings, settings])
    assert first == second
    assert first.grafana is not None
    assert server.requests == 1


def test_a_damaged_cache_is_downloaded_anew(
    tmp_path: Path, server: _Server, pinned: Archive
) -> None:
    settings = auto(tmp_path)
    first = provide(settings).grafana
    assert first is not None
    shutil.rmtree(first.home / "conf")
    assert provide(settings).grafana == first
    assert server.requests == 2


def test_without_internet_one_line_says_that_the_evaluator_watches(
    tmp_path: Path, server: _Server, pinned: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive("12.4.2", "http://127.0.0.1:9/grafana.tar.gz", pinned.sha256)
    monkeypatch.setattr(grafana, "PINNED", {grafana.platform_name(): archive})
    settings = auto(tmp_path)
    assert provide(settings).sentence == (
        "Grafana: 12.4.2 cannot be downloaded (127.0.0.1 cannot be reached from here): "
        "the alert evaluator watches the rules"
    )
    assert in_cache(settings) == []


def test_a_machine_for_which_nothing_is_pinned_is_named(tmp_path: Path) -> None:
    sentence = provide(auto(tmp_path)).sentence
    assert f"no archive is pinned for {grafana.platform_name()}" in sentence


def test_too_little_disk_is_said_before_the_download(
    tmp_path: Path, server: _Server, pinned: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 10**10, 3 * 10**8))
    assert "0.3 GB free" in provide(auto(tmp_path)).sentence
    assert server.requests == 0


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, pinned: Archive) -> None:
    (tmp_path / "cache").write_text("a file")
    sentence = provide(auto(tmp_path)).sentence
    assert "(MLOPS_CACHE_DIR)" in sentence


def test_off_looks_at_nothing(tmp_path: Path, server: _Server, pinned: Archive) -> None:
    make_home(tmp_path / "path")
    choice = provide(auto(tmp_path, grafana="off"))
    assert choice.sentence == (
        "Grafana: off (MLOPS_GRAFANA): the alert evaluator watches the rules"
    )
    assert server.requests == 0


def test_an_older_python_unpacks_nothing_outside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with tarfile.open(tmp_path / "archive", "w:gz") as archive:
        for name in ("g/conf/defaults.ini", "g/public/index.html", "../outside", "g/bin/grafana"):
            info = tarfile.TarInfo(name)
            info.mode = 0o4777
            archive.addfile(info, io.BytesIO())
        link = tarfile.TarInfo("g/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    home = grafana._unpack(tmp_path / "archive", tmp_path / "unpacked")
    assert home == tmp_path / "unpacked" / "g"
    assert (home / "bin" / "grafana").stat().st_mode & 0o7777 == 0o755
    assert not (tmp_path / "outside").exists()
    assert not (home / "link").is_symlink()


def test_pins_are_official_archives_of_a_version_that_the_files_are_written_for() -> None:
    assert set(PINS) == {"linux_amd64", "linux_arm64", "darwin_amd64", "darwin_arm64"}
    assert len({archive.sha256 for archive in PINS.values()}) == len(PINS)
    for name, archive in PINS.items():
        assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
        assert int(archive.version.split(".")[0]) >= grafana.OLDEST_MAJOR
        assert re.fullmatch(
            rf"https://dl\.grafana\.com/grafana/release/{re.escape(archive.version)}"
            rf"/grafana_{re.escape(archive.version)}_\d+_{name}\.tar\.gz",
            archive.url,
        )


def test_compose_runs_the_same_version() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert compose["services"]["grafana"]["image"] == (
        f"grafana/grafana:{PINS['linux_amd64'].version}"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root looks everywhere")
def test_a_folder_that_this_user_may_not_look_into_is_no_error(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    home = make_home(closed / "opt")
    closed.chmod(0)
    try:
        assert "there is no program" in find(auto(tmp_path, grafana_home=home)).sentence
    finally:
        closed.chmod(0o700)


def named(settings: Settings) -> dict[str, Service]:
    return {each.name: each for each in services(settings)}


def test_what_was_decided_holds_until_it_is_decided_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = auto(tmp_path)
    settings.state_dir.mkdir()
    assert "evaluator" in named(settings)
    home = make_home(tmp_path / "path")
    assert "evaluator" in named(settings), "one that was installed since changes nothing"
    assert "grafana" not in named(settings)
    choice = provide(settings)
    remember(settings, choice.grafana)
    assert remembered(settings) == choice.grafana
    assert "grafana" in named(settings)
    assert "evaluator" not in named(settings)
    shutil.rmtree(home)
    assert "grafana" in named(settings)
    remember(settings, None)
    assert "evaluator" in named(settings)
    (settings.state_dir / "watcher.json").write_text("{")
    assert "evaluator" in named(settings)


def test_grafana_gets_its_own_files_its_own_secrets_and_no_settings_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = auto(tmp_path)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)  # as supervisor has them
    monkeypatch.setenv("GF_AUTH_ANONYMOUS_ENABLED", "true")
    monkeypatch.setenv("GF_SECURITY_ADMIN_PASSWORD__FILE", "/etc/password")
    home = tmp_path / "opt"
    service = watcher(settings, Grafana(home / "bin" / "grafana", home, "12.4.2"))
    assert service.command() == [
        str(home / "bin" / "grafana"),
        "server",
        *("--homepath", str(home)),
        *("--config", str(ROOT / "grafana" / "grafana.ini")),
    ]
    environment = launch_environment(service, settings)
    values = list(environment.values())
    assert {name for name in secret_names(optional=False) if settings.secret(name) in values} == {
        "grafana_db_password",
        "webhook_token",
        "grafana_admin_password",
        "grafana_secret_key",
    }
    assert {name for name in environment if name.startswith("GF_")} == {
        "GF_PATHS_DATA",
        "GF_PATHS_LOGS",
        "GF_PATHS_PLUGINS",
        "GF_PATHS_PROVISIONING",
        "GF_SERVER_HTTP_ADDR",
        "GF_SERVER_HTTP_PORT",
        "GF_SECURITY_ADMIN_PASSWORD",
        "GF_SECURITY_SECRET_KEY",
    }
    assert environment["MLOPS_LISTENER_URL"] == settings.listener_url
    assert environment["MLOPS_POSTGRES_PORT"] == str(settings.postgres_port)
    # Beside supervisor's logs, one of them would overwrite the other.
    assert Path(environment["GF_PATHS_LOGS"]) != settings.state_dir / "logs"


def test_every_variable_that_the_files_name_is_given(tmp_path: Path) -> None:
    settings = auto(tmp_path)
    service = watcher(settings, Grafana(tmp_path, tmp_path, "12.4.2"))
    environment = launch_environment(service, settings)
    files = [
        path
        for path in (ROOT / "grafana").rglob("*")
        if path.suffix in (".ini", ".yaml", ".yml") and path.is_file()
    ]
    variables = {
        name
        for path in files
        for name in re.findall(r"\$(?:__env)?\{?(MLOPS_\w+|GF_\w+)", path.read_text())
    }
    assert variables, "the files name none"
    assert variables <= set(environment)


def test_rules_that_only_grafana_knows_are_no_problem_where_it_watches(tmp_path: Path) -> None:
    settings = auto(tmp_path)
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "mine.yaml").write_text(
        "apiVersion: 1\nfolders: []\ngroups: [{rules: [{title: Mine, more: 1}]}]\n"
    )
    assert checks.alert_rule_problems(settings, rules) != []
    assert checks.alert_rule_problems(settings, rules, evaluated=False) == []
    (rules / "mine.yaml").write_text("groups: [{rules: [{}]}]")
    assert checks.alert_rule_problems(settings, rules, evaluated=False) != []


def test_the_line_about_a_choice_names_version_and_place() -> None:
    used = Grafana(Path("/opt/grafana/bin/grafana"), Path("/opt/grafana"), "12.4.2")
    assert Choice(used).sentence == "Grafana: 12.4.2 of /opt/grafana watches the rules"
    assert Choice(used, ("another one",)).sentence.endswith("watches the rules (another one)")
