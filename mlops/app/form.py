"""The form of the page *Try it*, described from the API's `model.json`.

Pure functions: a description of the model goes in, fields and sentences come out. It never draws
and never calls the API, so it needs no Streamlit; it knows no column of any data set.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

#: What a field that is left empty stands for among a select box's options.
EMPTY = ""


class FormError(ValueError):
    """The description of a model lacks what a form needs."""


@dataclass(frozen=True)
class Field:
    """One input of the model as a person fills it in.

    `default` is the typical value: None for a number, `EMPTY` for a category that is typically
    missing. `optional` says whether it may be left empty. `options` are a category's values, with
    `EMPTY` first where it is optional. `decimals` are those of about a hundredth of the range.
    """

    name: str
    label: str
    kind: Literal["number", "category"]
    help: str
    default: float | int | str | None
    optional: bool
    options: tuple[str, ...] = ()
    empty_label: str = "not known"
    integer: bool = False
    decimals: int = 0

    @property
    def step(self) -> float | int:
        """Return by how much the buttons of a number move it."""
        return 1 if self.integer else float(10**-self.decimals)

    @property
    def format(self) -> str | None:
        """Return how to show a number: one decimal more than the step has; None if whole."""
        return None if self.integer else f"%.{self.decimals + 1}f"


@dataclass(frozen=True)
class Verdict:
    """A prediction in words.

    `times` is the probability as a multiple of the base rate, None where that is not told.
    """

    answer: str
    times: float | None
    sentence: str


@dataclass(frozen=True)
class Step:
    """What one field adds to a score (points of 0..1), or what some small ones add together.

    `told` says so in a sentence, one a line for each of several fields.
    """

    label: str
    change: float
    told: str


@dataclass(frozen=True)
class Explanation:
    """How a score comes about: from the reference customer's `base` by `steps` to `probability`.

    The steps add up to the difference of the two, the largest first; `sentence` says it in words.
    """

    base: float
    steps: tuple[Step, ...]
    probability: float
    sentence: str


#: Steps that are drawn one by one; smaller ones are drawn together.
STEPS = 9
#: What changes a score by less (points of 0..1) is drawn with others of its kind.
SMALL = 0.0005


def fields(model: Mapping[str, Any]) -> list[Field]:
    """Return the fields of the form for `model` (the content of `model.json`), in its order.

    The typical record that the model names as `reference` fills the form in; where it is silent,
    medians and most frequent values do. Raises FormError, naming the input and what is wrong, if no
    form can be made.
    """
    inputs = model.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise FormError("model.json: `inputs` must be a list of at least one input")
    reference = model.get("reference") or {}
    return [_field(entry, number, reference) for number, entry in enumerate(inputs, start=1)]


def _field(entry: Any, number: int, reference: Mapping[str, Any]) -> Field:
    if not isinstance(entry, Mapping) or not entry.get("name"):
        raise FormError(f"model.json: input {number} has no `name`")
    name = str(entry["name"])
    kind = entry.get("kind")
    # What is typically missing may be left empty, whether or not the card has a word for it.
    usually_empty = name in reference and reference[name] is None
    optional = bool(entry.get("missing")) or entry.get("required") is False or usually_empty
    if kind == "number":
        median = None if usually_empty else _figure(entry, "median")
        return _number(entry, reference.get(name, median), optional)
    if kind == "category":
        mode = None if usually_empty else entry.get("mode")
        return _category(entry, reference.get(name, mode), optional)
    raise FormError(f"model.json: input {name!r} has kind {kind!r}, not 'number' or 'category'")


def _number(entry: Mapping[str, Any], typical: Any, optional: bool) -> Field:
    low, high, median = (_figure(entry, key) for key in ("min", "max", "median"))
    integer = bool(entry.get("integer"))
    seen = []
    if low is not None and high is not None:
        seen.append(f"In training: {plain(low)} to {plain(high)}")
    if median is not None:
        seen.append(f"median {plain(median)}")
    default: float | int | None = None
    if typical is not None:
        default = round(typical) if integer else float(typical)
    return Field(
        name=str(entry["name"]),
        label=_label(entry),
        kind="number",
        help=_help(entry, ", ".join(seen), optional),
        default=default,
        optional=optional,
        empty_label=_empty_label(entry),
        integer=integer,
        decimals=0 if integer else _decimals(low, high),
    )


def _category(entry: Mapping[str, Any], typical: Any, optional: bool) -> Field:
    values = entry.get("values")
    if not isinstance(values, list):
        raise FormError(f"model.json: category {entry['name']!r} has no list `values`")
    markers = {EMPTY, *map(str, entry.get("missing") or [])}
    options = tuple(str(value) for value in values if str(value) not in markers)
    if optional or not options:
        options = (EMPTY, *options)
    default = str(typical) if typical is not None and str(typical) in options else options[0]
    return Field(
        name=str(entry["name"]),
        label=_label(entry),
        kind="category",
        help=_help(entry, "", optional),
        default=default,
        optional=optional or options == (EMPTY,),
        options=options,
        empty_label=_empty_label(entry),
    )


def _figure(entry: Mapping[str, Any], key: str) -> float | int | None:
    value = entry.get(key)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise FormError(
        f"model.json: input {entry['name']!r} has `{key}` {value!r}; expected a number or null"
    )


def _empty_label(entry: Mapping[str, Any]) -> str:
    for marker in entry.get("missing") or []:
        if any(letter.isalpha() for letter in str(marker)):
            return str(marker)
    return "not known"


def _label(entry: Mapping[str, Any]) -> str:
    words = str(entry["name"]).replace("_", " ").strip()
    unit = entry.get("unit")
    return words[:1].upper() + words[1:] + (f" ({unit})" if unit else "")


def _help(entry: Mapping[str, Any], seen: str, optional: bool) -> str:
    empty = "May be left empty" if optional else ""
    parts = [str(entry.get("description") or "").strip(), seen, empty]
    return " ".join(part.rstrip(".") + "." for part in parts if part)


def _decimals(low: float | None, high: float | None) -> int:
    """Return how many decimals a hundredth of the range has, 0 to 6; 2 where nothing is known."""
    span = (high or 0) - (low or 0)
    return min(max(-round(math.log10(span / 100)), 0), 6) if span > 0 else 2


def record(form: Sequence[Field], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record to send for what was filled in; an empty field is sent as null.

    A field missing from `values` counts as empty.
    """
    sent: dict[str, Any] = {}
    for field in form:
        value = values.get(field.name)
        sent[field.name] = None if value == EMPTY else value
    return sent


