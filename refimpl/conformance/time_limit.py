"""Interrupting Python code that does not return."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 0.5  # seconds after which code that has swallowed the interruption is interrupted again


class Hung(BaseException):
    """The time limit passed. Not an Exception, so that code which catches those does not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises Hung in the code within when it takes longer.

    Acts in the main thread of systems that have SIGALRM, on Python code and on calls that a signal interrupts;
    elsewhere it does nothing, and `worker` ends the process.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
