# SPDX-License-Identifier: Apache-2.0
"""Which processes read videos, and waiting for them to end."""

import re
import subprocess
import time


def readers_of(pid: int) -> list[int]:
    """Processes that read videos, of a process or of all that descend from it."""
    found = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split(maxsplit=2) for line in found.splitlines()]
    family, readers = {pid}, []
    for _ in range(4):  # generations
        family |= {int(child) for child, parent, *_ in lines if int(parent) in family}
    for child, _, *arguments in lines:
        if int(child) in family and arguments and re.search(r"video[._]worker", arguments[0]):
            readers.append(int(child))
    return readers


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def wait_until(is_true, seconds=2.0):
    end = time.monotonic() + seconds
    while not is_true() and time.monotonic() < end:
        time.sleep(0.01)
    return is_true()