def unanswered(form: Sequence[Field], sent: Mapping[str, Any]) -> list[str]:
    """Return the labels of the fields that are empty in `sent` and may not be."""
    return [field.label for field in form if not field.optional and sent.get(field.name) is None]


def base_rate(model: Mapping[str, Any]) -> float | None:
    """Return the share (0..1) of positives in what the model has learnt from, None if not told."""
    rate = (model.get("training") or {}).get("positive_rate")
    return float(rate) if rate is not None else None


def verdict(model: Mapping[str, Any], probability: float, decision: str) -> Verdict:
    """Return `decision`, the API's answer at `probability` (0..1), in words."""
    threshold, rate = float(model["threshold"]), base_rate(model)
    # As many digits as it takes to see on which side of the threshold it lies.
    digits = next((d for d in (1, 2, 3) if f"{probability:.{d}%}" != f"{threshold:.{d}%}"), 1)
    side = "reaches" if probability >= threshold else "is below"
    sentence = (
        f"“{decision}”, because {probability:.{digits}%} {side} the decision threshold of"
        f" {threshold:.{digits}%}."
    )
    if costs := model.get("costs"):
        sentence += (
            f" There contacting earned most: a contact costs {costs['contact']:g} {costs['unit']},"
            f" a success brings {costs['success']:g}."
        )
    if rate:
        sentence += f" The base rate, the share of positives in training, is {percent(rate)}."
    return Verdict(str(decision), probability / rate if rate else None, sentence)


