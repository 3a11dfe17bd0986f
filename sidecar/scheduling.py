"""Asks the kernel for short turns for who answers requests, long ones for who gets ready for it.

Owns one system call. A request waits at most 50 ms for its answer, and beside a model that keeps
all cores busy a worker may wait most of that for its turn. Since Linux 6.12 who asks for short
turns has them earlier, for the same share of the cores, and a process that wakes up interrupts one
whose turns are longer (the kernel's Documentation/scheduler/sched-eevdf.rst; sched_setattr(2)).
Older kernels take no notice. It needs no privilege.
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
SHORT_NS: Final = 100_000
# The kernel's most. While a supervisor reads a snapshot of 1,000 experiments, Envoy and the workers
# would wait for the kernel's next tick otherwise, 4 ms (benchmark `push`).
LONG_NS: Final = 100_000_000
# The C library of Debian 12 has no function for it.
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
# struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTR: Final = struct.Struct("<IIQiIQQQ")


def ask_for_turns(turn_ns: int, pid: int = 0) -> bool:
    """Ask for turns of some length for the first thread of a process of ours.

    Threads and processes that it starts afterwards have the same, until they ask for their own.

    Args:
        turn_ns: SHORT_NS, LONG_NS, or between.
        pid: Of the process; 0 = this thread.

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
    attr = _ATTR.pack(_ATTR.size, os.SCHED_OTHER, 0, nice, 0, turn_ns, 0, 0)
    refused: int = ctypes.CDLL(None, use_errno=True).syscall(number, pid, attr, 0)
    if refused:
        why = os.strerror(ctypes.get_errno())
        _LOG.debug("no turns of %d ns for process %d: %s", turn_ns, pid, why)
    return not refused
