"""Training in processes of its own: several ranks, and runs that are killed.

A fork server imports the project once; its children start in milliseconds. They run on one thread, as torchrun's do.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from refimpl.commands.terminal import run_command
from refimpl.commands.train import train_command
from refimpl.storage import safetensors_file
from tests.killing import kill_at

PATIENCE = 90  # s; a rank still running after that hangs
CONTEXT = multiprocessing.get_context("forkserver")
# With what a command imports only when it is called: seconds in every child, if each did it for itself.
CONTEXT.set_forkserver_preload(
    [
        __name__, "tyro", "refimpl.train.loop", "refimpl.train.setup.prepare", "torch.distributed.tensor",
        "torch.distributed.checkpoint.hf_storage", "torch.distributed.checkpoint.state_dict_saver",
    ]
)  # fmt: skip


def start_server() -> None:
    """Lets the fork server import the project while other tests run."""
    multiprocessing.forkserver.ensure_running()


def run_ranks(
    arguments: Sequence[str], world: int, output: Path, command: Callable[[list[str]], None] = train_command
) -> list[int]:
    """`torchrun --nproc-per-node=world -m refimpl.train …` without torchrun; returns each rank's exit code.

    output   folder for what each rank prints: rank0.txt, rank1.txt, …
    command  another command's function of a module, instead of training
    Raises TimeoutError, having killed them, when ranks hang.
    """
    return join_ranks(start_ranks(arguments, world, output, command))


def start_ranks(
    arguments: Sequence[str], world: int, output: Path, command: Callable[[list[str]], None] = train_command
) -> list[Any]:
    """The processes of `run_ranks`, started; `join_ranks` waits for them."""
    port = _free_port()
    output.mkdir(parents=True, exist_ok=True)
    ranks = [
        CONTEXT.Process(
            target=_rank, args=(command, list(arguments), rank, world, port, output / f"rank{rank}.txt")
        )
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def join_ranks(ranks: Sequence[Any], patience: float = PATIENCE) -> list[int]:
    """Each rank's exit code. Raises TimeoutError, having killed them, when ranks hang."""
    deadline = time.monotonic() + patience
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    hanging = [number for number, process in enumerate(ranks) if process.is_alive()]
    for number in hanging:
        ranks[number].kill()
        ranks[number].join()
    if hanging:
        raise TimeoutError(f"ranks {hanging} of {len(ranks)} still ran after {patience} s")
    return [int(process.exitcode or 0) for process in ranks]


def run_and_kill(job: Callable[..., Any], *arguments: Any) -> int:
    """Runs a job of this module or a test's in a process of its own; the exit code, −9 if it killed itself."""
    process = CONTEXT.Process(target=_alone, args=(job, arguments))
    process.start()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"{job} still ran after {PATIENCE} s")
    return int(process.exitcode or 0)


def train_until_killed(arguments: Sequence[str], at: str, count: int) -> None:
    """Trains, and kills itself with SIGKILL at the `count`-th call of one of committed.py's steps `at`.

    at  "fsync", "write_to" (of refimpl.storage.safetensors_file), "rename", or "step": AdamW's
    """
    place: Any = {
        "fsync": os, "rename": os, "write_to": safetensors_file, "step": torch.optim.AdamW,
    }[at]  # fmt: skip
    kill_at(place, at, count)
    train_command(list(arguments))


def _alone(job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    _quietly(os.devnull)
    job(*arguments)


def _rank(
    command: Callable[[list[str]], None], arguments: list[str], rank: int, world: int, port: int, output: Path
) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as in a program of its own
    _quietly(str(output))
    environment = {
        "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    os.environ |= {name: str(value) for name, value in environment.items()}
    run_command(lambda: command(arguments))


def _quietly(path: str) -> None:
    """Sends stdout and stderr, the interpreter's own included, to a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
