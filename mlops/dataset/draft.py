"""Draft the card of a file that has none yet, for a person to finish: `make card CSV=path`.

    python -m mlops.dataset.draft <CSV, CSV.gz or zip> [--name customers]

Every guess stands in the card with its reason; what cannot be guessed is asked for, by key. It
writes one new file beside the CSV, never over another, and only once the card loads.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import yaml

from mlops.dataset.card import PERIOD, RESERVED, CardError, load_card
from mlops.dataset.errors import DataError
from mlops.dataset.parsing import parse_csv
from mlops.dataset.quality import check_window
from mlops.dataset.sniff import Sniffed, sniff
from mlops.dataset.timeline import MONTHS, add_months, months_between, period_of, period_range
from mlops.settings import Settings, get_settings

DATE_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d",
    "%Y%m%d",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%m/%Y",
    "%d.%m.%Y %H:%M:%S",
    "%d %b %Y",
)
"""Ways to write a date that are known; the first that reads every value is taken."""

_SURELY_MISSING = ("N/A", "NaN", "nan", "NULL", "null", "#N/A", "?")
_MAYBE_VALUES = ("NA", "None")
"""Missing among numbers; among texts it may be a value (North America), and is asked about."""
_MISSING = (*_SURELY_MISSING, *_MAYBE_VALUES)
_MAYBE_MISSING = frozenset(
    {"unknown", "none", "missing", "not known", "n.a.", "-", "--", "not available", "undefined"}
)
_MAYBE_MISSING_NUMBERS = (-1.0, -9.0, -99.0, -999.0, -9999.0, 99.0, 999.0, 9999.0, 99999.0)
_YES = ("yes", "y", "true", "t", "1", "1.0", "churned", "left", "exited", "positive", "bad")
_TARGETS = re.compile(
    r"y|target|label|class|outcome|answer|response|result|exited|left|churn(ed)?|default(ed)?|"
    r"fraud|converted|subscribed|survived|.*(attrition|churn|default|exited|target|fraud).*|is_.*"
)
_TIMES = re.compile(r".*(date|day|month|period|time|snapshot|year|when|datum|_at$).*")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}([.,' ]\d{3})+([.,]\d+)?")
_GROUPED = "numbers with separators of thousands"
_IDENTIFIERS = re.compile(
    r"(.*[_ ])?(id|uuid|guid|key|number|nr|no|num|index|rownumber)|.*(clientnum|[a-z]id)"
    r"|name|surname|.*(e-?mail|phone)|(corporation|company|customer|client|account)(_?(name|id|no))?"
)
_TAKEN = RESERVED | {"probability", "decision", "warnings"}
"""Names that stand beside a card's own columns in tables, frames or answers."""
_MOST_CATEGORIES = 200
_SHARE_OF_AN_IDENTIFIER = 0.5
_MONTHS_OF_NO_TIME = 12
_ROWS_A_MONTH = 300

Kind = Literal["number", "category", "date", "constant", "empty", "identifier"]


