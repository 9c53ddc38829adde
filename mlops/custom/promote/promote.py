"""Put a chosen version in production: the gate is measured, a person has decided."""

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.orchestration.evidence import start_evidence
from mlops.serving.rollback import promote_by_hand
from mlops.settings import get_settings

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def promote(*_upstream, **variables):
    version = str(variables.get("version") or "")
    cause = variables.get("cause") or "promoted by hand, in Mage"
    with connect() as connection:
        done = promote_by_hand(version, connection, load_card(get_settings().card), cause)
    start_evidence(print)
    return {"version": done.version, "former": done.former}
