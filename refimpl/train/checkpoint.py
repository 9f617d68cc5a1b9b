"""Checkpoints of a run: checkpoints/step-NNNNNNNN, each whole or absent (refimpl.storage.committed).

The state is the weights, their moving average, the optimizer's state and the step. Data order and every draw are
functions of (seed, epoch, id), so no generator state exists, and resuming continues the same batches with the same
noise.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.run.base import base_digest, check_base
from refimpl.interop.run.checkpoints import newest_whole, prune, remove_leftovers, step_folder
from refimpl.interop.run.run_folder import state_number
from refimpl.interop.run.trained_parts import file_name, fill_network
from refimpl.run.config import Config, TrainConfig
from refimpl.run.world import World
from refimpl.storage import committed
from refimpl.storage.background import Background
from refimpl.storage.key_report import check_state, shapes_of
from refimpl.storage.ranks.layout import own_pieces
from refimpl.storage.ranks.peers import Peers
from refimpl.storage.ranks.pieces import State
from refimpl.tables import to_table
from refimpl.train.batches.shares import micro_batches
from refimpl.train.optimizer.states import check_optimizer_state, named_state, take_estimate
from refimpl.train.setup.trainable import Averages, Part

SAVE_PATIENCE = datetime.timedelta(hours=1)  # for rank 0, which may have tens of gigabytes to put together


@dataclass(frozen=True)
class Saving:
    """How a run's checkpoints are written."""

    peers: Peers
    """The ranks, which talk about checkpoints over a group of their own: training goes on in the other."""
    background: Background | None
    """What writes while training goes on; None when training waits."""

    def finish(self) -> None:
        """Waits for a checkpoint that is still being written. Raises what went wrong with it."""
        if self.background is not None:
            self.background.wait()


def begin_saving(settings: TrainConfig, world: World) -> Saving:
    """What `write_checkpoint` and `load_checkpoint` need for a run; every rank calls it."""
    # gloo where training uses NCCL: what the ranks say about files is never on a GPU.
    backend = "gloo" if world.device.type == "cuda" else None
    group = dist.new_group(backend=backend, timeout=SAVE_PATIENCE) if world.size > 1 else None
    background = Background("checkpoint") if settings.save_async else None
    return Saving(Peers(world.rank, world.size, group), background)


def write_checkpoint(
    config: Config,
    run: Path,
    step: int,
    parts: Sequence[Part],
    ema: Averages,
    optimizer: torch.optim.Optimizer,
    saving: Saving,
) -> Path:
    """Commits the state after `step` optimizer steps and deletes what the settings no longer keep.

    Every rank calls it. In the background, this begins once the state is copied and the checkpoint before is
    committed. The last step's weights and averages are one file each, however the ranks share them out.
    Raises InputError when a checkpoint can't be written: this one, or in the background the one before.
    """
    saving.finish()
    folder, peers, settings = step_folder(run, step), saving.peers, config.train
    tensors: dict[str, State] = {}
    whole = []
    for part in parts:
        weights, average, moments = (file_name(part.name, kind) for kind in ("weights", "ema", "optimizer"))
        tensors[weights] = part.state_dict()
        tensors[average] = ema.get(part.name, {})
        tensors[moments] = named_state(part.parameters(), optimizer, config.optimizer.kind)
        whole += [weights, average] if step == settings.steps else []
    count = micro_batches(settings, peers.size)
    state: dict[str, int | str] = {"step": step, "ranks": peers.size, "micro_batches": count}
    if config.lora.rank:
        state["base"] = base_digest(run)
    documents = {"config": to_table(config), "state": state}

    def commit(tensors: Mapping[str, State]) -> None:
        peers.on_first(lambda: remove_leftovers(run))
        committed.write(folder, tensors, documents, peers, whole)
        peers.on_first(lambda: prune(run, settings.keep_checkpoints, settings.keep_every))

    if saving.background is None:
        commit(tensors)
    else:
        copies = own_pieces(tensors, peers)
        saving.background.start(lambda: commit(copies))
    return folder


def load_checkpoint(
    config: Config,
    run: Path,
    parts: Sequence[Part],
    ema: Averages,
    optimizer: torch.optim.Optimizer,
    saving: Saving,
) -> int:
    """Loads a run's newest whole checkpoint into the given objects and returns its step; 0 when there is none yet.

    ema  the averages that this rank holds, filled in place; a rank without any passes an empty dict
    The ranks verify the files together, each file once; then each reads what it holds itself, however many ranks
    wrote them. Raises InputError when the checkpoint does not fit the model, listing every tensor that differs, and
    when N's per-rank plan would be continued on another number of ranks.
    """
    folder = newest_whole(run, saving.peers)
    if folder is None:
        return 0
    documents = {"state": committed.read_document(folder, "state")}
    if config.lora.rank:
        check_base(run, folder, documents["state"])
    kind = config.optimizer.kind
    _check_fit(folder, parts, kind, saving.peers)
    for part in parts:
        weights, average, moments = (file_name(part.name, kind) for kind in ("weights", "ema", "optimizer"))
        fill_network(part.module, partial(committed.fill, folder, weights), str(folder))
        committed.fill(folder, average, ema.get(part.name, {}))
        state = named_state(part.parameters(), optimizer, kind)
        committed.fill(folder, moments, state)
        take_estimate(optimizer, state)
    step = state_number(folder, documents, "step")
    if folder != step_folder(run, step):
        raise InputError(f"{folder}/state.json says step {step}, but its folder's name says {folder.name}")
    if step >= config.train.steps:
        raise InputError(
            f"train.resume: {run} is already at step {step}; raise train.steps {config.train.steps}"
        )
    if config.data.plan == "paper":
        ranks = saving.peers.size
        _check_same_ranks(folder, documents, micro_batches(config.train, ranks), ranks)
    return step


def _check_fit(folder: Path, parts: Sequence[Part], kind: str, peers: Peers) -> None:
    """Raises InputError, before anything is loaded, listing every tensor that this network does not have so."""
    checks: dict[str, Callable[[Mapping[str, Tensor], str], None]] = {}
    for part in parts:
        weights = partial(check_state, shapes_of(part.state_dict()))
        checks[file_name(part.name, "weights")] = checks[file_name(part.name, "ema")] = weights
        checks[file_name(part.name, "optimizer")] = partial(check_optimizer_state, part.parameters(), kind)
    found = peers.on_first(lambda: committed.catalogue(folder, list(checks)))
    for name, check in checks.items():
        state = {
            key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in found[name].items()
        }
        check(state, str(committed.place(folder, name)))


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
