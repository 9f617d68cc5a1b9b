"""The settings of a first run: a LoRA or the whole network from a checkpoint, or a small network from nothing."""

from dataclasses import replace

from refimpl.data.config import BucketConfig, DataConfig
from refimpl.diffusion.config import DiffusionConfig
from refimpl.errors import InputError
from refimpl.latents.config import LatentConfig, VAEConfig
from refimpl.model.lora.config import LoRAConfig
from refimpl.run.config import Config
from refimpl.run.presets import load_config
from refimpl.run.threads import usable_cpus
from refimpl.tables import from_table
from refimpl.text.config import TextConfig
from refimpl.train.first.checkpoint import Start
from refimpl.train.first.images import Images

LORA, WHOLE = "lora", "whole"
WAYS = (LORA, WHOLE)
SIDES = (1024, 768, 512)  # of the square bucket, px: SDXL's own, and smaller ones for smaller images
BATCH = {LORA: 4, WHOLE: 8}  # images in a step; ours
RATES = {LORA: 1e-4, WHOLE: 1e-5}  # ours, the second as in novelai_v3
WHY_RATE = {
    LORA: "ours, as no paper trains a LoRA; ten times that of the whole network, since little is trained",
    WHOLE: "ours, as in the preset novelai_v3",
}
REFERENCE = "it needs no compiled extension, which kernel does"
KERNEL = "the compiled extension was built for this machine's GPU"
STEPS = {LORA: 2000, WHOLE: 10_000}  # ours; S §2.6 trains a small part for "a few thousand"
RANK = 16  # ours
MOST_WORKERS = 8

Reasons = dict[str, str]
"""Why a setting has its value, by section and name."""


def small_from_nothing(images: Images, folder: str, name: str) -> tuple[Config, Reasons]:
    """The tiny preset on these images: trained from nothing, its autoencoder first, on a CPU if need be.

    name  what the run's files are named by
    """
    tiny = load_config("tiny")
    data = replace(
        tiny.data, folder=folder, heldout="", demo=False, tag_classes=DataConfig().tag_classes,
        allow_missing=images.uncaptioned > 0,
    )  # fmt: skip
    latents = replace(
        tiny.latents, folder=f"{name}-latents", train_batch=min(tiny.latents.train_batch, len(images))
    )
    config = replace(
        tiny,
        data=data,
        latents=latents,
        train=replace(tiny.train, batch_size=min(tiny.train.batch_size, len(images)), sample_every=500),
        sample=replace(tiny.sample, prompts=images.prompts or ("",)),
    )
    reasons = {
        "data.folder": _counted(images),
        "buckets.max_area": "small buckets for a small network: images are scaled down to about 64×64",
        "latents.folder": "the autoencoder that is trained first is kept here, and found again by the next run",
        "latents.train_steps": "there is no checkpoint to take an autoencoder from, so one is trained first",
        "train.batch_size": _at_most(images, tiny.train.batch_size),
        **_computed("the tiny preset's, for a small network"),
        "sample.prompts": "captions of yours",
    }
    return config, _with_missing(images, reasons)


