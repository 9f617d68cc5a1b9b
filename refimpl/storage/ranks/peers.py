"""The processes that write or read one folder together: how they share values, and one another's errors.

What one of them can't do fails in all of them with the same message, so that none waits for a process that has given
up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from refimpl.errors import InputError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Peers:
    """This process among those of the job: rank 0 … size − 1. Every method is to be called by all of them."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """The process group to talk over; None for torch's default one."""

    def gathered(self, value: Value) -> list[Value]:
        """Every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist  # here, so that who writes a file alone need not import torch

        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value, group=self.group)
        return box

    def together(self, action: Callable[[], Value]) -> list[Value]:
        """What `action` returns on each rank, in rank order, on every rank; raises on all what it raised on any.

        An InputError or OSError keeps its class; another rank's error of any other kind becomes a RuntimeError.
        """
        value, error = _tried(action)
        answers = self.gathered((value, _as_sent(error, self.rank)))
        if error is not None:
            raise error
        for _, sent in answers:
            if sent is not None:
                raise sent
        return [answer for answer, _ in answers]  # pyright: ignore[reportReturnType]

    def on_first(self, action: Callable[[], Value]) -> Value:
        """What `action` returns on rank 0, which alone runs it, on every rank; raises what it raised."""
        if self.size == 1:
            return action()
        import torch.distributed as dist

        value, error = _tried(action) if self.rank == 0 else (None, None)
        box: list[Any] = [(value, _as_sent(error, 0))]
        dist.broadcast_object_list(box, src=0, group=self.group)
        value, sent = box[0]
        if sent is not None:
            raise error or sent
        return value


ALONE = Peers()


def _tried(action: Callable[[], Value]) -> tuple[Value | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:  # raised again by whoever asked, on every rank
        return None, error


def _as_sent(error: Exception | None, rank: int) -> Exception | None:
    """The error as another process can receive it, without what hangs on it here."""
    if error is None or isinstance(error, InputError):
        return error  # pickling leaves its traceback and its causes behind
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename)
    return RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")
