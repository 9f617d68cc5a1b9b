"""The state of decoder finetuning: a checkpoint is written by rank 0 and read by every rank (not from a paper).

Every rank holds all of it, the same: gradients are averaged over the ranks before each step.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from refimpl.autoencoder.decoder_config import DecoderConfig
from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import newest_whole, prune, step_folder
from refimpl.interop.run.run_folder import state_number
from refimpl.run.adamw import load_optimizer_state, optimizer_state
from refimpl.run.shared_work import peers_of
from refimpl.run.world import World
from refimpl.storage import committed
from refimpl.storage.key_report import check_state
from refimpl.storage.streaming import load_state
from refimpl.tables import to_table


class DecoderState:
    """Everything in a checkpoint, kept together for writing and reading."""

    def __init__(
        self,
        trained: nn.Module,
        optimizer: torch.optim.AdamW,
        judge: nn.Module,
        judge_optimizer: torch.optim.AdamW,
        average: dict[str, Tensor],
        world: World,
    ) -> None:
        """The networks and their optimizers, the average of the first one, and the ranks."""
        self.networks = {"decoder": (trained, optimizer), "discriminator": (judge, judge_optimizer)}
        self.average, self._world = average, world

    def _used(self, config: DecoderConfig) -> list[str]:
        return ["decoder", "discriminator"] if config.adversarial_weight else ["decoder"]

    def write(self, config: DecoderConfig, run: Path, step: int) -> None:
        """Commit the state after `step` steps; older checkpoints are removed once the new one is complete.

        Every rank calls it, and none goes on before the checkpoint is committed.
        """
        self._world.on_main(lambda: self._write(config, run, step))

    def _write(self, config: DecoderConfig, run: Path, step: int) -> None:
        tensors: dict[str, Mapping[str, Tensor]] = {"ema": self.average}
        for name in self._used(config):
            network, optimizer = self.networks[name]
            tensors[name] = network.state_dict()
            tensors[f"{name}_optimizer"] = optimizer_state(dict(network.named_parameters()), optimizer)
        committed.write(
            step_folder(run, step), tensors, {"config": to_table(config), "state": {"step": step}}
        )
        prune(run, 1)

    def load(self, config: DecoderConfig, run: Path) -> int:
        """Load the newest checkpoint's state and return its step; 0 when there is none."""
        folder = newest_whole(run, peers_of(self._world))
        if folder is None:
            return 0
        tensors, documents = committed.read(folder)
        for name in self._used(config):
            network, optimizer = self.networks[name]
            if name not in tensors:
                raise InputError(
                    f"{folder} has no {name}; the run was started without decoder.adversarial_weight"
                )
            load_state(network, tensors[name], f"{folder}/{name}.safetensors")
            source = f"{folder}/{name}_optimizer.safetensors"
            load_optimizer_state(
                dict(network.named_parameters()), optimizer, tensors[f"{name}_optimizer"], source
            )
        shapes = {name: tuple(value.shape) for name, value in self.average.items()}
        check_state(shapes, tensors["ema"], f"{folder}/ema.safetensors")
        for name, value in tensors["ema"].items():
            self.average[name].copy_(value)
        return state_number(folder, documents, "step")
