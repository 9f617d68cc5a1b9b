"""Settings of runs."""

from dataclasses import replace

from hypothesis import strategies as st

from refimpl.data.config import MAX_BETA, BucketConfig, DataConfig, TagWeightConfig
from refimpl.diffusion.config import DiffusionConfig
from refimpl.latents.config import LatentConfig
from refimpl.latents.vae import VAEConfig
from refimpl.model.lora.config import LoRAConfig
from refimpl.model.unet import UNetConfig
from refimpl.run.config import Config, Stage, TrainConfig
from refimpl.run.optimizer_config import OptimizerConfig
from refimpl.sample.config import SampleConfig
from refimpl.text.config import ImagePromptConfig, TextConfig

# --- training: settings of a run ---


@st.composite
def run_configs(draw: st.DrawFn) -> Config:
    """Settings that make sense together, each section's fields at defaults, edges and values between."""
    fraction = st.sampled_from((0.0, 1.0)) | st.floats(0, 1)
    offset = st.none() | fraction
    positive = st.sampled_from((1e-30, 1.0, 1e6)) | st.floats(1e-6, 1e6)
    count = st.sampled_from((1, 2**31)) | st.integers(1, 1000)
    names = st.text(st.characters(exclude_categories=("C", "Z")), max_size=6)
    buckets = st.sampled_from(
        (BucketConfig(), BucketConfig("sdxl"), BucketConfig(extra=((64, 64), (128, 32))))
    )
    stages = [
        Stage(start, draw(buckets), draw(names), learning_rate=draw(fraction), offset_noise=draw(offset))
        for start in sorted(draw(st.sets(st.integers(1, 99), max_size=2)) | {0})
    ]
    data = DataConfig(
        folder=draw(names),
        tag_classes=tuple(draw(st.lists(names, max_size=3))),
        max_aspect_error=draw(fraction),
        horizontal_flip=draw(st.booleans()),
        plan=draw(st.sampled_from(("global", "paper"))),
    )
    diffusion = DiffusionConfig(
        parameterisation=draw(st.sampled_from(("v", "x0"))),
        min_snr_gamma=draw(positive),
        loss_weight=draw(st.sampled_from(("paper", "none", "snr_plus_one"))),
        offset_noise=draw(fraction),
        first_timestep=draw(st.integers(0, 500)),
        last_timestep=draw(st.integers(500, 999)),
    )
    train = TrainConfig(
        out=draw(names),
        seed=draw(st.sampled_from((0, 2**63 - 1))),
        steps=draw(count),
        batch_size=draw(count),
        accumulate=draw(count),
        caption_dropout=draw(fraction),
        keep_checkpoints=draw(st.integers(0, 3)),
        resume=draw(st.booleans()),
        precision=draw(st.sampled_from(("tf32", "fp32", "bf16"))),
        activation_checkpointing=draw(st.sampled_from(("none", "cheap", "full"))),
    )
    optimizer = OptimizerConfig(
        learning_rate=draw(positive), weight_decay=draw(fraction), clip_norm=draw(positive)
    )
    sample = SampleConfig(
        prompts=tuple(draw(st.lists(names, min_size=1, max_size=3))), rescale=draw(fraction)
    )
    way = draw(st.sampled_from(("everything", "lora", "image prompt", "towers")))
    rates = {"learning_rate_l": draw(positive), "learning_rate_g": draw(fraction)} if way == "towers" else {}
    if way in ("lora", "image prompt"):
        train = replace(train, init_from="x")
    return Config(
        data,
        draw(buckets),
        VAEConfig(),
        LatentConfig(scale_shift=draw(names)),
        TextConfig(folder=draw(names), **rates),
        UNetConfig.sdxl(),
        diffusion,
        TagWeightConfig(beta=draw(st.floats(0, MAX_BETA))),
        optimizer,
        train,
        sample,
        tuple(stages) if draw(st.booleans()) else (),
        LoRAConfig(rank=draw(count), alpha=draw(positive)) if way == "lora" else LoRAConfig(),
        ImagePromptConfig("x") if way == "image prompt" else ImagePromptConfig(),
    )
