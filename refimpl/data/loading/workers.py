"""The processes that load images: they end with the one that started them, and a lost one is named."""

import atexit
import contextlib
import multiprocessing
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

from torch.utils.data import DataLoader

from refimpl.data.loading.orphans import end_with_parent
from refimpl.errors import LostProcess

Item = TypeVar("Item")
KILLED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (is killed by signal: .*|exited unexpectedly)"
)
END = object()
UNREAPED = 2.0  # s after a process's connections are closed, by which the system says that it has ended
GO_ON = "continue the run from its newest checkpoint, or run `refimpl cache` again"


def start_method(workers: int) -> str | None:
    """How worker processes are started: forked on Linux, where Python 3.14 no longer does so by itself.

    A forked worker has this process as its parent, with which it ends, and shares the memory of the index.
    returns  what DataLoader takes as multiprocessing_context; None without workers, or for the platform's own way
    """
    return "fork" if workers and sys.platform == "linux" else None


def begin_worker(number: int) -> None:
    """What a loader process does first: the signals that stop a run are for its parent alone.

    Ctrl-C and a scheduler's SIGTERM reach every process of a job; a worker that obeyed would end the step that its
    parent is finishing.
    """
    end_with_parent()
    signal.set_wakeup_fd(-1)  # the parent's, which forking has copied
    for stopping in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(stopping, signal.SIG_IGN)


def delivered(loader: DataLoader[Item], timeout: float) -> Iterator[Item]:
    """What a DataLoader yields. Raises LostProcess, having killed the rest, when one of its workers is lost.

    timeout  seconds to wait for each batch; 0 waits without end. DataLoader's own time-out does not do: it does not
             cover the moment when a batch's memory is asked of a worker that has been stopped.
    """
    others = set(multiprocessing.active_children())
    iterator = iter(loader)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    late: list[str] = []
    end = partial(_end, workers)  # multiprocessing would wait at exit for workers that heed no SIGTERM
    atexit.register(end)
    try:
        while True:
            with _interrupted_after(timeout, workers, late):
                item = next(iterator, END)
            if item is END:
                return
            yield item  # pyright: ignore[reportReturnType]
    except Exception as error:
        lost = LostProcess(late[0]) if late else lost_worker(error) or dead_one(workers, error)
        if lost is None:
            raise
        end()
    except GeneratorExit:  # nobody wants more: torch would end them too, and its handler take one for lost
        end()
        raise
    finally:
        atexit.unregister(end)
    iterator = (
        None  # the error, and with it torch's last look at these workers, is gone before this one is raised
    )
    raise lost


@contextlib.contextmanager
def _interrupted_after(timeout: float, workers: Sequence[BaseProcess], late: list[str]) -> Iterator[None]:
    """Raises in the context when that takes longer than the time-out; the reason is then in `late`."""
    if not (timeout and workers):
        yield
        return
    timer = threading.Timer(timeout, _interrupt, (workers, timeout, late))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _interrupt(workers: Sequence[BaseProcess], timeout: float, late: list[str]) -> None:
    """Kills a worker, at which torch raises an error in the main thread, whatever that waits for."""
    stopped = [process for process in workers if is_stopped(process.pid)]
    names = ", ".join(str(process.pid) for process in stopped)
    which = f"process {names} is stopped" if stopped else "they may wait for the disk"
    late.append(
        f"no batch from the {len(workers)} loader processes for {timeout:g} s: {which}. Raise data.worker_timeout if "
        f"reading may take that long; {GO_ON}"
    )
    (stopped or list(workers))[0].kill()


def _end(workers: Sequence[BaseProcess]) -> None:
    """Kills workers: a stopped one can't end by itself, and Python would wait for it at its own end."""
    with _without_torchs_handler():
        for process in workers:
            process.kill()
        for process in workers:
            process.join()


@contextlib.contextmanager
def _without_torchs_handler() -> Iterator[None]:
    """Within the context, torch raises no error wherever the program is when a worker ends."""
    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield
        return
    try:
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except RuntimeError:  # of the handler, about a worker that has ended already
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def lost_worker(error: BaseException) -> LostProcess | None:
    """The error to show for one that torch raises about a worker; None where it is about something else.

    torch raises it wherever the program happens to be when a worker ends; where something fails for that, it is what
    was handled then.
    """
    before: BaseException | None = error
    while before is not None:
        killed = KILLED.search(str(before))
        if killed is not None:
            return _ended(killed[1], killed[2].removeprefix("is ").strip().rstrip("."))
        before = before.__context__
    return None


def dead_one(workers: Sequence[BaseProcess], error: Exception) -> LostProcess | None:
    """The error for a worker that has ended; one whose connection is broken is given the time to have done so.

    A process that ends closes its connections a moment before the system can say how it ended: the moment is waited
    for.
    """
    is_broken = isinstance(error, OSError | EOFError)
    with _without_torchs_handler():
        ended = wait([process.sentinel for process in workers], UNREAPED if is_broken else 0)
        for process in workers:
            if process.sentinel in ended:
                process.join()
            if process.exitcode:
                return _ended(str(process.pid), f"exit code {process.exitcode}")
    return None


def _ended(processes: str, how: str) -> LostProcess:
    return LostProcess(
        f"loader process {processes} has ended: {how}. If that was for lack of memory, lower data.workers; {GO_ON}"
    )


def is_stopped(process: int | None) -> bool:
    """Whether a process has been stopped by a signal; False where there is no /proc to ask."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] in ("T", "t")
