"""Shared fixtures; each kind of server has its own file in tests/fixtures."""

pytest_plugins = [
    "tests.fixtures.postgres",
    "tests.fixtures.mlflow",
    "tests.fixtures.predict",
    "tests.fixtures.stack",
]
