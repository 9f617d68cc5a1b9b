"""ComfyUI's own LoRA loader on a network of SDXL's full size without values. Arguments: checkout, LoRA."""

import sys

import torch

from tests.peers.checkouts import answer
from tests.peers.comfyui import begin


def main() -> None:
    """Which of the file's modules become patches, and whether each patch has its weight's shape."""
    folder, path = sys.argv[1:3]
    from refimpl.interop.single_file.layout import UNET, unet_shapes
    from refimpl.model.config import UNetConfig

    shapes = {UNET + key: shape for key, shape in unet_shapes(UNetConfig.sdxl())}
    log = begin(folder)
    import comfy.lora
    import comfy.lora_convert
    import comfy.model_detection
    import comfy.sdxl_clip
    import comfy.utils

    state = {key: torch.empty(shape, dtype=torch.float16, device="meta") for key, shape in shapes.items()}
    config = comfy.model_detection.model_config_from_unet(state, UNET)
    config.set_inference_dtype(torch.float16, None)
    model = config.get_model(state, UNET, device=torch.device("meta"))
    clip = comfy.sdxl_clip.SDXLClipModel(device="meta", dtype=torch.float16)
    names = comfy.lora.model_lora_keys_clip(clip, comfy.lora.model_lora_keys_unet(model, {}))
    lora = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path))
    modules = {key.rpartition(".lora_down")[0] for key in lora if ".lora_down" in key}
    patches = comfy.lora.load_lora(lora, names)
    weights = {**model.state_dict(), **clip.state_dict()}
    misshapen = []
    for key, patch in patches.items():
        up, down = patch.weights[:2]
        weight = weights[key if isinstance(key, str) else key[0]]
        if (up.shape[0], down.flatten(1).shape[1]) != tuple(weight.flatten(1).shape):
            misshapen.append(str(key))
    answer(
        modules=len(modules),
        patches=len(patches),
        misshapen=misshapen,
        unloaded=log.telling("lora key not loaded"),
    )


if __name__ == "__main__":
    main()
