"""Checkpoints of a run: checkpoints/step-NNNNNNNN, each whole or absent (refimpl.storage.committed).

The state is the weights, their moving average, AdamW's moments and the step. Data order and every draw are functions
of (seed, epoch, id), so no generator state exists and resuming continues the same batches with the same noise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
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
from refimpl.storage import committed
from refimpl.storage.key_report import check_state, shapes_of
from refimpl.tables import to_table
from refimpl.train.setup.trainable import Averages, Part


def write_checkpoint(
    config: Config,
    run: Path,
    step: int,
    parts: Sequence[Part],
    ema: Averages,
    optimizer: torch.optim.AdamW,
    ranks: int = 1,
) -> Path:
    """Commits the state after `step` optimizer steps and deletes what `keep_checkpoints` no longer keeps."""
    folder = step_folder(run, step)
    tensors: dict[str, Mapping[str, Tensor]] = {}
    for part in parts:
        tensors[file_name(part.name, "weights")] = part.state_dict()
        tensors[file_name(part.name, "ema")] = ema[part.name]
        tensors[file_name(part.name, "optimizer")] = optimizer_state(part.parameters(), optimizer)
    state: dict[str, int | str] = {"step": step, "ranks": ranks, "accumulate": config.train.accumulate}
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
    ranks: int = 1,
) -> int:
    """Loads a run's newest checkpoint into the given objects and returns its step; 0 when there is none yet.

    ema  rank 0's averages, filled in place; the other ranks pass an empty dict and keep it so
    Raises InputError when the checkpoint does not fit the model, listing every tensor that differs, and when `ranks`
    and `train.accumulate` would make global batches other than those the run has seen.
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
        load_optimizer_state(part.parameters(), optimizer, tensors[moments], source)
        if ema:
            check_state(shapes_of(ema[part.name]), tensors[average], str(folder / f"{average}.safetensors"))
            for name, value in tensors[average].items():
                ema[part.name][name].copy_(value)
    step, saved_ranks, accumulate = (
        state_number(folder, documents, name) for name in ("step", "ranks", "accumulate")
    )
    if step != steps[-1]:
        raise InputError(f"{folder}/state.json says step {step}, but its folder's name says {steps[-1]}")
    now = ranks, config.train.accumulate
    _check_same_batches(config.data.plan, folder, (saved_ranks, accumulate), now)
    return steps[-1]


def _check_same_batches(plan: str, folder: Path, before: tuple[int, int], now: tuple[int, int]) -> None:
    """Any ranks × accumulate with the same product give the same batches, except in N's per-rank plan."""
    (saved_ranks, saved), (ranks, accumulate) = before, now
    if plan == "paper" and before != now:
        raise InputError(
            f"{folder} was written by {saved_ranks} ranks with train.accumulate {saved}, now {ranks} with "
            f"{accumulate}; data.plan 'paper' needs both unchanged"
        )
    if ranks * accumulate != saved_ranks * saved:
        raise InputError(
            f"{folder} was written by {saved_ranks} ranks × train.accumulate {saved} = {saved_ranks * saved} "
            f"micro-batches a step; {ranks} × {accumulate} = {ranks * accumulate} would change the batches; "
            "keep the product"
        )
