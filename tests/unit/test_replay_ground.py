"""A replay's own place: nothing that it writes, asks or tells is the real stack's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops.dataset.card import load_card
from mlops.replay.ground import OverrideError, first_month, own_settings
from mlops.settings import Settings, get_settings, secret_names

REAL = {
    "MLFLOW_ARTIFACTS": "s3://models/real",
    "HOST": "0.0.0.0",
    **{
        f"{name}_HOST": f"{name.lower()}.example.org"
        for name in ("MAGE", "LISTENER", "MLFLOW", "GRAFANA", "STREAMLIT", "PREDICT", "POSTGRES")
    },
    "PROMETHEUS_HOST": "prometheus.example.org",
    "POSTGRES_SSLMODE": "require",
    "IN_CONTAINERS": "true",
    "STATE_DIR": "/srv/real/state",
    "PAYLOADS_DIR": "/srv/real/payloads",
    "REPORTS_DIR": "/srv/real/reports",
    "EXCHANGE_DIR": "/srv/real/exchange",
    "NOTIFY_URL": "https://hooks.example.org/real",
    "PREDICT_API_KEY": "the real one's",
    "POSTGRES_PASSWORD": "real",
    "RETRAIN_WINDOW_MONTHS": "7",
}


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A file of the settings of a stack elsewhere, which also stand in the environment."""
    for name, value in REAL.items():
        monkeypatch.setenv(f"MLOPS_{name}", value)
    get_settings.cache_clear()
    file = tmp_path / "real.env"
    file.write_text("".join(f"MLOPS_{name}={value}\n" for name, value in REAL.items()))
    yield file
    get_settings.cache_clear()


def test_what_names_a_place_is_the_replays_own_and_the_rest_is_this_machines(
    real: Path, tmp_path: Path
) -> None:
    settings, _ = own_settings(tmp_path, {})
    kept = [
        name
        for name, value in settings.environment().items()
        if value == REAL.get(name.removeprefix("MLOPS_"))
    ]
    assert kept == ["MLOPS_RETRAIN_WINDOW_MONTHS"]
    assert settings.postgres_sslmode == "disable"
    assert not settings.in_containers
    assert settings.mlflow_url == f"http://127.0.0.1:{settings.mlflow_port}"
    assert Path(settings.mlflow_artifacts or "").is_relative_to(tmp_path)


def test_a_server_of_the_replay_takes_nothing_of_the_environment_or_the_file(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = own_settings(tmp_path, {})
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    server = Settings(_env_file=real)
    for name in Settings.model_fields:
        if name not in ("grafana_home", "prometheus_home"):  # both are off
            assert getattr(server, name) == getattr(settings, name), name


def test_a_place_can_be_chosen_and_a_secret_cannot(real: Path, tmp_path: Path) -> None:
    settings, _ = own_settings(tmp_path, {"mlflow_artifacts": "s3://models/trial"})
    assert settings.mlflow_artifacts == "s3://models/trial"
    for name in secret_names():
        with pytest.raises(OverrideError, match="no setting"):
            own_settings(tmp_path, {name: "x"})


def test_a_replay_begins_where_the_card_says_or_after_its_history(tmp_path: Path) -> None:
    assert first_month(load_card("bank_marketing")) == "2009-01"
    card = load_card("corporate_churn")
    assert card.time.history_until == "2023-12"
    assert first_month(card) == "2024-01"
    time = card.time.model_copy(update={"history_until": None})
    with pytest.raises(OverrideError, match=r"corporate_churn.yaml tells no month.*--from"):
        first_month(card.model_copy(update={"time": time}))
