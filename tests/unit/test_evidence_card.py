"""The model card as a page and as a PDF, looked at page by page, also of hostile and scant data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pypdfium2
import pytest

from mlops.dataset.card import Card, load_card
from mlops.evidence import collect, figures, measures, model_card, recipe, style
from mlops.training.candidates import Candidate
from mlops.training.fit import learn
from tests.fixtures.churn import TEMPLATE, churn_rows
from tests.fixtures.postgres import make_settings

SCALE = 1.2
EVIL = '#panic("ran") $x$ *bold* </td><script>alert(1)</script> \\u{41} @ref "q" [x]'
LONG = "x" * 300


def identity(card: Card, evidence: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema": 1, "made_at": "2026-01-02T03:04:05Z", "model": card.name, "version": "7",
        "stage": "production", "candidate": "Linear", "threshold_by": "F1",
        "target": {"positive": "1", "negative": "0", "question": card.question},
        "lineage": {
            "run_id": "r" * 32, "training_id": "first", "cause": "by hand",
            "trained_at": "2026-01-01 00:00 UTC", "commit": "c" * 40, "data_digest": "d" * 64,
            "params": {"seed": "42", "class": "sklearn.linear_model.LogisticRegression"},
            "libraries": ["scikit-learn==1.7.2"], "written_with": "Python 3.11.9",
        },
        **evidence,
    }  # fmt: skip


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card(TEMPLATE)


@pytest.fixture(scope="module")
def evidence(card: Card, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = make_settings(tmp_path_factory.mktemp("card"))
    candidate = Candidate.model_validate(
        {"name": "Linear", "class": "sklearn.linear_model.LogisticRegression", "scale": True}
    )
    frame = churn_rows(rows_a_month=150)
    learnt = learn(card, candidate, frame, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "METRIC_RESAMPLES", 40)
        patch.setattr(measures, "RESAMPLES", 200)
        found = collect.measure(
            card, learnt.pipeline, recipe.Recipe((candidate,)), learnt.reference, frame,
            learnt.metrics["validation_threshold"], card.costs, settings,
        )  # fmt: skip
    return identity(card, found)


@pytest.fixture(scope="module")
def made(card: Card, evidence: dict[str, Any]) -> model_card.ModelCard:
    return model_card.make(card, evidence)


def pages(pdf: bytes) -> list[tuple[str, np.ndarray]]:
    """Return text and grey picture (rows by columns, 255 white) of each page."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        return [
            (
                page.get_textpage().get_text_bounded(),
                np.asarray(page.render(scale=SCALE).to_pil().convert("L")),
            )
            for page in document
        ]
    finally:
        document.close()


def assert_well_set(found: list[tuple[str, np.ndarray]]) -> None:
    """No page is empty, and nothing reaches the edge of one: the margins are white."""
    edge, foot = (round(cm * 72 / 2.54 * SCALE) for cm in (1.5, 0.6))
    for number, (text, picture) in enumerate(found, 1):
        assert len(text) > 150, f"page {number} says {text!r}"
        ink = picture < 200
        assert ink.mean() > 0.005, f"page {number} is empty"
        for side in (ink[:, :edge], ink[:, -edge:], ink[:edge], ink[-foot:]):
            assert not side.any(), f"page {number} runs over its margin"


def words(texts: list[str]) -> str:
    return re.sub(r"\s+", " ", " ".join(texts)).replace("\u200b", "")


def test_the_pdf_has_all_of_the_card_on_well_set_pages(
    made: model_card.ModelCard, card: Card, evidence: dict[str, Any]
) -> None:
    found = pages(made.pdf)
    assert 3 <= len(found) <= 6
    assert_well_set(found)
    said = words([text for text, _ in found])
    texts = model_card.describe(card, evidence)
    for part in (
        "Churn, version 7", "What it is for", "Limits", "Metrics", "Slices", "Lineage",
        *(title for title, *_ in texts["metrics"]), *(f"{n} of {len(found)}" for n in (1, 2)),
        "an identifier", "ROC curve", "Cumulative gains", "Learning curve",
    ):  # fmt: skip
        assert part in said, part
    for said_limit in texts["limits"]:
        assert words([said_limit])[:60] in said
    value = evidence["metrics"]["values"]["roc_auc"]["value"]
    assert f"{value:.3f}" in said


def test_page_and_pdf_say_the_same_and_the_page_is_whole_in_itself(
    made: model_card.ModelCard, card: Card, evidence: dict[str, Any]
) -> None:
    texts = model_card.describe(card, evidence)
    for limit in texts["limits"]:
        assert limit.replace("'", "&#39;") in made.html
    assert "<script" not in made.html
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,)', made.html)
    assert made.html.count("<img ") == len(texts["pictures"]) == len(figures.draw(evidence))
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in made.html
    assert {name for name, _ in texts["pictures"]} <= set(figures.READING)


def test_texts_of_the_data_are_never_markup_and_never_run_over(
    card: Card, evidence: dict[str, Any]
) -> None:
    features = tuple(
        each.model_copy(update={"description": text})
        for each, text in zip(card.features, (EVIL, LONG, "plain"), strict=True)
    )
    hostile = card.model_copy(
        update={
            "title": f"Shop {EVIL}", "question": EVIL, "description": LONG, "features": features,
            "left_out": {LONG: EVIL},
        }
    )  # fmt: skip
    slices = [{**each, "value": EVIL + LONG} for each in evidence["slices"]]
    params = {LONG: LONG, "evil": EVIL}
    found = model_card.make(
        hostile,
        {
            **evidence,
            "candidate": EVIL,
            "slices": slices,
            "lineage": {**evidence["lineage"], "params": params, "cause": EVIL},
        },
    )
    assert "<script>" not in found.html
    laid = pages(found.pdf)
    assert_well_set(laid)
    assert '#panic("ran") $x$ *bold*' in words([text for text, _ in laid])


def test_a_version_without_recipe_or_slices_has_a_card_that_says_so(
    card: Card, evidence: dict[str, Any]
) -> None:
    scant = {
        **evidence, "importance": None, "learning": [], "notes": ["The run keeps no recipe."],
        "slices": [], "months": [],
    }  # fmt: skip
    names = set(figures.draw(scant))
    assert not names & {"importance", "learning", "slices", "months", "profit"}
    found = pages(model_card.make(card, scant).pdf)
    assert_well_set(found)
    assert "The run keeps no recipe." in words([text for text, _ in found])


def test_the_same_evidence_gives_the_same_bytes(card: Card, evidence: dict[str, Any]) -> None:
    texts = model_card.describe(card, evidence)
    drawn = {"roc": figures.draw(evidence)["roc"]}
    first = {name: style.image(figure, "svg") for name, figure in drawn.items()}
    again = {"roc": style.image(figures.draw(evidence)["roc"], "svg")}
    assert first == again
    few = {**texts, "pictures": texts["pictures"][:1]}
    assert model_card.set_pdf(few, first) == model_card.set_pdf(few, again)


def test_costs_bring_a_profit_curve(evidence: dict[str, Any]) -> None:
    random = np.random.default_rng(2)
    target = random.integers(0, 2, 400)
    score = np.clip(0.3 * target + random.random(400) * 0.6, 0, 1)
    costs = load_card("bank_marketing").costs
    part = measures.profit(target, score, 0.4, costs)
    drawn = figures.draw({**evidence, "profit": json.loads(json.dumps(part))})
    assert "profit" in drawn
