"""Derive the marginals that a sample is generated from; run once per data set, by hand.

    python -m mlops.dataset.derive [--card bank_marketing] <zip or CSV>

It writes shares, quantiles and weights of evidence beside the card, and no row of the data.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from mlops.dataset.card import PERIOD, TARGET, Card, load_card
from mlops.dataset.generate import QUANTILES, marginals_path
from mlops.dataset.sources import read_source
from mlops.settings import get_settings

_BINS = 5  # a number's weights of evidence are given for so many bins of equal rows
_PRIOR = 5.0  # rows of either answer added to a value, so that a rare one weighs little


def derive_marginals(frame: pd.DataFrame, card: Card) -> dict[str, Any]:
    """Return what `mlops.dataset.generate.Marginals` reads, from a frame of `parse_csv`."""
    names = [name for name in card.feature_names if name != card.time.column]
    follows = card.sample.follows if card.sample else {}
    usual: dict[str, Any] = {}
    known = {name: pd.Series(True, index=frame.index) for name in names}
    for name, leader in follows.items():
        known[name] = ~_missing(frame[leader])
        value = frame.loc[~known[name], name].mode(dropna=False).iloc[0]
        if value == value and value != "":
            usual[name] = _plain(value)
    periods = {}
    for period, rows in frame.groupby(PERIOD, sort=True):
        features = {name: _marginal(rows.loc[known[name].loc[rows.index], name]) for name in names}
        periods[str(period)] = {
            "rows": len(rows),
            "positives": int(rows[TARGET].sum()),
            "features": features,
        }
    weights = {}
    for year, rows in frame.groupby(frame[PERIOD].str[:4], sort=True):
        weights[str(year)] = {
            name: _weights(rows.loc[known[name].loc[rows.index], name], rows[TARGET])
            for name in names
        }
    return {"usual": usual, "periods": periods, "weights": weights}


def _missing(values: pd.Series) -> pd.Series:
    return values.isna() | values.eq("")


def _plain(value: Any) -> Any:
    """Return a number or text that YAML writes shortly."""
    if isinstance(value, str):
        return value
    number = round(float(value), 4)
    return int(number) if number.is_integer() else number


def _marginal(values: pd.Series) -> dict[str, Any]:
    if values.dtype == object:
        if values.empty:  # the column that it follows has no value in this month
            return {"": 1.0}
        return {str(k): _plain(v) for k, v in values.value_counts(normalize=True).items()}
    present = values.dropna()
    at = present.quantile(QUANTILES) if len(present) else pd.Series([0.0] * len(QUANTILES))
    marginal: dict[str, Any] = {"at": [_plain(v) for v in at]}
    share = _plain(values.isna().mean()) if len(values) else 0
    if share:
        marginal["missing"] = share
    return marginal


def _weights(values: pd.Series, target: pd.Series) -> dict[str, Any]:
    if values.dtype == object:
        return _evidence(values, target)
    present = values.dropna()
    cuts = present.quantile(np.arange(1, _BINS) / _BINS) if len(present) else pd.Series(dtype=float)
    below = sorted({_plain(value) for value in cuts})
    bins = pd.Series(np.searchsorted(below, present, side="left"), index=present.index)
    evidence = _evidence(bins, target)
    return {"below": below, "weights": [evidence.get(str(b), 0) for b in range(len(below) + 1)]}


def _evidence(values: pd.Series, target: pd.Series) -> dict[str, Any]:
    """Return ln(share among positives / share among negatives) by value."""
    counts = pd.crosstab(values, target.loc[values.index]).reindex(columns=[0, 1], fill_value=0)
    totals = counts.sum()
    share = (counts + _PRIOR * totals / totals.sum()) / (totals + _PRIOR)
    return {str(k): round(float(v), 2) for k, v in np.log(share[1] / share[0]).items()}


class _Dumper(yaml.SafeDumper):
    """Writes the innermost lists and mappings on one line."""


def _flat(dumper: yaml.SafeDumper, data: dict[str, Any]) -> yaml.Node:
    inner = not any(isinstance(value, dict) for value in data.values())
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=inner)


_Dumper.add_representer(dict, _flat)
_Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True),
)


def main() -> None:
    """Read the arguments and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--card", default="bank_marketing")
    parser.add_argument("data", type=Path, help="zip or CSV of the real data")
    arguments = parser.parse_args()
    card = load_card(arguments.card)
    settings = get_settings().model_copy(update={"data": str(arguments.data)})
    raw = read_source(card, settings)
    path = marginals_path(card)
    head = (
        f"# Marginals of {card.title}, from which a sample is generated where the data cannot be\n"
        f"# had. Written by `python -m mlops.dataset.derive --card {card.name} <data>` from\n"
        f"# sha256 {raw.sha256}.\n"
        f"# `at`: values at the quantiles {', '.join(f'{q:g}' for q in QUANTILES)}.\n"
        '# "": missing. `weights`: ln(share among positives / share among negatives) by year.\n'
    )
    body = yaml.dump(
        derive_marginals(raw.frame, card),
        Dumper=_Dumper,
        sort_keys=False,
        width=100,
        allow_unicode=True,
    )
    body = body.replace("? '' :", "'':")  # the same to YAML, and to people's eyes not
    path.write_text(head + body, encoding="utf-8")
    print(f"{path}: {len(body.splitlines())} lines from {raw.rows} rows")


if __name__ == "__main__":
    main()
