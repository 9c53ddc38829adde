"""Looks into a CSV that nobody has described yet: its separator, its header, a sample of its rows.

It reads a file of any size once, in bounded memory, and writes nothing. What the columns mean is
guessed elsewhere (`mlops.dataset.draft`).
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from mlops.dataset.errors import DataError
from mlops.dataset.sources import MOST_BYTES

SEPARATORS = {";": "semicolon", ",": "comma", "\t": "tab", "|": "bar"}
MOST_ROWS = 50_000
MOST_FIELDS = 3_000_000
"""Rows, and fields, that are kept: of a longer file every second row, every fourth, and so on."""

_HEAD_LINES = 200
_LONGEST_LINE = 1 << 20
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")


@dataclass(frozen=True)
class Sniffed:
    """What a file holds: `rows` are a sample in the file's order, stripped texts by column.

    `every` is 1 if all rows are there, else every so-manieth row is; `total` counts them all.
    """

    path: Path
    separator: str
    header: tuple[str, ...]
    rows: list[list[str]]
    total: int
    every: int

    def column(self, name: str) -> list[str]:
        """Return the sampled texts of a column, in the file's order."""
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def as_csv(self) -> bytes:
        """Return the sample as a CSV of its own, in the file's form."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter=self.separator, lineterminator="\n")
        writer.writerows([self.header, *self.rows])
        return buffer.getvalue().encode()


def sniff(path: Path) -> Sniffed:
    """Return separator, header and a sample of the rows of a CSV, CSV.gz, or zip with one CSV.

    Raises DataError, which says what to do: no such file, no text in UTF-8, one column only (the
    separator), no header, names that are empty or stand there twice, rows of another length.
    """
    source = str(path)
    with ExitStack() as stack:
        head: list[str] = []
        lines = _lines(_open(path, stack), source)
        for line in lines:
            head.append(line)
            if len(head) == _HEAD_LINES:
                break
        if not "".join(head).strip():
            raise DataError(source, ["found no text, expected a header and rows"])
        if "".join(head).lstrip().startswith("<"):
            raise DataError(source, ["found a web page (it begins with <), expected a CSV"])
        separator = _separator(head, source)
        reader = csv.reader(_again(head, lines), delimiter=separator, strict=True)
        return _read(reader, separator, path)


def _open(path: Path, stack: ExitStack) -> IO[bytes]:
    """Return the CSV's bytes as a stream, whatever it is packed in."""
    source = str(path)
    try:
        if not path.is_file():
            what = "a folder or device" if path.exists() else "no such file"
            raise DataError(source, [f"found {what}, expected a CSV"])
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        magic = file.read(4)
        file.seek(0)
        if magic.startswith(b"\x1f\x8b"):
            return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
        if magic.startswith(b"PK"):
            archive = stack.enter_context(zipfile.ZipFile(file))
            names = [each for each in archive.namelist() if each.lower().endswith(".csv")]
            names = [each for each in names if not each.startswith("__MACOSX/")]
            if len(names) != 1:
                found = ", ".join(archive.namelist()[:10]) or "nothing"
                raise DataError(
                    source,
                    [
                        f"found in the zip: {found}; expected one .csv (a workbook .xlsx is a zip "
                        "too: save its sheet as CSV UTF-8)"
                    ],
                )
            return stack.enter_context(archive.open(names[0]))
        return file
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise DataError(source, [f"cannot be read: {error}"]) from error


def _lines(file: IO[bytes], source: str) -> Iterator[str]:
    """Return the lines one by one, each decoded; none is longer than memory allows."""
    number, read = 0, 0
    while True:
        try:
            line = file.readline(_LONGEST_LINE + 1)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
            raise DataError(source, [f"after line {number}: cannot be read: {error}"]) from error
        if not line:
            return
        number, read = number + 1, read + len(line)
        if number == 1:
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(source, [_recode("text in UTF-16", "utf-16", source)])
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > _LONGEST_LINE:
            raise DataError(
                source,
                [f"line {number} is longer than {_LONGEST_LINE} bytes: is this a CSV?"],
            )
        if read > MOST_BYTES:
            raise DataError(
                source,
                [
                    f"found more than {MOST_BYTES} bytes, which no training here reads: cut it "
                    "(its latest rows say most)"
                ],
            )
        if b"\0" in line:
            raise DataError(source, [f"line {number}: found a zero byte: is this a CSV?"])
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            found = f"line {number}: byte 0x{line[error.start]:02x}, which is not UTF-8"
            raise DataError(source, [_recode(found, "cp1252", source)]) from None


