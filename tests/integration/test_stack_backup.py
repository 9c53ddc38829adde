"""A backup of a real Postgres with its files, restored into another state."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest

from mlops.database import connect
from mlops.settings import Settings
from mlops.stack import backup, postgres, state
from tests.fixtures.postgres import make_settings


def run(settings: Settings, role: str, statement: str, database: str = "mlops") -> object:
    with connect(database, role, settings) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


def filled(folder: Path) -> Settings:
    """Return the settings of a state with one retrain, one run, one payload and one report."""
    settings = make_settings(folder / "old")
    state.claim(settings)
    artifact = settings.state_dir / "mlflow-artifacts" / "1" / "model.skops"
    report = settings.reports_dir / "3" / "2009-03.html"
    payload = settings.payloads_dir / "3" / "model.json"
    for path in (artifact, report, payload):
        path.parent.mkdir(parents=True)
        path.write_text(path.name)
    (settings.payloads_dir / "current").symlink_to("3")
    return settings


def fill(settings: Settings) -> None:
    run(
        settings,
        "mlops",
        "INSERT INTO ops.retrains (id, card, cause) VALUES ('r1', 'bank_marketing', 'drift')",
    )
    run(settings, "mlflow", "CREATE TABLE runs (id serial, secret text)", "mlflow")
    run(settings, "mlflow", "INSERT INTO runs (secret) VALUES ('x')", "mlflow")


def test_a_restored_state_holds_all_that_was_backed_up_and_guards_it_alike(folder: Path) -> None:
    old = filled(folder)
    with postgres.running(old):
        fill(old)
        made = backup.back_up(old, folder / "backup")
    assert not list(folder.glob(".backup.*"))
    assert made.stat().st_mode & 0o077 == 0

    new = make_settings(folder / "new")  # other passwords, too
    backup.restore(new, made)
    with postgres.running(new):
        assert run(new, "grafana", "SELECT id FROM ops.retrains") == ("r1",)
        assert run(new, "mlflow", "SELECT id, secret FROM runs", "mlflow") == (1, "x")
        assert run(new, "grafana", "SELECT id FROM runs", "mlflow") == (1,)
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(new, "grafana", "SELECT secret FROM runs", "mlflow")
        run(new, "mlflow", "CREATE TABLE later (id int, token text)", "mlflow")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(new, "grafana", "SELECT token FROM later", "mlflow")
    assert (new.payloads_dir / "current" / "model.json").read_text() == "model.json"
    assert (new.reports_dir / "3" / "2009-03.html").exists()
    assert (new.state_dir / "mlflow-artifacts" / "1" / "model.skops").exists()


def test_a_state_that_holds_anything_is_not_overwritten(folder: Path) -> None:
    old = filled(folder)
    with postgres.running(old):
        fill(old)
        made = backup.back_up(old, folder / "backup")
    with pytest.raises(backup.BackupError, match="make clean"):
        backup.restore(old, made)
    with postgres.running(old):
        assert run(old, "mlops", "SELECT id FROM ops.retrains") == ("r1",)


@pytest.mark.parametrize("part", ["mage.dump", "payloads/3/model.json"])
def test_a_backup_that_is_not_whole_is_refused_before_anything_is_restored(
    folder: Path, part: str
) -> None:
    old = filled(folder)
    with postgres.running(old):
        fill(old)
        made = backup.back_up(old, folder / "backup")
    new = make_settings(folder / "new")
    content = (made / part).read_bytes()
    (made / part).write_bytes(content[1:])
    with pytest.raises(backup.BackupError, match=f"damaged: {part}"):
        backup.restore(new, made)
    (made / part).unlink()
    with pytest.raises(backup.BackupError, match=f"not whole: {part}"):
        backup.restore(new, made)
    assert not postgres.data_dir(new).exists()


def test_of_two_backups_into_one_folder_one_is_whole_and_the_other_says_so(folder: Path) -> None:
    old = filled(folder)
    first_has_dumped, second_is_dumping = threading.Event(), threading.Event()
    first_has_ended = threading.Event()

    def first_goes_on(part: str) -> None:
        if part == "mlflow-artifacts":
            first_has_dumped.set()
            assert second_is_dumping.wait(30)

    def second_goes_on(part: str) -> None:
        if part == "database mlflow":
            second_is_dumping.set()
            assert first_has_ended.wait(30)

    with postgres.running(old), ThreadPoolExecutor(2) as pool:
        fill(old)
        first = pool.submit(backup.back_up, old, folder / "backup", first_goes_on)
        assert first_has_dumped.wait(30)
        second = pool.submit(backup.back_up, old, folder / "backup", second_goes_on)
        made = first.result(60)
        first_has_ended.set()
        with pytest.raises(backup.BackupError, match="cannot be written"):
            second.result(60)
    backup.check(made)
    assert not list(folder.glob(".backup.*"))


def test_a_restore_that_fails_leaves_the_state_empty(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = filled(folder)
    with postgres.running(old):
        fill(old)
        made = backup.back_up(old, folder / "backup")
    whole = (made / "mage.dump").read_bytes()
    (made / "mage.dump").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(backup, "check", lambda folder: None)  # as if that had not seen it
    new = make_settings(folder / "new")
    with pytest.raises(backup.BackupError, match="pg_restore"):
        backup.restore(new, made)
    assert not postgres.data_dir(new).exists()
    (made / "mage.dump").write_bytes(whole)
    backup.restore(new, made)  # nothing is in its way


def test_a_backup_needs_a_folder_of_its_own_and_a_server_that_runs(folder: Path) -> None:
    settings = make_settings(folder)
    with pytest.raises(backup.BackupError, match="make up"):
        backup.back_up(settings, folder / "backup")
    (folder / "mine").mkdir()
    with pytest.raises(backup.BackupError, match="there already"):
        backup.back_up(settings, folder / "mine")
    with pytest.raises(backup.BackupError, match=r"no backup.*backup\.json"):
        backup.restore(settings, folder / "mine")
