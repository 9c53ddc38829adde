"""Cut the stored rows by time: what is fitted, what validates, and the months still to come."""

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.dataset.rows import history_window, load_window, periods_to_come
from mlops.dataset.summary import summary, summary_text
from mlops.dataset.windows import split_window
from mlops.settings import get_settings

if "custom" not in globals():
    from mage_ai.data_preparation.decorators import custom


@custom
def split_by_time(*_upstream, **_variables):
    card = load_card(get_settings().card)
    with connect() as connection:
        start, end = history_window(connection, card)
        window = split_window(
            load_window(connection, card, start, end),
            card.time.validation_months,
            get_settings().validation_min_rows,
        )
        to_come = periods_to_come(connection, card)
    for name, part in (("EARLIER", window.earlier), ("VALIDATION", window.validation)):
        print(f"{name}: {summary_text(summary(part, card))}\n")
    print(f"TO COME, not seen in training: {', '.join(to_come) or 'none'}")
    return {"start": start, "end": end, "to_come": len(to_come)}
