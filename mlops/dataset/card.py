"""What a data set is: its source, columns, target and time axis, read from a YAML card.

A card is the only place where a column of a data set is named. This module reads and checks cards;
it never opens the data that they describe.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mlops.dataset.timeline import add_months, month_start

CARDS = Path(__file__).resolve().parent / "cards"

TARGET = "target"
PERIOD = "period"
SCORE = "score"
"""Column of rows that a model has scored: its probability, in a reference one out of fold."""

RESERVED = frozenset({TARGET, PERIOD, SCORE, "row", "sha256"})
"""Columns that a frame or stored table has beside a card's own."""

_IDENTIFIER_BYTES = 63  # longest name that Postgres keeps whole


class CardError(ValueError):
    """A card cannot be found, or says something that cannot be used."""


def _scalar_as_text(value: Any) -> Any:
    """Let markers be written as YAML numbers: `missing: [-1]` means the text "-1"."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _not_a_yaml_boolean(value: Any) -> Any:
    """Catch YAML's trap: `yes` and `no` without quotes are read as true and false."""
    if isinstance(value, bool):
        raise ValueError(
            f"found {str(value).lower()}, which is how YAML reads an unquoted yes or no: "
            'quote it, as in "yes"'
        )
    return value


Text = Annotated[
    str, BeforeValidator(_not_a_yaml_boolean), BeforeValidator(_scalar_as_text), Field()
]
Name = Annotated[Text, Field(min_length=1)]


def _checked_period(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f'found {value!r}, expected year and month in quotes, as in "2008-05"')
    month_start(value)
    return value


Period = Annotated[str, BeforeValidator(_checked_period)]


