"""Put the former production version back, and hold the loop until a person releases it."""

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.orchestration.evidence import start_evidence
from mlops.serving.rollback import roll_back
from mlops.settings import get_settings

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def rollback(*_upstream, **variables):
    run = variables.get("execution_partition")
    with connect() as connection:
        done = roll_back(
            connection,
            load_card(get_settings().card),
            cause=variables.get("cause") or "rolled back by hand, in Mage",
            expected=str(variables.get("version") or "") or None,
            request=run and f"Mage {run}",
        )
    start_evidence(print)
    return {"version": done.version, "former": done.former}
