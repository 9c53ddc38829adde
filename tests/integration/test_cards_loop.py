"""The loop on other data than the bank's: each shipped card, from its sample to a better version.

No column of any data set stands in the code, so nothing here names one either: a card is all there
is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml

from mlops.app.form import fields
from mlops.database import connect
from mlops.dataset.card import Card, load_card
from mlops.dataset.rows import (
    history_window,
    latest_labelled_window,
    periods_to_come,
    store,
)
from mlops.dataset.sources import read_source
from mlops.monitoring.monitor import monitor
from mlops.registry.models import current_deployment
from mlops.serving.deployment import deploy
from mlops.serving.testing import score_unseen
from mlops.serving.traffic import simulate_month
from mlops.settings import Settings
from mlops.training.fit import fit_candidate
from mlops.training.trainings import finish_training, start_training
from tests.fixtures.predict import PredictServer
from tests.integration.test_serving_deployment import start_when_deployed

CARDS = ("credit_card_churn", "corporate_churn")
CANDIDATES = {
    "Linear": {
        "class": "sklearn.linear_model.LogisticRegression",
        "scale": True,
        "params": {"C": 1.0},
    },
    "Tree": {
        "class": "sklearn.tree.DecisionTreeClassifier",
        "params": {"max_depth": 5, "min_samples_leaf": 20},
    },
}


@pytest.fixture(params=CARDS)
def world(
    request: pytest.FixtureRequest, database: Settings, mlflow_server: str, tmp_path: Path
) -> Iterator[tuple[Settings, Card, PredictServer]]:
    """The card's settings, and an API that waits for the first deployment."""
    candidates = tmp_path / "candidates.yaml"
    candidates.write_text(yaml.safe_dump(CANDIDATES))
    settings = database.model_copy(
        update={"card": request.param, "candidates": candidates, "predict_workers": 1}
    )
    server = PredictServer(settings)
    try:
        yield settings, load_card(settings.card), server
    finally:
        server.stop()


def train(settings: Settings, card: Card, training: str, window: tuple[str, str]) -> None:
    with connect(settings=settings) as connection:
        start_training(connection, card, "test", *window, training, settings)
    for name in CANDIDATES:
        with connect(settings=settings) as connection:
            fit_candidate(name, training, connection, settings)
    with connect(settings=settings) as connection:
        finish_training(connection, training, settings)


def test_the_loop_closes_on_another_card(world: tuple[Settings, Card, PredictServer]) -> None:
    settings, card, server = world
    raw = read_source(card, settings)
    assert raw.origin == "generated"
    assert raw.notice is not None
    assert "GENERATED" in raw.notice
    with connect(settings=settings) as connection:
        assert store(connection, card, raw).rows == raw.rows
        window = history_window(connection, card)
    train(settings, card, f"{card.name}-first", window)
    starter = start_when_deployed(server)
    with connect(settings=settings) as connection:
        first = deploy(f"{card.name}-first", connection, "test", settings=settings)
    starter.join()
    assert first.outcome == "promoted", first.reason

    model = requests.get(f"{server.url}/model", timeout=10).json()
    assert model["target"]["question"] == card.question
    assert [each.name for each in fields(model)] == card.feature_names
    typical = requests.post(f"{server.url}/explain", json=model["reference"], timeout=10).json()
    assert typical["probability"] == pytest.approx(typical["reference_probability"])

    with connect(settings=settings) as connection:
        tested = score_unseen(connection, card, first.version, settings=settings)
        assert len(tested) == settings.test_months
        months = periods_to_come(connection, card)[:2]
        for month in months:
            played = simulate_month(month, card, connection, settings=settings)
            assert (played.labelled, played.warned < played.rows / 4) == (played.rows, True)
    with connect(settings=settings) as connection:
        measured = monitor(connection, card, settings=settings)
    assert [each.period for each in measured] == months
    for month in measured:
        assert month.row_count >= settings.drift_min_rows, "else no rule could fire"
        assert month.roc_auc_loss_low is not None
        assert month.roc_auc_loss_low > 0, "the champion lost more than chance explains"
        assert month.roc_auc_loss is not None
        assert month.roc_auc_loss > settings.auc_loss_margin, "and more than is accepted"
    pages = [settings.reports_dir / first.version / f"{month}.html" for month in months]
    assert all(card.title in page.read_text() for page in pages)

    with connect(settings=settings) as connection:
        window = latest_labelled_window(connection, card, settings.retrain_window_months)
    assert window[1] == months[-1]
    train(settings, card, f"{card.name}-second", window)
    with connect(settings=settings) as connection:
        second = deploy(f"{card.name}-second", connection, "test", settings=settings)
        assert second.outcome == "promoted", second.reason
        deployed = current_deployment(connection, card)
    assert deployed is not None
    assert deployed["model_version"] == second.version
