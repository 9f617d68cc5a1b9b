"""Folding a checkpoint's scale-and-shift into its autoencoder, for tools that know only 0.13025 (N App. B)."""

from dataclasses import replace

import torch

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Checkpoint
from refimpl.interop.network.shapes import vae_config
from refimpl.latents.fold import fold_scale_shift
from refimpl.latents.scale_shift import SDXL_DEFAULT
from refimpl.latents.vae import VAE

FOLDED = "refimpl.folded_scale_shift"  # metadata: JSON of what was folded, for the reader


def folded(checkpoint: Checkpoint, source: str) -> Checkpoint:
    """The checkpoint with its scale-and-shift folded into the autoencoder's two 1×1 convolutions.

    source   the file to be written, for messages
    returns  a checkpoint whose scale-and-shift is 0.13025 and whose metadata record what was folded; the checkpoint
             itself if it already was. Folded values are computed in float64 and rounded to the tensors' dtype
    Raises InputError when there is no autoencoder, or the statistics have a different number of channels.
    """
    if checkpoint.scale_shift == SDXL_DEFAULT:
        return checkpoint
    if checkpoint.vae is None:
        raise InputError(
            f"{source}: there is no autoencoder to fold the scale-and-shift into; give a checkpoint that has one"
        )
    with torch.device("meta"):
        vae = VAE(vae_config(checkpoint.vae, source, groups=1))
    names = [f"{conv}.{kind}" for conv in ("quant_conv", "post_quant_conv") for kind in ("weight", "bias")]
    for name in names:
        conv, kind = name.split(".")
        value = torch.nn.Parameter(checkpoint.vae[name].double(), requires_grad=False)
        setattr(vae.get_submodule(conv), kind, value)
    state = fold_scale_shift(vae, checkpoint.scale_shift).state_dict()
    changed = {name: state[name].to(checkpoint.vae[name].dtype) for name in names}
    return replace(
        checkpoint,
        vae={**checkpoint.vae, **changed},
        scale_shift=SDXL_DEFAULT,
        metadata={**checkpoint.metadata, FOLDED: checkpoint.scale_shift.to_json()},
    )
