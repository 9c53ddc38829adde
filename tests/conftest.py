"""Shared fixtures; each kind of server has its own file in tests/fixtures."""

import os

# Before anything imports MLflow: its telemetry thread changes os.environ while requests read it,
# and one of them then fails ("failed with exception '_MLFLOW_TELEMETRY_SESSION_ID'").
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

pytest_plugins = [
    "tests.fixtures.postgres",
    "tests.fixtures.mlflow",
    "tests.fixtures.predict",
    "tests.fixtures.stack",
    "tests.fixtures.grafana",
]
