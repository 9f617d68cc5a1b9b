"""Checkpoints of a run: checkpoints/step-NNNNNNNN, each whole or absent (refimpl.interop.committed).

The state is the weights, their moving average, AdamW's moments and the step. Data order and every draw are functions
of (seed, epoch, id), so no generator state exists and resuming continues the same batches with the same noise.
"""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop import committed
from refimpl.interop.run_folder import committed_steps, step_folder
from refimpl.tables import to_table
from refimpl.train.config import Config
from refimpl.train.optimizer import load_optimizer_state, optimizer_state


def write_checkpoint(
    config: Config,
    run: Path,
    step: int,
    unet: torch.nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.AdamW,
) -> Path:
    """Commits the state after `step` optimizer steps and deletes what `keep_checkpoints` no longer keeps."""
    folder = step_folder(run, step)
    tensors = {"unet": unet.state_dict(), "ema": ema, "optimizer": optimizer_state(unet, optimizer)}
    committed.write(folder, tensors, {"config": to_table(config), "state": {"step": step}})
    _keep_newest(run, config.train.keep_checkpoints)
    return folder


def load_checkpoint(
    run: Path, unet: torch.nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.AdamW
) -> int:
    """Loads a run's newest checkpoint into the given objects and returns its step; 0 when there is none yet.

    ema  rank 0's average, filled in place; the other ranks pass an empty dict and keep it so
    Raises InputError when the checkpoint does not fit the model, listing every tensor that differs.
    """
    steps = committed_steps(run)
    if not steps:
        return 0
    folder = step_folder(run, steps[-1])
    wanted = {"unet", "optimizer", "state"} | ({"ema"} if ema else set())
    tensors, documents = committed.read(folder, wanted)
    committed.load_state(unet, tensors["unet"], str(folder / "unet.safetensors"))
    load_optimizer_state(unet, optimizer, tensors["optimizer"], str(folder / "optimizer.safetensors"))
    if ema:
        shapes = {name: tuple(value.shape) for name, value in ema.items()}
        committed.check_state(shapes, tensors["ema"], str(folder / "ema.safetensors"))
        for name, value in tensors["ema"].items():
            ema[name].copy_(value)
    if documents["state"].get("step") != steps[-1]:
        raise InputError(f"{folder}/state.json says {documents['state']}, its folder's name says {steps[-1]}")
    return steps[-1]


def _keep_newest(run: Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints (0 keeps all)."""
    for step in committed_steps(run)[:-keep] if keep > 0 else []:
        folder = step_folder(run, step)
        (folder / committed.MANIFEST).unlink()  # first, so that a half-deleted folder is no checkpoint
        shutil.rmtree(folder)
