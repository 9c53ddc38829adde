"""Score unseen months with the model in production and through the API; refuse a difference."""

from mlops.dataset.card import load_card
from mlops.registry.models import production_version
from mlops.serving.testing import score_production
from mlops.settings import get_settings

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def test_production(*_upstream, **_variables):
    card = load_card(get_settings().card)
    version = production_version(card)
    if version is None:
        raise RuntimeError(f"no version of {card.name} is in production: run the pipeline deploy")
    print(f"version {version} on months that it has not seen")
    results = score_production(card, version, print)
    return {"version": version, "periods": [result.period for result in results]}
