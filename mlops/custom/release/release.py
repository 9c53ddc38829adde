"""Let the loop promote again after a rollback."""

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.serving.rollback import release
from mlops.settings import get_settings

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def release_hold(*_upstream, **variables):
    cause = variables.get("cause") or "by hand, in Mage"
    with connect() as connection:
        hold = release(connection, load_card(get_settings().card), cause)
    return {"released": hold is not None}
