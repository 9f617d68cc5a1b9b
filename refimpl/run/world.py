"""The processes of one run: how they find each other, wait, share values, and notice that one has stopped."""

import contextlib
import datetime
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from refimpl.data.loading.workers import lost_worker
from refimpl.errors import InputError, LostProcess
from refimpl.run.ranks.heartbeat import Heartbeat, meeting_place, start_heartbeat

Result = TypeVar("Result")
PREPARATION = datetime.timedelta(
    hours=1
)  # rank 0 may prepare data while the others wait at the first barrier
# Phrases in gloo's messages, then in NCCL's, in those of torch's watchdog over it, and in its store's.
LOST_PEER = (
    "closed by peer", "reset by peer", "Broken pipe", "Timed out waiting", "pair closure",
    "remote process exited", "remote process exiting", "ncclRemoteError", "communicator was aborted",
    "collective operation timeout", "Connection was likely closed",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """This process among its peers: rank 0 … size − 1, and the device it computes on."""

    rank: int
    size: int
    device: torch.device
    heartbeat: Heartbeat | None = field(default=None, compare=False)
    """What the ranks say of themselves; None where there is one."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone logs, shows progress and writes what the ranks do not share out."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all ranks; every rank must call it."""
        return value if self.size == 1 else self.sum(value) / self.size

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a tensor over all ranks; every rank must call it."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Runs `action` on rank 0 while the others wait, and returns its result, any JSON value, on every rank.

        Raises the action's InputError on every rank, and TypeError when its result is not a JSON value.
        """
        return self.object_from_main(lambda: json_value(action()))

    def object_from_main(self, action: Callable[[], Result]) -> Result:
        """Like `on_main`, for any result that can be pickled, such as arrays."""
        if self.size == 1:
            return action()
        box: list[Any] = [None, None]  # what was returned; what was raised
        if self.is_main:
            try:
                box[0] = action()
            except (InputError, NotJSON) as error:
                box[1] = error  # which pickles as what it is: the path of a bad image goes with it
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def at(self, step: int, phase: int, limit: float = 0.0) -> None:
        """Says where this rank is, and how long it may stay there: see `Heartbeat.at`."""
        if self.heartbeat is not None:
            self.heartbeat.at(step, phase, limit)


class NotJSON(TypeError):
    """A value that would not survive a round trip through JSON unchanged."""


def json_value(value: Result, where: str = "") -> Result:
    """Returns the value; raises NotJSON, saying where, unless JSON would give it back equal and with the same types.

    where  the position of `value` in the value that contains it, for the message
    """
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is list:
        for number, entry in enumerate(value):
            json_value(entry, f"{where}[{number}]")
    elif type(value) is dict:
        for key, entry in value.items():
            if type(key) is not str:
                raise NotJSON(f"a JSON table has strings as keys, not {key!r:.80} (at {where or 'the top'})")
            json_value(entry, f"{where}[{key!r:.80}]")
    else:
        raise NotJSON(
            f"{value!r:.80} of type {type(value).__name__} (at {where or 'the top'}) is no JSON value; return None, "
            "a truth value, a finite number, a string, a list or a table of them, or use object_from_main"
        )
    return value


def join_world(device: str) -> World:
    """Joins the process group that torchrun describes in the environment; without torchrun, a world of one process.

    device  "cpu", "cuda" (this process takes the GPU of its LOCAL_RANK) or "auto"
    Raises InputError for an unknown device, for "cuda" where there is none, and for more processes than GPUs.
    """
    rank, size, local = (int(os.environ.get(name, default)) for name, default in
                         (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))  # fmt: skip
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {device!r} is unknown; use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, but torch sees no GPU; use --train.device cpu")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    if use_cuda:
        _check_gpu_of(local)
        torch.cuda.set_device(local)
    heartbeat = None
    if size > 1:
        if not dist.is_initialized():
            store = meeting_place(PREPARATION)
            who = {} if store is None else {"store": store, "rank": rank, "world_size": size}
            dist.init_process_group("nccl" if use_cuda else "gloo", timeout=PREPARATION, **who)
        heartbeat = start_heartbeat(rank, size)
    return World(rank, size, torch.device("cuda", local) if use_cuda else torch.device("cpu"), heartbeat)


def _check_gpu_of(local: int) -> None:
    """Raises InputError for a process of this machine that finds no GPU of its own."""
    count = torch.cuda.device_count()
    if local >= count:
        raise InputError(
            f"LOCAL_RANK {local} has no GPU of its own: torch sees {count} on this machine; start as many processes "
            f"(torchrun --nproc-per-node={count}), or use --train.device cpu"
        )


def leave_world(world: World) -> None:
    """Leaves the process group, if there is one; for a process whose peers have all come this far.

    After an error it must not be called: it may wait for operations that will never end, and the error would stay
    unsaid. Such a process says it and exits (refimpl.commands.terminal).
    """
    if world.heartbeat is not None:
        world.heartbeat.end()
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def lost_peers_named(world: World) -> Iterator[None]:
    """Names the rank or the loader process that has stopped, where torch would show a traceback of the wait for it.

    Raises LostProcess in that case; every other error passes through.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        worker = lost_worker(error)
        if worker is not None:
            raise worker from error
        is_lost = isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_PEER)
        if world.size == 1 or not is_lost:  # gloo has no exception class for this
            raise
        lost = world.heartbeat.lost() if world.heartbeat is not None else ""
        raise LostProcess(
            f"rank {world.rank} stops because {lost or 'another rank has stopped'}; its own message says why"
        ) from error
