"""Reading and writing the diffusers folder, which StableDiffusionXLPipeline.from_pretrained opens.

model_index.json             which components there are
unet/  vae/                  config.json, diffusion_pytorch_model.safetensors
text_encoder/                CLIP-L: config.json, model.safetensors; text_encoder_2/ is bigG
tokenizer/  tokenizer_2/     the vocabulary, with the padding token of each tower
scheduler/                   scheduler_config.json
refimpl_extras.safetensors   what diffusers has no place for (metadata, tensors of no part); it ignores this file
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.interop.checkpoint import Checkpoint, Prediction
from refimpl.interop.diffusers_folder.components import (
    CONFIG,
    NETWORK_STEM,
    TOWER_STEM,
    read_tower,
    read_unet,
    read_vae,
    unet_for_diffusers,
    write_json,
    write_network,
)
from refimpl.interop.diffusers_folder.configs import WRITER_VERSION, text_table, unet_table, vae_table
from refimpl.interop.diffusers_folder.fields import IS_SDXL, named
from refimpl.interop.diffusers_folder.scheduler import prediction_from_table, scheduler_table
from refimpl.interop.diffusers_folder.tokenizers import find_tokenizer, write_tokenizers
from refimpl.interop.diffusers_folder.vae_keys import vae_to_diffusers
from refimpl.interop.diffusers_folder.weights import read_json
from refimpl.interop.network.architecture import Architecture, architecture_of, noted
from refimpl.interop.single_file.read_write import SCALE_SHIFT, is_refiner
from refimpl.latents.scale_shift import SDXL_DEFAULT, ScaleShift
from refimpl.storage import safetensors_file
from refimpl.storage.atomic import renamed_folder
from refimpl.text.tokenizer import Tokenizer

INDEX = "model_index.json"
SCHEDULER = Path("scheduler") / "scheduler_config.json"
EXTRAS = "refimpl_extras.safetensors"
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def load(path: Path | str, prediction: Prediction | None = None, variant: str | None = None) -> Checkpoint:
    """A checkpoint from a diffusers folder, or from the folder of a single component.

    prediction  overrides what scheduler_config.json says
    variant     variant of the weight files ("fp16"); None takes the plain files, or the only variant there is
    returns     Checkpoint of memory-mapped tensors in their stored dtypes
    Raises InputError when a part named in model_index.json is missing, weights are pickles or do not match
    config.json (listing every tensor that differs), or the networks or the schedule are not SDXL's.
    """
    path = Path(path)
    folders = _component_folders(path)
    metadata, other = _read_extras(path)
    unet, vae, text_l, text_g = (folders.get(name) for name in CLASSES)
    unet_state, unet_config = read_unet(unet, variant) if unet else (None, None)
    vae_state, vae_config, scale_shift = read_vae(vae, variant) if vae else (None, None, None)
    l_state, l_config, kept = read_tower(text_l, variant, projected=False) if text_l else (None, None, {})
    g_state, g_config, _ = read_tower(text_g, variant, projected=True) if text_g else (None, None, {})
    if scale_shift is None:
        scale_shift = SDXL_DEFAULT
        if SCALE_SHIFT in metadata:
            scale_shift = named(str(path / EXTRAS), ScaleShift.from_json, text=metadata[SCALE_SHIFT])
    return Checkpoint(
        unet=unet_state,
        vae=vae_state,
        text_l=l_state,
        text_g=g_state,
        prediction=prediction or _read_prediction(path, unet is not None),
        scale_shift=scale_shift,
        metadata=noted(metadata, Architecture(unet_config, vae_config, l_config, g_config)),
        other={**kept, **other},
    )


def save(
    checkpoint: Checkpoint,
    path: Path | str,
    dtype: torch.dtype | None = None,
    tokenizer: Tokenizer | Path | str | None = None,
    zeros_for_empty: bool = True,
    keep_other: bool = True,
) -> None:
    """Write a checkpoint as a diffusers folder, whole or not at all, each tensor straight from where it is stored.

    path             must not exist yet
    dtype            dtype of all weights: float16, bfloat16 or float32; None keeps each one's own
    tokenizer        CLIP's tokenizer, or a folder that contains it; if None, tokenizer/ and tokenizer_2/ must be
                     copied into the folder, or passed to from_pretrained
    zeros_for_empty  the null condition is zeros, as SDXL was trained (text.null); False: the empty prompt
    keep_other       also write the tensors that belong to no part (moving average, buffers), in their own dtype
    Raises InputError when `path` exists or cannot be written, there is nothing to write, float16 cannot represent a
    value, or diffusers does not support the shape of a network.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise InputError(f"{path} exists already; a diffusers folder is not overwritten: give another name")
    networks = _networks(checkpoint, str(path))
    if not networks:
        raise InputError(f"{path}: this checkpoint has no UNet, autoencoder or text tower to write")
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = find_tokenizer(tokenizer)
    tokenizers = tuple(name for tower, name in TOKENIZERS.items() if tower in networks)
    scheduler = scheduler_table(checkpoint.prediction)
    metadata = dict(checkpoint.metadata)
    if checkpoint.vae is None and checkpoint.scale_shift != SDXL_DEFAULT:
        metadata[SCALE_SHIFT] = checkpoint.scale_shift.to_json()
    other = checkpoint.other if keep_other else {}
    names = [*networks, *tokenizers]
    index = _index_table(names, scheduler["_class_name"], is_refiner(checkpoint), zeros_for_empty)

    with renamed_folder(path) as folder:
        for name, (table, state) in networks.items():
            stem = TOWER_STEM if name.startswith("text") else NETWORK_STEM
            write_network(folder / name, table, state, dtype, stem, str(path / name))
        if isinstance(tokenizer, Tokenizer):
            write_tokenizers(tokenizer, folder, tokenizers)
        (folder / SCHEDULER).parent.mkdir()
        write_json(folder / SCHEDULER, scheduler)
        if metadata or other:
            safetensors_file.write(folder / EXTRAS, other, metadata)
        write_json(folder / INDEX, index)


