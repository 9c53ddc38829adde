"""Record the training and its window, and name the candidates, one process each."""

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.dataset.rows import history_window
from mlops.settings import get_settings
from mlops.training.candidates import load_candidates
from mlops.training.data_checks import data_check_text
from mlops.training.trainings import start_training

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def start(*opened, **variables):
    asked = {**variables, **(opened[0] if opened else {})}
    training_id = asked.get("training_id") or f"train-{asked['pipeline_run_id']}"
    card = load_card(get_settings().card)
    with connect() as connection:
        first, last = history_window(connection, card)
        first, last = asked.get("window_start") or first, asked.get("window_end") or last
        start_training(connection, card, asked.get("cause") or "by hand", first, last, training_id)
        found = data_check_text(connection, training_id)
    names = list(load_candidates(get_settings().candidates))
    print(f"training {training_id}: {first} to {last}, candidates {', '.join(names)}\n{found}")
    retrain = {"retrain_id": asked["retrain_id"]} if asked.get("retrain_id") else {}
    children = [{"candidate": name, "training_id": training_id, **retrain} for name in names]
    return [children, [{"block_uuid": name} for name in names]]
