"""What the ranks agree on in every step: whether to take it, whether to stop after it, what to tell each other.

One all-reduce of five numbers a step, on the device and by the largest: *bad* (the loss or the gradient of a rank is
not finite), *stop* (a rank was asked to stop), *news* (a rank has met bad images), *sample* and *checkpoint* (asked
for in the run's control file, which rank 0 looks for once a step). The optimizer skips a bad step on the device, so
that nothing waits; the host reads the numbers a step later, or at once before anything is written of a step. All
ranks read the same numbers at the same place, and so do the same.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from refimpl.errors import InputError
from refimpl.run.config import TrainConfig
from refimpl.run.shared_work import gathered
from refimpl.run.world import World
from refimpl.train.quarantine import Quarantine
from refimpl.train.watch.control_file import CHECKPOINT, CONTROL, SAMPLE, STOP, taken

ROWS = "faults.jsonl"
SHOWN = 8  # images that a message names; the rows name all


@dataclass(frozen=True)
class Seen:
    """What a micro-batch was, as far as an error about it needs to say; tensors on the device, one row per image."""

    t: Tensor
    sigma: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Reading:
    """A step's five numbers on their way to the host, and what the step was."""

    flags: Tensor  # [5] on the host; the values have arrived once `arrived` has happened
    arrived: torch.cuda.Event | None
    step: int
    images: Sequence[str]
    seen: Sequence[Seen]

    def values(self) -> list[bool]:
        """Bad, stop, news, sample, checkpoint; waits for them to arrive, which a step later they have long done."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return [bool(flag) for flag in self.flags.tolist()]


class Faults:
    """The agreement of the ranks, step by step."""

    def __init__(self, settings: TrainConfig, run: Path, world: World, asked: Callable[[], bool]):
        """Begins without a fault.

        run    rank 0 appends to `run`/faults.jsonl one row for each step that was skipped, and takes
               `run`/control.json
        asked  whether this process has been asked to stop
        """
        self._settings, self._path, self._world = settings, run / ROWS, world
        self.quarantine, self._asked = Quarantine(run, world), asked
        self._control = run / CONTROL
        self._due: set[str] = set()  # asked for, and to be done after this step
        self._step = 0
        self._images: Sequence[str] = ()
        self._seen: list[Seen] = []
        self._now: Reading | None = None
        self._before: Reading | None = None
        self._bad: list[str] = []  # what was said of the last steps, all bad
        self._limit = (
            0.0  # the first step compiles, plans and allocates: it has the time that preparation has
        )

    def begin(self, step: int, images: Sequence[str]) -> None:
        """A step begins: its number, and the ids of this rank's images in the order of its micro-batches."""
        self._step, self._images, self._seen, self._due = step, images, [], set()
        self._world.at(step, 0, self._limit)

    def saw(self, t: Tensor, sigma: Tensor, losses: Tensor) -> None:
        """A micro-batch was computed: its timesteps, noise levels and losses, [B] each."""
        self._seen.append(Seen(t, sigma, losses.detach()))

    def agree(self, norm: Tensor) -> Tensor:
        """Whether the optimizer is to skip the step: 1 where any rank's loss or gradient is not finite, else 0.

        norm     of the summed gradient, a scalar on the device
        returns  a scalar on the device, the same on every rank; nothing waits for it
        """
        losses = torch.cat([seen.losses for seen in self._seen])
        bad = torch.logical_not(norm.isfinite() & losses.isfinite().all()).float()
        asked = taken(self._control) if self._world.is_main else frozenset()
        stop, news = self._asked() or STOP in asked, self.quarantine.has_news()
        others = (stop, news, SAMPLE in asked, CHECKPOINT in asked)
        flags = torch.stack([bad, *(torch.full_like(bad, float(flag)) for flag in others)])
        if self._world.size > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        on_host = flags.to("cpu", non_blocking=True)  # pinned
        arrived = torch.cuda.Event() if flags.is_cuda else None
        if arrived is not None:
            arrived.record()
        self._before, self._now = self._now, Reading(on_host, arrived, self._step, self._images, self._seen)
        self._limit = self._settings.step_timeout
        self._world.at(self._step, 1, self._limit)
        return flags[0]

    def settle(self) -> bool:
        """Acts on the step before, and on this one if it is logged, measured or kept.

        returns  whether the run stops after this step; True on all ranks or on none
        Raises InputError, on all ranks, when too many steps in a row were bad, or too many images are.
        """
        assert self._now is not None
        is_stopping = self._before is not None and self._act(self._before)
        self._before = None
        if is_stopping or self._due or is_read_at_once(self._settings, self._step):
            is_stopping |= self._act(self._now)
            self._now = None
        return is_stopping

    def draws(self, done: int) -> bool:
        """Whether samples are drawn after a step, since it is time or they were asked for; alike on all ranks."""
        every = self._settings.sample_every
        is_time = every > 0 and (done == self._settings.steps or done % every == 0)
        return is_time or SAMPLE in self._due

    def keeps(self, done: int) -> bool:
        """Whether a checkpoint is written after a step, as `draws`."""
        is_time = done == self._settings.steps or done % self._settings.checkpoint_every == 0
        return is_time or CHECKPOINT in self._due

    @contextlib.contextmanager
    def takes_long(self) -> Iterator[None]:
        """Within the context the others may wait for this rank as long as they would while it prepares."""
        self._world.at(self._step, 1)
        yield
        self._world.at(self._step, 1, self._limit)

    def _act(self, reading: Reading) -> bool:
        bad, stop, news, sample, checkpoint = reading.values()
        self._due |= {action for action, flag in ((SAMPLE, sample), (CHECKPOINT, checkpoint)) if flag}
        if news:
            self.quarantine.share()
        if not bad:
            self._bad = []
            return stop
        what = self._report(reading)
        self._bad.append(what)
        if len(self._bad) >= self._settings.max_bad_steps:
            taken = "no step of them was taken"
            if self._settings.step_in_backward:
                taken = "part of it was taken in the backward pass, so go on from the newest checkpoint"
            raise InputError(
                f"{'; '.join(self._bad)}. That makes {len(self._bad)} in a row, which train.max_bad_steps allows no "
                f"more of; {taken}. Lower optimizer.learning_rate, or look at the images; all are "
                f"listed in {self._path}"
            )
        return stop

    def _report(self, reading: Reading) -> str:
        """Notes a skipped step, with the images that made it so, and returns what to say of it."""
        images = [
            image for part in gathered(self._world, _images(reading, self._world.rank)) for image in part
        ]
        bad = [image for image in images if image["loss"] is None]
        cause, named = ("loss", bad) if bad else ("gradient", images)
        shown = ", ".join(
            f"{image['id']} (t = {image['timestep']}, sigma = {image['sigma']:.6g}, rank {image['rank']})"
            for image in named[:SHOWN]
        )
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        what = f"step {reading.step}: the {cause} is not finite, for the images {shown}{more}"
        if self._world.is_main:
            ending = "ends the run" if self._settings.step_in_backward else "is skipped"
            tqdm.write(f"{what}; the step {ending}")
            append_row(self._path, {"step": reading.step, "not_finite": cause, "images": named})
        return what


def _images(reading: Reading, rank: int) -> list[dict[str, Any]]:
    """This rank's images in a step; a loss that is not finite is None."""
    t, sigma, losses = (
        torch.cat([getattr(seen, name) for seen in reading.seen]).tolist()
        for name in ("t", "sigma", "losses")
    )
    return [
        {
            "id": name,
            "rank": rank,
            "timestep": at,
            "sigma": level,
            "loss": loss if math.isfinite(loss) else None,
        }
        for name, at, level, loss in zip(reading.images, t, sigma, losses, strict=False)
    ]


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a line of JSON to a file. Raises InputError when the disk refuses it."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror}; free space") from error


def is_read_at_once(settings: TrainConfig, step: int) -> bool:
    """Whether a step is logged, measured or kept, so that its numbers are not left for later; alike on all ranks."""
    every = (settings.log_every, settings.validate_every, settings.sample_every, settings.checkpoint_every)
    return step == settings.steps or any(n and step % n == 0 for n in every)