@dataclass(frozen=True)
class Column:
    """What a column of the file seems to be. `markers` are texts that cannot be values."""

    name: str
    kind: Kind
    why: str
    distinct: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    integer: bool = False
    low: float = 0.0
    high: float = 0.0
    format: str | None = None
    also: str | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What only a person can know: the key of the card, and what to write there."""

    key: str
    text: str


@dataclass(frozen=True)
class Draft:
    """A card that was written, what is still to decide, and what the file itself lacks.

    `problems` are sentences about the file; until they are mended it cannot be read by the card.
    """

    path: Path
    sniffed: Sniffed
    decisions: tuple[Decision, ...]
    problems: tuple[str, ...] = ()


@dataclass
class _Guess:
    """All that the text of a card is written from."""

    name: str
    sniffed: Sniffed
    columns: list[Column]
    target: Column
    positive: str
    negative: str
    why_target: str
    why_positive: str
    decimal: str
    time: list[str]
    why_time: str
    left_out: dict[str, str] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)

    @cached_property
    def names(self) -> dict[str, str]:
        """Column of the file → name in the card, which clients send; each name once."""
        names: dict[str, str] = {}
        taken = set(self.sniffed.header)
        for column in self.sniffed.header:
            name = _name_of(column)
            number = 2
            while name != column and name in taken:
                name, number = f"{_name_of(column)}_{number}", number + 1
            taken.add(name)
            names[column] = name
        return names

    @property
    def features(self) -> list[Column]:
        return [
            each
            for each in self.columns
            if each.name not in self.left_out and each.name != self.target.name
        ]


def draft_card(path: Path, name: str | None = None, settings: Settings | None = None) -> Draft:
    """Write the draft of a card for the CSV at `path`, beside it, and return what it holds.

    `name` is the card's (default: the file's, in small letters). What is read is a sample of 50,000
    rows at most, evenly from the whole file. The file is then read back by the card: what it finds
    stands in the draft's `problems`.

    Raises DataError if no card can be made of the file, CardError if a file of the card's name is
    there already, or the folder cannot be written.
    """
    settings = settings or get_settings()
    path = path.expanduser().absolute()
    name = _card_name(name or path.name.split(".")[0])
    to = path.parent / f"{name}.yaml"
    if to.exists():
        raise CardError(f"{to} is there already and is not overwritten: give another NAME=")
    sniffed = sniff(path)
    guess = _guess(sniffed, name)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / to.name
        problems = _tried(guess, trial, settings)
        text = trial.read_text(encoding="utf-8")
    _write_new(to, text)
    return Draft(to, sniffed, tuple(guess.decisions), tuple(problems))


def draft_text(draft: Draft, settings: Settings | None = None) -> str:
    """Return what to tell the person: what was read, what is to decide, how to go on."""
    settings = settings or get_settings()
    sniffed = draft.sniffed
    read = (
        f"all {sniffed.total:,} rows"
        if sniffed.every == 1
        else f"{len(sniffed.rows):,} of {sniffed.total:,} rows (every {sniffed.every}th)"
    )
    lines = [f"{draft.path}: drafted from {read} of {sniffed.path.name}", ""]
    if draft.problems:
        lines.append(f"The card does not read {sniffed.path.name} yet:")
        lines += [f"  - {problem}" for problem in draft.problems]
        lines.append("")
    lines.append(f"To decide, in {draft.path}:")
    lines += [f"  {n}. {each.key}: {each.text}" for n, each in enumerate(draft.decisions, start=1)]
    lines += [
        "",
        "Then run the loop on it:",
        f"  make demo CARD='{draft.path}' MLOPS_DATA='{sniffed.path}'",
    ]
    return "\n".join(lines)


def _card_name(stem: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:48].rstrip("_")
    return name if re.match(r"[a-z]", name) else f"data_{name}"[:48].rstrip("_")


def _write_new(path: Path, text: str) -> None:
    """Write a whole file that was not there before, or nothing."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).chmod(0o644)
            os.link(temporary, path)  # unlike a rename, it fails if the name is taken
        finally:
            Path(temporary).unlink()
    except FileExistsError:
        raise CardError(
            f"{path} is there already and is not overwritten: give another NAME="
        ) from None
    except OSError as error:
        raise CardError(
            f"{path}: cannot be written: {error.strerror}; copy the CSV to a folder of yours"
        ) from error


def _tried(guess: _Guess, trial: Path, settings: Settings) -> list[str]:
    """Write the card to `trial`, load it and read the sample by it; return what is wrong.

    A column that alone tells the answer is left out, and the card written again.
    """
    trial.write_text(_card_text(guess), encoding="utf-8")
    card = load_card(trial)
    sniffed = guess.sniffed
    try:
        frame = parse_csv(sniffed.as_csv(), card, sniffed.path.name)
    except DataError as error:
        return error.problems
    for finding in check_window(frame, card, settings):
        if finding.check == "leakage" and finding.column is not None:
            column = next(c for c, name in guess.names.items() if name == finding.column)
            if finding.severity == "refuse" and len(guess.features) > 1:
                area = finding.numbers["roc_auc"]
                guess.left_out[column] = (
                    f"alone it tells the answer (ROC AUC {area:.3f}): known only after it?"
                )
                guess.decisions.append(
                    Decision(
                        f"left_out.{column}",
                        "it tells the answer alone, so it was left out. If it is known before the "
                        "answer is, make it a feature (and raise MLOPS_QUALITY_LEAKAGE_AUC)",
                    )
                )
            else:
                guess.decisions.append(Decision(f"features.{finding.column}", finding.message))
        elif finding.severity == "refuse" and finding.check in ("too_few_rows", "one_class"):
            guess.decisions.append(
                Decision(
                    "the file",
                    f"{finding.message}. A training refuses this window: bring more rows",
                )
            )
    trial.write_text(_card_text(guess), encoding="utf-8")
    parse_csv(sniffed.as_csv(), load_card(trial), sniffed.path.name)
    return []


