"""Settings of the optimizer and its learning rate (S §2.5)."""

from dataclasses import dataclass

from refimpl.checks import check_at_least, check_choice, check_positive
from refimpl.errors import InputError
from refimpl.run.train_config import TrainConfig

KINDS = ("adamw", "adamw8bit", "adafactor", "prodigy")
PRODIGY_RATES = (0.1, 10.0)  # what Prodigy's estimate may be multiplied by; its authors leave it at 1


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up; the learning rate is per optimizer step of the whole global batch."""

    kind: str = "adamw"
    """Optimizer: adamw; adamw8bit, whose moments have 8 bits (needs torchao); adafactor, which keeps the
    second moment's means by row and column alone, and whose rate is relative to a tensor's values; or prodigy, AdamW
    that estimates its rate (needs prodigyopt; learning_rate multiplies the estimate, leave it near 1)."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from 0; 0 for no warm-up."""
    decay: str = "constant"
    """Learning-rate schedule: constant, or cosine, which falls from the run's first step, during the warm-up too, and
    would reach 0 one step after the last."""
    beta1: float = 0.9
    """Decay rate of the first moment; adafactor keeps none."""
    beta2: float = 0.999
    """Decay rate of the second moment; adafactor's grows as 1 − step^−0.8."""
    epsilon: float = 1e-8
    """Added to the square root of the second moment; adafactor has bounds of its own instead."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, applied only to tensors of two or more dimensions."""
    clip_norm: float = 1.0
    """Largest allowed global norm of the gradients; 0 turns clipping off."""

    def __post_init__(self) -> None:
        check_choice("optimizer.kind", self.kind, KINDS)
        check_positive("optimizer.learning_rate", self.learning_rate)
        check_at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        check_choice("optimizer.decay", self.decay, ("constant", "cosine"))
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"optimizer.{name} {getattr(self, name)} is outside [0, 1)")
        for name in ("epsilon", "weight_decay", "clip_norm"):
            check_at_least(f"optimizer.{name}", getattr(self, name), 0)
        if self.kind == "prodigy":
            least, most = PRODIGY_RATES
            if not least <= self.learning_rate <= most:
                raise InputError(
                    f"optimizer.learning_rate {self.learning_rate}: prodigy estimates the rate and multiplies it by "
                    f"this; use 1 ({least:g} to {most:g})"
                )
            if self.epsilon == 0:
                raise InputError(
                    "optimizer.epsilon 0: prodigy divides by it before its first gradient; use 1e-8"
                )


def check_together(optimizer: OptimizerConfig, train: TrainConfig) -> None:
    """Raises InputError where an optimizer, or a way to save memory, doesn't go with the rest of the settings.

    What is refused under a sharding would give a state that no other number of ranks could read (moments in blocks,
    means of rows), or would need sums over ranks that the library does not make.
    """
    kind = optimizer.kind
    if kind != "adamw" and train.sharding != "replicate":
        raise InputError(
            f"optimizer.kind {kind!r} steps whole parameters, which train.sharding {train.sharding!r} divides; use "
            "replicate, or adamw"
        )
    if kind == "prodigy" and train.zero1:
        raise InputError(
            "optimizer.kind 'prodigy' estimates its rate over all parameters, which train.zero1 gives to different "
            "ranks; leave one of the two"
        )
    if train.weight_dtype == "bf16":
        for name, value, needed in (
            ("train.precision", train.precision, "bf16"),
            ("train.sharding", train.sharding, "replicate"),
            ("train.reduction", train.reduction, "fast"),
        ):
            if value != needed:
                raise InputError(f"train.weight_dtype 'bf16' needs {name} {needed!r}, not {value!r}")
    if not train.step_in_backward:
        return
    if kind == "prodigy":
        raise InputError(
            "train.step_in_backward: prodigy estimates its rate from the whole gradient; use another optimizer.kind"
        )
    for name, value, needed, why in (
        ("optimizer.clip_norm", optimizer.clip_norm, 0, "the norm is known after the step only"),
        ("train.max_bad_steps", train.max_bad_steps, 1, "a bad step cannot be left out, and ends the run"),
        ("train.accumulate", train.accumulate, 1, "the first micro-batch's gradients would be a step"),
        ("train.reduction", train.reduction, "fast", "'ordered' sums gradients after the backward pass"),
        ("train.sharding", train.sharding, "replicate", "FSDP2 sums gradients after the backward pass"),
    ):
        if value != needed:
            raise InputError(f"train.step_in_backward needs {name} {needed!r}, not {value!r}: {why}")
    if train.micro_batches > 1:
        raise InputError(
            f"train.step_in_backward takes one micro-batch a step, and this run has {train.micro_batches} "
            "(train.micro_batches, or ranks · accumulate); use one rank"
        )
