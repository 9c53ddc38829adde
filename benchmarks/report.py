"""Draws what the benchmarks have written: tables and pictures of docs/performance.md and others.

It measures nothing: whatever lies in `benchmarks/results` is shown. The tables stand between
markers; the text around them is written by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file, no window

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from mlops.replay.words import FIGURES, NAMES, cell, version_changes

ROOT = Path(__file__).resolve().parent.parent

OURS, OTHERS, FLOOR = "#1f6fb4", "#9aa5b1", "#d9c27e"
INK = "#333333"
GOAL = "#b4431f"
_FLOORS = ("constant", "constant_gthread")


def main() -> None:
    """Write every table and picture for which there is a result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="holds benchmarks, docs and images")
    root = parser.parse_args().root
    for name, tell, picture, document in (
        ("serving", tell_serving, "serving-benchmark.png", "performance.md"),
        ("load", tell_load, "serving-load.png", "performance.md"),
        ("training", tell_training, "training-pipeline.png", "performance.md"),
        ("growth", tell_growth, "training-growth.png", "performance.md"),
        ("replay", tell_replay, "replay.png", "retraining.md"),
        ("ablation", tell_ablation, None, "retraining.md"),
        ("literature", tell_literature, None, "results.md"),
        ("replay", tell_out_of_time, None, "results.md"),
    ):
        file = root / "benchmarks" / "results" / f"{name}.json"
        if file.exists():
            figures = json.loads(file.read_text())
            told = tell(figures, root / "images" / picture) if picture else tell(figures)
            _replace(root / "docs" / document, name, told)


