"""A process that ends with the one that started it, however that one ends; for ranks and for loader processes.

Imports nothing slow: a rank calls it before anything else.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends; Linux only (prctl(2)).

    The kernel goes by the thread that started this process, so that must be one that lasts, as the main thread does.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it has ended in between
        os._exit(1)
