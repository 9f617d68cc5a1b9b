"""Processes that are killed: one that kills itself at a chosen call, and one that holds something until then."""

import os
import signal
from contextlib import AbstractContextManager
from typing import Any


def kill_at(place: Any, name: str, count: int) -> None:
    """Makes the `count`-th call of `place.name` kill this process with SIGKILL."""
    original, calls = getattr(place, name), []

    def killing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(place, name, killing)


def holder(held: AbstractContextManager[object], and_child: bool = False) -> tuple[int, int]:
    """A process that stays in a context until it is killed; its id, and that of its child, which outlives it.

    and_child  whether it forks one, as a loader's processes are forked; else the second id is 0
    """
    ready, told = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            with held:
                child = os.fork() if and_child else 0
                if and_child and child == 0:
                    signal.pause()
                os.write(told, str(child).encode())
                signal.pause()
        finally:
            os._exit(0)
    child = int(os.read(ready, 32))
    os.close(ready)
    os.close(told)
    return process, child
