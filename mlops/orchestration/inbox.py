"""Starts Mage's pipeline `score` when a finished file lies in the inbox; it scores nothing itself.

`server` starts it beside Mage, and again should it end. It looks at a folder every two seconds,
which costs next to nothing; a schedule of Mage's would make a run a minute, file or no file, and
the runs that did something could not be found among them.
"""

from __future__ import annotations

from pathlib import Path

from mlops.orchestration import mage
from mlops.orchestration.mage import MageError, MageUnavailable
from mlops.orchestration.watching import watch
from mlops.serving import exchange
from mlops.serving.exchange import Waiting
from mlops.settings import Settings, get_settings

PIPELINE = "score"

FIRST_PAUSE_S = 15.0
"""Rest after a run that left its files in the inbox (the API is away, say); doubled each time."""
LONGEST_PAUSE_S = 600.0


class InboxWatcher:
    """Looks at the inbox, and has the pipeline run when there is something to score.

    While a run of its own is under way it waits for that; `now` is in seconds, of any clock that
    does not go back.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._seen: list[Waiting] = []
        self._run: int | None = None
        self._tried: set[tuple[Path, tuple[int, int, int, int]]] = set()
        self._pause = 0.0
        self._not_before = 0.0
        self._said = ""

    def look(self, now: float) -> int | None:
        """Look once; return the id of the run that was started, if one was.

        Whatever is away is said once, and asked again at the next look.
        """
        try:
            return self._look(now)
        except (OSError, MageError) as error:
            if str(error) != self._said:
                print(f"the inbox waits: {error}", flush=True)
            self._said = str(error)
            return None

    def _look(self, now: float) -> int | None:
        seen = exchange.look(self.settings)
        finished = exchange.unchanged(seen, self._seen)
        self._seen = seen
        if self._run is not None and self._under_way(self._run):
            return None
        self._run = None
        waiting = {(each.path, each.mark) for each in finished}
        if not waiting:
            self._tried, self._pause, self._not_before = set(), 0.0, 0.0
            return None
        if not waiting <= self._tried:  # there is something new
            self._pause, self._not_before = 0.0, 0.0
        if now < self._not_before:
            return None
        self._run = mage.trigger_pipeline(PIPELINE, {}, self.settings)
        self._tried, self._said = waiting, ""
        self._pause = min(max(2 * self._pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._not_before = now + self._pause
        return self._run

    def _under_way(self, run: int) -> bool:
        try:
            return not mage.run_status(run, self.settings).ended
        except MageUnavailable:
            raise
        except MageError:  # somebody has deleted it
            return False


def main() -> None:
    """Watch until Mage, which started this, has ended."""
    watch(InboxWatcher(get_settings()).look, exchange.QUIET_S)


if __name__ == "__main__":
    main()