# ---- Columns ------------------------------------------------------------------------------------


def _guess(sniffed: Sniffed, name: str) -> _Guess:
    decimal = _decimal(sniffed)
    columns = [_column(each, sniffed.column(each), decimal) for each in sniffed.header]
    target, why = _target(columns, sniffed)
    positive, negative, why_positive = _positive(sniffed.column(target.name))
    guess = _Guess(
        name, sniffed, columns, target, positive, negative, why, why_positive, decimal, [], ""
    )
    guess.decisions += [
        Decision("target", f"{target.name!r} {why}: is this the question?"),
        Decision("target.positive", f"{positive!r} {why_positive}: is this the yes?"),
    ]
    for each in columns:
        if each.name != target.name and each.kind in ("constant", "empty", "identifier"):
            guess.left_out[each.name] = each.why
            if each.why.startswith(_GROUPED):
                guess.decisions.append(Decision(f"left_out.{each.name}", each.why))
    _guess_time(guess)
    if not guess.features:
        raise DataError(
            str(sniffed.path),
            [
                f"found no column to tell {target.name!r} from: left out are "
                + "; ".join(f"{column!r} ({why})" for column, why in guess.left_out.items())
            ],
        )
    guess.decisions.append(
        Decision(
            "title, description, question, features[].description",
            "written from the names: people read them in the form, so say what they mean",
        )
    )
    for each in guess.features:
        guess.decisions += [Decision(f"features.{guess.names[each.name]}", d) for d in each.doubts]
    if any(each.kind == "number" for each in guess.features):
        guess.decisions.append(
            Decision(
                "features[].minimum, maximum",
                "wide guesses: a value outside is refused as a mistake, so say what can be true",
            )
        )
    guess.decisions.append(
        Decision(
            "left_out",
            "name here whatever is known only after the answer, with the reason: a date of leaving,"
            " a final balance. No test finds all of these",
        )
    )
    guess.decisions.append(
        Decision(
            "costs",
            "what a contact costs and a success brings; without it, the threshold is that of the "
            "best F1",
        )
    )
    return guess


def _decimal(sniffed: Sniffed) -> str:
    """Return "," if numbers of the file are written with a comma and none with a point."""
    if sniffed.separator == ",":
        return "."
    found: Counter[str] = Counter()
    for row in sniffed.rows[:2000]:
        for text in row:
            match = re.fullmatch(r"[-+]?\d+([.,])\d+", text)
            if match:
                found[match[1]] += 1
    return "," if found[","] > found["."] else "."


