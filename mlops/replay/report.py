"""The result of a replay as files: `replay.json`, and a page that needs no internet.

Pure but for `write_report`; it plays nothing and measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mlops.dataset.card import Card
from mlops.replay.figures import Replayed
from mlops.replay.svg import Line, Mark, legend, line_chart
from mlops.replay.words import FIGURES, JSON, NAMES, PAGE, cell, circumstances, version_changes
from mlops.reporting.library import write_page

_OURS = ' class="ours"'
_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #22303c; --soft: #5d6b78;
  --rule: #dfe5ea; --alert: #1f5fa8; --monthly: #2f8f83; --static: #8a95a0; --limit: #b4540a; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --ink: #e3e9ee; --soft: #9aa6b2;
  --rule: #2c343d; --alert: #6ea8e6; --monthly: #63b7ab; --static: #828e9a; --limit: #e89a55; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.2rem 3rem; max-width: 72rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .2rem; }
p { margin: .2rem 0 .6rem; max-width: 62rem; } .soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, .text { text-align: left; } td.text.long { white-space: normal;
  min-width: 20rem; } .ours { font-weight: 650; color: var(--ink); }
table.figures { width: auto; min-width: 50%; }
td.text.cause { white-space: normal; min-width: 9rem; }
.chart svg { display: block; width: 100%; height: auto; min-width: 40rem; }
svg path { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
svg text { fill: var(--soft); font-size: 12px; }
.grid line { stroke: var(--rule); }
.mark line { stroke: var(--alert); stroke-dasharray: 2 4; opacity: .75; }
.mark text { fill: var(--alert); font-weight: 600; }
.limit line { stroke: var(--limit); stroke-dasharray: 6 4; } .limit text { fill: var(--limit); }
.alert path { stroke: var(--alert); stroke-width: 2.8; } .alert circle { fill: var(--alert); }
.monthly path { stroke: var(--monthly); } .monthly circle { fill: var(--monthly); }
.static path { stroke: var(--static); } .static circle { fill: var(--static); }
.chance path { stroke: var(--limit); stroke-dasharray: 3 4; stroke-width: 1.6; }
.chance circle { display: none; }
.key { margin-right: 1.2rem; white-space: nowrap; }
.key svg { width: 24px; height: 10px; margin-right: .4rem; vertical-align: middle; }
"""


def result_of(played: Sequence[Replayed], card: Card, **about: Any) -> dict[str, Any]:
    """Return what `replay.json` holds: what was played, each policy's figures and months."""
    return {
        "card": card.name,
        "title": card.title,
        "unit": None if card.costs is None else card.costs.unit,
        **about,
        "policies": {each.policy: each.as_dict(card) for each in played},
    }


