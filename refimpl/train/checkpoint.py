"""Checkpoints of a run: checkpoints/step-NNNNNNNN, each whole or absent (refimpl.storage.committed).

The state is the weights, their moving average, AdamW's moments and the step. Data order and every draw are functions
of (seed, epoch, id), so no generator state exists and resuming continues the same batches with the same noise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from refimpl.train.batches.shares import micro_batches
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
    state: dict[str, int | str] = {
        "step": step,
        "ranks": ranks,
        "micro_batches": micro_batches(config.train, ranks),
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
    ranks: int = 1,
) -> int:
    """Loads a run's newest checkpoint into the given objects and returns its step; 0 when there is none yet.

    ema  rank 0's averages, filled in place; the other ranks pass an empty dict and keep it so
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
        load_optimizer_state(part.parameters(), optimizer, tensors[moments], source)
        if ema:
            check_state(shapes_of(ema[part.name]), tensors[average], str(folder / f"{average}.safetensors"))
            for name, value in tensors[average].items():
                ema[part.name][name].copy_(value)
    step = state_number(folder, documents, "step")
    if step != steps[-1]:
        raise InputError(f"{folder}/state.json says step {step}, but its folder's name says {steps[-1]}")
    if config.data.plan == "paper":
        _check_same_ranks(folder, documents, micro_batches(config.train, ranks), ranks)
    return steps[-1]


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
