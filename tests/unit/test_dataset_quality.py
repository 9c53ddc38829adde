"""The quality gate on rows that are broken in one way each, and on rows that are not."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from mlops.dataset.card import load_card
from mlops.dataset.errors import DataQualityError
from mlops.dataset.quality import (
    LABEL_COLUMNS,
    Finding,
    check_window,
    findings_text,
    refused,
)
from mlops.settings import Settings
from tests.fixtures.churn import TEMPLATE, churn_rows

CARD = load_card(TEMPLATE)
SETTINGS = Settings(_env_file=None)


def checked(frame: pd.DataFrame, labels: pd.DataFrame | None = None, **settings) -> list[Finding]:
    return check_window(frame, CARD, SETTINGS.model_copy(update=settings), labels)


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def bounded_card():
    """The churn card, with bounds on visits."""
    features = [
        f.model_copy(update={"minimum": 0.0, "maximum": 100.0, "integer": True})
        if f.name == "visits"
        else f
        for f in CARD.features
    ]
    return CARD.model_copy(update={"features": tuple(features)})


def labels_of(**months: tuple) -> pd.DataFrame:
    """Answered, labelled, mean scores with and without a label, standard deviation, by month."""
    index = [name.replace("_", "-").removeprefix("m") for name in months]
    return pd.DataFrame(list(months.values()), index=index, columns=list(LABEL_COLUMNS))


def test_good_rows_have_no_finding():
    assert checked(churn_rows()) == []


def test_no_rows_are_refused():
    assert only(checked(churn_rows().iloc[:0])).check == "too_few_rows"


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("spend", lambda v: v.astype(str), "expected numbers"),
        ("spend", lambda v: v.where(v.index != 7, np.inf), "1 value(s) are infinite"),
        ("plan", lambda v: v.where(v.index != 7, None), "no text, such as None"),
        ("plan", lambda v: v.where(v.index != 7, 3), "no text, such as 3"),
        ("target", lambda v: v + 1, "expected 0 and 1"),
        ("period", lambda v: v.str.replace("-", "/"), "found '2020/01'"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(column, values, said):
    frame = churn_rows()
    frame[column] = values(frame[column])
    finding = only(checked(frame))
    assert (finding.check, finding.severity, finding.column) == ("schema", "refuse", column)
    assert said in finding.message


def test_columns_that_lack_or_that_no_card_names_are_refused():
    frame = churn_rows().rename(columns={"visits": "duration"})
    found = {finding.column: finding for finding in checked(frame)}
    assert set(found) == {"visits", "duration"}
    assert all(finding.severity == "refuse" for finding in found.values())


def test_too_few_rows_are_refused():
    finding = only(checked(churn_rows(40)))
    assert finding.check == "too_few_rows"
    assert "found 160 rows, expected 200" in finding.message


def test_one_answer_only_is_refused():
    frame = churn_rows()
    frame["target"] = np.int8(0)
    finding = only(checked(frame))
    assert finding.check == "one_class"
    assert f"have the answer '{CARD.target.negative}'" in finding.message


def test_a_rare_answer_is_warned_of_and_refused_below_the_limit():
    frame = churn_rows()
    positives = np.flatnonzero(frame["target"])
    rare = frame.drop(positives[25:]).reset_index(drop=True)
    assert only(checked(rare)).severity == "warn"
    finding = only(checked(frame.drop(positives[19:]).reset_index(drop=True)))
    assert (finding.check, finding.severity) == ("too_few_rows", "refuse")


def test_values_that_cannot_be_are_warned_of_and_refused_beyond_a_share():
    card, frame = bounded_card(), churn_rows()
    frame.loc[:4, "visits"] = 999.0
    finding = only(check_window(frame, card, SETTINGS))
    assert (finding.check, finding.severity, finding.column) == ("range", "warn", "visits")
    frame.loc[:10, "visits"] = 999.0
    finding = only(check_window(frame, card, SETTINGS))
    assert finding.severity == "refuse"
    assert "11 of 1,000 rows (1.10%)" in finding.message
    assert "such as 999; the card expects 0 to 100" in finding.message


def test_broken_numbers_in_a_whole_column_are_named():
    frame = churn_rows()
    frame.loc[:50, "visits"] += np.float32(0.5)
    finding = only(check_window(frame, bounded_card(), SETTINGS))
    assert "the card expects whole numbers" in finding.message


def test_a_column_without_values_is_refused():
    frame = churn_rows()
    frame["plan"] = ""
    finding = only(checked(frame))
    assert (finding.check, finding.column) == ("missing", "plan")


def test_months_in_which_the_source_has_no_values_yet_do_not_count():
    plan = CARD.feature("plan").model_copy(update={"empty_until": "2020-04"})
    features = tuple(plan if f.name == "plan" else f for f in CARD.features)
    frame = churn_rows()
    frame["plan"] = ""
    assert check_window(frame, CARD.model_copy(update={"features": features}), SETTINGS) == []


def test_a_field_that_stops_being_filled_in_is_refused_with_its_month():
    frame = churn_rows()
    frame.loc[frame["period"] == "2020-03", "spend"] = np.nan
    found = [finding for finding in checked(frame) if finding.check == "missing_rise"]
    assert only(found).severity == "refuse"
    assert "100.0% of the 250 rows of 2020-03 hold no value" in only(found).message


def test_a_field_that_begins_to_be_filled_in_is_fine():
    frame = churn_rows()
    frame.loc[frame["period"] <= "2020-02", "spend"] = np.nan
    assert checked(frame) == []


def test_rows_delivered_twice_are_refused():
    frame = churn_rows()
    again = frame[frame["period"] == "2020-03"]
    finding = only(checked(pd.concat([frame, again])))
    assert (finding.check, finding.severity) == ("duplicates", "refuse")
    assert "50.2% of the 500 rows of 2020-03" in finding.message
    assert "MLOPS_QUALITY_DUPLICATE_SHARE" in finding.message


def test_values_that_hang_together_make_rows_alike_and_pass():
    frame = churn_rows()
    frame["spend"] = frame["visits"] * 10
    assert frame.duplicated().mean() > 0.5
    assert checked(frame) == []


def test_a_month_that_repeats_another_is_refused():
    """Such as a file's rows that also came as labelled predictions of a later month."""
    frame = churn_rows()
    again = frame[frame["period"] == "2020-03"].assign(period="2020-05")
    found = checked(pd.concat([frame, again]))
    assert {finding.check for finding in found} == {"repeated"}
    assert {finding.numbers["period"] for finding in found} == {"2020-03", "2020-05"}