def _column(name: str, texts: Sequence[str], decimal: str) -> Column:
    counts = Counter(texts)
    markers = tuple(each for each in _MISSING if each in counts)
    values = [text for text in counts if text and text not in _MISSING]
    if not values:
        return Column(name, "empty", "no value in any row", markers=markers)
    distinct = tuple(values[: _MOST_CATEGORIES + 1])
    if len(counts) == 1:
        return Column(name, "constant", f"always {_shown(values[0])}", distinct)
    rows = sum(counts[value] for value in values)
    share = len(values) / rows
    named = _IDENTIFIERS.fullmatch(name.lower()) is not None
    told = f"{len(values):,} different values in {rows:,} rows"
    found = _date_format(values)
    if found is not None and not (name.lower().endswith("id") and found[0] == "%Y%m%d"):
        return Column(
            name, "date", f"a date ({found[0]})", distinct, markers, format=found[0], also=found[1]
        )
    texts_also = tuple(value for value in values if value.lower() in _MAYBE_MISSING)
    numbers = {value: _number(value, decimal) for value in values if value not in texts_also}
    if numbers and all(number is not None for number in numbers.values()):
        known = [number for number in numbers.values() if number is not None]
        whole = all(number == math.floor(number) for number in known)
        if whole and named and (share > 0.9 or len(values) > _MOST_CATEGORIES):
            return Column(name, "identifier", f"an identifier by its name ({told})", distinct)
        steps = {b - a for a, b in pairwise(sorted(known))}
        if whole and share == 1 and rows >= 20 and len(steps) == 1:
            return Column(name, "identifier", f"a number of the row ({told})", distinct)
        return Column(
            name,
            "number",
            "numbers",
            distinct,
            (*markers, *texts_also),
            whole,
            min(known),
            max(known),
            doubts=_doubts_of_number(known, numbers, counts, rows),
        )
    if len(values) > 20 and (
        share > _SHARE_OF_AN_IDENTIFIER or len(values) > _MOST_CATEGORIES or named
    ):
        why = f"an identifier or free text ({told})"
        if sum(bool(_THOUSANDS.fullmatch(value)) for value in values) > len(values) / 2:
            why = f"{_GROUPED} ({told}): write 1234.56 for 1,234.56, and draft again"
        return Column(name, "identifier", why, distinct)
    if named and share > 0.9:
        return Column(name, "identifier", f"an identifier by its name ({told})", distinct)
    asked = (*texts_also, *(each for each in markers if each in _MAYBE_VALUES))
    doubts = tuple(
        f"does {each!r} ({counts[each]:,} rows) mean: not known? Then add `missing: [{each!r}]`"
        for each in asked
    )
    markers = tuple(each for each in markers if each not in _MAYBE_VALUES)
    almost = [value for value in values if _number(value, decimal) is None]
    if len(almost) <= 3 < len(values) - len(almost):
        shown = ", ".join(repr(each) for each in almost)
        doubts += (
            f"all but {shown} are numbers: if these mean not known, write `kind: number` and "
            f"`missing: [{shown}]`",
        )
    return Column(name, "category", "texts", distinct, markers, doubts=doubts)


def _number(text: str, decimal: str) -> float | None:
    """Return the number that the parser will read, None if it reads none."""
    if decimal != ".":
        if "." in text:
            return None
        text = text.replace(decimal, ".")
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        return None
    number = float(text)
    return number if abs(number) < 3e38 else None  # float32


