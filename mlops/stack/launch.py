"""Becomes one server of the stack: `python -m mlops.stack.launch <service>`.

The process manager runs this instead of the server itself, so that secrets pass from `.env` into
the server's environment and stand in no other file and on no command line. It replaces itself by
the server (exec): same process, same signals, nothing left in between.
"""

from __future__ import annotations

import os
import pwd
import sys
import time

from mlops.settings import ROOT, get_settings
from mlops.stack import processes
from mlops.stack.services import launch_environment, services


def launch(name: str) -> None:
    """Replace this process by the service `name`, once there is something to run."""
    settings = get_settings()
    service = next((each for each in services(settings) if each.name == name), None)
    if service is None:
        raise SystemExit(f"no service is called {name!r}")
    ended = processes.end_predecessors(settings, name)
    if ended:
        print(f"{ended} processes of a killed {name} were still there: ended", flush=True)
    if service.waits_for and not service.waits_for.exists():
        print(f"waiting for {service.waits_for}, which the first deployment writes", flush=True)
        while not service.waits_for.exists():
            time.sleep(0.5)
    environment = {**launch_environment(service, settings), processes.SERVICE_MARK: name}
    command = service.command()
    user = service.user()
    if user:
        account = pwd.getpwnam(user)
        os.chdir("/")
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        environment.update(HOME="/", USER=user, LOGNAME=user)
    else:
        os.chdir(ROOT)
    os.execve(command[0], command, environment)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m mlops.stack.launch <service>")
    launch(sys.argv[1])
