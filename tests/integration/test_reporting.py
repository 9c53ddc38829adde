"""Reports out of a real Postgres: of a month, of retrains, and of what goes wrong meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json

from mlops.alerting.retrains import close_retrain, open_retrain
from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.monitoring.monitor import MonthMetrics, store_metrics
from mlops.reporting.months import report_month
from mlops.reporting.retrains import refresh_retrains, report_retrain
from mlops.settings import Settings
from tests.unit.test_reporting_pages import rows

CARD = load_card("bank_marketing")


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    with connect(settings=database) as connection:
        yield connection


def report(connection: Connection, settings: Settings, version: str = "3"):
    return report_month(
        connection, CARD, version, "2009-04", rows(), rows(300, 0.1), 0.3, None, settings
    )


def execute(connection: Connection, statement: str, *values: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def test_a_month_that_is_not_committed_yet_is_reported(
    connection: Connection, database: Settings
) -> None:
    store_metrics(connection, MonthMetrics("3", "2009-04", 300, prediction_drift=0.4242))
    execute(
        connection,
        "INSERT INTO grafana.column_drift (model_version, period, column_name, kind, distance,"
        " noise, drifted, missing_share, reference_missing_share, missing_more)"
        " VALUES ('3', '2009-04-01', 'balance', 'number', 0.3, 0.1, true, 0, 0, false)",
    )
    path = report(connection, database)
    assert path == database.reports_dir / "3" / "2009-04.html"
    assert "0.424" in path.read_text()
    assert "since 2009-04" in path.read_text()


def test_a_report_that_cannot_be_written_takes_nothing_along(
    connection: Connection, database: Settings
) -> None:
    store_metrics(connection, MonthMetrics("3", "2009-04", 300))
    database.reports_dir.parent.mkdir(parents=True, exist_ok=True)
    database.reports_dir.write_text("a file where the folder should be")
    assert report(connection, database) is None
    execute(connection, "ALTER TABLE grafana.column_drift RENAME TO gone")
    execute(connection, "DROP VIEW grafana.column_history")
    assert report(connection, database) is None
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM grafana.evidently_metrics")
        assert cursor.fetchone() == (1,), "the transaction goes on"
    connection.rollback()


def test_a_version_whose_name_is_a_path_gets_no_report(
    connection: Connection, database: Settings
) -> None:
    assert report(connection, database, version="../3") is None
    assert report_retrain(connection, CARD, "../r1", database) is None
    assert not database.reports_dir.exists()


def test_a_retrain_that_failed_before_its_deployment_names_the_champion_of_then(
    connection: Connection, database: Settings
) -> None:
    for version, since, until in (("2", "3 d", "1 d"), ("3", "1 d", None)):
        execute(
            connection,
            "INSERT INTO ops.deployments (card, model_version, cause, deployed_at, retired_at)"
            " VALUES (%s, %s, 'test', now() - %s::interval, now() - %s::interval)",
            *(CARD.name, version, since, until),
        )
    open_retrain(connection, CARD, "r1", "alert: Prediction drift")
    execute(
        connection,
        "INSERT INTO ops.data_checks (training_id, card, passed, findings)"
        " VALUES ('r1', %s, false, %s)",
        CARD.name,
        Json([{"check": "leakage", "severity": "refuse", "message": "balance tells the answer"}]),
    )
    close_retrain(connection, "r1", "failed", "block train/start: refused")
    path = report_retrain(connection, CARD, "r1", database)
    assert path is not None
    for part in ("The retrain failed: version 3 stays", "balance tells the answer", "refused"):
        assert part in path.read_text()


def test_reports_that_are_missing_are_made_up_for_and_that_of_a_version_renewed(
    connection: Connection, database: Settings
) -> None:
    for name, challenger in (("r1", "4"), ("r2", "5")):
        open_retrain(connection, CARD, name, "by hand")
        execute(
            connection, "UPDATE ops.retrains SET challenger = %s WHERE id = %s", challenger, name
        )
        close_retrain(connection, name, "promoted", "better")
    open_retrain(connection, CARD, "r3", "by hand")
    written = refresh_retrains(connection, CARD, "5", database)
    assert {path.stem for path in written} == {"r1", "r2"}, "r3 is under way"
    execute(
        connection,
        "INSERT INTO grafana.evidently_metrics (model_version, period, row_count, roc_auc)"
        " VALUES ('5', '2009-07-01', 300, 0.7)",
    )
    (renewed,) = refresh_retrains(connection, CARD, "5", database)
    assert renewed.stem == "r2"
    assert "2009-07" in renewed.read_text()