def _recode(found: str, encoding: str, source: str) -> str:
    return (
        f"found {found}, expected text in UTF-8: save it as CSV UTF-8, or (if it comes from a "
        f"Windows program) `iconv -f {encoding} -t utf-8 '{source}' > utf8.csv`"
    )


def _again(head: list[str], lines: Iterator[str]) -> Iterator[str]:
    yield from head
    yield from lines


def _separator(head: list[str], source: str) -> str:
    """Return the separator that cuts the first lines into the most columns of one number."""
    best, most = ",", (0.0, 1)
    widths: dict[str, int] = {}
    for separator in SEPARATORS:
        reader = csv.reader(head, delimiter=separator)
        try:
            counts = Counter(len(row) for row in reader if row)
        except csv.Error:
            continue
        width, times = max(counts.items(), key=lambda item: (item[1], item[0]))
        widths[separator] = width
        agreement = times / sum(counts.values())
        # A comma inside of texts cuts some lines; the true separator cuts all alike.
        if width > 1 and (round(agreement, 1), width) > most:
            best, most = separator, (round(agreement, 1), width)
    if most == (0.0, 1):
        tried = ", ".join(SEPARATORS.values())
        raise DataError(
            source,
            [
                f"found one column, {head[0].strip()[:60]!r}, by every separator that can be read "
                f"({tried}): expected several, the answer and what it is to be told from. Save it "
                "with one of these between the columns"
            ],
        )
    return best


def _read(reader: Iterator[list[str]], separator: str, path: Path) -> Sniffed:
    source = str(path)
    header: list[str] | None = None
    rows: list[list[str]] = []
    total, every, most = 0, 1, MOST_ROWS
    ragged: list[str] = []
    try:
        for row in reader:
            if not row:
                continue
            if header is None:
                header = [name.strip() for name in row]
                _check_header(header, separator, source)
                most = max(2, min(MOST_ROWS, MOST_FIELDS // len(header)))
                continue
            if len(row) != len(header):
                line = getattr(reader, "line_num", 0)
                ragged.append(
                    f"row {total + 1} (line {line}): found {len(row)} fields, expected "
                    f"{len(header)} as in the header (a {SEPARATORS[separator]} within a text "
                    "needs quotes)"
                )
                if len(ragged) == 3:
                    break
            elif total % every == 0:
                rows.append([text.strip() for text in row])
                if len(rows) > most:
                    rows, every = rows[::2], every * 2
            total += 1
    except csv.Error as error:
        raise DataError(
            source,
            [f"after row {total}: {error}; expected quotes in pairs, and a quote doubled"],
        ) from None
    if ragged:
        raise DataError(source, ragged)
    if header is None or not rows:
        raise DataError(source, ["found a header and no row of data, expected rows"])
    return Sniffed(path, separator, tuple(header), rows, total, every)


def _check_header(header: list[str], separator: str, source: str) -> None:
    values = [name for name in header if _NUMBER.fullmatch(name)]
    if values:
        raise DataError(
            source,
            [
                f"line 1: found {', '.join(values[:3])} among the names of columns: there is no "
                f"header. Write the names into line 1, a {SEPARATORS[separator]} between them"
            ],
        )
    twice = [name for name, times in Counter(header).items() if times > 1]
    if twice:
        shown = ", ".join(repr(name) for name in twice[:5])
        raise DataError(
            source,
            [f"line 1: found the column {shown} more than once: give each a name of its own"],
        )
