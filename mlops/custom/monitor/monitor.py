"""Measure drift, missing values and performance of each month that the champion has answered."""

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.monitoring.monitor import monitor
from mlops.serving.comparison import follow_shadow
from mlops.settings import get_settings

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def monitor_production(*_upstream, **_variables):
    card = load_card(get_settings().card)
    follow_shadow(card, print)
    with connect() as connection:
        months = monitor(connection, card, progress=print)
    return {"periods": [month.period for month in months]}
