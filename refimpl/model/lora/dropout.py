"""Dropout on the components of the adapters' rank (Hu et al. 2021, "LoRA", §4.1), drawn by image and visit.

A mask is a function of its image's key alone, so it is the same on any number of ranks, and the same when activation
checkpointing recomputes a block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refimpl.diffusion.philox import keyed_uniform
from refimpl.model.lora.adapters import adapted_layers
from refimpl.model.lora.layers import LoRALayer


@dataclass(frozen=True, eq=False)
class RankDropout:
    """The layers of a network that drop components of their rank; finding them looks at every module, once."""

    layers: tuple[LoRALayer, ...]
    ranks: tuple[int, ...]
    rates: Tensor
    """[R] float64, the probability with which each component of all layers together is dropped"""

    def draw(self, key: Tensor) -> Tensor:
        """The masks of a batch, [B, R] float32: 0 for a dropped component, 1 / (1 − rate) for a kept one.

        key  [B, 2]  two-word keys (`draw_key`) of the batch's rows; the masks are computed where they lie
        """
        rates = self.rates.to(key.device)
        return (keyed_uniform(key, len(rates)) >= rates) / (1 - rates).float()

    def apply(self, masks: Tensor | None) -> None:
        """Makes the masks [B, R] those of the layers for the next batch, of B rows; None where no layer drops any."""
        if masks is None:
            return
        for layer, kept in zip(self.layers, masks.split(self.ranks, dim=1), strict=True):
            layer.kept = kept.to(layer.lora_down.weight)


def rank_dropout(module: nn.Module) -> RankDropout:
    """The dropout of a network's adapters; without layers where it has none, or none with dropout."""
    layers = [layer for layer in adapted_layers(module).values() if layer.dropout > 0]
    ranks = [layer.lora_down.weight.shape[0] for layer in layers]
    rates = [layer.dropout for layer, rank in zip(layers, ranks, strict=True) for _ in range(rank)]
    return RankDropout(tuple(layers), tuple(ranks), torch.tensor(rates, dtype=torch.float64))


def draw_lora_dropout(module: nn.Module, key: Tensor) -> None:
    """Draws the dropout of one batch where there is but one; a loop calls `rank_dropout` once beforehand.

    key  [B, 2]  two-word keys (`draw_key`) of the batch's rows
    Layers without dropout draw nothing.
    """
    dropout = rank_dropout(module)
    if dropout.layers:
        dropout.apply(dropout.draw(key))