def write_report(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the result as JSON and as a page into `folder`, made if need be; return both files."""
    texts = {JSON: json.dumps(result, indent=1) + "\n", PAGE: page(result)}
    return [write_page(folder / name, text) for name, text in texts.items()]


def page(result: Mapping[str, Any]) -> str:
    """Return the whole report as one HTML document, with its style and pictures in it."""
    policies = result["policies"]
    title = f"Replay: {result['title']}, {result['start']} to {result['end']}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *(f'<p class="soft">{escape(line)}</p>' for line in circumstances(result)),
            _figures(policies, result["unit"]),
            _charts(policies),
            *(_retrains(name, found) for name, found in policies.items() if found["retrains"]),
            "</body></html>\n",
        ]
    )


def _figures(policies: Mapping[str, Any], unit: str | None) -> str:
    heads = "".join(
        f"<th{_OURS if name == 'alert' else ''}>{escape(NAMES[name])}</th>" for name in policies
    )
    rows = []
    for head, _, key, form in FIGURES:
        if key == "profit":
            if unit is None:
                continue
            head = f"{head}, {unit}"
        cells = "".join(
            f"<td{_OURS if name == 'alert' else ''}>{cell(found[key], form)}</td>"
            for name, found in policies.items()
        )
        rows.append(f"<tr><td>{escape(head)}</td>{cells}</tr>")
    return (
        '<h2>What retraining is worth</h2><div class="wide"><table class="figures">'
        f"<tr><th></th>{heads}</tr>{''.join(rows)}</table></div>"
    )


def _charts(policies: Mapping[str, Any]) -> str:
    months = next(iter(policies.values()))["months"]
    periods = [month["period"] for month in months]
    # Ours is drawn last, on top.
    names = [name for name in NAMES if name in policies]
    changing = "alert" if "alert" in policies else names[-1]
    marks = [
        Mark(
            place,
            version,
            f"Version {version}, {policies[changing]['months'][place]['candidate']}, answers from "
            f"{periods[place]} on",
        )
        for place, version in version_changes(policies[changing]["months"])
    ]

    def lines(key: str) -> list[Line]:
        return [
            Line(NAMES[name], name, [month[key] for month in policies[name]["months"]])
            for name in names
        ]

    chance = Line(
        f"what chance explains ({NAMES[changing]})",
        "chance",
        [month["prediction_drift_noise"] for month in policies[changing]["months"]],
    )
    versions = (
        f"A dotted line is where another version answers ({NAMES[changing]})." if marks else ""
    )
    return "".join(
        [
            _chart(
                "ROC AUC by month",
                f"{versions} 0.5 is a guess.",
                lines("roc_auc"),
                line_chart(
                    periods,
                    lines("roc_auc"),
                    label="ROC AUC by month and policy",
                    marks=marks,
                    limits={"a guess": 0.5},
                ),
            ),
            _chart(
                "Brier score by month",
                "The mean squared error of the probability: lower is better. It rises with the "
                "share of positives for any model.",
                lines("brier"),
                line_chart(
                    periods,
                    lines("brier"),
                    label="Brier score by month and policy",
                    marks=marks,
                    low=0.0,
                ),
            ),
            _chart(
                "Prediction drift by month",
                "How far the scores lie from those on the version's own validation rows, in "
                "standard deviations of these (Wasserstein). A new version has a new reference.",
                [*lines("prediction_drift"), chance],
                line_chart(
                    periods,
                    [*lines("prediction_drift"), chance],
                    label="Drift of the scores by month and policy",
                    marks=marks,
                    low=0.0,
                ),
            ),
            _months(months),
        ]
    )


def _chart(title: str, text: str, lines: Sequence[Line], drawing: str) -> str:
    return (
        f"<h2>{escape(title)}</h2><p>{escape(text.strip())}</p><p>{legend(lines)}</p>"
        f'<div class="wide chart">{drawing}</div>'
    )


def _months(months: Sequence[Mapping[str, Any]]) -> str:
    heads = "".join(f"<th>{escape(month['period'])}</th>" for month in months)
    rows = "".join(f"<td>{month['rows']:,}</td>" for month in months)
    shares = "".join(f"<td>{month['positive_rate']:.0%}</td>" for month in months)
    return (
        '<h2>The months</h2><div class="wide"><table>'
        f"<tr><th></th>{heads}</tr><tr><td>customers</td>{rows}</tr>"
        f"<tr><td>positive</td>{shares}</tr></table></div>"
    )


def _retrains(name: str, found: Mapping[str, Any]) -> str:
    rows = []
    for month in found["months"]:
        retrain = month["retrain"]
        if retrain is None:
            continue
        outcome = retrain["outcome"].replace("_", " ")
        if retrain["version"]:
            outcome += f" as {retrain['version']}"
        cells = (
            ("", month["period"]),
            ("text cause", retrain["cause"]),
            ("text", f"{retrain['window_start']} to {retrain['window_end']}"),
            ("text", retrain["candidate"] or "-"),
            ("text", outcome),
            ("text long", retrain["reason"]),
        )
        rows.append(
            "<tr>" + "".join(f'<td class="{kind}">{escape(text)}</td>' for kind, text in cells)
        )
    heads = ("end of", "cause", "learnt from", "candidate", "outcome", "the gate")
    return (
        f"<h2>Retrains, {escape(NAMES[name])}</h2>"
        '<div class="wide"><table><tr>'
        + "".join(f'<th class="text">{head}</th>' for head in heads)
        + "</tr>"
        + "</tr>".join(rows)
        + "</tr></table></div>"
    )
