"""The processes that load images: they end with the one that started them, and a lost one is named."""

import ctypes
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

from torch.utils.data import DataLoader

from refimpl.errors import LostProcess

Item = TypeVar("Item")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
KILLED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (is killed by signal: .*|exited unexpectedly)"
)
TIMED_OUT = "DataLoader timed out after"
GO_ON = "continue the run from its newest checkpoint"


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, however that may be; Linux only (prctl(2)).

    parent  the parent's process number: if it has ended already, this process ends here
    The kernel goes by the thread that started this process, so that must be one that lasts: the main thread.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def begin_worker(parent: int, number: int) -> None:
    """What a loader process does first: the signals that stop a run are for its parent alone.

    Ctrl-C and a scheduler's SIGTERM reach every process of a job; a worker that obeyed would end the step that its
    parent is finishing.
    """
    end_with_parent(parent)
    signal.set_wakeup_fd(-1)  # the parent's, which forking has copied
    for number_of in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number_of, signal.SIG_IGN)


def delivered(loader: DataLoader[Item], timeout: float) -> Iterator[Item]:
    """What a DataLoader yields. Raises LostProcess, having killed the rest, when one of its workers is lost.

    timeout  seconds that the loader waits for a batch, as it was told; for the message
    """
    others = set(multiprocessing.active_children())
    iterator = iter(loader)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    try:
        yield from iterator
    except RuntimeError as error:
        lost = lost_worker(error, timeout, workers)
        if lost is None:
            raise
        for process in workers:
            process.kill()  # a stopped one can't end by itself, and Python would wait for it at its own end
        raise lost from error


def lost_worker(
    error: BaseException, timeout: float = 0.0, workers: Sequence[BaseProcess] = ()
) -> LostProcess | None:
    """The error to show for one that torch raises about a worker; None where it is about something else.

    torch raises it wherever the program happens to be when a worker ends.
    """
    killed = KILLED.search(str(error))
    if killed is not None:
        how = killed[2].removeprefix("is ").strip().rstrip(".")
        return LostProcess(
            f"loader process {killed[1]} has ended: {how}. If that was for lack of memory, lower data.workers; "
            f"{GO_ON}"
        )
    if TIMED_OUT in str(error):
        stopped = [str(process.pid) for process in workers if is_stopped(process.pid)]
        which = f"process {', '.join(stopped)} is stopped" if stopped else "they may wait for the disk"
        return LostProcess(
            f"no batch from the {len(workers)} loader processes for {timeout:g} s: {which}. Raise "
            f"data.worker_timeout if reading may take that long; {GO_ON}"
        )
    return None


def is_stopped(process: int | None) -> bool:
    """Whether a process has been stopped by a signal; False where there is no /proc to ask."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] in ("T", "t")
