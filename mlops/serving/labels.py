"""Deliver the labels of live traffic from a CSV: what became true of each answered row.

    python -m mlops.serving.labels answers.csv

The file has the columns `request_id` (as the API answered it), `row` (place in that request's list,
from 0) and `label` (1 or 0, or the card's own words for these). It is checked whole before anything
is written, and written in one transaction; the same file again changes nothing.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection as Connection

from mlops.database import connect
from mlops.dataset.card import Card, CardError, load_card
from mlops.dataset.errors import DataError
from mlops.serving.traffic import Label, deliver_labels
from mlops.settings import get_settings

COLUMNS = ("request_id", "row", "label")


def read_labels(path: Path, card: Card) -> list[Label]:
    """Return the labels of a file, in its order.

    Raises DataError, which names row (1-based, of data), column, what was found and expected.
    """
    answers = {card.target.negative: 0, card.target.positive: 1}
    if not answers.keys() & {"0", "1"}:  # unless they are the card's own words for something else
        answers |= {"0": 0, "1": 1}
    expected = ", ".join(map(repr, answers))
    labels: dict[tuple[str, int], int] = {}
    problems = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            absent = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if absent:
                found = ", ".join(reader.fieldnames or ()) or "nothing"
                raise DataError(
                    str(path), [f"header: found {found}, expected {', '.join(COLUMNS)}"]
                )
            for number, line in enumerate(reader, start=1):
                name, row, label = (line[column].strip() for column in COLUMNS)
                faults = []
                if not name:
                    faults.append("column request_id: found nothing, expected the id of a request")
                if not (row.isascii() and row.isdigit() and len(row) <= 9):
                    faults.append(f"column row: found {row!r}, expected a number from 0")
                if label not in answers:
                    faults.append(f"column label: found {label!r}, expected one of {expected}")
                if not faults:
                    known = labels.setdefault((name, int(row)), answers[label])
                    if known != answers[label]:
                        faults.append(
                            f"column label: found {label!r}, expected what an earlier line says "
                            f"of request {name}, row {row}"
                        )
                problems += [f"row {number}, {fault}" for fault in faults]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(str(path), [f"cannot be read as a CSV in UTF-8: {error}"]) from error
    if not labels and not problems:
        problems.append("found no row, expected labels")
    if problems:
        raise DataError(str(path), problems)
    return [(name, row, label) for (name, row), label in labels.items()]


def unknown_requests(connection: Connection, labels: list[Label]) -> int:
    """Return how many request ids of `labels` stand in no logged prediction."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM unnest(%s::text[]) AS given (request_id) WHERE NOT EXISTS"
            " (SELECT 1 FROM serving.predictions AS made WHERE made.request_id = given.request_id)",
            [sorted({name for name, _, _ in labels})],
        )
        row = cursor.fetchone()
    return int(row[0]) if row else 0


def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and deliver; return the exit status: 1 if the file cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help="CSV with request_id, row, label")
    path = parser.parse_args(arguments).file
    try:
        labels = read_labels(path, load_card(get_settings().card))
        with connect() as connection:
            found = deliver_labels(connection, labels)
            unknown = unknown_requests(connection, labels)
    except (CardError, DataError, psycopg2.OperationalError) as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{path}: {found} of {len(labels)} labels matched a logged row; "
        f"{unknown} request ids are not in the log"
    )
    if unknown:
        print("a request just answered reaches the log within a second: run this again then")
    return 0


if __name__ == "__main__":
    sys.exit(main())
