"""Checkpoints of a run: checkpoints/step-NNNNNNNN, each whole or absent (refimpl.storage.committed).

The state is the weights, their moving average, AdamW's moments and the step. Data order and every draw are functions
of (seed, epoch, id), so no generator state exists and resuming continues the same batches with the same noise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.run.run_folder import (
    base_digest,
    check_base,
    committed_steps,
    keep_newest,
    state_number,
    step_folder,
)
from refimpl.interop.run.trained_parts import file_name, load_network_state
from refimpl.run.adamw import load_optimizer_state, optimizer_state
from refimpl.run.config import Config
from refimpl.run.world import World
from refimpl.storage import committed
from refimpl.storage.key_report import check_state, shapes_of
from refimpl.storage.local_tensors import local, local_like, whole
from refimpl.tables import to_table
from refimpl.train.batches.shares import micro_batches
from refimpl.train.setup.trainable import Averages, Part
from refimpl.train.sharding.kinds import Sharding


def write_checkpoint(
    config: Config,
    run: Path,
    step: int,
    parts: Sequence[Part],
    ema: Averages,
    optimizer: torch.optim.AdamW,
    world: World,
    sharding: Sharding,
) -> Path:
    """Commits the state after `step` optimizer steps and deletes what `keep_checkpoints` no longer keeps.

    Every rank calls it; rank 0 writes.
    """
    folder = step_folder(run, step)
    if not sharding.together and not world.is_main:
        return folder
    tensors: dict[str, Mapping[str, Tensor]] = {}
    for part in parts:
        tensors[file_name(part.name, "weights")] = part.state_dict()
        tensors[file_name(part.name, "ema")] = ema[part.name]
        tensors[file_name(part.name, "optimizer")] = optimizer_state(part.parameters(), optimizer)
    if sharding.together:
        tensors = _collected(tensors, world)
        if not world.is_main:
            return folder
    state: dict[str, int | str] = {
        "step": step,
        "ranks": world.size,
        "micro_batches": micro_batches(config.train, world.size),
    }
    if config.lora.rank:
        state["base"] = base_digest(run)
    committed.write(folder, tensors, {"config": to_table(config), "state": state})
    keep_newest(run, config.train.keep_checkpoints)
    return folder


def load_checkpoint(
    config: Config,
    run: Path,
    parts: Sequence[Part],
    ema: Averages,
    optimizer: torch.optim.AdamW,
    world: World,
    sharding: Sharding,
) -> int:
    """Loads a run's newest checkpoint into the given objects and returns its step; 0 when there is none yet.

    ema  the averages that this rank keeps, filled in place
    Raises InputError when the checkpoint does not fit the model, listing every tensor that differs, and when N's
    per-rank plan would be continued on another number of ranks.
    """
    steps = committed_steps(run)
    if not steps:
        return 0
    folder = step_folder(run, steps[-1])
    kinds = ("weights", "optimizer", "ema") if ema else ("weights", "optimizer")
    wanted = {file_name(part.name, kind) for part in parts for kind in kinds}
    tensors, documents = committed.read(folder, wanted | {"state"})
    if config.lora.rank:
        check_base(run, folder, documents["state"])
    for part in parts:
        weights, average, moments = (file_name(part.name, kind) for kind in ("weights", "ema", "optimizer"))
        load_network_state(part.module, tensors[weights], str(folder / f"{weights}.safetensors"))
        source = str(folder / f"{moments}.safetensors")
        own = sharding.own(part)
        elsewhere = part.parameters().keys() - own.keys()
        kept = {k: v for k, v in tensors[moments].items() if k.rpartition(".")[0] not in elsewhere}
        load_optimizer_state(own, optimizer, kept, source)
        if ema:
            kept = {k: v for k, v in tensors[average].items() if k in ema[part.name] or not elsewhere}
            check_state(shapes_of(ema[part.name]), kept, str(folder / f"{average}.safetensors"))
            for name, value in kept.items():
                local(ema[part.name][name]).copy_(local_like(ema[part.name][name], value))
    step = state_number(folder, documents, "step")
    if step != steps[-1]:
        raise InputError(f"{folder}/state.json says step {step}, but its folder's name says {steps[-1]}")
    if config.data.plan == "paper":
        _check_same_ranks(folder, documents, micro_batches(config.train, world.size), world.size)
    return steps[-1]


def _collected(tensors: Mapping[str, Mapping[str, Tensor]], world: World) -> dict[str, Mapping[str, Tensor]]:
    """Every tensor whole, on rank 0 those too that another rank alone keeps."""
    have = {file: {name: whole(tensor) for name, tensor in state.items()} for file, state in tensors.items()}
    known: list[Any] = [None] * world.size
    shapes = {file: {name: tensor.shape for name, tensor in state.items()} for file, state in have.items()}
    dist.all_gather_object(known, shapes)
    for file, state in have.items():
        for owner in range(1, world.size):
            for name, shape in known[owner][file].items():
                if any(name in known[rank][file] for rank in range(owner)):
                    continue
                held = state.setdefault(name, torch.empty(shape, device=world.device)).contiguous()
                dist.broadcast(held, src=owner)
                state[name] = held
    return dict(have)


def _check_same_ranks(folder: Path, documents: Mapping[str, Any], count: int, ranks: int) -> None:
    """N's per-rank plan is another one on other ranks; any number of ranks shares the batches of a global plan."""
    before = state_number(folder, documents, "ranks")
    if "micro_batches" in documents["state"]:
        saved = state_number(folder, documents, "micro_batches")
    else:
        saved = before * state_number(folder, documents, "accumulate")
    if (before, saved) != (ranks, count):
        raise InputError(
            f"{folder} was written by {before} ranks with {saved} micro-batches a step, now {ranks} with {count}; "
            "data.plan 'paper' needs both unchanged"
        )
