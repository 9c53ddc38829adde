"""The sample that stands in for the data: same months, same drift, something to learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlops.dataset.card import CardError, load_card
from mlops.dataset.generate import generate_csv
from mlops.dataset.parsing import missing_shares, parse_csv
from mlops.dataset.timeline import period_range
from mlops.dataset.windows import split_window

CARD = load_card("bank_marketing")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return parse_csv(generate_csv(CARD, seed=42), CARD, "sample")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    assert generate_csv(CARD, seed=1) == generate_csv(CARD, seed=1)
    assert generate_csv(CARD, seed=1) != generate_csv(CARD, seed=2)


def test_it_has_the_months_rows_and_answers_of_the_source(frame):
    assert sorted(set(frame["period"])) == sorted(
        set(period_range("2008-05", "2010-11")) - {"2008-09"}
    )
    assert (len(frame), int(frame["target"].sum())) == (45_211, 5_289)
    rates = frame.groupby(frame["period"].str[:4])["target"].mean().round(3)
    assert rates.to_dict() == {"2008": 0.051, "2009": 0.171, "2010": 0.516}


def test_its_values_are_missing_as_often_as_the_source_s(frame):
    shares = missing_shares(frame, CARD)
    assert shares["contact"] == pytest.approx(0.288, abs=0.01)
    assert shares["pdays"] == pytest.approx(0.817, abs=0.01)
    assert frame["pdays"].isna().equals(frame["poutcome"] == "")
    assert (frame.loc[frame["pdays"].isna(), "previous"] == 0).all()


def test_its_columns_drift_over_the_months(frame):
    by_month = frame.groupby("period")
    housing = by_month["housing"].apply(lambda values: (values == "yes").mean())
    assert housing["2008-05"] > 0.85
    assert housing["2010-05"] < 0.5
    balance = by_month["balance"].median()
    assert balance["2010-05"] > 2 * balance["2008-05"]


def test_it_can_be_learnt_from_and_this_holds_out_of_time(frame):
    window = split_window(frame[frame["period"] <= "2009-02"], CARD.time.validation_months)
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    model = make_pipeline(
        make_column_transformer(
            (numbers, CARD.numbers),
            (OneHotEncoder(handle_unknown="ignore", min_frequency=20), CARD.categories),
        ),
        LogisticRegression(C=0.1, max_iter=500),
    ).fit(window.earlier, window.earlier["target"])
    truth = window.validation["target"]
    score = model.predict_proba(window.validation)[:, 1]
    constant = np.full(len(truth), window.earlier["target"].mean())
    assert roc_auc_score(truth, score) > 0.6
    assert brier_score_loss(truth, score) < brier_score_loss(truth, constant)


def test_a_card_without_marginals_says_what_to_do():
    with pytest.raises(CardError, match=r"no `sample`.*set MLOPS_DATA"):
        generate_csv(CARD.model_copy(update={"sample": None}), seed=1)


def test_marginals_that_lack_a_column_are_refused_by_name(tmp_path):
    for path in CARD.path.parent.glob("bank_marketing*.yaml"):
        text = path.read_text().replace("      age: {at:", "      alter: {at:", 1)
        (tmp_path / path.name).write_text(text)
    card = load_card(tmp_path / "bank_marketing.yaml")
    with pytest.raises(CardError, match=r"sample\.yaml: periods\.2008-05: no age"):
        generate_csv(card, seed=1)
