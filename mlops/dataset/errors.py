"""The error of data that cannot be used; it tells all that is wrong, not only the first fault."""

from __future__ import annotations

from collections.abc import Sequence

MOST_PROBLEMS = 10
"""So many problems of one file are told; the rest is counted."""


class DataError(ValueError):
    """Data that cannot be used: nothing of it was stored.

    `source` is the file or address, `problems` are sentences that name row, column, what was
    found and what was expected.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = list(problems)
        shown = [f"  - {problem}" for problem in self.problems[:MOST_PROBLEMS]]
        if len(self.problems) > MOST_PROBLEMS:
            shown.append(f"  - and {len(self.problems) - MOST_PROBLEMS} more")
        super().__init__("\n".join([f"{source} cannot be used:", *shown]))
