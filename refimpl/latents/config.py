"""Settings of the autoencoder's weights and of the latents' scale and shift (N App. B)."""

from dataclasses import dataclass

from refimpl.checks import check_at_least, check_positive


@dataclass(frozen=True)
class LatentConfig:
    """The autoencoder's weights and the scale-and-shift of its latents (N App. B)."""

    folder: str = ""
    """folder with autoencoder.safetensors and scale_shift.json; made when absent and train_steps > 0"""
    weights: str = ""
    """safetensors file of a trained autoencoder (with or without `first_stage_model.`), instead of training one; with
    neither this nor `folder` and train_steps it is that of train.init_from"""
    scale_shift: str = "sdxl"
    """sdxl (0.13025), novelai_anime (N Fig. 8), measure (Welford over the data), checkpoint (what train.init_from was
    trained with), or a JSON preset's path"""
    train_steps: int = 0
    """steps of autoencoder training when no weights are given"""
    train_batch: int = 8
    """images per step of autoencoder training"""
    train_learning_rate: float = 3e-3
    """peak learning rate of autoencoder training"""
    train_size: int = 64
    """side of the square crops of autoencoder training, px"""
    kl_weight: float = 1e-6
    """weight of the KL term, per latent element, beside the squared error (LDM's autoencoder loss)"""

    def __post_init__(self) -> None:
        check_at_least("latents.train_steps", self.train_steps, 0)
        check_at_least("latents.train_batch", self.train_batch, 1)
        check_at_least("latents.train_size", self.train_size, 1)
        check_at_least("latents.kl_weight", self.kl_weight, 0)
        check_positive("latents.train_learning_rate", self.train_learning_rate)
