"""Asks the kernel to run soon who answers requests.

Owns one system call. A request waits at most 50 ms for its answer, and beside a model that keeps
all cores busy a worker may wait most of that for its turn. Since Linux 6.12 who asks for short
turns has them earlier, for the same share of the cores (the kernel's Documentation/scheduler/
sched-eevdf.rst; sched_setattr(2)); older kernels take no notice. It needs no privilege.
"""

from __future__ import annotations

import logging
import os
import platform
import struct
from typing import Final

_LOG = logging.getLogger(__name__)

# The kernel's least. Among six busy processes on two cores, 200 us of work every 0.7 ms then waited
# 5 ms at p99 and 9 ms at most where it had waited 10 and 16 (of ten runs in turns, medians).
TURN_NS: Final = 100_000
# The C library of Debian 12 has no function for it.
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
# struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTR: Final = struct.Struct("<IIQiIQQQ")


def take_short_turns(pid: int) -> bool:
    """Ask for turns of TURN_NS for a process of ours.

    Returns:
        False when nothing was asked: the process is gone, has a policy of its own, or the kernel
        refuses. That is no fault: it is scheduled like all others.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    import ctypes  # only supervisors need it

    try:
        if os.sched_getscheduler(pid) != os.SCHED_OTHER:
            return False
        nice = os.getpriority(os.PRIO_PROCESS, pid)
    except OSError:
        return False
    attr = _ATTR.pack(_ATTR.size, os.SCHED_OTHER, 0, nice, 0, TURN_NS, 0, 0)
    refused: int = ctypes.CDLL(None, use_errno=True).syscall(number, pid, attr, 0)
    if refused:
        _LOG.debug("no short turns for process %d: %s", pid, os.strerror(ctypes.get_errno()))
    return not refused