def _networks(checkpoint: Checkpoint, source: str) -> dict[str, tuple[dict[str, Any], Mapping[str, Tensor]]]:
    """Component → (config.json, tensors with diffusers' names). Raises InputError for shapes it does not support."""
    shapes = architecture_of(checkpoint, source)
    networks: dict[str, tuple[dict[str, Any], Mapping[str, Tensor]]] = {}
    if checkpoint.unet is not None and shapes.unet is not None:
        networks["unet"] = unet_table(shapes.unet), unet_for_diffusers(checkpoint.unet, shapes.unet)
    if checkpoint.vae is not None and shapes.vae is not None:
        tensors = vae_to_diffusers(checkpoint.vae, shapes.vae, source)
        networks["vae"] = vae_table(shapes.vae, checkpoint.scale_shift), tensors
    if checkpoint.text_l is not None and shapes.text_l is not None:
        networks["text_encoder"] = text_table(shapes.text_l, projected=False), checkpoint.text_l
    if checkpoint.text_g is not None and shapes.text_g is not None:
        networks["text_encoder_2"] = text_table(shapes.text_g, projected=True), checkpoint.text_g
    return networks


def _index_table(names: list[str], scheduler: str, refiner: bool, zeros_for_empty: bool) -> dict[str, Any]:
    """model_index.json; the refiner has its own pipeline, which is image-to-image and takes an aesthetic score.

    names  names of the components, including tokenizers; the others are null
    """
    classes = {name: known[0] for name, known in CLASSES.items()} | dict.fromkeys(
        TOKENIZERS.values(), "CLIPTokenizer"
    )
    table: dict[str, Any] = {
        name: [_library(name), kind] if name in names else [None, None] for name, kind in classes.items()
    }
    if refiner:
        table |= {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    else:
        table |= {"_class_name": "StableDiffusionXLPipeline"}
    return {
        **table,
        "_diffusers_version": WRITER_VERSION,
        "force_zeros_for_empty_prompt": zeros_for_empty and not refiner,
        "scheduler": ["diffusers", scheduler],
    }


def _library(name: str) -> str:
    return "transformers" if name.startswith(("text", "token")) else "diffusers"


def _component_folders(path: Path) -> dict[str, Path]:
    """Component → its folder, for the components that exist."""
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; give a diffusers folder, or load it as a single file")
    if (path / INDEX).is_file():
        return _indexed(path, read_json(path / INDEX))
    if (path / CONFIG).is_file():
        kind = read_json(path / CONFIG).get("_class_name")
        return {next((name for name, classes in CLASSES.items() if kind in classes), "unet"): path}
    found = {name: path / name for name in CLASSES if (path / name).is_dir()}
    if not found:
        files = sorted(file.name for file in path.glob("*.safetensors"))
        named = f"{', '.join(files[:3])}{' …' if len(files) > 3 else ''}: name the file itself"
        raise InputError(
            f"{path} is not a diffusers folder: it has neither {INDEX} nor {', '.join(CLASSES)}"
            + (f"; it holds {named}" if files else "")
        )
    return found


def _indexed(path: Path, index: Mapping[str, Any]) -> dict[str, Path]:
    pipeline = index.get("_class_name", "")
    if not str(pipeline).startswith("StableDiffusionXL"):
        raise InputError(
            f"{path / INDEX}: _class_name {pipeline!r:.80} is not one of SDXL's pipelines; {IS_SDXL}"
        )
    folders = {}
    for name, classes in CLASSES.items():
        entry = index.get(name)
        kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if kind is None:
            continue
        if kind not in classes:
            raise InputError(f"{path / INDEX}: {name} is {kind!r:.80}, in SDXL {' or '.join(classes)}")
        if not (path / name).is_dir():
            raise InputError(
                f"{path} lacks {name}, which its {INDEX} names; copy or download that part too, or set it to "
                "[null, null] there"
            )
        folders[name] = path / name
    if not folders:
        raise InputError(f"{path / INDEX} names no UNet, autoencoder or text tower")
    return folders


def _read_prediction(path: Path, has_unet: bool) -> Prediction:
    index = path / INDEX
    if not (path / SCHEDULER).is_file():
        named = read_json(index).get("scheduler") if has_unet and index.is_file() else None
        if named not in (None, [None, None]):
            raise InputError(
                f"{path} lacks {SCHEDULER}, which its {INDEX} names: it says what the UNet predicts; copy or "
                "download it too, or give the prediction by hand"
            )
        return Prediction("eps", False, f"no {SCHEDULER}: eps, as SDXL was published")
    return prediction_from_table(read_json(path / SCHEDULER), str(path / SCHEDULER))


def _read_extras(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not (path / EXTRAS).is_file():
        return {}, {}
    other, metadata = safetensors_file.read(path / EXTRAS)
    return metadata, other
