"""What a checkpoint to start from is: its networks' shapes, what it predicts, and what it comes without."""

from dataclasses import dataclass
from pathlib import Path

from refimpl.errors import InputError
from refimpl.interop import any_checkpoint
from refimpl.interop.network.architecture import architecture_of
from refimpl.latents.config import VAEConfig
from refimpl.model.config import UNetConfig
from refimpl.text.config import TOWERS, VECTORS, TextConfig


@dataclass(frozen=True)
class Start:
    """A checkpoint that a run can start from."""

    path: str
    """Where it is."""
    kind: str
    """single file, diffusers folder or run"""
    stored: str
    """Dtype of its UNet's weights, such as float16; the names of all where there are several."""
    unet: UNetConfig
    """Shape of its UNet."""
    vae: VAEConfig | None
    """Shape of its autoencoder; None where it has none."""
    towers: str
    """`text.towers` that its UNet was made for."""
    vector: str
    """`text.vector` that its UNet was made for."""
    has_towers: bool
    """Whether its text towers come with it."""
    parameterisation: str
    """What it predicts."""
    zero_terminal_snr: bool
    """Whether its schedule ends in pure noise."""
    reason: str
    """How that is known."""

    @property
    def is_small(self) -> bool:
        """Whether its networks are small enough for a CPU."""
        return self.towers.startswith("tiny")


def look_at_checkpoint(path: str) -> Start:
    """Reads a checkpoint's headers. Raises InputError where it holds no UNet, or one with other inputs than ours."""
    opened = any_checkpoint.load(Path(path))
    if opened.checkpoint.unet is None:
        raise InputError(f"{path} holds no UNet; give a checkpoint that does")
    found = architecture_of(opened.checkpoint, path)
    assert found.unet is not None
    _check_channels(found.unet, found.vae or VAEConfig(), path)
    towers, vector = _conditions(found.unet, path)
    prediction = opened.checkpoint.prediction
    return Start(
        path,
        opened.kind,
        ", ".join(
            sorted({str(tensor.dtype).removeprefix("torch.") for tensor in opened.checkpoint.unet.values()})
        ),
        found.unet,
        found.vae,
        towers,
        vector,
        found.text_g is not None and (found.text_l is not None or towers.endswith("bigg")),
        prediction.kind,
        prediction.zero_terminal_snr,
        prediction.reason,
    )


def _check_channels(unet: UNetConfig, vae: VAEConfig, path: str) -> None:
    if unet.in_channels != vae.latent_channels:
        raise InputError(
            f"{path}: its UNet takes {unet.in_channels} channels, and latents have {vae.latent_channels}; the others "
            "are a mask or another image, as in networks for inpainting or editing, which refimpl does not train. "
            "Give a checkpoint that draws from text alone"
        )


def _conditions(unet: UNetConfig, path: str) -> tuple[str, str]:
    """`text.towers` and `text.vector` for which a UNet has its inputs."""
    for towers in TOWERS:
        for vector in VECTORS:
            text = TextConfig(towers=towers, vector=vector)
            if (text.context_dim, text.vector_dim) == (unet.context_dim, unet.vector_dim):
                return towers, vector
    raise InputError(
        f"{path}: its UNet takes text states of {unet.context_dim} channels, which no towers here give"
    )
