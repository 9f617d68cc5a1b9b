"""SIGINT, SIGTERM and SIGUSR1 ask a run to stop: it finishes its step, saves and says how to go on.

A thread hears of them, because Python calls a handler only between two instructions of the main thread, which may
wait in torch for another rank for as long as it likes.
"""

import _thread
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from refimpl.errors import INTERRUPTED
from refimpl.run.ranks.heartbeat import end_at_once

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME = 1.0  # s within which a second SIGINT is the first one: the terminal and torchrun's agent both send it
OVER = 0  # no signal's number
GRACE = 5.0  # s after which a preparation that can't be interrupted, since it waits in torch, is ended


class Interrupted(KeyboardInterrupt):
    """A signal came before the first step, when there is nothing to save yet."""

    def __init__(self, number: int):
        self.code = 128 + number
        """The exit code, as shells have it."""
        super().__init__(f"interrupted by {signal.Signals(number).name} before the first step")


class StopSignals:
    """Whether a run has been asked to stop, and what a signal does now."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None  # the signal, and when it came
        self._notes, self._has_raised, self._has_begun = False, False, False
        self._is_over = threading.Event()
        self._rank = int(os.environ.get("RANK", "0"))

    def asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._first is not None

    @contextlib.contextmanager
    def noted(self, meet: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Within the context a signal is noted; before it, the signal raises Interrupted in the main thread.

        meet  waits for the other ranks: those that a signal has ended before they came leave none in its first step
        """
        if self._first is not None:
            raise Interrupted(self._first[0])
        self._notes = True
        try:
            meet()
            self._has_begun = True
            yield
        finally:
            self._notes = False

    def raise_interrupted(self) -> None:
        """Raises Interrupted where a signal has come before the first step; else does nothing.

        For what else is raised then: a peer that has heard the same signal may be gone before this rank's main
        thread, which waits for it in torch, is interrupted.
        """
        if self._first is not None and not self._has_begun:
            raise Interrupted(self._first[0])

    def heard(self, number: int) -> None:
        """What the thread does about a signal that has come."""
        now = time.monotonic()
        if self._first is None:
            self._first = number, now
            if self._notes:
                self._tell(f"{signal.Signals(number).name}: the run stops after this step, and saves")
            else:
                _thread.interrupt_main(signal.Signals(number))
                threading.Thread(target=self._end_soon, args=(number,), daemon=True).start()
        elif number == signal.SIGINT and now - self._first[1] > SAME:
            end_at_once(
                f"rank {self._rank}: interrupted again; what came after the last checkpoint is lost",
                INTERRUPTED,
            )

    def interrupt(self, number: int, _: object = None) -> None:
        """The handler, in the main thread: raises Interrupted, once, unless signals are noted."""
        if self._first is not None and not self._notes and not self._has_raised:
            self._has_raised = True
            raise Interrupted(number)

    def end(self) -> None:
        """Ends no process any more."""
        self._is_over.set()

    def _end_soon(self, number: int) -> None:
        if not self._is_over.wait(GRACE) and not self._notes:
            end_at_once(f"rank {self._rank}: {Interrupted(number)}", 128 + number)

    def _tell(self, message: str) -> None:
        if self._rank == 0:
            os.write(2, f"\n{message}\n".encode())


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Within the context the signals of `STOPPING` are heard; afterwards they do what they did before.

    In any thread but the main one, which alone may set handlers, nothing is heard.
    """
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        while numbers := os.read(reading, 64):
            for number in numbers:
                if number == OVER:
                    return
                if number in STOPPING:
                    signals.heard(number)

    thread = threading.Thread(target=listen, daemon=True, name="signals")
    thread.start()
    before = {number: signal.signal(number, signals.interrupt) for number in STOPPING}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield signals
    except Exception:
        signals.raise_interrupted()
        raise
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        signals.end()
        os.write(writing, bytes([OVER]))  # closing it would not do: loader processes hold it too
        thread.join()
        os.close(writing)
        os.close(reading)
