"""Settings of decoder finetuning (N §4.4, S §2.4)."""

from dataclasses import dataclass

from refimpl.checks import check_at_least, check_choice, check_positive, check_seed
from refimpl.errors import InputError


@dataclass(frozen=True)
class DecoderConfig:
    """How an autoencoder's decoder is finetuned with its encoder frozen.

    N §4.4 gives no settings. S §2.4 trains a whole autoencoder, at a batch size of 256 and with a moving average
    of the weights whose decay it leaves open; the other defaults are this project's.
    """

    steps: int = 10_000
    """optimizer steps"""
    batch_size: int = 8
    """images per step, of all ranks together; they must share it evenly. S §2.4 has 256"""
    size: int = 256
    """side of the square crops, px; a multiple of the autoencoder's factor"""
    learning_rate: float = 1e-5
    """constant learning rate of the decoder and of the discriminator"""
    l1_weight: float = 1.0
    """weight of the mean absolute error"""
    perceptual_weight: float = 0.0
    """weight of the perceptual loss, the distance between feature maps; needs a feature network"""
    adversarial_weight: float = 0.0
    """weight of the patch discriminator's adversarial loss"""
    adversarial_start: int = 0
    """optimizer steps before the adversarial loss is used; the discriminator trains from the first step"""
    max_blockiness: float = 0.0
    """leave out training images whose stored pixels are blockier than this, from JPEG (1 is clean); 0 for no limit"""
    ema_decay: float = 0.999
    """decay of the weights' moving average (S §2.4), which is the result that is saved"""
    precision: str = "fp32"
    """fp32, tf32 or bf16 (autocast)"""
    seed: int = 0
    """seed of data order, crops and the discriminator's initial weights"""
    checkpoint_every: int = 1000
    """optimizer steps between checkpoints; the last step always writes one"""
    log_every: int = 50
    """optimizer steps between rows of metrics.jsonl"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "size", "checkpoint_every", "log_every"):
            check_at_least(f"decoder.{name}", getattr(self, name), 1)
        for name in ("l1_weight", "perceptual_weight", "adversarial_weight", "adversarial_start"):
            check_at_least(f"decoder.{name}", getattr(self, name), 0)
        check_at_least("decoder.max_blockiness", self.max_blockiness, 0)
        check_positive("decoder.learning_rate", self.learning_rate)
        check_choice("decoder.precision", self.precision, ("fp32", "tf32", "bf16"))
        check_seed("decoder.seed", self.seed)
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"decoder.ema_decay {self.ema_decay} is outside [0, 1)")
        if not (self.l1_weight or self.perceptual_weight or self.adversarial_weight):
            raise InputError("decoder: every loss has weight 0; give l1_weight, perceptual_weight or both")
