"""Model files of full size that take the disk of their headers alone: their weights are holes.

The configurations are those of stabilityai/stable-diffusion-xl-base-1.0, so that nothing of ours has written them.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refimpl.interop.diffusers_folder.unet_keys import unet_modules
from refimpl.interop.diffusers_folder.vae_keys import vae_to_diffusers
from refimpl.interop.network.clip_keys import CLIP_BIGG, CLIP_L, tower_shapes
from refimpl.interop.network.renaming import renamed_keys
from refimpl.interop.single_file.layout import unet_shapes, vae_shapes
from refimpl.latents.config import VAEConfig
from refimpl.model.config import UNetConfig

Shapes = dict[str, tuple[int, ...]]
DTYPE_BYTES = {"F16": 2, "BF16": 2, "F32": 4}

MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "add_watermarker": None,
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "time_embedding_type": "positional",
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TOWER = {
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "vocab_size": 49408,
}
TOWER_L = TOWER | {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
TOWER_G = TOWER | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def write_hole(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> None:
    """A safetensors file of tensors that are all zero, which takes the disk of its header alone."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = DTYPE_BYTES[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (end, end + size)}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def write_shards(folder: Path, stem: str, shapes: Shapes, count: int, dtype: str = "F16") -> None:
    """As `write_hole`, in so many files with an index beside them."""
    names = sorted(shapes)
    where = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: shapes[name] for name in names[number::count]}
        write_hole(folder / file, part, dtype)
        where |= dict.fromkeys(part, file)
    table = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(table), encoding="utf-8")


def write_table(path: Path, table: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table), encoding="utf-8")


def unet_of_diffusers() -> Shapes:
    """SDXL's UNet by diffusers' names."""
    shapes = dict(unet_shapes(UNetConfig.sdxl()))
    names = renamed_keys(shapes, unet_modules(UNetConfig.sdxl()), "UNet")
    return {names[name]: shape for name, shape in shapes.items()}


def vae_of_diffusers() -> Shapes:
    """SDXL's autoencoder by diffusers' names."""
    import torch

    ours = {
        name: torch.empty(shape, device="meta") for name, shape in dict(vae_shapes(VAEConfig.sdxl())).items()
    }
    return {
        name: tuple(tensor.shape) for name, tensor in vae_to_diffusers(ours, VAEConfig.sdxl(), "").items()
    }


def write_sdxl_folder(
    folder: Path, shards: int = 0, dtype: str = "F16", variant: str = "", **scheduler: Any
) -> None:
    """SDXL's published folder with holes for its weights.

    shards     files that the UNet's weights are in, with an index; 0 for one file without
    variant    of the weights' file names, such as fp16
    scheduler  fields of scheduler_config.json that differ
    """
    dot = f".{variant}" if variant else ""
    write_table(folder / "model_index.json", MODEL_INDEX)
    write_table(folder / "scheduler" / "scheduler_config.json", EULER | scheduler)
    write_table(folder / "unet" / "config.json", UNET)
    stem = "diffusion_pytorch_model"
    if shards:
        write_shards(folder / "unet", stem, unet_of_diffusers(), shards, dtype)
    else:
        write_hole(folder / "unet" / f"{stem}{dot}.safetensors", unet_of_diffusers(), dtype)
    write_table(folder / "vae" / "config.json", VAE)
    write_hole(folder / "vae" / f"{stem}{dot}.safetensors", vae_of_diffusers(), dtype)
    positions = {"text_model.embeddings.position_ids": (1, 77)}
    for name, table, sizes in (("text_encoder", TOWER_L, CLIP_L), ("text_encoder_2", TOWER_G, CLIP_BIGG)):
        write_table(folder / name / "config.json", table)
        write_hole(folder / name / f"model{dot}.safetensors", dict(tower_shapes(sizes)) | positions, dtype)
    for name in ("tokenizer", "tokenizer_2"):
        write_table(folder / name / "vocab.json", {})
        (folder / name / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
