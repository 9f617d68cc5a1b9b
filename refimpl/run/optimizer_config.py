"""Settings of AdamW and its learning rate (S §2.5)."""

import math
from dataclasses import dataclass

from refimpl.errors import InputError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up; the learning rate is per optimizer step of the whole global batch."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from 0; 0 for no warm-up."""
    decay: str = "constant"
    """Learning-rate schedule after the warm-up: constant, or cosine (falls to 0 at the run's last step)."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.999
    """Decay rate of the second moment."""
    epsilon: float = 1e-8
    """Added to the square root of the second moment."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, applied only to tensors of two or more dimensions."""
    clip_norm: float = 1.0
    """Largest allowed global norm of the gradients; 0 turns clipping off."""

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"optimizer.learning_rate {self.learning_rate} must be positive and finite")
        if self.warmup_steps < 0:
            raise InputError(f"optimizer.warmup_steps {self.warmup_steps} must not be negative")
        if self.decay not in ("constant", "cosine"):
            raise InputError(f"optimizer.decay {self.decay!r} is unknown; use constant or cosine")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"optimizer.{name} {getattr(self, name)} is outside [0, 1)")
        for name in ("epsilon", "weight_decay", "clip_norm"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"optimizer.{name} {getattr(self, name)} must be finite and not negative")
