"""Reading and writing the published single file, which ComfyUI, A1111 and Forge open (layout of sd_xl_base_1.0).

Reading memory-maps the file and checks that it is complete: every tensor of every part it has must be present with
the right shape. Writing goes tensor by tensor, so it needs no second copy in memory, and the old file is kept until
the new one is complete.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.interop.network.clip_keys import CLIP_BIGG, PROJECTION, from_openclip, to_openclip
from refimpl.interop.network.shapes import unet_config
from refimpl.interop.single_file.folded import FOLDED, folded
from refimpl.interop.single_file.layout import (
    CLIP_G_PREFIX,
    CLIP_L_PREFIX,
    REFINER_CLIP_G,
    UNET,
    VAE_PREFIX,
    Found,
    check_whole,
    sort_tensors,
    unet_shapes,
)
from refimpl.interop.single_file.prediction_markers import (
    MARKERS,
    PREDICT_KEY,
    detect,
    marker_tensors,
    prediction_metadata,
)
from refimpl.latents.scale_shift import SDXL_DEFAULT, ScaleShift
from refimpl.model.config import UNetConfig
from refimpl.storage import safetensors_file
from refimpl.storage.safetensors_file import Value

SCALE_SHIFT = "refimpl.scale_shift"  # metadata: JSON of ScaleShift, where it is not 0.13025
EMA = "model_ema.diffusion_model"  # then the UNet's key without its dots, as LDM writes a moving average


def load(
    path: Path | str,
    prediction: Prediction | None = None,
    use_ema: bool = False,
    keep_unknown: bool = False,
) -> Checkpoint:
    """A checkpoint from one safetensors file: all of SDXL or its refiner, or only its UNet, VAE or text towers.

    prediction    overrides what the file says about itself
    use_ema       take the file's moving average (`model_ema.…`) as the UNet; otherwise it stays in `other`
    keep_unknown  put tensors that belong to no part into `other` instead of raising an error
    returns       Checkpoint of memory-mapped tensors in their stored dtypes
    Raises InputError when the file cannot be read, is not SDXL (listing every tensor that differs), or contradicts
    itself about its prediction type.
    """
    path = Path(path)
    tensors, metadata = safetensors_file.read(path)
    found = sort_tensors(tensors)
    if use_ema:
        _take_ema(found, str(path))
    check_whole(found, str(path), keep_unknown)
    text = metadata.get(SCALE_SHIFT)
    return Checkpoint(
        unet=found.unet or None,
        vae=found.vae or None,
        text_l=found.text_l or None,
        text_g=from_openclip(found.text_g) if found.text_g else None,
        prediction=prediction or detect(tensors, metadata, path),
        scale_shift=SDXL_DEFAULT if text is None else _scale_shift(text, str(path)),
        metadata=metadata,
        other=found.other,
    )


def _take_ema(found: Found, source: str) -> None:
    """Replace the UNet with its moving average. Raises InputError unless the file has all of it."""
    names = {key: EMA + key.replace(".", "") for key in found.unet}
    missing = [name for name in names.values() if name not in found.other]
    if len(missing) == len(names):
        lack = "moving average of its UNet (model_ema.…)" if names else "UNet beside its moving average"
        raise InputError(
            f"{source} holds no {lack}; read it without use_ema, or name the file it was made from"
        )
    if missing:
        listing = "\n  ".join(missing)
        raise InputError(
            f"{source} holds no complete moving average of its UNet; {len(missing)} tensors are missing:\n"
            f"  {listing}\nRead its plain weights, without use_ema."
        )
    found.unet = {key: found.other.pop(name) for key, name in names.items()}
    found.other = {key: value for key, value in found.other.items() if not key.startswith("model_ema.")}


def _scale_shift(text: str, source: str) -> ScaleShift:
    try:
        return ScaleShift.from_json(text)
    except InputError as error:
        raise InputError(f"{source}: metadata {SCALE_SHIFT}: {error}") from error


def save(
    checkpoint: Checkpoint,
    path: Path | str,
    dtype: torch.dtype | None = None,
    fold_scale_shift: bool = False,
    keep_other: bool = True,
) -> None:
    """Write a checkpoint as one safetensors file in the published layout, atomically.

    dtype             dtype of all weights: float16, bfloat16 or float32; None keeps each one's own
    fold_scale_shift  fold the scale-and-shift into the autoencoder's 1×1 convolutions, so that tools that know only
                      0.13025 decode correctly; otherwise it is in the metadata, which they do not read
    keep_other        also write the tensors that belong to no part (moving average, buffers), in their own dtype
    Raises InputError when the file cannot be written (an old file at `path` is then kept), float16 cannot represent a
    value, there is nothing to write, or there is no autoencoder to fold into.
    """
    if checkpoint.unet is None and checkpoint.vae is None and not (checkpoint.text_l or checkpoint.text_g):
        raise InputError(f"{path}: this checkpoint has no UNet, autoencoder or text tower to write")
    if fold_scale_shift:
        checkpoint = folded(checkpoint, str(path))
    parts = _by_file_key(checkpoint)
    dtypes = dict.fromkeys(parts, dtype) if dtype is not None else {}
    markers = {key: value for key, value in checkpoint.other.items() if key in MARKERS}
    tensors: dict[str, Value] = {**parts}
    if keep_other:
        tensors |= {key: value for key, value in checkpoint.other.items() if key not in MARKERS}
    if checkpoint.unet is not None:
        tensors |= marker_tensors(checkpoint.prediction, markers)
    safetensors_file.write(path, tensors, _metadata(checkpoint, Path(path)), dtypes)


def _by_file_key(checkpoint: Checkpoint) -> dict[str, Value]:
    tensors: dict[str, Value] = {}
    for prefix, part in (
        (UNET, checkpoint.unet),
        (VAE_PREFIX, checkpoint.vae),
        (CLIP_L_PREFIX, checkpoint.text_l),
    ):
        tensors |= {prefix + key: value for key, value in (part or {}).items()}
    if checkpoint.text_g is not None:
        prefix = REFINER_CLIP_G if is_refiner(checkpoint) else CLIP_G_PREFIX
        tensors |= {prefix + key: value for key, value in to_openclip(checkpoint.text_g).items()}
    return tensors


def is_refiner(checkpoint: Checkpoint) -> bool:
    """Whether bigG is the only text tower the UNet uses; without a UNet, whether the metadata says so."""
    if checkpoint.unet is None:
        return checkpoint.metadata.get("modelspec.architecture", "").endswith("refiner")
    if checkpoint.text_l is not None:
        return False
    width = CLIP_BIGG.width if checkpoint.text_g is None else checkpoint.text_g[PROJECTION].shape[1]
    return unet_config(checkpoint.unet, "the checkpoint", head_dim=1, groups=1).context_dim == width


def with_scale_shift(metadata: Mapping[str, str], scale_shift: ScaleShift) -> dict[str, str]:
    """The metadata with this scale-and-shift, and with none where it is SDXL's own, instead of what they said."""
    rest = {key: value for key, value in metadata.items() if key != SCALE_SHIFT}
    if scale_shift == SDXL_DEFAULT:
        return rest
    rest.pop(FOLDED, None)
    return {**rest, SCALE_SHIFT: scale_shift.to_json()}


def _metadata(checkpoint: Checkpoint, path: Path) -> dict[str, str]:
    metadata = dict(checkpoint.metadata)
    metadata.pop("modelspec.hash_sha256", None)  # of the tensors the file came with
    metadata.pop(
        PREDICT_KEY, None
    )  # it would stand against what `prediction_metadata` says of another prediction
    metadata = with_scale_shift(metadata, checkpoint.scale_shift)
    if checkpoint.unet is not None:
        metadata.setdefault("modelspec.sai_model_spec", "1.0.0")
        metadata.setdefault("modelspec.title", path.stem)
        metadata.setdefault("modelspec.implementation", "https://github.com/Stability-AI/generative-models")
        shapes = {key: tuple(value.shape) for key, value in checkpoint.unet.items()}
        for name, config in (("base", UNetConfig.sdxl()), ("refiner", UNetConfig.refiner())):
            if shapes == dict(unet_shapes(config)):
                metadata["modelspec.architecture"] = f"stable-diffusion-xl-v1-{name}"
                metadata.setdefault("modelspec.resolution", "1024x1024")
        metadata |= prediction_metadata(checkpoint.prediction)
    return metadata
