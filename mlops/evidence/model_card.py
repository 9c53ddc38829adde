"""The model card of a version: what it is for, how good it is, where it ends; as HTML and as PDF.

Both are filled with the same texts, made here of a version's evidence and its data set's card, so
that they cannot differ. Neither has a script, nor an address that a reader's browser would ask. The
PDF is set by Typst, which gets all texts as data: none of them is ever markup.

After Mitchell et al. (2019), Model Cards for Model Reporting. Nothing is measured here.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import typst

from mlops.dataset.card import Card
from mlops.evidence import figures, style
from mlops.reporting.pages import number, render, share
from mlops.training.metrics import FEWEST_ANSWERS

TEMPLATE = Path(__file__).resolve().parent / "model_card.typ"

METRICS = {
    "roc_auc": ("ROC AUC", 3, "chance that a positive scores above a negative; 0.5 is a guess"),
    "average_precision": ("Average precision", 3, "mean precision over the recalls reached"),
    "brier": ("Brier score", 4, "mean squared error of the score; lower is better"),
    "log_loss": ("Log loss", 4, "mean surprise in nats; lower is better"),
    "lift_at_10": ("Lift, top 10 %", 2, "positives among the best-scored tenth, against chance"),
    "precision": ("Precision", 3, "positive of those decided positive"),
    "recall": ("Recall", 3, "decided positive of the positives"),
    "f1": ("F1", 3, "harmonic mean of the two"),
    "accuracy": ("Accuracy", 3, "decisions that were right; never what a model is chosen by"),
    "profit": ("Profit", 0, ""),
}
"""Heading, digits and meaning of each metric, in the order of the table."""

_BREAK_AFTER = 22
"""Characters without a space after which a line of the PDF may break."""


class ModelCard(NamedTuple):
    """A model card as a page, whole in itself, and as a PDF."""

    html: str
    pdf: bytes


def make(card: Card, evidence: Mapping[str, Any]) -> ModelCard:
    """Return the model card of a version by its evidence (`evidence.json`)."""
    texts = describe(card, evidence)
    drawn = figures.draw(evidence)
    svgs = {name: style.image(figure, "svg") for name, figure in drawn.items()}
    pngs = {
        name: base64.b64encode(style.image(figure, "png")).decode()
        for name, figure in drawn.items()
    }
    page = render(
        "model_card.html",
        **texts,
        images=pngs,
        written_at=datetime.strptime(evidence["made_at"], "%Y-%m-%dT%H:%M:%SZ"),
    )
    return ModelCard(page, set_pdf(texts, svgs))


def set_pdf(texts: Mapping[str, Any], pictures: Mapping[str, bytes]) -> bytes:
    """Return the PDF of `describe`'s texts and pictures (SVG by name). Same input, same bytes.

    Fonts are those that come with matplotlib, whatever the machine has. Nothing is fetched.
    """
    with tempfile.TemporaryDirectory(prefix="mlops-card-") as folder:
        root = Path(folder)
        shutil.copyfile(TEMPLATE, root / TEMPLATE.name)
        (root / "card.json").write_text(json.dumps(_breakable(texts)), encoding="utf-8")
        for name, content in pictures.items():
            (root / f"{name}.svg").write_bytes(content)
        made: bytes = typst.compile(
            str(root / TEMPLATE.name),
            root=str(root),
            font_paths=[str(Path(matplotlib.get_data_path()) / "fonts" / "ttf")],
            ignore_system_fonts=True,
        )
    return made


def describe(card: Card, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return every text of the card: lists and strings, the same for both forms of it."""
    data, lineage = evidence["data"], evidence["lineage"]
    return {
        "title": card.title,
        "version": evidence["version"],
        "candidate": evidence["candidate"],
        "stage": evidence["stage"],
        "made_at": evidence["made_at"].replace("T", " ").replace("Z", " UTC"),
        "question": card.question,
        "purpose": _purpose(card, evidence),
        "tiles": _tiles(evidence),
        "data": [
            ["Data set", card.description],
            ["Source", card.citation],
            ["Learnt from", f"{data['window_start']} to {data['window_end']},"
                f" {data['rows']:,} rows, {data['positive_rate']:.1%} positive"],
            ["Judged on", f"{_span(data)}, {data['validation_rows']:,} rows,"
                f" {data['validation_positives']:,} of them positive, each scored by a fit that had"
                " not seen it"],
        ],
        "features": [
            [each.name, _kind(each), each.description] for each in card.features if each.learn
        ],
        "not_learnt": [
            [each.name, "asked for and kept, not learnt from"]
            for each in card.features
            if not each.learn
        ] + [[name, why] for name, why in card.left_out.items()],
        "metrics": _metric_rows(evidence),
        "confidence": f"{evidence['metrics']['confidence']:.0%}",
        "resamples": evidence["metrics"]["resamples"],
        "slices": [
            [
                each["column"],
                each["value"] or "missing",
                f"{each['rows']:,}",
                share(each["positive_rate"]),
                share(each["mean_score"]),
                number(each["auc"]),
                "too few rows" if each["auc"] is None
                else f"{each['low']:.3f} to {each['high']:.3f}",
            ]
            for each in evidence["slices"]
        ],
        "limits": limits(card, evidence),
        "lineage": [
            ["Commit", lineage["commit"] or "not known: not trained in a git checkout"],
            ["Data digest", lineage["data_digest"] or "not known"],
            ["MLflow run", lineage["run_id"]],
            ["Training", f"{lineage['training_id']}, {lineage['cause']}"],
            ["Trained", lineage["trained_at"]],
            ["Seed", lineage["params"].get("seed", "not known")],
            ["Libraries", ", ".join(lineage["libraries"]) or "not known"],
            ["Evidence", f"{evidence['made_at']}, {lineage['written_with']}"],
        ],
        "params": [[key, value] for key, value in lineage["params"].items()],
        "pictures": [[name, figures.READING[name]] for name in _drawn(evidence)],
        "notes": list(evidence["notes"]),
    }  # fmt: skip