def tell_serving(figures: dict[str, Any], picture: Path) -> str:
    """Draw the picture; return the table in Markdown."""
    servers = figures["servers"]
    _draw_serving(servers, figures, picture)
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("requests/s", lambda one: _spread(one, "rps", "{:,.0f}")),
        ("p50 ms", lambda one: _spread(one, "p50_ms", "{:.2f}")),
        ("p99 ms", lambda one: _spread(one, "p99_ms", "{:.1f}")),
        ("p99 ms at half load", lambda one: _spread(one, "half_load_p99_ms", "{:.1f}")),
        ("rows/s, 1,000 a request", lambda one: _spread(one, "rows_per_s", "{:,.0f}")),
        ("start s", lambda one: _spread(one, "start_s", "{:.2f}")),
        ("memory MB", lambda one: _spread(one, "memory_mb", "{:,.0f}")),
        ("installed MB", lambda one: f"{one['environment_mb']:,.0f}"),
        (f"{figures['batch_rows']:,} rows s", lambda one: _spread(one, "file_s", "{:.1f}")),
        ("peak MB of it", lambda one: _spread(one, "file_peak_mb", "{:,.0f}")),
    ]
    # Servers beside one another: a table of eleven columns is read by nobody.
    names = list(servers)
    lines = [
        "| | " + " | ".join(servers[name]["title"] for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    lines += [
        f"| {title} | " + " | ".join(cell(servers[name]) for name in names) + " |"
        for title, cell in columns
    ]
    ratios = [
        f"requests/s {_times(figures[f'rps_ratio_{name}'])} `{name}`"
        for name in ("mlflow", "bentoml", "fastapi")
    ]
    ours = servers["ours"]
    lines += [
        "",
        f"Ours against them, median of the rounds' ratios: {', '.join(ratios)}; p50 "
        f"{_times(figures['p50_ratio_mlflow'])} `mlflow`; {_times(figures['rps_ratio_floor'])} the "
        "requests/s of the floor.",
        "",
        f"The log of ours: at most {_most(ours, 'log_backlog'):,.0f} answered rows were not in "
        f"Postgres when a round ended, which took {_most(ours, 'log_ship_s'):.1f} s to catch up "
        f"({_most(ours, 'file_log_ship_s'):.1f} s after the file); {figures['lost_log_rows']} were "
        f"lost. {figures['failed_requests']} requests failed, of all servers together.",
        "",
        _circumstances(figures)
        + f" The load generator took {ours['generator_us']['median']:.0f} µs of processor time a "
        "request.",
    ]
    return "\n".join(lines)


def tell_load(figures: dict[str, Any], picture: Path) -> str:
    """Draw the picture; return the table in Markdown."""
    _draw_load(figures, picture)
    rows = [
        ("minutes", f"{figures['seconds'] / 60:.1f}"),
        ("requests", f"{figures['requests']:,} ({figures['rps']:,.0f} a second)"),
        ("failed requests", f"{figures['failed_requests']}"),
        ("lost log rows", f"{figures['lost_log_rows']}"),
        ("p50, p99, longest", _latencies(figures)),
        ("versions swapped", f"{figures['swaps']} times"),
        ("Postgres killed", f"{figures['postgres_kills']} times, away {_away(figures)}"),
        ("rows that waited for Postgres, at most", f"{figures['log_backlog_max']:,}"),
        (
            "memory",
            f"{figures['memory_begin_mb']:.0f} to {figures['memory_end_mb']:.0f} MB, "
            f"{figures['memory_slope_mb_per_min']:+.2f} MB a minute",
        ),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join([*lines, "", _circumstances(figures)])


def tell_training(figures: dict[str, Any], picture: Path) -> str:
    """Draw where the time of a pipeline goes, if one was run; return the tables in Markdown."""
    timed = figures["pairs"][: figures["conditions"]["rounds"]]
    rows: list[tuple[str, str, str]] = [
        ("wall s", "wall_s", "{:.1f}"),
        ("processor s", "cpu_s", "{:.1f}"),
        ("peak MB", "peak_mb", "{:,.0f}"),
    ]
    lines = ["| | ours | the plain way | ours / plain |", "|---|---|---|---|"]
    for title, name, form in rows:
        ours, plain = ([pair[way][name] for pair in timed] for way in ("ours", "plain"))
        ratio = statistics.median(mine / other for mine, other in zip(ours, plain, strict=True))
        lines.append(
            f"| {title} | {_range(ours, form)} | {_range(plain, form)} | **{ratio:.2f}** |"
        )
    lines += [
        f"| ROC AUC, mean of {figures['windows']} windows | **{figures['auc_ours']:.4f}** "
        f"| **{figures['auc_plain']:.4f}** | {figures['auc_ours'] - figures['auc_plain']:+.4f} |",
        "",
        f"The clock is read on {timed[0]['window']} ({timed[0]['rows']:,} rows), median of "
        f"{len(timed)} pairs with the lowest and highest. Seconds of each model there, ours side "
        "by side (scored out of fold, then fitted) and the plain way one after the other: "
        f"{_seconds_by_model(timed)}.",
        "",
        "| window | months after it | rows after | ours | ROC AUC | the plain way | ROC AUC |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair in [timed[0], *figures["pairs"][len(timed) :]]:
        ours, plain = pair["ours"], pair["plain"]
        lines.append(
            f"| {pair['window']} | {pair['later']} | {pair['later_rows']:,} | {ours['best']} "
            f"| {ours['auc']:.3f} | {plain['best']} | {plain['auc']:.3f} |"
        )
    if figures["pipeline"]:
        lines += ["", *_pipeline_lines(figures["pipeline"]["rounds"], picture)]
    return "\n".join([*lines, "", _where(figures)])


PHASES = {
    "mage_starts": "asked for → the first block runs",
    "start_block": "block *start*: window recorded, rows checked",
    "mage_fans_out": "→ the first candidate's block runs",
    "before_learning": "its process, rows from Postgres, run in MLflow",
    "learning": "**at least one candidate learns**",
    "between_learning": "none learns, though not all have",
    "logging": "the last one writes its run: model, reference, metrics",
    "mage_joins": "→ block *leaderboard* runs",
    "leaderboard_block": "block *leaderboard*: ranked and registered",
    "mage_ends": "→ completed, as seen by who waits",
}
"""Parts of a pipeline run, in their order."""


def _pipeline_lines(rounds: list[dict[str, float]], picture: Path) -> list[str]:
    """Draw the parts of a pipeline run; return their table in Markdown."""
    middles = {name: statistics.median(one[name] for one in rounds) for name in PHASES}
    _draw_pipeline(middles, picture)
    lines = [f"| where the time of *train* goes, median of {len(rounds)} runs | s |", "|---|---|"]
    lines += [f"| {PHASES[name]} | {seconds:.2f} |" for name, seconds in middles.items()]
    for name, title in (("overhead", "**all but learning**"), ("total", "asked for → completed")):
        lines.append(f"| {title} | {_range([one[name] for one in rounds], '{:.1f}')} |")
    return [*lines, "", f"![Where the time of train goes](../images/{picture.name})"]


def _draw_pipeline(middles: dict[str, float], path: Path) -> None:
    drawing, axis = plt.subplots(figsize=(12, 4.4), layout="constrained")
    begin = 0.0
    for place, (name, seconds) in enumerate(middles.items()):
        axis.barh(place, seconds, left=begin, color=OURS if name == "learning" else GOAL)
        axis.annotate(
            f"{seconds:.2f}",
            (begin + seconds, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=INK,
        )
        begin += seconds
    axis.set_yticks(
        range(len(middles)), [PHASES[name].replace("*", "") for name in middles], fontsize=10
    )
    axis.invert_yaxis()
    axis.set_xlabel("seconds since it was asked for", color=INK)
    axis.set_xlim(0, begin * 1.06)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False, colors=INK)
    drawing.suptitle(
        f"Pipeline train: {begin:.1f} s, of which {begin - middles['learning']:.1f} s are not "
        "learning",
        x=0.01,
        ha="left",
        fontsize=13,
        color=INK,
    )
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def _seconds_by_model(timed: list[dict[str, Any]]) -> str:
    found = []
    for name in timed[0]["ours"]["seconds"]:
        ours, plain = (
            statistics.median(pair[way]["seconds"][name] for pair in timed)
            for way in ("ours", "plain")
        )
        found.append(f"{name} {ours:.1f} and {plain:.1f}")
    return ", ".join(found)


def _range(values: list[float], form: str) -> str:
    text = f"**{form.format(statistics.median(values))}**"
    if len(values) > 1:
        text += f" ({form.format(min(values))} … {form.format(max(values))})"
    return text


def tell_growth(figures: dict[str, Any], picture: Path) -> str:
    """Draw seconds and memory by rows; return the table in Markdown."""
    fits = figures["fits"]
    sizes = sorted({each["rows"] for each in fits})
    names = list(dict.fromkeys(each["candidate"] for each in fits))
    _draw_growth(fits, names, sizes, picture)
    lines = [
        "| | " + " | ".join(f"{size:,} rows" for size in sizes) + " | fitted on, of the most |",
        "|---|" + "---|" * (len(sizes) + 1),
    ]
    for name in names:
        by_size = {each["rows"]: each for each in fits if each["candidate"] == name}
        last = by_size.get(sizes[-1])
        fitted = "-" if last is None or last["ended"] else f"{last['fitted_rows']:,}"
        cells = " | ".join(_fit(by_size.get(size)) for size in sizes)
        lines.append(f"| {name} | {cells} | {fitted} |")
    picture_line = f"![What a candidate takes as a table grows](../images/{picture.name})"
    return "\n".join([*lines, "", _where(figures), "", picture_line])


def _fit(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    if found["ended"]:
        return f"ended after {found['seconds']:.0f} s ({found['ended']})"
    return f"{found['seconds']:.1f} s · {found['peak_mb'] / 1000:.1f} GB"


def _draw_growth(
    fits: list[dict[str, Any]], names: list[str], sizes: list[int], path: Path
) -> None:
    drawing, axes = plt.subplots(1, 2, figsize=(14, 6), layout="constrained")
    colours = dict(zip(names, plt.get_cmap("Dark2").colors, strict=False))  # type: ignore[attr-defined]
    for axis, key, scale, title in (
        (axes[0], "seconds", 1.0, "Seconds of one fit, one thread"),
        (axes[1], "peak_mb", 1000.0, "Peak memory of its process, GB (rows included)"),
    ):
        ends = []
        for name in names:
            done = [each for each in fits if each["candidate"] == name and not each["ended"]]
            if not done:
                continue
            axis.plot(
                [each["rows"] for each in done],
                [each[key] / scale for each in done],
                color=colours[name],
                marker="o",
                linewidth=2,
            )
            ends.append((done[-1][key] / scale, done[-1]["rows"], name))
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=10)
        axis.minorticks_off()
        if key == "peak_mb":  # less than two decades: tens would be one line
            low, high = axis.get_ylim()
            axis.set_yticks([tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16) if low < tick < high])
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlim(sizes[0] / 1.4, sizes[-1] * 9)
        _label_ends(axis, ends, colours)
        axis.set_title(title, loc="left", fontsize=12, color=INK)
        axis.set_xlabel("rows of the window", color=INK)
        axis.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK)
    drawing.suptitle(
        "What a candidate takes as a table grows; flat lines are those that take max_rows only",
        x=0.01,
        ha="left",
        fontsize=13,
        color=INK,
    )
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def _label_ends(axis: Axes, ends: list[tuple[float, int, str]], colours: dict[str, Any]) -> None:
    """Name each line at its end, names moved apart where lines end together."""
    low, high = axis.get_ylim()
    step = (math.log(high) - math.log(low)) / 18
    place = -math.inf
    for value, rows, name in sorted(ends):
        place = max(math.log(value), place + step)
        axis.annotate(
            name,
            (rows, value),
            xytext=(rows * 1.35, math.exp(place)),
            va="center",
            fontsize=10,
            color=colours[name],
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.6},
        )
    axis.set_ylim(low, max(high, math.exp(place + step)))


def tell_replay(figures: dict[str, Any], picture: Path) -> str:
    """Draw the picture; return the table in Markdown."""
    _draw_replay(figures, picture)
    policies = figures["policies"]
    unit = figures["unit"]
    lines = [
        "| | " + " | ".join(NAMES[name] for name in policies) + " |",
        "|---|" + "---|" * len(policies),
    ]
    for head, _, key, form in FIGURES:
        title = f"{head}, {unit}" if key == "profit" and unit else head
        cells = " | ".join(cell(found[key], form) for found in policies.values())
        lines.append(f"| {title} | {cells} |")
    alarms = figures["false_alarms"]
    return "\n".join(
        [
            *lines,
            "",
            f"False alarms, where nothing happened: {alarms['alarms']} in {alarms['months']} "
            f"months ({alarms['false_alarm_rate']:.1%}). {_where(figures)}",
        ]
    )


def tell_ablation(figures: dict[str, Any]) -> str:
    """Return the table in Markdown, a row a variant, each with its command."""
    lines = [
        "| variant | ROC AUC | Brier | avg. precision | lift 10 % | profit | retrains | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        found = row["figures"]
        cells = [
            cell(found[key], form)
            for key, form in (
                ("roc_auc", "{:.4f}"),
                ("brier", "{:.4f}"),
                ("average_precision", "{:.4f}"),
                ("lift_at_10", "{:.2f}"),
                ("profit", "{:,.0f}"),
                ("retrains", "{}"),
            )
        ]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | `{row['command']}` |")
    return "\n".join([*lines, "", _where(figures)])


def tell_literature(figures: dict[str, Any]) -> str:
    """Return the table in Markdown, a row a split and model, each with its command."""
    lines = [
        "| what | columns | rows scored | ROC AUC | 95 % interval | avg. precision | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        found = row["figures"]
        cells = [
            row["name"],
            str(found["columns"]),
            f"{found['rows']:,}",
            f"**{found['roc_auc']:.4f}**",
            f"{found['low']:.4f} to {found['high']:.4f}",
            f"{found['average_precision']:.4f}",
            f"`{row['command']}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _where(figures)])


def tell_out_of_time(figures: dict[str, Any]) -> str:
    """Return the replay's ROC AUC in Markdown, a row a policy: what months to come really gave."""
    lines = ["| policy | ROC AUC, pooled | mean of months | command |", "|---|---|---|---|"]
    for name, found in figures["policies"].items():
        lines.append(
            f"| {NAMES[name]} | **{found['roc_auc']:.4f}** | {found['mean_monthly_auc']:.4f} "
            "| `make bench-replay` |"
        )
    return "\n".join([*lines, "", _where(figures)])


def _where(figures: dict[str, Any]) -> str:
    machine = figures["machine"]
    data = "GENERATED data" if figures["source"] == "generated" else "real data"
    return (
        f"Commit {figures['commit']}, {data}; {figures['seconds']:.0f} s on {machine['cores']} "
        f"cores of {machine['cpu']}, load average before the start {machine['load_at_start']}."
    )


def _latencies(figures: dict[str, Any]) -> str:
    return " · ".join(f"{figures[name]:.1f} ms" for name in ("p50_ms", "p99_ms", "max_ms"))


def _away(figures: dict[str, Any]) -> str:
    away = [back - killed for killed, back in figures["postgres_down"]]
    return " and ".join(f"{seconds:.0f} s" for seconds in away)


def _circumstances(figures: dict[str, Any]) -> str:
    machine, model = figures["machine"], figures["model"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Commit {figures['commit']}; {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['memory_gb']:.0f} GB, {machine['system']}, Python {machine['python']}; load "
        f"average before the start {machine['load_at_start']}; XGBoost of {model['trees']} trees "
        f"on {model['features']} columns, {model['data']} data; {versions}."
    )


def _spread(one: dict[str, Any], name: str, form: str) -> str:
    """Return median and, where there was more than one round, lowest and highest."""
    if name not in one:
        return "-"
    found = one[name]
    text = f"**{form.format(found['median'])}**"
    if found["n"] > 1:
        text += f" ({form.format(found['min'])} … {form.format(found['max'])})"
    return text


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g} times"


def _most(one: dict[str, Any], name: str) -> float:
    return float(one[name]["max"]) if name in one else 0.0


def _replace(document: Path, name: str, text: str) -> None:
    """Put `text` between the markers of `name` in the document."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = document.read_text()
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(content):
        raise SystemExit(f"{document.name} has no lines `{begin}` and `{end}` to put the table in")
    document.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", content))


def _draw_serving(servers: dict[str, Any], figures: dict[str, Any], path: Path) -> None:
    goals: list[tuple[str, str, str, float | None]] = [
        ("Requests a second, one row each", "rps", "{:,.0f}", None),
        ("p50 of these, ms (less is better)", "p50_ms", "{:.2f}", None),
        ("p99 at half of the maximum load, ms", "half_load_p99_ms", "{:.1f}", 10.0),
        ("Thousand rows a second, 1,000 a request", "rows_per_s", "{:,.0f}", None),
        (f"{figures['batch_rows']:,} rows of a file, s", "file_s", "{:.1f}", 10.0),
        ("Start to first right answer, s", "start_s", "{:.2f}", 2.0),
    ]
    drawing, axes = plt.subplots(2, 3, figsize=(15, 7.2), layout="constrained")
    for axis, (title, name, form, goal) in zip(axes.flat, goals, strict=True):
        scale = 1000 if name == "rows_per_s" else 1
        shown = {key: one for key, one in servers.items() if name in one}
        _bars(axis, shown, name, form, scale)
        axis.set_title(title, loc="left", fontsize=11, color=INK)
        if goal is not None:
            axis.axvline(goal, color=GOAL, linewidth=1, linestyle="--", zorder=0)
            axis.annotate(
                f"goal {goal:g}",
                (goal, 0.01),
                xycoords=axis.get_xaxis_transform(),
                xytext=(4, 0),
                textcoords="offset points",
                color=GOAL,
                fontsize=8,
            )
    machine = figures["machine"]
    drawing.suptitle(
        f"The predict API beside its peers: median of {figures['conditions']['rounds']} rounds, "
        f"lines from lowest to highest · {machine['cores']} cores, two workers each, "
        f"{figures['conditions']['connections']} connections, new for each request",
        fontsize=12,
        color=INK,
        x=0.01,
        ha="left",
    )
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def _bars(axis: Axes, shown: dict[str, Any], name: str, form: str, scale: float) -> None:
    places = range(len(shown))
    middles = [one[name]["median"] / scale for one in shown.values()]
    low = [one[name]["min"] / scale for one in shown.values()]
    high = [one[name]["max"] / scale for one in shown.values()]
    colours = [OURS if key == "ours" else FLOOR if key in _FLOORS else OTHERS for key in shown]
    axis.barh(places, middles, color=colours, height=0.68)
    axis.errorbar(
        middles,
        places,
        xerr=[
            [middle - least for middle, least in zip(middles, low, strict=True)],
            [most - middle for middle, most in zip(middles, high, strict=True)],
        ],
        fmt="none",
        ecolor=INK,
        elinewidth=1.2,
        capsize=3,
    )
    for place, middle, most in zip(places, middles, high, strict=True):
        axis.annotate(
            form.format(middle),
            (most, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axis.set_yticks(list(places), [_short(one["title"]) for one in shown.values()], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, max(high) * 1.22)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False, labelsize=9, colors=INK)


def _short(title: str) -> str:
    return title.partition(" (")[0] if title.startswith("ours") else title


def _draw_load(figures: dict[str, Any], path: Path) -> None:
    drawing, (above, middle, below) = plt.subplots(
        3, 1, figsize=(13, 8), sharex=True, layout="constrained"
    )
    times = [one["at_s"] for one in figures["course"]]
    for name, label, colour in (("p99_ms", "p99", OURS), ("p50_ms", "p50", OTHERS)):
        above.plot(times, [one[name] for one in figures["course"]], color=colour, label=label)
    above.set_title(
        f"Latency, ms, at {figures['rate']:,.0f} requests/s (half of the maximum)", loc="left"
    )
    above.set_ylim(0, 1.25 * max(one["p99_ms"] for one in figures["course"]))
    above.legend(frameon=False, loc="upper right", ncols=2)
    middle.fill_between(*_columns(figures["log"]), color=FLOOR, step="post")
    middle.set_title("Answered rows that are on disk and not in Postgres yet", loc="left")
    middle.set_ylim(bottom=0)
    below.plot(*_columns(figures["memory"]), color=OURS)
    below.set_title(
        f"Memory of the service, MB ({figures['memory_slope_mb_per_min']:+.2f} a minute)",
        loc="left",
    )
    below.set_ylim(0, 1.25 * max(size for _, size in figures["memory"]))
    below.set_xlabel("seconds")
    for axis in (above, middle, below):
        # A name that begins with an underscore is left out of the legend.
        for number, (killed, back) in enumerate(figures["postgres_down"]):
            label = "Postgres killed and away" if number == 0 else "_more"
            axis.axvspan(killed, back, color=GOAL, alpha=0.25, linewidth=0, label=label)
        for number, (swapped, _) in enumerate(figures["swapped"]):
            label = "version swapped" if number == 0 else "_more"
            axis.axvline(swapped, color="#777777", alpha=0.45, linewidth=0.7, label=label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(11)
    handles, labels = below.get_legend_handles_labels()
    below.legend(handles, labels, frameon=False, loc="lower right", ncols=2)
    drawing.suptitle(
        f"{figures['requests']:,} requests, {figures['failed_requests']} failed, "
        f"{figures['lost_log_rows']} log rows lost",
        x=0.01,
        ha="left",
        fontsize=13,
        color=INK,
    )
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def _draw_replay(figures: dict[str, Any], path: Path) -> None:
    policies = figures["policies"]
    periods = [month["period"] for month in next(iter(policies.values()))["months"]]
    colours = {"static": OTHERS, "monthly": "#2f8f83", "alert": OURS}
    drawing, (above, below) = plt.subplots(
        2, 1, figsize=(12, 6.6), sharex=True, layout="constrained", height_ratios=(3, 2)
    )
    for axis, key in ((above, "roc_auc"), (below, "prediction_drift")):
        for name in NAMES:  # ours last, on top
            if name not in policies:
                continue
            values = [month[key] for month in policies[name]["months"]]
            axis.plot(
                periods,
                [float("nan") if value is None else value for value in values],
                color=colours[name],
                linewidth=2.6 if name == "alert" else 1.8,
                marker="o",
                markersize=4,
                label=f"{NAMES[name]}: {policies[name]['roc_auc']:.3f} pooled, "
                f"Brier {policies[name]['brier']:.3f}",
            )
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK, labelsize=10)
    for place, version in version_changes(policies["alert"]["months"]):
        for axis in (above, below):
            axis.axvline(place - 0.5, color=OURS, linestyle=":", linewidth=1, alpha=0.7)
        above.annotate(
            f"v{version}",
            (place - 0.5, 1.0),
            xycoords=above.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
            color=OURS,
        )
    above.axhline(0.5, color=GOAL, linestyle="--", linewidth=1)
    above.annotate("a guess", (0.0, 0.5), va="bottom", ha="left", color=GOAL)
    above.set_title("ROC AUC by month", loc="left", fontsize=12, color=INK, pad=18)
    # Below the picture's lines, which fill all of it.
    above.legend(
        frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.04), fontsize=9, ncols=3
    )
    below.set_title(
        "Drift of the scores by month, in standard deviations", loc="left", fontsize=12, color=INK
    )
    below.set_ylim(bottom=0)
    below.set_xticks(range(0, len(periods), 2), periods[::2], fontsize=10)
    drawing.suptitle(
        f"{policies['alert']['retrains']} retrains on alert, {periods[0]} to {periods[-1]}",
        x=0.01,
        ha="left",
        fontsize=14,
        color=INK,
    )
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def _columns(pairs: list[list[float]]) -> tuple[list[float], list[float]]:
    return [one for one, _ in pairs], [other for _, other in pairs]


if __name__ == "__main__":
    main()