def test_rows_of_few_values_are_alike_by_coincidence_and_pass():
    frame = churn_rows()
    frame["spend"] = (frame["spend"] > 60).astype(np.float32)
    frame["visits"] = (frame["visits"] > 4).astype(np.float32)
    assert frame.duplicated().mean() > 0.9
    assert checked(frame) == []


@pytest.mark.parametrize("direction", [1, -1])
def test_a_number_that_knows_the_answer_is_refused_by_name(direction):
    frame = churn_rows()
    frame["spend"] = (50 + direction * frame["target"] + frame["visits"] / 100).astype(np.float32)
    finding = only(checked(frame))
    assert (finding.check, finding.severity, finding.column) == ("leakage", "refuse", "spend")
    assert (finding.numbers["roc_auc"] > 0.99, finding.numbers["by"]) == (True, "its size")
    assert "name it in the card's `left_out`" in finding.message


def test_a_number_that_knows_the_answer_by_a_hump_is_refused():
    frame, random = churn_rows(), np.random.default_rng(3)
    far = random.choice([-5.0, 5.0], len(frame))
    noise = random.normal(50, 1, len(frame))
    frame["spend"] = (noise + far * frame["target"]).astype(np.float32)
    finding = only(checked(frame))
    assert (finding.column, finding.numbers["by"]) == ("spend", "its values")


def test_a_category_that_knows_the_answer_is_refused_by_name():
    frame = churn_rows()
    frame["plan"] = frame["target"].map({0: "stays", 1: "gone"}).astype(object)
    assert only(checked(frame)).column == "plan"