def _doubts_of_number(
    known: Sequence[float], numbers: dict[str, float | None], counts: Counter[str], rows: int
) -> tuple[str, ...]:
    """Return questions about -1, 999 and the like where they stand apart from all other values."""
    doubts = []
    for marker in _MAYBE_MISSING_NUMBERS:
        texts = [text for text, number in numbers.items() if number == marker]
        times = sum(counts[text] for text in texts)
        others = [number for number in known if number != marker]
        if not others or times < max(2, rows // 200):
            continue
        below = marker < 0 and min(others) >= 0
        above = marker > 0 and marker > 2 * max(others)
        if below or above:
            doubts.append(
                f"does {texts[0]} ({times:,} rows, all others are {min(others):g} to "
                f'{max(others):g}) mean: not known? Then add `missing: ["{texts[0]}"]`'
            )
    return tuple(doubts)


def _date_format(values: Sequence[str]) -> tuple[str, str | None] | None:
    """Return the format of dates, and another one that would read them too; None if no dates."""
    fitting = []
    for form in DATE_FORMATS:
        if not any(character.isdigit() for character in values[0]):
            return None
        if form == "%Y%m%d" and not all(re.fullmatch(r"(19|20)\d{6}", each) for each in values):
            continue
        if all(_is_date(each, form) for each in values):
            fitting.append(form)
    return (fitting[0], fitting[1] if len(fitting) > 1 else None) if fitting else None


def _is_date(text: str, form: str) -> bool:
    try:
        return 1900 <= datetime.strptime(text, form).year <= 2200
    except ValueError:
        return False


# ---- Target -------------------------------------------------------------------------------------


def _target(columns: Sequence[Column], sniffed: Sniffed) -> tuple[Column, str]:
    two = [each for each in columns if len(each.distinct) == 2 and each.kind != "date"]
    named = [each for each in two if _TARGETS.fullmatch(each.name.lower())]
    if named:
        return named[-1], "has two values, and the name of an answer"
    if two:
        return two[-1], f"is the last of {len(two)} column(s) with two values"
    nearest = min(columns, key=lambda each: abs(len(each.distinct) - 2))
    raise DataError(
        str(sniffed.path),
        [
            "found no column with exactly two values, expected one that answers yes or no; nearest "
            f"is {nearest.name!r} with {', '.join(_shown(v) for v in nearest.distinct[:5])}: write "
            "the answer of each row as two values, such as yes and no"
        ],
    )


def _positive(texts: Sequence[str]) -> tuple[str, str, str]:
    """Return positive value, negative value, and why."""
    counts = Counter(text for text in texts if text and text not in _MISSING)
    first, second = counts
    for yes, no in ((first, second), (second, first)):
        if yes.lower() in _YES and no.lower() not in _YES:
            return yes, no, "says yes"
    rare, frequent = sorted(counts, key=lambda each: (counts[each], each))
    share = counts[rare] / counts.total()
    return rare, frequent, f"is the rarer answer ({share:.0%})"


# ---- Time ---------------------------------------------------------------------------------------


def _guess_time(guess: _Guess) -> None:
    """Choose the time axis, and leave other dates out."""
    sniffed = guess.sniffed
    dates = [each for each in guess.columns if each.kind == "date" and each is not guess.target]
    for each in dates:
        guess.left_out[each.name] = (
            f"{each.why}; what it tells has to become a number (days since …)"
        )
    names = [
        each
        for each in guess.columns
        if each.kind == "category"
        and len(each.distinct) >= 2
        and all(value.lower() in MONTHS for value in each.distinct)
        and each is not guess.target
    ]
    usable = [each for each in dates if len(_periods(sniffed, each)) > 1]
    # A row without a date has no month, and is refused: a column with all of them goes first.
    usable.sort(key=lambda each: (_blank(sniffed, each), not _TIMES.fullmatch(each.name.lower())))
    if usable:
        _by_date(guess, usable[0])
        if len(usable) > 1:
            others = ", ".join(repr(each.name) for each in usable[1:])
            guess.decisions.append(
                Decision(
                    "time.column",
                    f"{usable[0].name!r} was taken among several dates (the others: {others}): it "
                    "has to be the day on which the row was known, not its answer",
                )
            )
        return
    if names:
        _by_month_names(guess, names[0])
        return
    _by_row_order(guess)


def _periods(sniffed: Sniffed, column: Column) -> list[str]:
    form = column.format or ""
    values = {text for text in sniffed.column(column.name) if _is_date(text, form)}
    return sorted({period_of(datetime.strptime(text, form)) for text in values})


def _blank(sniffed: Sniffed, column: Column) -> bool:
    return any(not _is_date(text, column.format or "") for text in sniffed.column(column.name))


def _by_date(guess: _Guess, column: Column) -> None:
    periods = _periods(guess.sniffed, column)
    del guess.left_out[column.name]
    guess.columns.remove(column)
    guess.time = ["kind: date", f"column: {_flow(column.name)}", f"format: {_flow(column.format)}"]
    guess.why_time = f"{len(periods)} months, {periods[0]} to {periods[-1]}"
    if column.also is not None:
        guess.decisions.append(
            Decision(
                "time.format",
                f"{_shown(column.distinct[0])} may be read as {column.format} (written) or as "
                f"{column.also}: which is it?",
            )
        )
    _split_history(guess, periods)


def _by_month_names(guess: _Guess, column: Column) -> None:
    months = [MONTHS.index(text.lower()) + 1 for text in guess.sniffed.column(column.name) if text]
    years = sum(after < before for before, after in pairwise(months))
    start = f"2020-{months[0]:02d}"
    end = f"{2020 + years:04d}-{months[-1]:02d}"
    if years > 50:
        _by_row_order(guess)
        guess.decisions.append(
            Decision(
                "time",
                f"column {column.name!r} has names of months, in no order of time: sort the file by"
                " time, then `kind: month_order` tells the years (see the card bank_marketing)",
            )
        )
        return
    guess.columns.remove(column)
    guess.time = [
        "kind: month_order",
        f"column: {_flow(column.name)}",
        f'start: "{start}"',
        f'end: "{end}"',
    ]
    guess.why_time = "names of months, in order; a smaller one than before starts a new year"
    guess.decisions.append(
        Decision(
            "time.start, time.end, time.history_until",
            f"the year is not in the file: {start} is made up; write the true month of row 1, and "
            "move the other two along",
        )
    )
    _split_history(guess, period_range(start, end))


def _by_row_order(guess: _Guess) -> None:
    sniffed = guess.sniffed
    taken = {each.lower() for each in sniffed.header}
    parts = [each for each in sniffed.header if each.lower() in ("year", "month", "jahr", "monat")]
    months = max(4, min(_MONTHS_OF_NO_TIME, sniffed.total // _ROWS_A_MONTH))
    months = min(months, len(sniffed.rows))
    periods = period_range("2024-01", add_months("2024-01", months - 1))
    guess.time = [
        "kind: row_order",
        f'start: "{periods[0]}"',
        f'end: "{periods[-1]}"',
        *([f"period_column: {PERIOD}"] if PERIOD not in taken else []),
    ]
    guess.why_time = (
        f"no column tells the time, so the rows are dealt over {months} made-up months in their "
        "order"
    )
    hint = f" ({' and '.join(parts)} seem to tell it, in two columns)" if len(parts) > 1 else ""
    guess.decisions.append(
        Decision(
            "time",
            "no column holds dates of several months. Is it known when each row was? Then add a "
            f"column `{PERIOD}` to the file, written 2024-03{hint}, and set time.start and "
            "time.end to its first and last month. Else put the oldest rows first: they are dealt "
            f"over {periods[0]} to {periods[-1]}, and what drifts is only the order",
        )
    )
    _split_history(guess, periods)


def _split_history(guess: _Guess, periods: Sequence[str]) -> None:
    """Keep the last third of the months, six at most, as what has yet to happen."""
    months = months_between(periods[0], periods[-1]) + 1
    to_come = min(6, max(1, months // 3))
    history = add_months(periods[-1], -to_come)
    if months_between(periods[0], history) < 1:
        guess.decisions.append(
            Decision(
                "time.history_until",
                f"{months} months are too few to play some as live traffic: everything is learnt "
                "from, and `make demo` has no month to play. Bring three months or more",
            )
        )
        return
    guess.time.append(f'history_until: "{history}"  # what follows is played as live traffic')
    guess.decisions.append(
        Decision(
            "time.history_until",
            f"{history}: the {to_come} month(s) after it are kept back, to be played as traffic; "
            "without the line all is learnt from, and live traffic has to come",
        )
    )
    guess.time.append("validation_months: 1")


# ---- The text of the card -----------------------------------------------------------------------


def _card_text(guess: _Guess) -> str:
    sniffed = guess.sniffed
    rows = (
        f"all {sniffed.total:,} rows"
        if sniffed.every == 1
        else f"{len(sniffed.rows):,} of {sniffed.total:,} rows"
    )
    human = guess.name.replace("_", " ")
    markers = sorted(
        {each for column in guess.features for each in column.markers if each in _SURELY_MISSING}
    )
    lines = [
        f"# Drafted from {rows} of {_comment(sniffed.path.name)}.",
        "# Every value is a guess until a person has read it; `decide` marks the questions. All",
        "# keys: mlops/dataset/card.py; an example: mlops/dataset/cards/bank_marketing.yaml.",
        "",
        f"name: {_quoted(guess.name)}  # of model and table; another one starts anew",
        f"title: {_flow(human.capitalize())}",
        f"description: {_flow(f'Rows of {sniffed.path.name}.')}  # decide: one row is what?",
        f"question: {_flow(f'Will {guess.target.name} be {guess.positive}?')}  # decide",
        f"citation: {_flow(f'File {sniffed.path.name}.')}  # decide: whose data is it?",
        "",
        f"separators: [{_quoted(sniffed.separator)}]",
        *(['decimal: ","  # numbers are written 1,5'] if guess.decimal == "," else []),
        f"missing: [{', '.join(_quoted(each) for each in ['', *markers])}]"
        "  # in any column: not known",
        "",
        f"# {_comment(guess.target.name)} {guess.why_target}; {_comment(guess.positive)} "
        f"{guess.why_positive}.",
        f"target: {{column: {_flow(guess.target.name)}, positive: {_quoted(guess.positive)}, "
        f"negative: {_quoted(guess.negative)}}}  # decide",
        "",
        "# decide: a number outside of minimum and maximum is refused as a mistake.",
        "features:",
        *(line for each in guess.features for line in _feature_lines(each, guess.names[each.name])),
        "",
        "# decide: whatever is known only after the answer belongs here, with the reason.",
        "left_out:" if guess.left_out else "left_out: {}",
        *(line for item in guess.left_out.items() for line in _entry(*item)),
        "",
        f"# decide: {guess.why_time}.",
        "time:",
        *(f"  {line}" for line in guess.time),
        "",
        "# decide: the threshold is the one of most profit; without costs, that of the best F1.",
        "# costs: {contact: 5, success: 50, unit: euros}",
        "",
    ]
    return "\n".join(lines)


def _feature_lines(column: Column, name: str) -> list[str]:
    parts = [f"name: {_flow(name)}", f"kind: {column.kind}"]
    if name != column.name:
        parts.append(f"aliases: [{_flow(column.name)}]")
    if column.kind == "number":
        if column.integer:
            parts.append("integer: true")
        low, high = _bounds(column)
        parts += [f"minimum: {low}", f"maximum: {high}"]
    own = [each for each in column.markers if each not in _SURELY_MISSING]
    if own:
        parts.append(f"missing: [{', '.join(_quoted(each) for each in own)}]")
    description = f"description: {_flow(_words(column.name))}"
    lines = [f"  # decide: {_comment(doubt)}" for doubt in column.doubts]
    seen = (
        f"{column.low:g} to {column.high:g}"
        if column.kind == "number"
        else f"{len(column.distinct)} values: "
        + ", ".join(_shown(value) for value in column.distinct[:4])
        + (" …" if len(column.distinct) > 4 else "")
    )
    return [
        *lines,
        f"  - {{{', '.join(parts)},",
        f"     {description}}}  # found {_comment(seen)}",
    ]


def _bounds(column: Column) -> tuple[str, str]:
    """Return bounds ten times as wide as what was found, rounded to powers of ten."""

    def power(value: float) -> float:
        return float(10.0 ** (math.ceil(math.log10(max(abs(value), 1e-3))) + 1))

    low = 0.0 if column.low >= 0 else -power(column.low)
    high = power(column.high) if column.high > 0 else 0.0
    return _plain(low), _plain(high)


def _plain(value: float) -> str:
    return f"{value:.0f}" if value == math.floor(value) and abs(value) < 1e15 else f"{value:.1e}"


def _name_of(column: str) -> str:
    """Return the name under which clients send the column: letters, digits and underscores."""
    name = column
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,54}", name):
        name = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[:50]
        name = name if re.match(r"[A-Za-z]", name) else f"column_{name}".rstrip("_")
    return f"{name}_value" if name.lower() in _TAKEN else name


def _words(column: str) -> str:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)
    words = " ".join(re.sub(r"[_\W]+", " ", spaced).split())
    return words[:1].upper() + words[1:] if words else column or "A column without a name"


def _entry(key: str, reason: str) -> list[str]:
    written = _flow(key)
    if len(written) > 100:  # YAML takes a longer key only in this form
        return [f"  ? {written}", f"  : {_flow(reason)}"]
    return [f"  {written}: {_flow(reason)}"]


def _flow(value: str | None) -> str:
    """Write a text as YAML, so that it may stand anywhere on one line."""
    text = value or ""
    if not text.isprintable() or text != text.strip():
        return _quoted(text)
    written = yaml.safe_dump(
        [text], default_flow_style=True, allow_unicode=True, width=math.inf
    ).strip()
    return written[1:-1] if "\n" not in written else _quoted(text)


def _quoted(text: str) -> str:
    written: str = yaml.safe_dump(text, default_style='"', allow_unicode=False, width=math.inf)
    return written.strip().removesuffix("...").strip()


def _comment(text: str) -> str:
    """Return a text that stays within its comment."""
    return text if text.isprintable() else ascii(text)


def _shown(value: str) -> str:
    return repr(value if len(value) <= 30 else f"{value[:30]}…")


def main(arguments: list[str] | None = None, say: Callable[[str], object] = print) -> int:
    """Draft a card; return 0, 1 if the file has to be mended first, 2 if no card can be made."""
    parser = argparse.ArgumentParser(prog="make card", description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--name", help="of the card; default: the file's")
    options = parser.parse_args(arguments)
    try:
        draft = draft_card(options.csv, options.name)
    except (DataError, CardError) as error:
        say(str(error))
        return 2
    say(draft_text(draft))
    return 1 if draft.problems else 0


if __name__ == "__main__":
    sys.exit(main())