def limits(card: Card, evidence: Mapping[str, Any]) -> list[str]:
    """Return what the version must not be used for and where its numbers end, in sentences."""
    data, auc = evidence["data"], evidence["roc"]
    values = evidence["metrics"]["values"]
    found = [
        *card.limits,
        f"It answers one question, for people like those of its data: {card.question} It says"
        " nothing of others, and must not be the only ground of a decision that matters to"
        " somebody: a refusal, a price, an access.",
        "It was not examined for fairness by any law. The slices below say how well it ranks each"
        " group, not whether a group may be treated differently.",
        f"It knows the world of {data['window_start']} to {data['window_end']} only. When the world"
        " moves, its scores go wrong without a sign in themselves: only monitoring sees it.",
    ]
    told = [each for each in evidence["months"] if each["auc"] is not None]
    if len(told) > 1:
        low, high = (pick(told, key=lambda each: each["auc"]) for pick in (min, max))
        found.append(
            f"From month to month its recipe's ROC AUC on months that it had not seen went from"
            f" {low['auc']:.2f} ({low['period']}) to {high['auc']:.2f} ({high['period']}): no"
            " single number stands for the next month."
        )
    found.append(
        f"Validation holds {data['validation_positives']:,} positives, so that ROC AUC is known to"
        f" lie between {auc['low']:.3f} and {auc['high']:.3f} only."
    )
    calibration = evidence["calibration"]
    gap = calibration["mean_score"] - calibration["positive_rate"]
    found.append(
        f"Its mean score on validation is {calibration['mean_score']:.1%} where"
        f" {calibration['positive_rate']:.1%} were positive: it says"
        f" {'too much' if gap > 0 else 'too little'} by {100 * abs(gap):.1f} points."
    )
    worse = [
        _slice(e) for e in evidence["slices"] if e["auc"] is not None and e["high"] < auc["auc"]
    ]
    if worse:
        found.append(
            f"Where {', '.join(worse)} it ranks worse than on all rows, each looked at by itself"
            f" (95 % interval): of {len(evidence['slices'])} slices some would by chance."
        )
    few = [_slice(e) for e in evidence["slices"] if e["auc"] is None]
    if few:
        found.append(
            f"Of {', '.join(few)} nothing can be said: fewer than {FEWEST_ANSWERS} rows of one"
            " answer."
        )
    by = "profit" if "profit" in values else "F1"
    found.append(
        f"The threshold was chosen by {by} on the rows that it is measured on: what is said of its"
        " decisions flatters a little."
        + (" Costs and gains are the card's assumptions." if "profit" in values else "")
    )
    found.append(
        "Importance and contributions tell what the model looks at. They are no causes: to change a"
        " field does not change the customer."
    )
    found.append(
        "What is served is the recipe's fit on all rows of the window, validation included; what is"
        " measured here are fits of the same recipe that leave rows out."
    )
    return found


