"""The errors of data that cannot be used; they tell all that is wrong, not only the first fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlops.dataset.quality import Finding

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


class DataQualityError(DataError):
    """Rows that no model may be fitted on: nothing was fitted, and the champion stays.

    `findings` are those that refuse (`mlops.dataset.quality`); each of them stands in the message,
    whole.
    """

    def __init__(self, source: str, findings: Sequence[Finding]) -> None:
        super().__init__(source, [finding.message for finding in findings])
        self.findings = list(findings)
        self.args = (
            "\n".join(
                [
                    f"{source}: refused before a fit, {len(self.findings)} finding(s):",
                    *(f"  - {finding.check}: {finding.message}" for finding in self.findings),
                    "Mend the rows (or their source) and start the training again; what is right "
                    "all the same is accepted by a setting (MLOPS_QUALITY_…, mlops/settings.py).",
                ]
            ),
        )
