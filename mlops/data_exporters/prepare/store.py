"""Store the checked rows, in one transaction; the same file a second time changes nothing."""

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.dataset.rows import store
from mlops.dataset.sources import read_source
from mlops.settings import get_settings

if "data_exporter" not in globals():
    from mage_ai.data_preparation.decorators import data_exporter


@data_exporter
def store_rows(ingested, **_variables):
    card = load_card(get_settings().card)
    # Read again, in half a second: blocks hand on facts, not frames. It is the same, or refused.
    raw = read_source(card, sha256=ingested["sha256"])
    with connect() as connection:
        done = store(connection, card, raw)
    what = "stored" if done.new else "were there already: no new data"
    print(f"data.{card.name}: {done.rows:,} rows {what}")
    return {"new": done.new, "rows": done.rows, "sha256": done.sha256}
