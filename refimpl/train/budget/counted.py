"""What the networks of a run and one image in them need of the memory, counted on the meta device."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from refimpl.latents.pixels import from_pixels
from refimpl.latents.scale_shift import SDXL_DEFAULT
from refimpl.latents.vae import VAE
from refimpl.model.pipeline import Model
from refimpl.model.unet import UNet
from refimpl.ops import load_ops
from refimpl.run.config import Config
from refimpl.text.tokenizer import ROW_TOKENS, tiny_tokenizer
from refimpl.train.budget.as_on_cuda import AsOnCuda
from refimpl.train.budget.live_memory import COUNTED_BATCH, Timeline, count_inference, count_training
from refimpl.train.optimizer.memory import states_bytes, step_bytes, waiting_bytes
from refimpl.train.placement import keep_in_bfloat16
from refimpl.train.setup.trainable import Part, make_trainable
from refimpl.train.sharding.block_inputs import sharded_modules
from refimpl.train.validate import BATCH, drawn_at_once, measured_timesteps

META = torch.device("meta")
FLOAT32 = 4  # bytes
# OpenCLIP ViT-bigG/14's image tower, assumed where the folder of image_prompt is not there to be read.
BIGG_IMAGE_TOWER = {
    "hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
}  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """Bytes of the networks, and of their work by number of images."""

    unet: int
    """Weights of the UNet."""
    frozen: int
    """Weights of the autoencoder, the text towers and the image tower."""
    trained: int
    """Trained parameters, and so their gradients."""
    largest: int
    """The largest trained parameter."""
    average: int
    """The moving average of what is trained."""
    towers_trained: int
    """Of the trained parameters, those of the text towers, which are divided among no ranks."""
    towers_average: int
    """Of the moving average, the text towers'."""
    root: int
    """Weights of the UNet outside of its blocks, which FSDP2 gathers for a whole pass."""
    block: int
    """Weights of the UNet's largest block, which FSDP2 gathers for itself."""
    encoding: Timeline
    """The autoencoder's encoder, the towers and whatever else precedes the UNet without gradients."""
    step: Timeline
    """The UNet's forward and backward pass, with those of trained towers."""
    measuring: dict[str, int]
    """What a run measures between steps, and the bytes that it needs meanwhile."""
    optimizer: str = "adamw"
    """The kind of optimizer."""
    state: int = 0
    """The optimizer's state."""
    towers_state: int = 0
    """Of the optimizer's state, the text towers'."""
    working: int = 0
    """What the optimizer's step holds besides weights, gradients and state."""
    waiting: int = 0
    """Gradients held at once where the backward pass steps the parameters."""


def networks(config: Config) -> tuple[Model, list[Part]]:
    """The networks of a run on the meta device, and what of them is trained. Raises as `make_trainable` does."""
    config_l, config_g = config.text.architectures()
    folder = config.image_prompt.folder
    with META:
        model = Model(
            UNet(config.unet, config.train.activation_checkpointing).eval(),  # no masks of LoRA's dropout
            VAE(config.vae),
            SDXL_DEFAULT,
            tiny_tokenizer(),
            None if config_l is None else CLIPTextModel(config_l).eval(),
            CLIPTextModelWithProjection(config_g).eval(),
            config.text,
            config.diffusion,
            CLIPVisionModelWithProjection(image_tower_config(folder, config.text.pooled_dim))
            if folder
            else None,
        )
    model.unet.set_ops(load_ops(config.train.backend))
    for network in (model.unet, model.vae):
        lay_out(network, config.train.channels_last != "off")  # "auto" is on, on a GPU
    if config.train.weight_dtype == "bf16":
        keep_in_bfloat16(model.unet)
    return model, make_trainable(model, config)


def lay_out(network: nn.Module, channels_last: bool) -> None:
    """Gives a network the memory format that it has on a GPU, as `refimpl.train.placement.place` does."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def count(config: Config, bucket: tuple[int, int]) -> Counted:
    """Counts a configuration's training step at a bucket (width, height), in px. Raises as `networks` does."""
    model, parts = networks(config)
    frozen = (model.vae, model.encoder_l, model.encoder_g, model.image_tower)
    trained = [parameter for part in parts for parameter in part.parameters().values()]
    towers = [part for part in parts if part.module is not model.unet]
    towers_trained = [parameter for part in towers for parameter in part.parameters().values()]
    averages = {part.name: sum(FLOAT32 * v.numel() for v in part.state_dict().values()) for part in parts}
    *blocks, root = gathered_together(model.unet)
    return Counted(
        unet=_bytes(model.unet),
        frozen=sum(_bytes(network) for network in frozen if network is not None),
        trained=sum(parameter.nbytes for parameter in trained),
        largest=max(parameter.nbytes for parameter in trained),
        average=sum(averages.values()),
        towers_trained=sum(parameter.nbytes for parameter in towers_trained),
        towers_average=sum(averages[part.name] for part in towers),
        root=root,
        block=max(blocks),
        encoding=_count_encoding(config, model, bucket),
        step=_count_step(config, model, bucket),
        measuring=_count_measuring(config, model),
        optimizer=config.optimizer.kind,
        state=states_bytes(config.optimizer, trained),
        towers_state=states_bytes(config.optimizer, towers_trained),
        working=step_bytes(config.optimizer, trained),
        waiting=waiting_bytes(trained),
    )


def gathered_together(unet: UNet) -> list[int]:
    """Bytes of each group of weights that FSDP2 gathers together: every block, then what is around them."""
    *blocks, root = map(_bytes, sharded_modules(unet))
    return [*blocks, root - sum(blocks)]


