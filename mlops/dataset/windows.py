"""Cut a window of rows by time: the newest months judge, those before are earlier; never at random.

What is done with the newest months (scored out of fold, then learnt from as well) is decided in
`mlops.training.fit`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from mlops.dataset.card import PERIOD, TARGET
from mlops.dataset.errors import DataError


@dataclass(frozen=True)
class Window:
    """Consecutive periods of rows: the latest are validation, those before are earlier."""

    earlier: pd.DataFrame
    validation: pd.DataFrame

    @property
    def start(self) -> str:
        """First period."""
        return str(self.earlier[PERIOD].min())

    @property
    def end(self) -> str:
        """Last period of validation."""
        return str(self.validation[PERIOD].max())


def validation_periods(
    frame: pd.DataFrame, validation_months: int, fewest_rows: int = 1
) -> list[str]:
    """Return the periods of `frame` that are validation, the oldest first.

    The last `validation_months` that have rows. If these have fewer than `fewest_rows` rows,
    periods before them are added until they have, as long as one is left that is earlier; all
    periods if there are no more than `validation_months`.
    """
    counts = frame[PERIOD].value_counts().sort_index()
    months = min(validation_months, len(counts))
    while counts.iloc[-months:].sum() < fewest_rows and months < len(counts) - 1:
        months += 1
    return [str(period) for period in counts.index[-months:]]


def split_window(frame: pd.DataFrame, validation_months: int, fewest_rows: int = 1) -> Window:
    """Return `frame` cut by time, its last periods being validation (`validation_periods`).

    Raises DataError if either part is empty or holds one answer only:
    neither a fit nor a ROC AUC exists then.
    """
    if validation_months < 1:
        raise ValueError(f"found {validation_months} validation months, expected 1 or more")
    periods = sorted(frame[PERIOD].unique())
    if len(periods) <= validation_months:
        raise DataError(
            "the window",
            [
                f"found rows of {len(periods)} period(s) ({', '.join(periods) or 'none'}), "
                f"expected more than the {validation_months} of validation: widen the window, "
                "or lower `validation_months` in the card"
            ],
        )
    late = frame[PERIOD] >= validation_periods(frame, validation_months, fewest_rows)[0]
    window = Window(
        earlier=frame[~late].reset_index(drop=True), validation=frame[late].reset_index(drop=True)
    )
    problems = []
    for part, name in ((window.earlier, "earlier"), (window.validation, "validation")):
        positives = int(part[TARGET].sum())
        if positives in (0, len(part)):
            problems.append(
                f"{name} part, {part[PERIOD].min()} to {part[PERIOD].max()}: found {positives} "
                f"positives in {len(part)} rows, expected both answers: widen the window"
            )
    if problems:
        raise DataError("the window", problems)
    return window
