"""Put a version in shadow or end it, score what waits, and compare it with the champion."""

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.registry.shadows import stop_shadow
from mlops.serving.comparison import follow_shadow
from mlops.serving.shadow import start_shadow
from mlops.settings import get_settings

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def follow(*_upstream, **asked):
    card = load_card(get_settings().card)
    with connect() as connection:
        if str(asked.get("stop") or "").lower() in ("1", "true", "yes"):
            stopped = stop_shadow(connection, card)
            print(f"shadow: {'version ' + stopped.version if stopped else 'nobody'} was stopped")
        elif version := str(asked.get("version") or ""):
            start_shadow(connection, card, version, since=asked.get("since") or None)
    return {"periods": [month.period for month in follow_shadow(card, print)]}