def count_unet(unet: UNet, height: int, width: int, bf16: bool, keeps_casts: bool = True) -> Timeline:
    """Counts a forward and a backward pass of a UNet on the meta device.

    height, width  of the latents, in cells
    keeps_casts    whether the weights' casts are kept for the whole step (`refimpl.train.placement.casting_once`)
    """
    on_cuda = AsOnCuda()

    def run() -> Tensor:
        context = torch.empty(COUNTED_BATCH, ROW_TOKENS, unet.config.context_dim, device=META)
        return _run_unet(unet, height, width, context, on_cuda, bf16, keeps_casts)

    with on_cuda:
        return count_training([unet], run)


def _run_unet(
    unet: UNet,
    height: int,
    width: int,
    context: Tensor,
    on_cuda: AsOnCuda,
    bf16: bool,
    keeps_casts: bool,
) -> Tensor:
    x = torch.empty(COUNTED_BATCH, unet.config.in_channels, height, width, device=META)
    first = next(unet.input_blocks.parameters())
    if first.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    t = torch.empty(COUNTED_BATCH, dtype=torch.int64, device=META)
    vector = torch.empty(COUNTED_BATCH, unet.config.vector_dim, device=META)
    if bf16 or first.dtype == torch.bfloat16:
        on_cuda.start_autocast(context)
    output = unet(x, t, context, vector)
    if not keeps_casts:
        on_cuda.end_forward()
    return output


def _count_step(config: Config, model: Model, bucket: tuple[int, int]) -> Timeline:
    width, height = (side // config.vae.factor for side in bucket)
    bf16, keeps_casts = config.train.precision == "bf16", config.train.sharding == "replicate"
    if not config.text.is_trained:
        return count_unet(model.unet, height, width, bf16, keeps_casts)
    on_cuda = AsOnCuda()
    towers = [tower for tower in (model.encoder_l, model.encoder_g) if tower is not None]

    def run() -> Tensor:
        context, pooled = _encode_rows(towers)
        output = _run_unet(model.unet, height, width, context, on_cuda, bf16, keeps_casts)
        # The pooled state, a row per image, joins the loss by itself, so that its gradient reaches the tower.
        return output.float().square().mean() + pooled.float().square().mean()

    with on_cuda:
        return count_training([model.unet, *towers], run)


def _encode_rows(towers: list[CLIPTextModel | CLIPTextModelWithProjection]) -> tuple[Tensor, Tensor]:
    """Context and pooled state of one row of tokens for each image; the last tower is bigG."""
    ids = torch.empty(COUNTED_BATCH, ROW_TOKENS, dtype=torch.int64, device=META)
    outputs = [tower(input_ids=ids, output_hidden_states=True) for tower in towers]
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds


def _count_encoding(config: Config, model: Model, bucket: tuple[int, int]) -> Timeline:
    """Whatever of a batch's encoding takes the most memory; without a cache, that is the autoencoder."""
    width, height = bucket
    shape = (COUNTED_BATCH, config.vae.image_channels, height, width)
    towers = [tower for tower in (model.encoder_l, model.encoder_g) if tower is not None]
    timeline = Timeline()
    with AsOnCuda():
        if not config.data.cache:
            pixels = torch.empty(shape, dtype=torch.uint8, device=META)
            timeline += count_inference([model.vae], lambda: model.vae.encode(from_pixels(pixels)))
        if not config.text.is_trained:
            timeline += count_inference(towers, lambda: _encode_rows(towers)[0])
        tower = model.image_tower
        if tower is not None:
            side = tower.config.image_size
            assert isinstance(side, int)  # as in refimpl.text.image_tower
            image = torch.empty(COUNTED_BATCH, config.vae.image_channels, side, side, device=META)
            timeline += count_inference([tower], lambda: tower(pixel_values=image).image_embeds)
    return timeline


def _count_measuring(config: Config, model: Model) -> dict[str, int]:
    """Peaks of the held-out loss and of the samples, whose batches are fixed."""
    factor, measuring = config.vae.factor, {}
    if config.data.heldout:
        width, height = max(config.all_stages()[-1].buckets.sizes(), key=lambda size: size[0] * size[1])
        repeats = len(measured_timesteps(config.diffusion))
        images = max(1, BATCH // repeats) * repeats
        measuring["held-out loss"] = _count_drawing(model.unet, height // factor, width // factor).peak(
            images
        )
    if config.train.sample_every:
        height, width = config.sample.height // factor, config.sample.width // factor
        latents = torch.empty(COUNTED_BATCH, config.vae.latent_channels, height, width, device=META)
        drawing = _count_drawing(model.unet, height, width)
        with AsOnCuda():
            drawing += count_inference([model.vae], lambda: model.vae.decode(latents))
        measuring["samples"] = drawing.peak(
            min(drawn_at_once(config.sample), len(config.sample.prompts) * config.sample.seeds)
        )
    return measuring


def _count_drawing(unet: UNet, height: int, width: int) -> Timeline:
    """A forward pass of the UNet without gradients and in float32."""
    context = torch.empty(COUNTED_BATCH, ROW_TOKENS, unet.config.context_dim, device=META)
    with AsOnCuda() as on_cuda:
        return count_inference([unet], lambda: _run_unet(unet, height, width, context, on_cuda, False, False))


def image_tower_config(folder: str, projection: int) -> CLIPVisionConfig:
    """The image tower in a folder; bigG's where the folder is not there to be read."""
    if (Path(folder) / "config.json").is_file():
        return CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
    return CLIPVisionConfig(**BIGG_IMAGE_TOWER, projection_dim=projection)


def _bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
