"""Shared fixtures; each kind of server has its own file in tests/fixtures."""

import importlib.util

pytest_plugins = [
    plugin
    for plugin in ("tests.fixtures.postgres", "tests.fixtures.mlflow", "tests.fixtures.predict")
    if importlib.util.find_spec(plugin)
]
