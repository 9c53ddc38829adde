"""Gives Mage's triggers their token as soon as it is up; started by `server`, and by nobody else.

Mage reads the triggers from the pipelines' files when it starts, so no one can do it before.
"""

from __future__ import annotations

from mlops.orchestration.mage import set_trigger_tokens, wait_until_ready
from mlops.orchestration.server import tokens_set_path
from mlops.settings import get_settings

_LONGEST_START_S = 600.0


def main() -> None:
    """Wait for Mage, set the tokens, and leave the mark that says so."""
    settings = get_settings()
    wait_until_ready(_LONGEST_START_S, settings)
    set_trigger_tokens(settings)
    tokens_set_path(settings).touch()


if __name__ == "__main__":
    main()