def test_a_field_that_is_missing_where_the_answer_is_no_is_refused():
    frame = churn_rows()
    frame["plan"] = np.where(frame["target"] == 1, frame["plan"].replace("", "basic"), "")
    frame["plan"] = frame["plan"].astype(object)
    finding = only(checked(frame))
    assert (finding.check, finding.column) == ("leakage", "plan")


def test_a_leak_that_began_in_the_latest_months_is_refused():
    frame = churn_rows()
    late = frame["period"] >= "2020-04"
    frame.loc[late, "visits"] = frame.loc[late, "target"] * np.float32(20)
    finding = only(checked(frame))
    assert finding.column == "visits"
    assert finding.numbers["in"] == "the rows since 2020-04"


def test_an_identifier_of_each_row_is_no_leak():
    """Encoded with its own answer it would know everything: encoding is out of fold."""
    frame = churn_rows()
    frame["plan"] = [f"customer {number}" for number in range(len(frame))]
    assert checked(frame) == []


def test_labels_that_have_yet_to_come_are_warned_of_and_refused_in_months_of_validation():
    frame = churn_rows()
    some = labels_of(m2020_04=(400, 250, 0.3, 0.3, 0.1))
    assert only(checked(frame, some)).severity == "warn"
    few = labels_of(m2020_04=(600, 250, 0.3, 0.3, 0.1))
    finding = only(checked(frame, few))
    assert (finding.check, finding.severity) == ("label_delay", "refuse")
    assert "350 of 600 answered rows (58.3%) have no label yet" in finding.message
    older = labels_of(m2020_02=(600, 250, 0.3, 0.3, 0.1))
    assert only(checked(frame, older)).severity == "warn", "lost for good, perhaps"


def test_the_months_that_are_judged_are_those_that_a_training_is_validated_on():
    """Where the newest month is small, the one before joins validation, and so these checks."""
    frame, few = churn_rows(), labels_of(m2020_03=(600, 250, 0.3, 0.3, 0.1))
    assert only(checked(frame, few, validation_min_rows=250)).severity == "warn"
    assert only(checked(frame, few, validation_min_rows=251)).severity == "refuse"
    late = frame["period"] >= "2020-03"
    frame.loc[late, "visits"] = frame.loc[late, "target"] * np.float32(20)
    finding = only(checked(frame, validation_min_rows=251))
    assert finding.numbers["in"] == "the rows since 2020-03"


def test_a_window_that_lacks_most_labels_is_refused():
    months = labels_of(m2020_02=(2000, 250, 0.3, 0.3, 0.1), m2020_03=(250, 250, 0.3, np.nan, 0.1))
    (finding,) = refused(checked(churn_rows(), months))
    assert "1,750 rows of the window have no label yet" in finding.message


def test_labels_that_come_to_the_high_scores_first_are_told():
    found = checked(churn_rows(), labels_of(m2020_04=(280, 250, 0.4, 0.2, 0.1)))
    assert only(found).check == "selective_labels"
    assert only(found).severity == "warn"


def test_a_few_answers_without_a_label_say_nothing():
    assert checked(churn_rows(), labels_of(m2020_06=(20, 0, np.nan, 0.9, 0.1))) == []


def test_a_refusal_names_every_finding_and_the_way_out():
    frame = churn_rows()
    frame["plan"] = ""
    frame["visits"] = frame["target"].astype(np.float32)
    found = checked(frame)
    error = DataQualityError("the rows of 2020-01 to 2020-04 (churn)", refused(found))
    for part in ("the rows of 2020-01", "missing: plan:", "leakage: visits:", "MLOPS_QUALITY_"):
        assert part in str(error)
    assert findings_text(found).startswith("data quality: 2 refused, 2 found")
    assert findings_text([]) == "data quality: nothing found"


def test_thirty_thousand_rows_take_well_under_a_second():
    frame = churn_rows(7500)
    began = time.process_time()  # other tests may run beside this one
    checked(frame)
    assert time.process_time() - began < 1.0
