"""Score later, unseen months with the model in production, and the same through the live API."""

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.registry.models import production_version
from mlops.serving.testing import results_text, score_unseen
from mlops.settings import get_settings

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def test_production(*_upstream, **_variables):
    card = load_card(get_settings().card)
    version = production_version(card)
    if version is None:
        raise RuntimeError(f"no version of {card.name} is in production: run the pipeline deploy")
    with connect() as connection:
        results = score_unseen(connection, card, version, print)
    print(f"version {version}\n{results_text(results)}")
    return {"version": version, "periods": [result.period for result in results]}
