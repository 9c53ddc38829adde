"""Gives Mage's triggers their token as soon as it is up; started by `server`, and by nobody else.

Mage reads the triggers from the pipelines' files when it starts, so no one can do it before.
"""

from __future__ import annotations

import os

from mlops.orchestration.mage import MageUnavailable, set_trigger_tokens, wait_until_ready
from mlops.orchestration.server import tokens_set_path
from mlops.settings import get_settings

_LOOK_S = 10.0


def main() -> None:
    """Wait for Mage, set the tokens, and leave the mark that says so.

    However long that takes, since Postgres may be away meanwhile; it ends when Mage does.
    """
    settings = get_settings()
    mage = os.getppid()
    while os.getppid() == mage:
        try:
            wait_until_ready(_LOOK_S, settings)
            set_trigger_tokens(settings)
        except MageUnavailable:
            continue
        tokens_set_path(settings).touch()
        return


if __name__ == "__main__":
    main()
