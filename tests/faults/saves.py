"""A run small enough to save a hundred times, and a save that its process does not survive."""

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refimpl.interop.run.checkpoints import committed_steps, newest_whole, step_folder
from refimpl.run.adamw import optimizer_state
from refimpl.run.config import Config
from refimpl.run.ema import ema_start
from refimpl.run.world import World
from refimpl.storage import committed
from refimpl.storage.local_tensors import local
from refimpl.train.checkpoint import begin_saving, load_checkpoint, write_checkpoint
from refimpl.train.setup.trainable import Averages, Part
from tests.train import runs

CALLS = ("fsync", "rename", "mkdir", "unlink", "rmdir", "chmod")  # of os, beside every write to a file
WAYS = ("before", "after", "half")
ALONE = World(0, 1, torch.device("cpu"))


def settings(folder: Path, ranks: int = 1) -> Config:
    """Settings that keep the two newest checkpoints, of 100 steps with 12 micro-batches each."""
    train = {"steps": 100, "keep_checkpoints": 2, "accumulate": 12 // ranks}
    return runs.config(folder, folder, train=train)


class Training:
    """The state of a run: a network of two layers, its average and moments, shared out if the world has ranks."""

    def __init__(self, world: World = ALONE) -> None:
        self.world = world
        network = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
        with torch.no_grad():
            for number, parameter in enumerate(network.parameters()):
                parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) + 100 * number)
        if world.size > 1:
            share_out(network, world.size)
        self.parts = [Part("unet", network, 0.0)]
        self.averages: Averages = {"unet": ema_start(self.parts[0])}
        self.optimizer = torch.optim.AdamW(map(local, network.parameters()), lr=1e-2, foreach=True)

    def step(self) -> None:
        """A step with a gradient that depends on the weights alone."""
        parameters = self.parts[0].parameters()
        for name, parameter in parameters.items():
            local(parameter).grad = local(parameter).detach() * 0.1 + 1
            self.averages["unet"][name].mul_(0.9).add_(parameter.detach(), alpha=0.1)
        self.optimizer.step()

    def save(self, run: Path, step: int) -> None:
        """Writes a checkpoint as the loop does."""
        config = settings(run, self.world.size)
        saving = begin_saving(config.train, self.world)
        write_checkpoint(config, run, step, self.parts, self.averages, self.optimizer, saving)
        saving.finish()

    def load(self, run: Path) -> int:
        """Loads the newest whole checkpoint; its step."""
        config = settings(run, self.world.size)
        saving = begin_saving(config.train, self.world)
        return load_checkpoint(config, run, self.parts, self.averages, self.optimizer, saving)


def moments(training: Training) -> dict[str, torch.Tensor]:
    """AdamW's moments and step counts, by name."""
    return optimizer_state(training.parts[0].parameters(), training.optimizer)


def share_out(network: nn.Module, ranks: int) -> None:
    """Makes DTensors of a network's parameters, cut along their first dimension."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks,))
    for module in network.children():
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))


def saved_run(run: Path, world: World = ALONE) -> Training:
    """A run with checkpoints 1 and 2, and its state at step 3, not yet saved."""
    training = Training(world)
    for step in (1, 2, 3):
        training.step()
        if step < 3:
            training.save(run, step)
    return training


def whole_steps(run: Path) -> list[int]:
    """The steps whose checkpoints are there, each of which must be whole."""
    steps = committed_steps(run)
    for step in steps:
        committed.verify(step_folder(run, step))
    return steps


def counted(act: Callable[[int, str, Callable[[], Any], Callable[[], Any]], Any]) -> Callable[[], int]:
    """From now on passes every write to a file, and every one of CALLS, to `act`; returns what counts them.

    act  gets the operation's number from 0, its name, what does it, and what does half of it
    """
    numbers: list[str] = []

    def operation(name: str, do: Callable[[], Any], half: Callable[[], Any]) -> Any:
        numbers.append(name)
        return act(len(numbers) - 1, name, do, half)

    for name in CALLS:
        original = getattr(os, name)

        def replaced(*arguments: Any, _name: str = name, _call: Any = original, **options: Any) -> Any:
            return operation(_name, lambda: _call(*arguments, **options), lambda: None)

        setattr(os, name, replaced)
    opened = io.open

    def open_recorded(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        stream = opened(file, mode, *arguments, **options)
        return _Recorded(stream, operation) if "w" in mode else stream

    io.open = open_recorded  # what pathlib's open and write_text call
    return lambda: len(numbers)


class _Recorded:
    """A file whose every write is an operation, and reaches the system at once."""

    def __init__(self, stream: Any, operation: Callable[..., Any]) -> None:
        self._stream, self._operation = stream, operation

    def write(self, data: Any) -> int:
        def put(part: Any) -> int:
            count = self._stream.write(part)
            self._stream.flush()
            return count

        return self._operation("write", lambda: put(data), lambda: put(data[: len(data) // 2]))

    def __enter__(self) -> "_Recorded":
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def killed_at(number: int, way: str) -> Callable[..., Any]:
    """An `act` for `counted`: SIGKILL before, after or halfway through an operation."""

    def act(now: int, name: str, do: Callable[[], Any], half: Callable[[], Any]) -> Any:
        if now != number:
            return do()
        try:
            if way != "before":
                (do if way == "after" else half)()
        finally:  # also where the operation fails, as making a folder that is there does
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def in_child(job: Callable[[], Any]) -> int:
    """Runs a job in a copy of this process; the exit code, −9 if it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job()
            code = 0
        finally:
            os._exit(code)  # never back into the test runner
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_goes_on(run: Path, training: Training) -> None:
    """What a killed save left is in nobody's way: the run loads, saves on, and leaves no temporary folder."""
    steps = whole_steps(run)
    assert newest_whole(run) == step_folder(run, steps[-1])
    if 3 not in steps:
        training.save(run, 3)
    training.save(run, 4)
    assert whole_steps(run) == [3, 4]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]
