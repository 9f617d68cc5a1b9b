"""Settings of low-rank adapters (Hu et al. 2021, "LoRA", §4.1)."""

import ctypes
from dataclasses import dataclass

from refimpl.errors import InputError

ATTENTION_TARGETS = ("*.transformer_blocks.*", "*.proj_in", "*.proj_out")
"""Every map of the UNet's transformers, which is what kohya's trainer adapts: 722 layers of SDXL."""
TEXT_TARGETS = ("*.self_attn.*", "*.mlp.*")
"""Every map of a text tower's layers, which is what kohya's trainer adapts."""


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters trained instead of the weights."""

    rank: int = 0
    """Rank of every update; 0 trains the weights themselves."""
    alpha: float = 1.0
    """Updates are scaled by alpha / rank, so that changing the rank does not require another learning rate."""
    targets: tuple[str, ...] = ATTENTION_TARGETS
    """Patterns on the names of the UNet's modules; () leaves the UNet as it is."""
    text_targets: tuple[str, ...] = ()
    """Patterns on the names of the modules of each trained text tower; () leaves the towers as they are."""
    dropout: float = 0.0
    """Fraction of the rank's components dropped for each image in training; applies to the UNet's adapters."""

    copy_base: bool = False
    """Copy the UNet of train.init_from into the run folder (10 GB for SDXL); otherwise the run names that checkpoint
    and its SHA-256, and needs it whenever it is resumed, sampled from or exported."""

    def __post_init__(self) -> None:
        if self.copy_base and not self.rank:
            raise InputError("lora.copy_base copies what adapters adapt; give lora.rank, or leave it out")
        if self.rank != 0:
            check_rank_and_alpha(self.rank, self.alpha, "lora.")
            if not (self.targets or self.text_targets):
                raise InputError("lora.targets and lora.text_targets are both empty; name what to adapt")
        check_dropout(self.dropout, "lora.")


def check_rank_and_alpha(rank: int, alpha: float, where: str = "LoRA ") -> None:
    """Raises InputError unless rank is a whole number ≥ 1 and alpha is positive and finite."""
    if type(rank) is not int or rank < 1:
        raise InputError(f"{where}rank {rank!r} must be a whole number of at least 1")
    if not 0 < float32(alpha) < float("inf"):
        raise InputError(f"{where}alpha {alpha!r} must be positive and finite in float32")


def check_dropout(dropout: float, where: str = "LoRA ") -> None:
    """Raises InputError unless 0 ≤ dropout < 1."""
    if not 0 <= dropout < 1:
        raise InputError(f"{where}dropout {dropout} must be at least 0 and below 1")


def float32(value: float) -> float:
    """The value as files store it, so that training uses what a reader of the file computes with."""
    return ctypes.c_float(value).value
