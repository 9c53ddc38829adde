"""Gate, ONNX export, parity check, switch of the running API; or the champion stays."""

from dataclasses import asdict

from mlops.database import connect
from mlops.serving.deployment import deploy

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def deploy_best(*trained, **variables):
    asked = {**variables, **(trained[0] if trained else {})}
    with connect() as connection:
        done = deploy(
            asked.get("training_id") or None, connection, asked.get("cause") or "by hand", print
        )
    print(f"{done.outcome}: {done.reason}\nin production: version {done.production or 'none'}")
    return asdict(done)
