"""EDA.ipynb as it is committed: without results, which are those of whoever ran it last."""

import json
from typing import Any

import pytest

from mlops.settings import ROOT


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    return json.loads((ROOT / "EDA.ipynb").read_text(encoding="utf-8"))["cells"]


def test_it_is_committed_with_its_outputs_cleared(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]] == []


def test_it_saves_no_picture_unless_it_is_asked_to(cells):
    (parameters,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    assert "".join(parameters["source"]).startswith("PICTURES = None")
