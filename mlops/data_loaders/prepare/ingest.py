"""Read the source of the card and check it; an error names file, row and column."""

from mlops.dataset.card import load_card
from mlops.dataset.quality import check_window, findings_text
from mlops.dataset.sources import read_source
from mlops.dataset.summary import summary, summary_text
from mlops.download import progress_lines
from mlops.settings import get_settings

if "data_loader" not in globals():
    from mage_ai.data_preparation.decorators import data_loader


@data_loader
def ingest(*_upstream, **_variables):
    card = load_card(get_settings().card)
    raw = read_source(card, progress=progress_lines())
    if raw.notice:
        print(raw.notice)
    print(f"{raw.source} ({raw.origin}, {raw.bytes:,} bytes)\nsha256 {raw.sha256}\n")
    print(summary_text(summary(raw.frame, card)))
    # A training checks its own window anew, and refuses what is only told here.
    print(findings_text(check_window(raw.frame, card)))
    return {"source": raw.source, "sha256": raw.sha256, "rows": raw.rows}
