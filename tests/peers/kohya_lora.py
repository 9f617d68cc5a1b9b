"""Kohya's own LoRA loader on networks of SDXL's full size without values. Arguments: checkout, LoRA."""

import sys

import torch

from tests.peers.checkouts import answer
from tests.peers.kohya import begin


def main() -> None:
    """The file's modules that kohya's network does not have, and what it says on loading the rest."""
    folder, path = sys.argv[1:3]
    begin(folder)
    import transformers
    from library import sdxl_model_util, sdxl_original_unet  # pyright: ignore[reportMissingImports]
    from networks import lora  # pyright: ignore[reportMissingImports]
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = {"vocab_size": 49408, "max_position_embeddings": 77}
    small = CLIPTextConfig(**sizes, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                           num_attention_heads=12, projection_dim=768)  # fmt: skip
    large = CLIPTextConfig(**sizes, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
                           num_attention_heads=20, projection_dim=1280, hidden_act="gelu")  # fmt: skip
    with torch.device("meta"):
        towers = [CLIPTextModel(small), CLIPTextModelWithProjection(large)]
        unet = sdxl_original_unet.SdxlUNet2DConditionModel()
    network, weights = lora.create_network_from_weights(1.0, path, None, towers, unet)
    network.apply_to(towers, unet, True, True)
    own = {module.lora_name for module in (*network.text_encoder_loras, *network.unet_loras)}
    named = {key.split(".")[0] for key in weights if ".lora_down" in key}
    mine = {key: value for key, value in weights.items() if key.split(".")[0] in own}
    network.to_empty(device="cpu")
    report = network.load_state_dict(mine, False)
    answer(
        transformers=transformers.__version__,
        tower_names=next(iter(dict(towers[0].named_parameters()))),
        modules=len(named),
        matched=len(named & own),
        unmatched=sorted(named - own),
        missing=list(report.missing_keys),
        unexpected=list(report.unexpected_keys),
        version=bool(sdxl_model_util),
    )


if __name__ == "__main__":
    main()
