"""A process that kills itself at a chosen call, as a power cut or an out-of-memory killer would."""

import os
import signal
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
