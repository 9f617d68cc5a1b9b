"""Checkpoints of small models for the tests of other tools' formats, with random values or arbitrary bits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.network.architecture import Architecture, noted, with_text_model
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.model.unet import UNet, UNetConfig
from refimpl.text.encoders import tiny_configs, tiny_encoders

TINY = Architecture(UNetConfig.tiny(), VAEConfig.tiny(), *tiny_configs())
PARTS = ("unet", "vae", "text_l", "text_g")


def shapes_only(architecture: Architecture, metadata: Mapping[str, str] | None = None) -> Checkpoint:
    """A checkpoint of this architecture on the meta device."""
    with torch.device("meta"):
        text_l = architecture.text_l and CLIPTextModel(architecture.text_l).state_dict()
        text_g = architecture.text_g and CLIPTextModelWithProjection(architecture.text_g).state_dict()
        return Checkpoint(
            unet=architecture.unet and UNet(architecture.unet).state_dict(),
            vae=architecture.vae and VAE(architecture.vae).state_dict(),
            text_l=text_l and {with_text_model(key): value for key, value in text_l.items()},
            text_g=text_g and {with_text_model(key): value for key, value in text_g.items()},
            metadata=metadata or {},
        )


def random_bits(
    architecture: Architecture,
    seed: int,
    dtypes: Sequence[torch.dtype],
    other: Mapping[str, Tensor] | None = None,
    **fields,
) -> Checkpoint:
    """A checkpoint of arbitrary bits, including NaNs of every kind; each tensor has one of the dtypes."""
    generator = torch.Generator().manual_seed(seed)

    def fill(state: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        if state is None:
            return None
        picked = torch.randint(len(dtypes), (len(state),), generator=generator).tolist()
        return {
            key: torch.randint(
                256, (*shape.shape, dtypes[n].itemsize), dtype=torch.uint8, generator=generator
            )
            .view(dtypes[n])
            .squeeze(-1)
            for (key, shape), n in zip(state.items(), picked, strict=True)
        }

    empty = shapes_only(architecture)
    parts = {part: fill(getattr(empty, part)) for part in PARTS}
    metadata = noted(fields.pop("metadata", {}), architecture)
    return Checkpoint(**parts, metadata=metadata, other=other or {}, **fields)


def working(seed: int = 0, **fields) -> Checkpoint:
    """A tiny checkpoint whose networks compute something: only biases are zero."""
    torch.manual_seed(seed)
    unet, vae = UNet(UNetConfig.tiny()), VAE(VAEConfig.tiny())
    with torch.no_grad():
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    text_l, text_g = (
        {with_text_model(key): value for key, value in tower.state_dict().items()}
        for tower in tiny_encoders(seed)
    )
    return Checkpoint(unet=unet.state_dict(), vae=vae.state_dict(), text_l=text_l, text_g=text_g, **fields)


def same_bits(one: Mapping[str, Tensor] | None, two: Mapping[str, Tensor] | None) -> bool:
    """Whether names, dtypes, shapes and bytes are all the same."""
    if one is None or two is None:
        return one is two
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype
        and one[key].shape == two[key].shape
        and bits(one[key]) == bits(two[key])
        for key in one
    )


def bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor, in order."""
    return (
        tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    )


def private_bytes() -> int:
    """Memory of this process that is not backed by a file."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024