def _purpose(card: Card, evidence: Mapping[str, Any]) -> list[str]:
    said = [
        f"It gives the probability that the answer to “{card.question}” is"
        f" {evidence['target']['positive']}, and decides {evidence['target']['positive']} from"
        f" {evidence['threshold']:.4f} on. The threshold is the one of"
        f" {'most profit' if evidence['profit'] else 'the best F1'} on its validation rows.",
    ]
    profit = evidence["profit"]
    if profit is not None:
        said.append(
            f"A contact is taken to cost {profit['contact']:g} {profit['unit']}, a positive answer"
            f" to bring {profit['success']:g}. Contacting the {profit['chosen']['share']:.0%} who"
            f" score highest then comes to {profit['chosen']['profit']:,.0f} {profit['unit']} of"
            f" 1,000 customers; contacting everybody to {profit['all']:,.0f}."
        )
    return said


def _tiles(evidence: Mapping[str, Any]) -> list[list[str]]:
    values = evidence["metrics"]["values"]
    keys = ["roc_auc", "average_precision", "brier", "lift_at_10"]
    keys.append("profit" if "profit" in values else "f1")
    tiles = []
    for key in keys:
        title, digits, _ = METRICS[key]
        each = values[key]
        tiles.append(
            [
                title,
                f"{each['value']:,.{digits}f}",
                f"{each['low']:,.{digits}f} to {each['high']:,.{digits}f}",
            ]
        )
    return tiles


def _metric_rows(evidence: Mapping[str, Any]) -> list[list[str]]:
    values = evidence["metrics"]["values"]
    rows = []
    for key, (title, digits, says) in METRICS.items():
        if key in values:
            each = values[key]
            if key == "profit":
                says = f"{evidence['profit']['unit']} of 1,000 customers, at the threshold"
            rows.append(
                [
                    title,
                    f"{each['value']:,.{digits}f}",
                    f"{each['low']:,.{digits}f} to {each['high']:,.{digits}f}",
                    says,
                ]
            )
    return rows


def _drawn(evidence: Mapping[str, Any]) -> list[str]:
    return list(figures.draw(evidence))


def _span(data: Mapping[str, Any]) -> str:
    first, last = data["validation_start"], data["validation_end"]
    return str(first) if first == last else f"{first} to {last}"


def _kind(feature: Any) -> str:
    if feature.kind == "category":
        return "category"
    return f"number, {feature.unit}" if feature.unit else "number"


def _slice(each: Mapping[str, Any]) -> str:
    return f"{each['column']} = {each['value'] or 'missing'}"


def _breakable(value: Any) -> Any:
    """Return texts that may break in long runs without a space: digests, paths, parameters."""
    if isinstance(value, str):
        return " ".join(
            "\u200b".join(
                word[start : start + _BREAK_AFTER] for start in range(0, len(word), _BREAK_AFTER)
            )
            for word in value.split(" ")
        )
    if isinstance(value, Mapping):
        return {key: _breakable(each) for key, each in value.items()}
    return [_breakable(each) for each in value] if isinstance(value, list) else value
