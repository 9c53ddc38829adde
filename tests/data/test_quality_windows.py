"""No window of good data is refused: of the sample, and of the real file's thirty months."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from mlops.dataset.card import load_card
from mlops.dataset.generate import generate_csv
from mlops.dataset.parsing import parse_csv
from mlops.dataset.quality import check_window, findings_text, refused
from mlops.dataset.sources import read_source
from mlops.settings import Settings

DATA = os.environ.get("MLOPS_DATA")
CARD = load_card("bank_marketing")
SETTINGS = Settings(_env_file=None)
FEWEST_MONTHS = CARD.time.validation_months + 1


def windows(frame: pd.DataFrame, lengths: tuple[int, ...]) -> list[pd.DataFrame]:
    """Every window of so many consecutive months with rows, and all that may be learnt at first."""
    periods = sorted(frame["period"].unique())
    found = [frame[frame["period"] <= (CARD.time.history_until or "")]]
    for months in lengths:
        for start, end in zip(periods, periods[months - 1 :], strict=False):
            found.append(frame[frame["period"].between(start, end)])
    return found


def refusals(frame: pd.DataFrame, lengths: tuple[int, ...]) -> list[str]:
    return [
        f"{window['period'].min()} to {window['period'].max()}: {findings_text(faults)}"
        for window in windows(frame, lengths)
        if (faults := refused(check_window(window, CARD, SETTINGS)))
    ]


def test_no_window_of_the_sample_is_refused():
    frame = parse_csv(generate_csv(CARD, seed=42), CARD, "sample")
    assert refusals(frame, (6,)) == []


@pytest.mark.real_data
@pytest.mark.skipif(not DATA, reason="MLOPS_DATA does not name the real Bank Marketing file")
def test_no_window_of_the_real_months_is_refused():
    frame = read_source(CARD, Settings(_env_file=None, data=DATA)).frame
    assert refusals(frame, (FEWEST_MONTHS, 6, 12)) == []
