"""What the watchers beside Mage have in common: look every so often, until Mage ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def watch(look: Callable[[float], object], pause_s: float) -> None:
    """Call `look` every `pause_s` seconds until the process that started this one has ended.

    It is given the seconds of a clock that does not go back.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        look(time.monotonic())
        time.sleep(pause_s)
