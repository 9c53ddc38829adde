"""Shared fixtures; each kind of server has its own file in tests/fixtures."""

import os

import pytest

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-stages",
        action="store_true",
        help="kill every server at every stage of a retrain, which takes long; else only four",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all-stages"):
        left_out = [item for item in items if item.get_closest_marker("all_stages")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]
    if os.environ.get("PYTEST_XDIST_WORKER"):
        # Two run side by side, a file each: whatever starts servers first, so that neither is left
        # alone with it in the end. By one worker the order stays: the quickest to fail first.
        order = ("e2e", "integration", "model", "data", "unit")
        items.sort(key=lambda item: order.index(item.path.parent.name))