def explanation(model: Mapping[str, Any], answer: Mapping[str, Any]) -> Explanation:
    """Return what /explain answered, in words and ready to be drawn, without what has no effect.

    `answer` is that of `PredictClient.explain`.
    """
    kinds = {str(entry["name"]): entry for entry in model["inputs"]}
    moved = [each for each in answer["contributions"] if each["contribution"] != 0]
    steps = [_step(each, kinds[each["field"]]) for each in moved]
    shown = [step for step in steps if abs(step.change) >= SMALL][:STEPS]
    small = steps[len(shown) :]
    if len(small) == 1:
        shown += small
    elif small:
        told = "\n".join(step.told for step in small)
        shown.append(Step(f"{len(small)} others", sum(step.change for step in small), told))
    base, probability = float(answer["reference_probability"]), float(answer["probability"])
    sentence = (
        "The reference customer, who has the usual value in every field (the median, or the most"
        f" frequent one), scores {percent(base)}. "
    )
    if not steps:
        sentence += "This record scores the same: no field of it changes anything."
    else:
        largest = [f"{step.label} {_adds(step.change)}" for step in shown[:2] if step in steps]
        sentence += f"This record scores {percent(probability)}"
        sentence += f": {', '.join(largest)}." if largest else "."
    return Explanation(base, tuple(shown), probability, sentence)


def _step(part: Mapping[str, Any], entry: Mapping[str, Any]) -> Step:
    name = str(part["field"]).replace("_", " ")
    value, usual = (_value(part[key], entry) for key in ("value", "reference"))
    change = float(part["contribution"])
    told = f"{name} is {value}, usually {usual}: {points(change)}"
    return Step(f"{name} = {value}", change, told)


def _value(value: Any, entry: Mapping[str, Any]) -> str:
    if value is None:
        return _empty_label(entry)
    return plain(value) if isinstance(value, int | float) else str(value)


def _adds(change: float) -> str:
    size = points(abs(change)).removeprefix("+")
    return f"adds {size}" if change > 0 else f"takes {size} off"


def profit_sentence(model: Mapping[str, Any]) -> str:
    """Return what the decision threshold is expected to earn, and by which costs it was chosen."""
    costs, profit = model["costs"], model["profit"]
    unit, rows, chosen = costs["unit"], f"{profit['per_rows']:,}", profit["chosen"]
    everybody = "earn" if profit["all"] >= 0 else "lose"
    return (
        f"Whoever scores at least {percent(model['threshold'])} is contacted:"
        f" {percent(chosen['share'])} of the {profit['rows']:,} customers of validation, which"
        f" {'earns' if chosen['profit'] >= 0 else 'loses'}"
        f" {plain(round(abs(chosen['profit'])))} {unit} per {rows} customers. To contact everybody"
        f" would {everybody} {plain(round(abs(profit['all'])))} {unit}. Assumed in the card: a"
        f" contact costs {plain(costs['contact'])} {unit}, a “{model['target']['positive']}” is"
        f" worth {plain(costs['success'])} {unit}."
    )


def provenance(model: Mapping[str, Any]) -> list[str]:
    """Return who answers, as short phrases: version, candidate, window, rows."""
    training = model.get("training") or {}
    phrases = [f"Version {model['version']}"]
    if model.get("candidate"):
        phrases.append(str(model["candidate"]))
    if training.get("window_start") and training.get("window_end"):
        phrases.append(f"learnt from {training['window_start']} to {training['window_end']}")
    if training.get("rows"):
        phrases.append(f"{training['rows']:,} rows")
    return phrases


def percent(share: float) -> str:
    """Return a share (0..1) as a percentage for a person: two digits where it is small."""
    return f"{share:.2%}" if 0 < share < 0.01 else f"{share:.1%}"


def literal(text: str) -> str:
    """Return a text that holds values of people for Markdown, which shows it as it is."""
    return re.sub(r"([\\`*_\[\]$~:#<])", r"\\\1", text)


def points(change: float) -> str:
    """Return a change of a share (0..1) in percentage points: +5.2 points, two digits if small."""
    return f"{100 * change:+.{1 if abs(change) >= 0.001 else 2}f} points"


def plain(number: float | int | None) -> str:
    """Return a number without the noise of floats: 39, 1,200, 0.25."""
    if number is None:
        return "?"
    if float(number).is_integer():
        return f"{int(number):,}"
    return f"{number:,.4g}"
