"""The UNet's module names in the single file and in diffusers (S Tab. 1).

The single file numbers all stages of the down path, and all of the up path, consecutively; diffusers numbers them by
level, with separate numbers for residual blocks, transformers and resampling.
"""

from refimpl.model.config import UNetConfig

OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def unet_modules(config: UNetConfig) -> dict[str, str]:
    """Single-file module name → diffusers module name, one to one; inside a transformer the names are the same.

    config  configuration of the network, whose levels, depths and blocks determine the numbers
    """
    modules = dict(OUTER)
    number = 0  # of the stage on the way down
    for level, depth in enumerate(config.transformer_depth):
        place = f"down_blocks.{level}"
        if level > 0:
            number += 1
            modules[f"input_blocks.{number}.0.op"] = f"down_blocks.{level - 1}.downsamplers.0.conv"
        for block in range(config.res_blocks):
            number += 1
            modules |= _stage(f"input_blocks.{number}", place, block, depth)

    for block, slot in enumerate((0, 2)):
        modules |= _res_block(f"middle_block.{slot}", f"mid_block.resnets.{block}")
    modules["middle_block.1"] = "mid_block.attentions.0"

    number = 0  # of the stage on the way up
    for up_level, depth in enumerate(reversed(config.transformer_depth)):
        place = f"up_blocks.{up_level}"
        for block in range(config.res_blocks + 1):
            modules |= _stage(f"output_blocks.{number}", place, block, depth)
            number += 1
        if up_level < len(config.transformer_depth) - 1:
            slot = 2 if depth else 1  # after the residual block and the transformer
            modules[f"output_blocks.{number - 1}.{slot}.conv"] = f"{place}.upsamplers.0.conv"
    return modules


def _stage(ours: str, theirs: str, block: int, depth: int) -> dict[str, str]:
    modules = _res_block(f"{ours}.0", f"{theirs}.resnets.{block}")
    if depth:
        modules[f"{ours}.1"] = f"{theirs}.attentions.{block}"
    return modules


def _res_block(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in RES_BLOCK.items()}
