"""What the lock promises a bare machine: nothing is built, so no compiler is needed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from packaging.markers import Marker, default_environment
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from mlops.settings import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GROUPS = tuple(
    f"group-5-mlops-{name}" for name in ("orchestrator", "services", "tracking", "app", "alerts")
)
WINDOWS_ONLY = {"pywin32", "pywinpty", "colorama"}
# Left out for a Python by a marker in pyproject.toml, which the package's own entry does not show.
LEFT_OUT = {10: {"sqlglotc"}}


def linux_tags(minor: int) -> set[Tag]:
    platforms = [f"manylinux_2_{glibc}_x86_64" for glibc in range(5, 29)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    tags = set(cpython_tags((3, minor), platforms=platforms))
    return tags | set(compatible_tags((3, minor), f"cp3{minor}", platforms))


def applies(package: dict[str, Any], minor: int) -> bool:
    """Whether this version of a package is the one for Python 3.`minor` on Linux."""
    markers = package.get("resolution-markers")
    if not markers:
        return True
    environment = {
        **default_environment(),
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.9",
        "sys_platform": "linux",
    }
    return any(
        Marker(marker).evaluate({**environment, "extra": group})
        for marker in markers
        for group in GROUPS
    )


@pytest.mark.parametrize("minor", [10, 11, 12])
def test_every_package_has_a_wheel_for_each_supported_python(minor: int) -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    supported = linux_tags(minor)
    to_build = [
        f"{package['name']} {package['version']}"
        for package in lock["package"]
        if "registry" in package["source"]
        and package["name"] not in WINDOWS_ONLY | LEFT_OUT.get(minor, set())
        and applies(package, minor)
        and not any(
            parse_wheel_filename(wheel["url"].rpartition("/")[2])[3] & supported
            for wheel in package.get("wheels", [])
        )
    ]
    assert not to_build
