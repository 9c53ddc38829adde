"""Connections to Postgres; never any SQL of its own.

One server holds three databases: `mlops` (ours), `mlflow` and `mage`. Four roles: `mlops` owns,
`grafana` reads, `mlflow` has its own database, `predict` inserts predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
