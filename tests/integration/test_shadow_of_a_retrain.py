"""What a retrain that keeps the champion leaves in shadow, with a real registry and a real API."""

from __future__ import annotations

import numpy as np

from mlops.registry.models import load_pipeline
from mlops.serving.deployment import deploy
from mlops.serving.payload import is_payload
from mlops.serving.shadow import score_shadow, shadow_challenger
from mlops.training.fit import score_window
from tests.fixtures.predict import make_rows
from tests.fixtures.shadow import log
from tests.integration.test_serving_deployment import (  # noqa: F401
    Stack,
    database,
    rows_of,
    stack,
    start_when_deployed,
    strict,
)


def test_the_held_challenger_is_exported_and_scores_as_sklearn_does(
    stack: Stack,  # noqa: F811
) -> None:
    starter = start_when_deployed(stack.server)
    with database(stack) as connection:
        first = deploy(stack.first, connection, "test", print, settings=stack.settings)
    starter.join()
    assert first.outcome == "promoted"
    assert shadow_challenger(stack.card, first, settings=stack.settings) is None
    with database(stack) as connection:
        kept = deploy(stack.second, connection, "test", print, settings=strict(stack))
    assert kept.outcome == "kept_champion"

    shadow = shadow_challenger(stack.card, kept, settings=stack.settings)
    assert shadow is not None
    assert (shadow.version, shadow.reason) == (kept.version, kept.reason)
    assert is_payload(stack.settings.payloads_dir / kept.version)
    assert stack.answering() == first.version, "nobody is answered otherwise"

    log(stack.settings, stack.card, 100, version=first.version)
    with database(stack) as connection:
        assert score_shadow(connection, stack.card, stack.settings).rows == 100
    expected = score_window(
        load_pipeline(stack.card, kept.version, stack.settings),
        stack.card,
        make_rows(stack.card, 100, 5),
    )
    found = rows_of(stack, "SELECT probability FROM serving.shadow_predictions ORDER BY row")
    np.testing.assert_allclose([score for (score,) in found], expected, atol=1e-5)
