"""Write `failed` and the reason, if any block of the retrain fails or the run is cancelled."""

from mlops.alerting.retrains import close_retrain
from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.reporting.retrains import report_retrain
from mlops.settings import get_settings

if "callback" not in globals():
    from mage_ai.data_preparation.decorators import callback


def close_failed(*_output, cancelled=False, **variables):
    retrain_id = variables.get("retrain_id") or f"run-{variables['pipeline_run'].id}"
    fault = "the run was cancelled in Mage" if cancelled else variables.get("__error")
    reason = f"block {variables.get('parent_block_uuid')}: {fault}"
    try:
        with connect() as connection:
            close_retrain(connection, retrain_id, "failed", reason, cancelled=cancelled)
            report_retrain(connection, load_card(get_settings().card), retrain_id)
    except LookupError:
        reason += " (it had not been opened)"
    print(f"retrain {retrain_id} failed, {reason}")


callback("failure")(close_failed)


def close_cancelled(*_output, **variables):
    close_failed(cancelled=True, **variables)


callback("cancelled")(close_cancelled)