class _Part(BaseModel):
    """A part of a card: nothing may be changed, and no unknown key may stand in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Part):
    """Where the data is published; without it, data is what MLOPS_DATA names, or a sample."""

    url: str = Field(pattern=r"^https?://", description="Address of the public archive.")
    members: tuple[Text, ...] = Field(
        (), description="Path to the CSV through the archive: a zip in the zip first."
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Checksum of the CSV itself.")


class Target(_Part):
    """The column with the answer."""

    column: Name
    positive: Name
    negative: Name

    @model_validator(mode="after")
    def _two_answers(self) -> Target:
        if self.positive == self.negative:
            raise ValueError(f"positive and negative are both {self.positive!r}")
        return self


class Feature(_Part):
    """A column that a model learns from."""

    name: Name
    kind: Literal["number", "category"]
    description: Text
    unit: Text | None = Field(None, description="Unit of a number, for people.")
    integer: bool = Field(False, description="A number that is always whole.")
    minimum: float | None = Field(None, description="Below this a number cannot be right.")
    maximum: float | None = Field(None, description="Above this a number cannot be right.")
    missing: tuple[Text, ...] = Field((), description="Texts that mean: not known.")
    aliases: tuple[Text, ...] = Field((), description="Names of this column in other copies.")
    drift: bool = Field(True, description="Whether monitoring compares its distribution.")
    learn: bool = Field(
        True, description="Whether models learn from it; if not, it is asked for and logged only."
    )
    empty_until: Period | None = Field(
        None, description="Up to this period the source may hold no value at all."
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Feature:
        if self.name in RESERVED:
            raise ValueError(
                f"{self.name!r} is a name that every table here has already: give the column "
                f"another name, and `aliases: [{self.name}]`"
            )
        if len(self.name.encode()) > _IDENTIFIER_BYTES:
            raise ValueError(f"a name may have {_IDENTIFIER_BYTES} bytes at most: use `aliases`")
        if self.kind == "category":
            given = [
                key
                for key in ("unit", "integer", "minimum", "maximum")
                if getattr(self, key) not in (None, False)
            ]
            if given:
                raise ValueError(f"a category has no {', '.join(given)}")
        elif self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is above maximum {self.maximum:g}")
        return self


class TimeAxis(_Part):
    """How a row's month is known, and which months may be learnt from.

    `month_order`: `column` holds month names, the rows are in order of time, the first is of
    `start`, and a month smaller than the one before starts a new year. `date`: `column` holds
    dates written as `format`. `row_order`: the file tells no time, and its rows, oldest first, are
    dealt evenly over the months from `start` to `end`. A file that has `period_column` states its
    months itself, whatever the kind.
    """

    kind: Literal["month_order", "date", "row_order"]
    column: Name | None = Field(None, description="Where the time stands; none with `row_order`.")
    format: str | None = Field(None, description="Of a date, as in strptime: %Y-%m-%d.")
    start: Period | None = Field(None, description="First period of the source.")
    end: Period | None = Field(None, description="Last period that the source can hold.")
    period_column: Text | None = Field(
        None, description='Optional column of a file that gives the period as "2009-03".'
    )
    history_until: Period | None = Field(
        None,
        description="Last period of files that may be learnt from; what follows has yet to happen."
        " Without it, all that files hold is history.",
    )
    replay_from: Period | None = Field(
        None, description="First month of a replay; without it, the one after `history_until`."
    )
    validation_months: int = Field(2, ge=1, description="Latest months of a window.")

    @model_validator(mode="after")
    def _complete(self) -> TimeAxis:
        if self.kind == "month_order" and self.start is None:
            raise ValueError("`kind: month_order` needs `start`, the period of the first row")
        if self.kind == "date" and self.format is None:
            raise ValueError("`kind: date` needs `format`, as in %Y-%m-%d")
        if self.kind == "month_order" and self.format is not None:
            raise ValueError("`format` belongs to `kind: date`")
        if self.kind == "row_order":
            if self.column is not None or self.format is not None:
                raise ValueError(
                    "`kind: row_order` reads no column: take `column` and `format` out"
                )
            if self.start is None or self.end is None:
                raise ValueError("`kind: row_order` needs `start` and `end`, the months to deal to")
        elif self.column is None:
            raise ValueError(f"`kind: {self.kind}` needs `column`, in which the time stands")
        if self.start and self.end and self.end < self.start:
            raise ValueError(f"end {self.end} is before start {self.start}")
        if self.start and self.history_until:
            earliest = add_months(self.start, self.validation_months)
            if self.history_until < earliest:
                raise ValueError(
                    f"history_until {self.history_until} leaves nothing to fit: with "
                    f"{self.validation_months} validation months it is {earliest} or later"
                )
        return self


class Costs(_Part):
    """What contacting somebody costs and what a positive answer is worth, in `unit`.

    The decision threshold follows from them: see `mlops.training.metrics.best_profit_threshold`.
    """

    contact: float = Field(
        gt=0,
        allow_inf_nan=False,
        strict=True,
        description="Cost of one contact, whatever comes of it.",
    )
    success: float = Field(
        allow_inf_nan=False,
        strict=True,
        description="Value of a positive answer, before the contact's cost.",
    )
    unit: Name = Field(description="Of both, in the plural: euros.")

    @model_validator(mode="after")
    def _worth_it(self) -> Costs:
        if self.success <= self.contact:
            raise ValueError(
                f"success {self.success:g} is not above contact {self.contact:g}: nobody would be "
                "worth a contact, even if the answer were sure"
            )
        return self

    @property
    def break_even(self) -> float:
        """Probability (0..1) from which a contact pays, where it is the true one (Elkan 2001)."""
        return self.contact / self.success


class SampleFile(_Part):
    """The published marginals that a sample is generated from, and how these hang together."""

    file: Text = Field(description="Beside the card; written by `mlops.dataset.derive`.")
    follows: dict[str, str] = Field(
        {}, description="Column → the column whose missing values leave it at its usual value."
    )


class Card(_Part):
    """A data set: everything that the code knows about one."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,47}$", description="Names model and table too.")
    title: Text
    description: Text
    citation: Text
    question: Text
    source: Source | None = None
    separators: tuple[Literal[";", ",", "\t", "|"], ...] = Field((",",), min_length=1)
    decimal: Literal[".", ","] = Field(".", description="What the files write between 1 and 5.")
    missing: tuple[Text, ...] = Field(("",), description="Texts that mean missing in any column.")
    target: Target
    features: tuple[Feature, ...] = Field(min_length=1)
    left_out: dict[str, Text] = Field({}, description="Column → why no model may see it.")
    time: TimeAxis
    costs: Costs | None = Field(
        None, description="What the decision threshold is chosen by; without them, by F1."
    )
    slices: tuple[Name, ...] | None = Field(
        None,
        description="Category columns of which no large value may lose badly by a new model;"
        " without it, all of them.",
    )
    limits: tuple[Text, ...] = Field(
        (), description="What a model of this must not be used for, in sentences; on model cards."
    )
    sample: SampleFile | None = None
    path: Path = Field(description="The card file itself.")

    @field_validator("features")
    @classmethod
    def _every_name_once(cls, features: tuple[Feature, ...]) -> tuple[Feature, ...]:
        seen: dict[str, str] = {}
        for feature in features:
            for name in (feature.name, *feature.aliases):
                if name in seen:
                    raise ValueError(
                        f"{name!r} names both {seen[name]!r} and {feature.name!r}: "
                        "names and aliases are used once"
                    )
                seen[name] = feature.name
        return features

    @model_validator(mode="after")
    def _parts_agree(self) -> Card:
        if self.decimal in self.separators:
            raise ValueError(f"{self.decimal!r} is both `decimal` and one of `separators`")
        names = set(self.feature_names)
        if self.target.column in names:
            raise ValueError(f"the target {self.target.column!r} is listed as a feature: leakage")
        for name in self.left_out:
            if name in names or name == self.target.column:
                raise ValueError(f"{name!r} is both left out and used")
        for name in self.slices or ():
            if name not in self.categories:
                raise ValueError(
                    f"slices names {name!r}, which is no category: {', '.join(self.categories)}"
                )
        sample = self.sample
        if sample is not None:
            for column, leader in sample.follows.items():
                for name in (column, leader):
                    if name not in names:
                        raise ValueError(f"sample.follows names {name!r}, which is no feature")
        return self

    @property
    def feature_names(self) -> list[str]:
        """Names of all features, in the card's order: the order of columns everywhere."""
        return [feature.name for feature in self.features]

    @property
    def numbers(self) -> list[str]:
        """Names of the number features."""
        return [feature.name for feature in self.features if feature.kind == "number"]

    @property
    def categories(self) -> list[str]:
        """Names of the category features."""
        return [feature.name for feature in self.features if feature.kind == "category"]

    @property
    def learnt_numbers(self) -> list[str]:
        """Names of the number features that models learn from."""
        return [each.name for each in self.features if each.learn and each.kind == "number"]

    @property
    def learnt_categories(self) -> list[str]:
        """Names of the category features that models learn from."""
        return [each.name for each in self.features if each.learn and each.kind == "category"]

    @property
    def slice_columns(self) -> list[str]:
        """Names of the categories whose values the gate looks at one by one."""
        return self.categories if self.slices is None else list(self.slices)

    @property
    def drift_features(self) -> list[str]:
        """Names of the features whose distribution monitoring compares."""
        return [feature.name for feature in self.features if feature.drift]

    def feature(self, name: str) -> Feature:
        """Return the feature `name`. Raises KeyError, naming those there are."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(f"{name!r} is no feature of {self.name}: {', '.join(self.feature_names)}")

    def means_missing(self, feature: Feature, value: str) -> bool:
        """Return whether `value` means missing in `feature`, by its own or the card's markers."""
        return value in self.missing or value in feature.missing


