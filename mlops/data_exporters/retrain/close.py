"""Write what the retrain came to, and its report; a failure is written by callback."""

from mlops.alerting.retrains import close_retrain
from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.reporting.retrains import report_retrain
from mlops.settings import get_settings

if "data_exporter" not in globals():
    from mage_ai.data_preparation.decorators import data_exporter


@data_exporter
def close(opened, deployed, *_upstream, **_variables):
    with connect() as connection:
        close_retrain(connection, opened["retrain_id"], deployed["outcome"], deployed["reason"])
        path = report_retrain(connection, load_card(get_settings().card), opened["retrain_id"])
    print(f"retrain {opened['retrain_id']}: {deployed['outcome']}: {deployed['reason']}\n{path}")
    return {"retrain_id": opened["retrain_id"], "outcome": deployed["outcome"]}
