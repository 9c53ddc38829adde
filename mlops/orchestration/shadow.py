"""Has the version in shadow score what has been answered, every few seconds; decides nothing.

`server` starts it beside Mage, and again should it end. It scores in this process: runs in Mage
every few seconds would bury all others there. What a look costs does not grow with the log, but a
row that a spool ships late needs a look at all of it: that is done every minute, or more seldom if
it takes long.
"""

from __future__ import annotations

import sys
import time

from mlops.database import connect
from mlops.dataset.card import load_card
from mlops.orchestration.watching import watch
from mlops.registry.shadows import Shadow, current_shadow
from mlops.settings import Settings, get_settings

LOOK_S = 3.0
RECENT_S = 60.0
"""What a short look sees: rows answered in that time."""
SWEEP_S = 60.0
SWEEP_SHARE = 0.02
"""Of the time, at most, is spent on looks at the whole log."""
FIRST_PAUSE_S = 5.0
"""Rest after a look that failed (Postgres is away, say); doubled each time."""
LONGEST_PAUSE_S = 300.0


class ShadowWatcher:
    """Looks whether a version is in shadow, and has it score what was answered.

    `now` is in seconds, of any clock that does not go back.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._swept: Shadow | None = None
        self._sweep_at = 0.0
        self._pause = 0.0
        self._not_before = 0.0
        self._said = ""

    def look(self, now: float) -> int:
        """Look once; return how many rows were scored.

        Whatever is wrong is said once, and tried again after longer and longer pauses.
        """
        if now < self._not_before:
            return 0
        try:
            rows = self._look(now)
        except Exception as error:  # whatever it is, the champion answers and the log waits
            self._pause = min(max(2 * self._pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            self._not_before = now + self._pause
            said = f"{type(error).__name__}: {error}".strip()
            if said != self._said:
                print(f"the shadow waits: {said}", flush=True)
            self._said = said
            return 0
        self._pause, self._said = 0.0, ""
        return rows

    def _look(self, now: float) -> int:
        with connect(settings=self.settings) as connection:
            card = load_card(self.settings.card)
            shadow = current_shadow(connection, card)
            if shadow is None:
                if self._swept is not None:
                    # Started again, this process has the model and its libraries no more.
                    sys.exit(0)
                return 0
            # Seconds of import, and memory, that nobody pays as long as nothing is in shadow.
            from mlops.serving.comparison import compare_shadow
            from mlops.serving.shadow import score_shadow

            if shadow == self._swept and now < self._sweep_at:
                return score_shadow(connection, card, self.settings, _say, recent_s=RECENT_S).rows
            began = time.monotonic()
            scored = score_shadow(connection, card, self.settings, _say)
            compare_shadow(connection, card, shadow.version, self.settings)
            self._swept = shadow
            self._sweep_at = now + max(SWEEP_S, (time.monotonic() - began) / SWEEP_SHARE)
            return scored.rows


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Watch until Mage, which started this, has ended."""
    watch(ShadowWatcher(get_settings()).look, LOOK_S)


if __name__ == "__main__":
    main()
