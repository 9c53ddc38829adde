"""What a replay may know, and when: rows by month, labels once they are due; never a row earlier.

All that a replay learns from comes through here, so that no look into the future is a matter of one
module: `traffic` has no labels, and `labelled` no month later than what is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops.dataset.card import PERIOD, TARGET, Card
from mlops.dataset.errors import DataError
from mlops.dataset.rows import FEWEST_ROWS, without_scant_end
from mlops.dataset.timeline import add_months, period_range


@dataclass(frozen=True)
class World:
    """The rows of a source (features, `target`, `period`), the months that are played, the delay.

    Months before `start` are history, with all their labels. Those of a month from `start` on are
    known at the end of the month that is `label_delay` months later: 0 is the end of the month
    itself.
    """

    card: Card
    rows: pd.DataFrame
    start: str
    end: str
    label_delay: int = 0

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"found {self.start} to {self.end}, expected an end after the start")
        if self.label_delay < 0:
            raise ValueError(
                f"found a label delay of {self.label_delay} months, expected 0 or more"
            )
        if not (self.rows[PERIOD] < self.start).any():
            raise DataError("the rows", [f"found none before {self.start}: nothing to learn from"])

    @property
    def periods(self) -> list[str]:
        """The months that are played, oldest first: those with rows."""
        present = set(self.rows[PERIOD])
        return [each for each in period_range(self.start, self.end) if each in present]

    @property
    def history_end(self) -> str:
        """The last month before the first one that is played."""
        return add_months(self.start, -1)

    def traffic(self, period: str) -> pd.DataFrame:
        """Return the month's customers, as the API is asked about them: rows by features."""
        return self._of(period)[self.card.feature_names].reset_index(drop=True)

    def known_until(self, period: str) -> str:
        """Return the last month whose labels are known at the end of `period`."""
        return max(add_months(period, -self.label_delay), self.history_end)

    def labels(self, period: str, at: str) -> NDArray[np.float64]:
        """Return the month's labels as they are known at the end of month `at`: NaN where not."""
        target = self._of(period)[TARGET].to_numpy(dtype=np.float64)
        return target if period <= self.known_until(at) else np.full(len(target), np.nan)

    def outcome(self, period: str) -> NDArray[np.int64]:
        """Return the month's labels whether they have come or not: to judge a replay, not in it."""
        return self._of(period)[TARGET].to_numpy(dtype=np.int64)

    def window(self, at: str, months: int) -> tuple[str, str]:
        """Return first and last of the latest `months` labelled periods at the end of month `at`.

        As `mlops.dataset.rows.latest_labelled_window` finds them in the tables.
        """
        counts = self._counts(self.known_until(at))
        return counts[-months:][0][0], counts[-1][0]

    def history(self) -> tuple[str, str]:
        """Return first and last period of the history, as `mlops.dataset.rows.history_window`."""
        counts = self._counts(self.history_end)
        return counts[0][0], counts[-1][0]

    def labelled(self, start: str, end: str, at: str) -> pd.DataFrame:
        """Return the rows of `start` to `end` that may be learnt from at the end of month `at`."""
        end = min(end, self.known_until(at))
        inside = (self.rows[PERIOD] >= start) & (self.rows[PERIOD] <= end)
        return self.rows[inside].reset_index(drop=True)

    def _counts(self, until: str) -> list[tuple[str, int]]:
        """Return the labelled periods and their rows, without the last ones that are too small."""
        known = self.rows.loc[self.rows[PERIOD] <= until, PERIOD]
        counts = [(str(period), int(rows)) for period, rows in known.value_counts().items()]
        counts = without_scant_end(sorted(counts), FEWEST_ROWS)
        if not counts:
            raise DataError("the rows", [f"found no period with {FEWEST_ROWS} rows up to {until}"])
        return counts

    def _of(self, period: str) -> pd.DataFrame:
        return self.rows[self.rows[PERIOD] == period]