def from_checkpoint(images: Images, folder: str, start: Start, way: str) -> tuple[Config, Reasons]:
    """Settings that train a checkpoint further: adapters beside its weights, or all of its UNet.

    way  LORA or WHOLE
    """
    buckets, why_buckets = _buckets(images, start)
    side = max(width for width, _ in buckets.sizes() if width * width <= buckets.max_area)
    batch = min(BATCH[way], len(images))
    # What it predicts it goes on predicting, so that the result fits where the checkpoint did.
    diffusion = DiffusionConfig(
        parameterisation=start.parameterisation,
        zero_terminal_snr=start.zero_terminal_snr,
        loss_weight="paper" if start.parameterisation == "v" else "none",
    )
    defaults = from_table(Config, {"unet": _shape(start), "text": _text(start)}, "the checkpoint")
    config = replace(
        defaults,
        data=DataConfig(
            folder=folder, allow_missing=images.uncaptioned > 0, workers=min(MOST_WORKERS, usable_cpus())
        ),
        buckets=buckets,
        vae=start.vae or VAEConfig(),
        latents=LatentConfig(scale_shift="checkpoint"),
        text=TextConfig(towers=start.towers, vector=start.vector),
        unet=start.unet,
        diffusion=diffusion,
        optimizer=replace(defaults.optimizer, learning_rate=RATES[way]),
        train=replace(
            defaults.train,
            init_from=start.path,
            steps=STEPS[way],
            batch_size=batch,
            checkpoint_every=500,
            sample_every=500,
        ),
        sample=replace(defaults.sample, prompts=images.prompts or ("",), width=side, height=side),
        lora=LoRAConfig(rank=RANK, alpha=float(RANK)) if way == LORA else LoRAConfig(),
    )
    kept = "the checkpoint predicts this"
    reasons = {
        "data.folder": _counted(images),
        "buckets.max_area": why_buckets,
        "latents.scale_shift": "as the checkpoint was trained",
        "diffusion.parameterisation": f'{kept} ({start.reason}); "v" and zero terminal SNR uptrain it (N §2)',
        "diffusion.zero_terminal_snr": kept,
        "train.batch_size": _at_most(images, BATCH[way]),
        **_computed(WHY_RATE[way]),
        "lora.alpha": "equal to the rank: updates are scaled by 1",
        "sample.prompts": "captions of yours",
    }
    return config, _with_missing(images, reasons)


def _computed(rate: str) -> Reasons:
    """Why the rate, the arithmetic and the kernels are as they are, where no card decides."""
    return {
        "optimizer.learning_rate": rate,
        "train.precision": "as N §4 trains",
        "train.backend": REFERENCE,
    }


def _shape(start: Start) -> dict[str, int]:
    return {"context_dim": start.unet.context_dim, "vector_dim": start.unet.vector_dim}


def _text(start: Start) -> dict[str, str]:
    return {"towers": start.towers, "vector": start.vector}


def check_complete(start: Start, config: Config) -> None:
    """Raises InputError where the checkpoint comes without networks that the settings do not name either."""
    if not (start.has_towers or config.text.folder or config.text.is_tiny):
        raise InputError(
            f"{start.path} comes without the text towers that its UNet needs; name a folder that has them (a "
            "diffusers SDXL folder) with --text.folder"
        )
    if start.vae is None and not config.latents.weights:
        raise InputError(
            f"{start.path} comes without an autoencoder; name its .safetensors file with --latents.weights"
        )


def _buckets(images: Images, start: Start) -> tuple[BucketConfig, str]:
    """Buckets of the largest area that at least half of the images fill, and why."""
    if start.is_small:
        tiny = load_config("tiny").buckets
        return tiny, "the sizes of a small network"
    side = next((side for side in SIDES if images.share_of_area(side * side) >= 0.5), SIDES[-1])
    share = images.share_of_area(side * side)
    buckets = BucketConfig(max_area=side * side, max_side=2 * side, min_side=side // 2)
    why = f"{side}×{side} in pixels, which {share:.0%} of the images have; the others are enlarged"
    return buckets, why if share < 1 else f"{side}×{side} in pixels, which all images have"


def _counted(images: Images) -> str:
    parts = [f"{len(images)} image{'s' if len(images) > 1 else ''}"]
    if images.uncaptioned:
        parts.append(f"{images.uncaptioned} without a caption")
    if images.left_out:
        parts.append(f"{len(images.left_out)} left out as unusable")
    return ", ".join(parts)


def _at_most(images: Images, wanted: int) -> str:
    return f"no more than there are images ({len(images)})" if len(images) < wanted else ""


def _with_missing(images: Images, reasons: Reasons) -> Reasons:
    if images.uncaptioned:
        reasons["data.allow_missing"] = (
            f"{images.uncaptioned} images have no caption and are trained with an empty one"
        )
    return {name: why for name, why in reasons.items() if why}
