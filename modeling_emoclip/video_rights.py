# SPDX-License-Identifier: Apache-2.0
"""What the guarded process gives up before it opens a stranger's file: writing, the network, memory without bounds.

Only what the standard library and one call of libc have: docs/reliability.md says what that leaves open.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
from functools import cache
from pathlib import Path

from .video_limits import VideoLimits

try:
    import resource
except ImportError:  # Windows
    resource = None

# From <linux/sched.h> and <linux/prctl.h>.
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_NO_NEW_PRIVILEGES = 38
# A decoder holds up to 16 reference frames and some in work, of 1.5 to 4 bytes a pixel, and the frame as RGB.
_BYTES_PER_PIXEL = 64
_SPARE_BYTES = 2**30  # for what libraries map and for small files, whatever the limits are


def give_up_rights() -> None:
    """Gives up writing files, core dumps, new privileges and, on Linux, the network, as far as the system lets it."""
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, instead of ending the process
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a libc without these calls
            libc = ctypes.CDLL(None)
            libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
            # A network of its own, in which there is nothing. Who is not root needs a user namespace for that; root
            # must not have one, because it could no longer read other users' files.
            libc.unshare(_NEW_NETWORK if os.geteuid() == 0 else _NEW_USER | _NEW_NETWORK)


def limit_memory(limits: VideoLimits, keeps_frames: bool) -> None:
    """Lets this process take no more memory than reading within the limits needs, on Linux.

    Args:
        keeps_frames: whether all frames that are read are kept until the last is there.
    """
    if resource is None or sys.platform != "linux":
        return
    most = _own_bytes() + _SPARE_BYTES + int(_BYTES_PER_PIXEL * limits.max_pixels)
    if keeps_frames:
        most += 2 * int(limits.max_bytes)  # one by one, and then as one array
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError, OverflowError):
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


@cache
def _own_bytes() -> int:
    """Returns what this process had mapped before its first video."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(re.search(r"VmSize:\s+(\d+)", status)[1]) * 1024


__all__ = ["give_up_rights", "limit_memory"]
