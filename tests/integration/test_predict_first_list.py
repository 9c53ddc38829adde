"""The first list of records that a worker answers takes no longer than the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.predict import PredictServer


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is loaded")
def test_a_list_does_not_load_pandas_into_the_worker(lone_api: PredictServer) -> None:
    """pyarrow does, where there is a pandas: half a second to three, and 50 MB a worker.

    The payload's own requirements have none, so that its image would be spared what the embedded
    stack is not.
    """
    assert lone_api.post([lone_api.reference()] * 100).status_code == 200
    (worker,) = lone_api.workers()
    loaded = Path(f"/proc/{worker}/maps").read_text()
    assert "/pyarrow/" in loaded
    assert "/pandas/" not in loaded
