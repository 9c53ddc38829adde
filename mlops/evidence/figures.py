"""Pictures of a version, drawn from its numbers (`evidence.json`) alone; never measures anything.

Each function takes a part of the evidence and returns a figure in the house's style. `draw` returns
all that a version has numbers for, in the order in which a reader meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlops.evidence.style import (
    ACCENT,
    GOOD,
    MUTED,
    PAPER,
    RULE,
    SOFT,
    SOFT_TEXT,
    TEXT,
    WARM,
    house,
    margins,
    note,
    panel,
    shares,
    thousands,
)

Evidence = Mapping[str, Any]

_VALUES = LinearSegmentedColormap.from_list("values", [ACCENT, "#9fb4c9", WARM])
"""From low to high values of a number."""

LONGEST_LABEL = 26

READING = {
    "roc": "Share of positives found (up) against share of negatives bothered (right), as the"
    " threshold falls. The further the line bends away from the diagonal, a guess, the better"
    " the order of the scores.",
    "precision_recall": "Of those who score at least the threshold, how many are positive (up), as"
    " more of the positives are found (right). The dashed line is a guess.",
    "calibration": "Rows in groups by score: a dot on the diagonal means that of customers who"
    " score 20 %, 20 % are positive. Above it the model says too little, below it too much.",
    "gains": "Asking the best-scored first: how many of all positives are found (up) among which"
    " share of the customers (right). Grey is the reach of a model that knows everything.",
    "lift": "How many times more positives than by chance are among the best-scored share. 1 is a"
    " guess.",
    "confusion": "What the decision at the threshold got right and wrong. Only the row sums are"
    " given by the world; how they are divided is the threshold's choice.",
    "profit": "What contacting the best-scored share of 1,000 customers comes to, at the costs of"
    " the card. The threshold is the dot.",
    "scores": "How positives and negatives score. Where the two lie over one another the model"
    " cannot tell them apart.",
    "importance": "By how much ROC AUC falls when a column is shuffled, in rows that the fit had"
    " not seen. Columns that say the same share what they are worth, and look small.",
    "contributions": "Each dot is a customer: how much a field moved the score away from that of"
    " the typical customer, as /explain tells it. It says what the model looks at, not what"
    " causes an answer.",
    "slices": "ROC AUC within each group, with its interval; the line is that of all rows. A group"
    " whose interval ends left of the line is ranked worse.",
    "months": "ROC AUC of each month, with its interval, by a fit that had not seen it. How far the"
    " months differ is how far one number for all of them can be trusted.",
    "learning": "ROC AUC on the validation rows of the same recipe fitted on fewer of the latest"
    " months. Where the line is flat, more history would add nothing.",
}
"""How each picture is read, in a sentence or two."""


def draw(evidence: Evidence) -> dict[str, Figure]:
    """Return the figures of a version by name, those it has numbers for."""
    makers: dict[str, Callable[[Evidence], Figure | None]] = {
        "roc": roc,
        "precision_recall": precision_recall,
        "calibration": calibration,
        "scores": scores,
        "gains": gains,
        "lift": lift,
        "confusion": confusion,
        "profit": profit,
        "importance": importance,
        "contributions": contributions,
        "slices": slices,
        "months": months,
        "learning": learning,
    }
    found = {}
    with house():
        for name, make in makers.items():
            figure = make(evidence)
            if figure is not None:
                found[name] = figure
    return found


def roc(evidence: Evidence) -> Figure:
    """Return the ROC curve with the decision marked."""
    part = evidence["roc"]
    figure, axes = panel("ROC curve", f"AUC {_interval(part['auc'], part['low'], part['high'])}")
    x, y = part["false_positive_rate"], part["true_positive_rate"]
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=(0, (3, 3)))
    axes.fill_between(x, y, x, color=ACCENT, alpha=0.07, lw=0)
    axes.plot(x, y, color=ACCENT)
    here = part["at_threshold"]
    _dot(axes, here["false_positive_rate"], here["true_positive_rate"])
    _beside(axes, here["false_positive_rate"], here["true_positive_rate"], "threshold")
    _unit_square(axes, "negatives above the threshold", "positives above the threshold")
    return figure


def precision_recall(evidence: Evidence) -> Figure:
    """Return the precision-recall curve with the guess and the decision."""
    part = evidence["precision_recall"]
    value = evidence["metrics"]["values"]["average_precision"]
    figure, axes = panel(
        "Precision and recall",
        f"average precision {_interval(value['value'], value['low'], value['high'])}",
    )
    recall, precision = np.array(part["recall"]), np.array(part["precision"])
    axes.axhline(part["base"], color=MUTED, lw=0.9, ls=(0, (3, 3)))
    axes.step(recall, precision, where="post", color=ACCENT)
    # The first few rows give any precision: they must not set the scale alone.
    steady = precision[recall >= 0.02]
    top = min(1.0, 1.25 * max([*steady, part["base"], 0.05]))
    note(axes, 0.99, part["base"], f"guess {part['base']:.1%}", ha="right", va="top")
    here = part["at_threshold"]
    if here is not None:
        _dot(axes, here["recall"], here["precision"])
        _beside(axes, here["recall"], here["precision"], "threshold", top=top)
    _unit_square(axes, "recall: positives found", "precision: positive of those found")
    axes.set_ylim(0, top)
    return figure


def calibration(evidence: Evidence) -> Figure:
    """Return the reliability diagram: groups with intervals, and how many rows each has."""
    part = evidence["calibration"]
    groups = part["groups"]
    brier = evidence["metrics"]["values"]["brier"]["value"]
    figure, axes = panel(
        "Calibration", f"mean distance {part['error']:.3f}, Brier score {brier:.4f}"
    )
    score = np.array([each["score"] for each in groups])
    share = np.array([each["share"] for each in groups])
    low, high = np.array([[each["low"], each["high"]] for each in groups]).T
    reach = min(1.0, 1.08 * max(0.05, float(high.max()), float(score.max())))
    axes.plot([0, reach], [0, reach], color=MUTED, lw=0.9, ls=(0, (3, 3)))
    axes.vlines(score, low, high, color=ACCENT, lw=1.1, alpha=0.55)
    axes.plot(score, share, color=ACCENT, marker="o", ms=3.6, mew=0, lw=1.1)
    rows = [each["rows"] for each in groups]
    many = f"{min(rows):,}" if min(rows) == max(rows) else f"{min(rows):,} to {max(rows):,}"
    note(axes, 0.98, 0.04, f"{len(groups)} groups of {many} rows", ha="right",
         transform=axes.transAxes)  # fmt: skip
    axes.set(xlim=(0, reach), ylim=(0, reach))
    axes.set_xlabel("mean score of the group")
    axes.set_ylabel("positives in it")
    digits = 0 if reach > 0.2 else 1
    shares(axes, x=True, y=True, digits=digits)
    return figure


def scores(evidence: Evidence) -> Figure:
    """Return the distribution of scores by class, positives above and negatives below the line."""
    part = evidence["scores"]
    edges = np.array(part["edges"])
    width = np.diff(edges)
    figure, axes = panel("Scores by class", f"decision at {evidence['threshold']:.3f}")
    positives, negatives = np.array(part["positives"]), np.array(part["negatives"])
    axes.bar(edges[:-1], positives, width, align="edge", color=WARM, ec=PAPER, lw=0.4)
    axes.bar(edges[:-1], -negatives, width, align="edge", color=ACCENT, ec=PAPER, lw=0.4)
    axes.axhline(0, color=TEXT, lw=0.6)
    axes.axvline(evidence["threshold"], color=TEXT, lw=0.9, ls=(0, (3, 2)))
    reach = 1.15 * max(positives.max(), negatives.max())
    axes.set(xlim=(0, edges[-1]), ylim=(-reach, reach))
    right = {"ha": "right", "transform": axes.transAxes, "fontweight": "bold"}
    note(axes, 0.98, 0.93, "positives", WARM, **right)
    note(axes, 0.98, 0.07, "negatives", ACCENT, **right)
    axes.yaxis.set_major_locator(MaxNLocator(6, symmetric=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0%}")
    shares(axes, x=True)
    axes.set_xlabel("score")
    axes.set_ylabel("share of the class")
    return figure


def gains(evidence: Evidence) -> Figure:
    """Return cumulative gains between a guess and a model that knows everything."""
    part = evidence["gains"]
    share, found = np.array(part["share"]), np.array(part["found"])
    tenth = float(np.interp(0.2, share, found))
    figure, axes = panel("Cumulative gains", f"the best-scored 20 % hold {tenth:.0%} of positives")
    best = np.minimum(share / part["best"], 1.0)
    axes.plot(share, best, color=MUTED, lw=0.9)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=(0, (3, 3)))
    axes.fill_between(share, found, share, color=ACCENT, alpha=0.07, lw=0)
    axes.plot(share, found, color=ACCENT)
    here = part["at_threshold"]
    _dot(axes, here["share"], here["found"])
    _beside(axes, here["share"], here["found"], "threshold")
    _unit_square(axes, "customers asked, best-scored first", "positives found")
    return figure


def lift(evidence: Evidence) -> Figure:
    """Return the cumulative lift by share asked."""
    part = evidence["gains"]
    value = evidence["metrics"]["values"]["lift_at_10"]
    figure, axes = panel(
        "Lift",
        f"in the top 10 % {_interval(value['value'], value['low'], value['high'], digits=1)}",
    )
    share, values = np.array(part["share"][1:]), np.array(part["lift"])
    axes.axhline(1, color=MUTED, lw=0.9, ls=(0, (3, 3)))
    axes.fill_between(share, values, 1, color=ACCENT, alpha=0.07, lw=0)
    axes.plot(share, values, color=ACCENT)
    note(axes, 0.99, 1, "guess", ha="right", va="bottom")
    axes.set(xlim=(0, 1), ylim=(0, 1.1 * max(1.5, float(values.max()))))
    axes.set_xlabel("customers asked, best-scored first")
    axes.set_ylabel("times as many positives as by chance")
    shares(axes, x=True)
    return figure


def confusion(evidence: Evidence) -> Figure:
    """Return the confusion matrix at the threshold: counts, and shares of each answer."""
    part = evidence["confusion"]
    target = evidence["target"]
    figure, axes = panel("Confusion matrix", f"decision at {part['threshold']:.3f}")
    cells = np.array(
        [
            [part["true_positives"], part["false_negatives"]],
            [part["false_positives"], part["true_negatives"]],
        ]
    )
    within = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    for row in range(2):
        for column in range(2):
            colour = ACCENT if row == column else WARM
            strength = 0.08 + 0.72 * within[row, column]
            axes.add_patch(
                _rectangle(column, 1 - row, colour, strength),
            )
            on_dark = strength > 0.5
            axes.text(column + 0.5, 1 - row + 0.56, f"{cells[row, column]:,}", ha="center",
                      va="center", fontsize=12, fontweight="bold",
                      color=PAPER if on_dark else TEXT)  # fmt: skip
            axes.text(column + 0.5, 1 - row + 0.3, f"{within[row, column]:.1%} of the row",
                      ha="center", va="center", fontsize=6.5,
                      color=PAPER if on_dark else SOFT_TEXT)  # fmt: skip
    axes.set(xlim=(0, 2), ylim=(0, 2))
    yes, no = _short(target["positive"], 12), _short(target["negative"], 12)
    axes.set_xticks([0.5, 1.5], [f"decided {yes}", f"decided {no}"], color=TEXT)
    axes.set_yticks([1.5, 0.5], [f"was {yes}", f"was {no}"], color=TEXT)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.xaxis.tick_top()
    return figure


def profit(evidence: Evidence) -> Figure | None:
    """Return the profit by share contacted; None without costs."""
    part = evidence["profit"]
    if part is None:
        return None
    unit = _short(part["unit"], 14)
    chosen = part["chosen"]
    figure, axes = panel(
        "Profit",
        f"{chosen['profit']:,.0f} {unit} of 1,000 customers, {chosen['share']:.0%} contacted",
    )
    share = np.array([0.0, *(point["share"] for point in part["curve"])])
    value = np.array([0.0, *(point["profit"] for point in part["curve"])])
    axes.axhline(0, color=TEXT, lw=0.6)
    axes.fill_between(share, value, 0, where=(value > 0).tolist(), color=GOOD, alpha=0.1, lw=0,
                      interpolate=True)  # fmt: skip
    axes.fill_between(share, value, 0, where=(value < 0).tolist(), color=WARM, alpha=0.1, lw=0,
                      interpolate=True)  # fmt: skip
    axes.plot(share, value, color=ACCENT)
    _dot(axes, chosen["share"], chosen["profit"])
    span = value.max() - value.min()
    axes.set(xlim=(0, 1), ylim=(value.min() - 0.12 * span, value.max() + 0.18 * span))
    side = "left" if chosen["share"] < 0.6 else "right"
    note(axes, chosen["share"], chosen["profit"] + 0.1 * span, "threshold", WARM, ha=side)
    note(axes, 0.99, float(value[-1]) - 0.07 * span, f"everybody {value[-1]:,.0f}", ha="right")
    axes.set_xlabel("customers contacted, best-scored first")
    axes.set_ylabel(f"{unit} of 1,000 customers")
    shares(axes, x=True)
    thousands(axes, y=True)
    return figure


def importance(evidence: Evidence) -> Figure | None:
    """Return the permutation importance, the most important on top."""
    part = evidence["importance"]
    if part is None:
        return None
    rows = part["fields"][:16]
    figure, axes = panel(
        "Permutation importance",
        f"{part['rows']:,} validation rows, {part['repeats']} shuffles",
        height=_tall(len(rows)),
    )
    places = np.arange(len(rows))[::-1]
    axes.barh(places, [each["loss"] for each in rows], 0.6,
              color=[ACCENT if each["low"] > 0 else SOFT for each in rows])  # fmt: skip
    axes.hlines(places, [each["low"] for each in rows], [each["high"] for each in rows],
                color=TEXT, lw=1.0, alpha=0.65)  # fmt: skip
    axes.axvline(0, color=TEXT, lw=0.6)
    axes.set_yticks(places, [_short(each["field"]) for each in rows], color=TEXT)
    axes.grid(False, axis="y")
    axes.set_xlabel("loss of ROC AUC when shuffled (line: least and most)")
    return figure


def contributions(evidence: Evidence) -> Figure | None:
    """Return the Shapley contributions as swarms, the field that moves scores most on top."""
    part = evidence["contributions"]
    if part is None:
        return None
    fields = part["fields"][:14]
    figure, axes = panel(
        "What moves the score",
        f"Shapley contributions of {part['rows']:,} customers, in points of the score",
        height=_tall(len(fields), 0.28),
    )
    reach = max(abs(value) for each in fields for value in each["values"]) or 0.01
    for place, each in enumerate(reversed(fields)):
        values = np.array(each["values"])
        colours: Any = MUTED
        if each["levels"] is not None:
            levels = np.array([np.nan if level is None else level for level in each["levels"]])
            colours = np.where(
                np.isnan(levels)[:, None], _rgba(MUTED), _VALUES(np.nan_to_num(levels))
            )
        axes.axhline(place, color=RULE, lw=0.6, zorder=0)
        axes.scatter(values, place + _swarm(values, reach), s=5, c=colours, lw=0, alpha=0.8)
    axes.axvline(0, color=TEXT, lw=0.6)
    axes.set_yticks(range(len(fields)), [_short(each["field"]) for each in reversed(fields)],
                    color=TEXT)  # fmt: skip
    axes.set(ylim=(-0.6, len(fields) - 0.4), xlim=(-1.08 * reach, 1.08 * reach))
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}" if value else "0")
    axes.set_xlabel("points of the score, against the typical customer")
    # The key: what a dot's colour says.
    right = 0.985
    for words, colour in (("high", WARM), ("low", ACCENT), ("category or missing", MUTED)):
        figure.text(right, 0.06 / figure.get_figheight(), f"\u25cf {words}", fontsize=6,
                    color=colour, ha="right")  # fmt: skip
        right -= (0.115 + 0.052 * len(words)) / figure.get_figwidth()
    margins(figure, below=0.16)
    return figure


def slices(evidence: Evidence) -> Figure | None:
    """Return ROC AUC by slice with intervals, slices of a column together."""
    rows = [each for each in evidence["slices"] if each["auc"] is not None]
    if not rows:
        return None
    whole = evidence["roc"]["auc"]
    gaps = np.cumsum(
        [0.0, *(0.5 if one["column"] != two["column"] else 0.0
                for one, two in pairwise(rows))]
    )  # fmt: skip
    places = -(np.arange(len(rows)) + gaps)
    left_out = len(evidence["slices"]) - len(rows)
    few = f"; {left_out} with too few rows left out" if left_out else ""
    figure, axes = panel("ROC AUC by slice", f"all rows {whole:.3f}{few}",
                         height=_tall(len(rows) + float(gaps[-1]), 0.17))  # fmt: skip
    axes.axvline(whole, color=MUTED, lw=0.9, ls=(0, (3, 3)))
    colours = [WARM if each["high"] < whole else ACCENT for each in rows]
    axes.hlines(places, [each["low"] for each in rows], [each["high"] for each in rows],
                color=colours, lw=1.3, alpha=0.6)  # fmt: skip
    axes.scatter([each["auc"] for each in rows], places, s=14, c=colours, lw=0, zorder=3)
    axes.set_yticks(
        places,
        [_short(f"{each['column']} = {each['value'] or 'missing'}") for each in rows],
        color=TEXT,
    )
    high = max(each["high"] for each in rows)
    low = min(each["low"] for each in rows)
    axes.set_xlim(low - 0.03 * (high - low), high + 0.22 * (high - low))
    for place, each in zip(places, rows, strict=True):
        note(axes, high + 0.2 * (high - low), float(place), f"{each['rows']:,}", ha="right")
    axes.grid(False, axis="y")
    axes.set_xlabel("ROC AUC with 95 % interval; rows at the right")
    return figure


def months(evidence: Evidence) -> Figure | None:
    """Return ROC AUC by month: filled where scored out of fold, hollow where by earlier months."""
    rows = [each for each in evidence["months"] if each["auc"] is not None]
    if not rows:
        return None
    figure, axes = panel("ROC AUC by month", "with 95 % intervals, by fits that had not seen it")
    places = {period: place for place, period in enumerate(sorted({e["period"] for e in rows}))}
    axes.axhline(0.5, color=MUTED, lw=0.9, ls=(0, (3, 3)))
    names = {
        "out of fold": ("validation, out of fold", ACCENT, ACCENT),
        "by the months before": ("by the months before it alone", PAPER, ACCENT),
    }
    for how, (label, fill, edge) in names.items():
        own = [each for each in rows if each["how"] == how]
        if own:
            x = [places[each["period"]] for each in own]
            axes.vlines(x, [e["low"] for e in own], [e["high"] for e in own], color=edge, lw=1.3,
                        alpha=0.6)  # fmt: skip
            axes.scatter(x, [e["auc"] for e in own], s=20, c=fill, ec=edge, lw=1.2, zorder=3,
                         label=label)  # fmt: skip
    low, high = min(0.5, *(e["low"] for e in rows)), max(e["high"] for e in rows)
    axes.set(xlim=(-0.6, len(places) - 0.4),
             ylim=(low - 0.03, min(1.02, high + 0.3 * (high - low))))  # fmt: skip
    every = -(-len(places) // 6)
    ticks = [period for period, place in places.items() if place % every == 0]
    axes.set_xticks([places[period] for period in ticks], ticks)
    axes.set_xlabel("month")
    axes.set_ylabel("ROC AUC")
    axes.grid(False, axis="x")
    axes.legend(loc="upper left", ncols=2, handletextpad=0.2, columnspacing=1.0, borderaxespad=0.2)
    return figure


def learning(evidence: Evidence) -> Figure | None:
    """Return the learning curve by rows fitted, with intervals."""
    rows = evidence["learning"]
    if not rows:
        return None
    figure, axes = panel("Learning curve", "the same validation rows, fitted on fewer months")
    x = [each["rows"] for each in rows]
    axes.fill_between(x, [e["low"] for e in rows], [e["high"] for e in rows], color=ACCENT,
                      alpha=0.1, lw=0)  # fmt: skip
    axes.plot(x, [each["auc"] for each in rows], color=ACCENT, marker="o", ms=4, mew=0)
    low, high = min(e["low"] for e in rows), max(e["high"] for e in rows)
    span = max(high - low, 0.02)
    labelled = -np.inf
    for each in rows:
        months = each["months"]
        if each["rows"] - labelled < 0.17 * max(x):
            continue  # it would stand on the one before
        labelled = each["rows"]
        note(axes, each["rows"], each["auc"] + 0.09 * span,
             f"{months} month{'s' if months != 1 else ''}", ha="center")  # fmt: skip
    axes.set(ylim=(low - 0.08 * span, high + 0.15 * span), xlim=(0, 1.12 * max(x)))
    axes.set_xlabel("rows fitted, the latest months of the window")
    axes.set_ylabel("ROC AUC with 95 % interval")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    thousands(axes, x=True)
    return figure


def _interval(value: float, low: float, high: float, digits: int = 3) -> str:
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _short(words: str, longest: int = LONGEST_LABEL) -> str:
    """Return words of one line that fit: a value of the data may be of any length."""
    line = " ".join(str(words).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _tall(rows: float, each: float = 0.2) -> float:
    return max(2.7, 0.95 + each * rows)


def _dot(axes: Any, x: float, y: float) -> None:
    axes.plot([x], [y], marker="o", ms=5, color=WARM, mec=PAPER, mew=0.8, zorder=4, clip_on=False)


def _beside(axes: Any, x: float, y: float, words: str, top: float = 1.0) -> None:
    """Write words below and right of a point, or left of it where there is no room."""
    right = x < 0.68
    note(axes, x + (0.03 if right else -0.03), y - 0.055 * top, words, WARM,
         ha="left" if right else "right")  # fmt: skip


def _unit_square(axes: Any, x: str, y: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.0))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    shares(axes, x=True, y=True)


def _rectangle(x: float, y: float, colour: str, strength: float) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch(
        (x + 0.03, y + 0.03), 0.94, 0.94, boxstyle="round,pad=0,rounding_size=0.04",
        fc=(*_rgba(colour)[:3], strength), ec="none",
    )  # fmt: skip


def _rgba(colour: str) -> tuple[float, float, float, float]:
    from matplotlib.colors import to_rgba

    return to_rgba(colour)


def _swarm(values: Any, reach: float) -> Any:
    """Return by how much each point is moved up or down, so that equal ones are all seen."""
    cells = np.round(values / reach * 70).astype(int)
    offsets = np.zeros(len(values))
    for cell in np.unique(cells):
        here = np.flatnonzero(cells == cell)
        ranks = np.arange(len(here))
        offsets[here] = (ranks + 1) // 2 * np.where(ranks % 2, 1, -1)
    # Where many are equal (all zeros), the swarm ends before the next field's begins.
    return 0.4 * np.tanh(offsets * 0.2)