def load_card(name_or_path: str | Path) -> Card:
    """Return the card of that name (a file of `mlops/dataset/cards`), or at that path.

    Raises CardError, which names the file and every key that is wrong.
    """
    path = _card_path(str(name_or_path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: the card cannot be read: {error}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CardError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise CardError(f"{path}: expected keys and values, found {type(content).__name__}")
    try:
        return Card.model_validate({**content, "path": path})
    except ValidationError as error:
        lines = [f"{path}: the card has {error.error_count()} mistake(s)"]
        lines += [f"  {_key(content, e['loc'])}: {_explain(e)}" for e in error.errors()]
        raise CardError("\n".join(lines)) from None


def _card_path(name_or_path: str) -> Path:
    if re.fullmatch(r"[a-z][a-z0-9_]*", name_or_path):
        path = CARDS / f"{name_or_path}.yaml"
        if path.is_file():
            return path
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path.resolve()
    known = sorted(p.stem for p in CARDS.glob("*.yaml") if "." not in p.stem)
    raise CardError(
        f"no card {name_or_path!r}: there are {', '.join(known)} in {CARDS}; "
        "or give the path of a card file"
    )


def _key(content: dict[str, Any], location: tuple[int | str, ...]) -> str:
    """Write the place of a mistake as a person would: features[3] (balance).minimum."""
    words = ""
    here: Any = content
    for step in location:
        try:
            here = here[step]
        except (KeyError, IndexError, TypeError):
            here = None
        if isinstance(step, int):
            name = here.get("name") if isinstance(here, dict) else None
            words += f"[{step}]" + (f" ({name})" if name else "")
        else:
            words += f".{step}" if words else str(step)
    return words or "card"


def _explain(error: Any) -> str:
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "missing"
    found = error["input"]
    if isinstance(found, str | int | float) and repr(found) not in message:
        return f"{message} (found {found!r})"
    return str(message)
