"""Keeps the stack's own requests away from a proxy that the user's environment names.

Its servers talk to one another on this machine, with bearer tokens: a proxy would answer for them,
or refuse, and would see the tokens. What goes to the internet (the data set) still uses the proxy.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlops.settings import Settings


def bypass(environment: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return `NO_PROXY` and `no_proxy` for `environment`: what they name, and this stack's hosts.

    Both spellings, since libraries differ in which they read first.
    """
    names: list[str] = []
    for variable in ("no_proxy", "NO_PROXY"):
        names += [name.strip() for name in environment.get(variable, "").split(",")]
    if "*" in names:
        value = "*"  # it only counts alone
    else:
        names_of_hosts = [name for name in type(settings).model_fields if name.endswith("host")]
        hosts = [getattr(settings, name) for name in names_of_hosts]
        ours = ("127.0.0.1", "localhost", *hosts)
        value = ",".join(dict.fromkeys(name for name in (*names, *ours) if name))
    return {"NO_PROXY": value, "no_proxy": value}
