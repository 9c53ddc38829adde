"""The facts of the real file, as published; every figure here was counted independently of us."""

import os

import numpy as np
import pytest

from mlops.dataset.card import load_card
from mlops.dataset.generate import load_marginals
from mlops.dataset.parsing import missing_shares, parse_csv
from mlops.dataset.sources import RawData, read_source
from mlops.dataset.timeline import period_range
from mlops.settings import Settings

DATA = os.environ.get("MLOPS_DATA")
CARD = load_card("bank_marketing")

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA, reason="MLOPS_DATA does not name the real Bank Marketing file"),
]


@pytest.fixture(scope="module")
def raw() -> RawData:
    return read_source(CARD, Settings(_env_file=None, data=DATA))


def test_it_is_the_published_file(raw):
    assert raw.sha256 == CARD.source.sha256
    assert (raw.rows, int(raw.frame["target"].sum())) == (45_211, 5_289)


def test_its_order_gives_thirty_months_without_september_2008(raw):
    periods = raw.frame["period"]
    assert periods.is_monotonic_increasing
    assert sorted(set(period_range("2008-05", "2010-11")) - set(periods)) == ["2008-09"]
    assert periods.nunique() == 30


def test_its_positive_rate_rises_from_year_to_year(raw):
    by_year = raw.frame.groupby(raw.frame["period"].str[:4])["target"]
    assert by_year.size().to_dict() == {"2008": 27_729, "2009": 14_862, "2010": 2_620}
    assert by_year.mean().round(3).to_dict() == {"2008": 0.051, "2009": 0.171, "2010": 0.516}


def test_its_missing_values_are_those_of_the_readme(raw):
    shares = missing_shares(raw.frame, CARD)
    assert {name: round(share, 3) for name, share in shares.items() if share} == {
        "job": 0.006,
        "contact": 0.288,
        "pdays": 0.817,
        "poutcome": 0.817,
    }


def test_the_validation_months_hold_what_architecture_md_says(raw):
    late = raw.frame[raw.frame["period"].isin(["2009-01", "2009-02"])]
    assert len(late) == 3_472
    assert round(late["target"].mean(), 3) == 0.084


def test_the_other_copy_in_circulation_gives_the_same_frame(raw):
    frame = raw.frame
    columns = {
        feature.name: frame[feature.name].fillna(-1).astype(int)
        if feature.kind == "number"
        else frame[feature.name]
        for feature in CARD.features
    }
    other = frame[[]].assign(**columns, y=np.where(frame["target"], "yes", "no"))
    content = other.rename(columns={"day": "day_of_week"}).to_csv(index=False).encode()
    assert parse_csv(content, CARD, "data.csv").equals(frame)


def test_the_marginals_of_the_sample_are_those_of_this_file(raw):
    marginals = load_marginals(CARD)
    by_month = raw.frame.groupby("period")["target"]
    assert {p: m.rows for p, m in marginals.periods.items()} == by_month.size().to_dict()
    assert {p: m.positives for p, m in marginals.periods.items()} == by_month.sum().to_dict()
