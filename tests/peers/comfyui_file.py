"""A file of SDXL's full size in ComfyUI's checkpoint loader. Arguments: checkout, file, LoRA.

Needs about 10 GB of memory; the weights stay in the file's float16.
"""

import sys

import torch

from refimpl.storage import safetensors_file
from tests.peers.checkouts import answer
from tests.peers.comfyui import begin

TOLD = ("missing", "unexpected", "left over", "leftover", "not loaded")
COMPARED = {
    "model.diffusion_model.middle_block.1.transformer_blocks.9.ff.net.0.proj.weight":
        ("unet", "diffusion_model.middle_block.1.transformer_blocks.9.ff.net.0.proj.weight"),
    "model.diffusion_model.out.2.bias": ("unet", "diffusion_model.out.2.bias"),
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight":
        ("clip", "clip_l.transformer.text_model.embeddings.token_embedding.weight"),
    "conditioner.embedders.1.model.ln_final.weight":
        ("clip", "clip_g.transformer.text_model.final_layer_norm.weight"),
    "first_stage_model.decoder.conv_in.weight": ("vae", "decoder.conv_in.weight"),
}  # fmt: skip
"""Tensor of the file → the part of ComfyUI that it must be in, and its name there."""


def main() -> None:
    """How ComfyUI classifies the file, what it misses, and whether values are the file's."""
    folder, path, lora = sys.argv[1:4]
    log = begin(folder)
    import comfy.sd
    import comfy.utils

    half = {"dtype": torch.float16}
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
        path, model_options=half, te_model_options=half
    )
    told = log.telling(*TOLD)
    parts = {"unet": model.model, "clip": clip.cond_stage_model, "vae": vae.first_stage_model}
    states = {name: part.state_dict() for name, part in parts.items()}
    tensors, _ = safetensors_file.read(path)
    differing = [
        key for key, (part, name) in COMPARED.items()
        if not torch.equal(states[part][name].to(tensors[key].dtype).cpu(), tensors[key])
    ]  # fmt: skip
    sampling = model.model.model_sampling
    log.lines.clear()
    with_lora, clip_with_lora = comfy.sd.load_lora_for_models(
        model, clip, comfy.utils.load_torch_file(lora), 1.0, 1.0
    )
    answer(
        network=type(model.model).__name__,
        config=type(model.model.model_config).__name__,
        prediction=model.model.model_type.name,
        zsnr=bool(sampling.zsnr),
        largest_sigma=float(sampling.sigma_max),
        unet=len(states["unet"])
        - len([key for key in states["unet"] if not key.startswith("diffusion_model.")]),
        told=told,
        differing=differing,
        lora_patches=len(with_lora.patches) + len(clip_with_lora.patcher.patches),
        lora_told=log.telling(*TOLD),
    )


if __name__ == "__main__":
    main()
