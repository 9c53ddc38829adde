"""The embedded Postgres: who may do what, and starts that may be repeated."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import psycopg2
import pytest
from pydantic import SecretStr

from mlops.alerting.rules import RULES_FOLDER
from mlops.database import connect, database_url
from mlops.settings import ROOT, Settings
from mlops.stack import checks
from mlops.stack import postgres as server
from mlops.stack.services import services
from tests.fixtures.postgres import make_settings

PREDICTION = (
    "INSERT INTO serving.predictions"
    " (request_id, row, made_at, period, model_version, features, probability)"
    " VALUES ('a', 0, now(), '2009-03-01', '1', '{}', 0.5) ON CONFLICT DO NOTHING"
)


def run(settings: Settings, role: str, statement: str, database: str = "mlops") -> None:
    with connect(database, role, settings) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def test_predict_adds_predictions_and_repeating_one_is_harmless(database: Settings) -> None:
    run(database, "predict", PREDICTION)
    run(database, "predict", PREDICTION)
    with connect(settings=database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM serving.predictions")
        assert cursor.fetchone() == (1,)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM serving.predictions",
        "UPDATE serving.predictions SET label = 1",
        "DELETE FROM serving.predictions",
        "SELECT * FROM ops.alerts",
        "INSERT INTO ops.alerts (fingerprint, starts_at, status, rule, body)"
        " VALUES ('a', now(), 'firing', 'r', '{}')",
        "CREATE TABLE public.own (n int)",
        "COPY serving.predictions TO PROGRAM 'cat'",
    ],
)
def test_predict_can_do_nothing_else(database: Settings, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(database, "predict", statement)


@pytest.mark.parametrize("name", ["mlflow", "mage", "postgres"])
def test_predict_reaches_no_other_database(database: Settings, name: str) -> None:
    with pytest.raises(psycopg2.OperationalError, match=r"pg_hba\.conf"):
        run(database, "predict", "SELECT 1", name)


@pytest.mark.parametrize("name", ["mlops", "mlflow", "mage"])
def test_grafana_reads_tables_made_later_and_writes_nothing(database: Settings, name: str) -> None:
    table = "ops.later" if name == "mlops" else "public.later"
    run(database, "mlops", f"CREATE TABLE {table} (n int)", name)
    try:
        run(database, "grafana", f"SELECT * FROM {table}", name)
        for write in (f"INSERT INTO {table} VALUES (1)", f"DROP TABLE {table}"):
            with pytest.raises(
                (
                    psycopg2.errors.InsufficientPrivilege,
                    psycopg2.errors.ReadOnlySqlTransaction,
                )
            ):
                run(database, "grafana", f"SET TRANSACTION READ WRITE; {write}", name)
    finally:
        run(database, "mlops", f"DROP TABLE {table}", name)


@pytest.mark.parametrize(("name", "owner"), [("mage", "mlops"), ("mlflow", "mlflow")])
def test_grafana_never_reads_a_credential_also_of_tables_made_later(
    folder: Path, name: str, owner: str
) -> None:
    # A server of its own: on the shared one a real Mage may have made its tables already.
    with server.running(make_settings(folder)) as settings:
        run(
            settings,
            owner,
            'CREATE TABLE "user" (id int, email text, password_hash text);'
            "CREATE TABLE secret (name text, value text);"
            "CREATE TABLE later (id int)",
            name,
        )
        run(settings, "grafana", "SELECT * FROM later", name)
        run(settings, owner, "ALTER TABLE later ADD COLUMN token text", name)
        for _ in range(2):  # at once, and still after the next start
            run(settings, "grafana", 'SELECT id, email FROM "user"', name)
            run(settings, "grafana", "SELECT name FROM secret", name)
            run(settings, "grafana", "SELECT id FROM later", name)
            for statement in (
                'SELECT password_hash FROM "user"',
                "SELECT value FROM secret",
                "SELECT token FROM later",
            ):
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    run(settings, "grafana", statement, name)
            server.migrate(settings)


def test_mlflow_owns_its_tables_also_those_of_an_earlier_version(folder: Path) -> None:
    with server.running(make_settings(folder)) as settings:
        run(settings, "mlops", "CREATE TABLE runs (id serial, name text)", "mlflow")
        server.migrate(settings)
        run(settings, "mlflow", "INSERT INTO runs (name) VALUES ('a'); DROP TABLE runs", "mlflow")
        for other in ("mlops", "mage", "postgres"):
            with pytest.raises(psycopg2.OperationalError, match=r"pg_hba\.conf"):
                run(settings, "mlflow", "SELECT 1", other)


def test_no_role_gets_in_without_its_password(database: Settings) -> None:
    wrong = database.model_copy(
        update={
            name: SecretStr("wrong")
            for name in (
                *["postgres_password", "grafana_db_password"],
                *["mlflow_db_password", "predict_db_password"],
            )
        }
    )
    for role, name in {
        "mlops": "mlops",
        "grafana": "mlops",
        "mlflow": "mlflow",
        "predict": "mlops",
    }.items():
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            run(wrong, role, "SELECT 1", name)


def test_migrating_again_keeps_the_data(database: Settings) -> None:
    run(database, "predict", PREDICTION)
    server.migrate(database)
    with connect(settings=database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM serving.predictions")
        assert cursor.fetchone() == (1,)


def test_changed_passwords_take_effect_at_the_next_start_and_data_stays(folder: Path) -> None:
    # Deeper than a Unix socket's path may be, and with a space.
    settings = make_settings(folder / "a clone" / ("deep" * 20) / ("er" * 30))
    with server.running(settings):
        run(settings, "predict", PREDICTION)
    changed = make_settings(folder, state_dir=settings.state_dir, postgres_password="it's new")
    with server.running(changed), connect(settings=changed) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM serving.predictions")
            assert cursor.fetchone() == (1,)
        run(changed, "predict", PREDICTION.replace("'a'", "'b'"))
    assert server.server_pid(changed) is None


def test_an_interrupted_initdb_is_started_over(folder: Path) -> None:
    settings = make_settings(folder)
    draft = settings.state_dir / "postgres.new"
    draft.mkdir(parents=True)
    (draft / "PG_VERSION").write_text("18")
    server.initialise(settings)
    assert not draft.exists()
    assert (settings.state_dir / "postgres" / "PG_VERSION").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_folders_that_are_opened_to_the_servers_user_can_be_closed_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(folder / "clone")
    (folder / "clone").mkdir(mode=0o711)
    folder.chmod(0o700)
    server.initialise(settings)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o701
    assert f"chmod o-x {folder}" in capsys.readouterr().err
    server.initialise(settings)  # a second start finds it open, and does not forget it
    assert folder in server.close_again(settings)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "clone").stat().st_mode) == 0o711
    assert server.close_again(settings) == []


def test_data_of_another_version_is_refused_with_the_way_out(folder: Path) -> None:
    settings = make_settings(folder)
    data = settings.state_dir / "postgres"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(server.PostgresError, match=r"PostgreSQL 16.*make clean"):
        server.initialise(settings)


def test_a_rule_whose_query_fails_is_named_before_anybody_evaluates_it(
    database: Settings, tmp_path: Path
) -> None:
    evaluator = [each for each in services(database) if each.name == "evaluator"]
    assert checks.alert_query_problems(database, evaluator) == []
    folder = shutil.copytree(RULES_FOLDER, tmp_path / "rules")
    path = folder / "prediction_drift.yaml"
    path.write_text(path.read_text().replace("SELECT update_time", "SELEC update_time"))
    (line,) = checks.alert_query_problems(database, evaluator, folder)
    assert "prediction_drift.yaml" in line
    assert "'Prediction drift'" in line
    assert "syntax error" in line
    # Grafana, where it watches, knows queries of its own; a server that is down says nothing.
    assert checks.alert_query_problems(database, [], folder) == []
    down = database.model_copy(update={"postgres_port": database.mage_port})
    assert checks.alert_query_problems(down, evaluator, folder) == []


def test_a_server_whose_owner_is_no_superuser_is_brought_to_the_same(folder: Path) -> None:
    """As on managed servers; here the superuser takes the part of such an owner."""
    with server.running(make_settings(folder)) as settings:
        for name in ("mlops", "mlflow", "mage"):
            run_alone(settings, f"DROP DATABASE {name}")
        for role in ("grafana", "mlflow", "predict"):
            run_alone(settings, f"DROP ROLE {role}")
        run_alone(settings, "CREATE ROLE managed CREATEDB CREATEROLE")
        migrate_as(settings, "managed")
        run(settings, "mlflow", "CREATE TABLE runs (id int, secret text)", "mlflow")
        run(settings, "predict", PREDICTION)
        migrate_as(settings, "managed")  # no event trigger there: tables are read from now on
        run(settings, "grafana", "SELECT count(*) FROM serving.predictions")
        run(settings, "grafana", "SELECT id FROM runs", "mlflow")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(settings, "grafana", "SELECT secret FROM runs", "mlflow")


def run_alone(settings: Settings, statement: str) -> None:
    """Run a statement that may stand in no transaction."""
    connection = psycopg2.connect(database_url("postgres", settings=settings))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


def migrate_as(settings: Settings, role: str) -> None:
    environment = {
        **server.client_environment(settings),
        "PGOPTIONS": f"-c role={role}",
        "MLOPS_GRAFANA_DB_PASSWORD": settings.secret("grafana_db_password"),
        "MLOPS_MLFLOW_DB_PASSWORD": settings.secret("mlflow_db_password"),
        "MLOPS_PREDICT_DB_PASSWORD": settings.secret("predict_db_password"),
    }
    script = ROOT / "postgres" / "migrate.sql"
    command = [str(server.binary("psql")), "-X", "-q", "-d", "postgres", "-f", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
