"""Write what the retrain came to; scores stand there since deploy, a failure by callback."""

from mlops.alerting.retrains import close_retrain
from mlops.database import connect

if "data_exporter" not in globals():
    from mage_ai.data_preparation.decorators import data_exporter


@data_exporter
def close(opened, deployed, *_upstream, **_variables):
    with connect() as connection:
        close_retrain(connection, opened["retrain_id"], deployed["outcome"], deployed["reason"])
    print(f"retrain {opened['retrain_id']}: {deployed['outcome']}: {deployed['reason']}")
    return {"retrain_id": opened["retrain_id"], "outcome": deployed["outcome"]}
