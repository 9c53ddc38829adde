"""Take up the retrain that was asked for (or make one), and choose the latest labelled months."""

from mlops.alerting.retrains import open_retrain
from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.dataset.rows import latest_labelled_window
from mlops.settings import get_settings

if "data_loader" not in globals():
    from mage_ai.data_preparation.decorators import data_loader


@data_loader
def open_run(*_upstream, **variables):
    settings = get_settings()
    card = load_card(settings.card)
    cause = variables.get("cause") or "by hand"
    # The run's own id, not a new one each time: the block may run again after an interruption.
    retrain_id = variables.get("retrain_id") or f"run-{variables['pipeline_run_id']}"
    with connect() as connection:
        open_retrain(connection, card, retrain_id, cause)
        start, end = latest_labelled_window(connection, card, settings.retrain_window_months)
    print(f"retrain {retrain_id} ({cause}): the labelled months {start} to {end}")
    window = {"window_start": start, "window_end": end}
    return {"retrain_id": retrain_id, "training_id": retrain_id, "cause": cause, **window}
