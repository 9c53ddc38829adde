"""Connections to Postgres and locks that outlive a transaction; never any SQL of tables.

One server holds three databases: `mlops` (ours), `mlflow` and `mage`. Four roles: `mlops` owns,
`grafana` reads, `mlflow` has its own database, `predict` inserts predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote

import psycopg2
from psycopg2.extensions import connection as Connection

from mlops.settings import Settings, get_settings

_PASSWORD_OF_ROLE = {
    "mlops": "postgres_password",
    "grafana": "grafana_db_password",
    "mlflow": "mlflow_db_password",
    "predict": "predict_db_password",
}


def database_url(
    database: str = "mlops",
    role: str = "mlops",
    settings: Settings | None = None,
    driver: str = "postgresql",
) -> str:
    """Return the URL of `database` for `role`, password included: never print it."""
    settings = settings or get_settings()
    password = quote(settings.secret(_PASSWORD_OF_ROLE[role]), safe="")
    server = f"{settings.postgres_host}:{settings.postgres_port}"
    return f"{driver}://{role}:{password}@{server}/{database}?sslmode={settings.postgres_sslmode}"


@contextmanager
def connect(
    database: str = "mlops", role: str = "mlops", settings: Settings | None = None
) -> Iterator[Connection]:
    """Yield a connection whose block is one transaction: committed at its end, undone by an error.

    Raises psycopg2.OperationalError if the server does not answer within 5 s.
    """
    connection = psycopg2.connect(
        database_url(database, role, settings),
        connect_timeout=5,
        application_name="mlops",
        options="-c timezone=UTC",
    )
    try:
        with connection:
            yield connection
    finally:
        connection.close()


@contextmanager
def undone(connection: Connection) -> Iterator[None]:
    """Undo at its end what the block has done; the transaction around it goes on, errors or not."""
    with connection.cursor() as cursor:
        cursor.execute("SAVEPOINT undone")
    try:
        yield
    finally:
        if not connection.closed:
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK TO SAVEPOINT undone")


@contextmanager
def hold_lock(connection: Connection, name: str) -> Iterator[None]:
    """Hold the lock `name` over several transactions; whoever dies lets it go.

    It keeps out who takes it here or by `mlops.training.records.lock`, and waits for them. Commits
    when it is had. What the block has not committed at its end is undone.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (name,))
    connection.commit()
    try:
        yield
    finally:
        # Where the connection is gone, the lock is.
        with suppress(psycopg2.Error):
            connection.rollback()  # a failed transaction takes no more
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (name,))
            connection.commit()
