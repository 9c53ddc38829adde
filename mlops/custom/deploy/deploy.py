"""Gate, ONNX export, parity check, switch of the running API; or the champion stays."""

from dataclasses import asdict

from mlops.alerting.retrains import note_deployment
from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.serving.deployment import deploy
from mlops.serving.shadow import shadow_challenger
from mlops.settings import get_settings

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def deploy_best(*trained, **variables):
    asked = {**variables, **(trained[0] if trained else {})}
    with connect() as connection:
        training_id, cause = asked.get("training_id") or None, asked.get("cause") or "by hand"
        done = deploy(training_id, connection, cause, print)
        if retrain_id := asked.get("retrain_id"):
            note_deployment(connection, retrain_id, asdict(done), training_id)
    print(f"{done.outcome}: {done.reason}\nin production: version {done.production or 'none'}")
    if retrain_id:
        shadow_challenger(load_card(get_settings().card), done, print)
    return asdict(done)
