"""Gate, ONNX export, parity check, switch of the running API; or the champion stays."""

from dataclasses import asdict

from mlops.alerting.retrains import note_deployment
from mlops.database import connect
from mlops.serving.deployment import deploy

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
    return asdict(done)
