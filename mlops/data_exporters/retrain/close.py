"""Write what the retrain came to; what fails on the way is written by the callback."""

from mlops.alerting.retrains import close_retrain
from mlops.database import connect

if "data_exporter" not in globals():
    from mage_ai.data_preparation.decorators import data_exporter


@data_exporter
def close(opened, deployed, *_upstream, **_variables):
    gate = deployed["gate"]
    with connect() as connection:
        close_retrain(
            connection,
            opened["retrain_id"],
            deployed["outcome"],
            deployed["reason"],
            training_id=opened["training_id"],
            champion=deployed["champion"],
            challenger=deployed["version"],
            champion_score=gate["champion_roc_auc"],
            challenger_score=gate["challenger_roc_auc"],
            gate=gate,
        )
    print(f"retrain {opened['retrain_id']}: {deployed['outcome']}: {deployed['reason']}")
    return {"retrain_id": opened["retrain_id"], "outcome": deployed["outcome"]}
