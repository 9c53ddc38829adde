"""What a server needs installed, by the files that its packages and theirs have brought.

Python itself and byte code, which every installation makes, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name


def installed_mb(environment: Path, wanted: Iterable[str]) -> float:
    """Return the size in MB (10^6 bytes) of `wanted` requirements and all that they require.

    Raises KeyError if one of `wanted` is not installed in the environment (a folder of venv).
    """
    (site,) = environment.glob("lib/python3.*/site-packages")
    installed = {canonicalize_name(each.name): each for each in distributions(path=[str(site)])}
    queue = [(canonicalize_name(Requirement(each).name), "") for each in wanted]
    for name, _ in queue:
        if name not in installed:
            raise KeyError(f"{name} is not installed in {environment.name}")
    seen: set[tuple[NormalizedName, str]] = set()
    while queue:
        one = queue.pop()
        if one in seen or one[0] not in installed:
            continue
        seen.add(one)
        for text in installed[one[0]].requires or ():
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": one[1]}):
                continue
            name = canonicalize_name(requirement.name)
            queue += [(name, extra) for extra in ("", *requirement.extras)]
    return sum(_bytes(installed[name]) for name in {name for name, _ in seen}) / 1e6


def _bytes(distribution: Distribution) -> int:
    paths = [Path(str(file.locate())) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if path.suffix != ".pyc" and path.is_file())
