"""The speed of a run, measured: its own steps on its own images, with networks whose weights are random.

No checkpoint is read and none is written. What takes time is what training takes it for: images are decoded and
encoded, captions too, and the loop of refimpl.train.loop runs as it is, until it has taken enough steps.
"""

import json
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from refimpl.cache.cached_stage import cached_text, find_latents, open_cache
from refimpl.errors import InputError
from refimpl.latents.scale_shift import SDXL_DEFAULT
from refimpl.latents.vae import VAE
from refimpl.model.pipeline import Model
from refimpl.model.unet import UNet
from refimpl.ops import load_ops
from refimpl.run.config import Config
from refimpl.run.stage import StageData, read_stage, write_demo_data
from refimpl.run.threads import use_threads
from refimpl.run.world import World
from refimpl.text.states import TextStates
from refimpl.text.tokenizer import tiny_tokenizer
from refimpl.train.budget.counted import image_tower_config
from refimpl.train.loop import train
from refimpl.train.optimizer.kinds import check_library
from refimpl.train.placement import check_placement, place, set_weight_dtype
from refimpl.train.setup.prepare import Prepared
from refimpl.train.setup.resumed import settled
from refimpl.train.setup.trainable import make_trainable
from refimpl.train.sharding.kinds import divide
from refimpl.train.speed.remembered import is_remembered
from refimpl.train.step_plan import stage_steps

WARM_UP = 5  # steps, in which kernels are chosen and memory is allocated
LONGEST_WARM_UP = (
    200  # steps of a first epoch, in which a run that remembers its images meets every one and every shape
)
MEASURED = 20  # steps
EACH = 5  # steps of a row of the log
NEVER = 2**40  # steps


class _EnoughSteps(Exception):
    """Ends the loop from within, before it would write a checkpoint."""


def measured_speed(config: Config, world: World) -> float:
    """Images per second of one process on this machine, over MEASURED steps of the first stage after its warm-up.

    The warm-up is WARM_UP steps, and where later epochs find images and captions in memory the first epoch.

    Raises InputError where the images can't be read, or this machine can't run the settings.
    """
    use_threads(config.train, config.unet, config.vae)
    with tempfile.TemporaryDirectory(prefix="refimpl-speed-") as folder, redirect_stdout(sys.stderr):
        config = settled(_first_stage(config, Path(folder)), world)
        prepared = _prepared(config, world)
        warm_up, taken = _warm_up(config, prepared.stages[0], world), 0

        def enough() -> bool:  # asked once a step, when the rows of the steps before it are written
            nonlocal taken
            taken += 1
            if taken > warm_up + MEASURED:
                raise _EnoughSteps
            return False

        try:
            train(config, Path(folder), prepared, world, enough)
        except _EnoughSteps:
            return _rate(Path(folder) / "metrics.jsonl", warm_up)
    raise InputError(f"the run ended before step {warm_up + MEASURED}, so that its speed was not measured")


def _warm_up(config: Config, data: StageData, world: World) -> int:
    """Steps before those that are measured, in whole rows of the log."""
    if not is_remembered(config, data):
        return WARM_UP
    epoch, _ = stage_steps(config.data, config.train, data, world)
    return min(max(WARM_UP, -(-epoch // EACH) * EACH), LONGEST_WARM_UP)


def _first_stage(config: Config, folder: Path) -> Config:
    """The first stage by itself, with rows but nothing else that a run writes or measures between steps."""
    stage = config.all_stages()[0]
    data = replace(config.data, folder=stage.folder)
    if data.demo and not Path(data.folder).exists():
        images = folder / "images"
        data = replace(data, folder=str(images / "train"), heldout=str(images / "heldout"))
        write_demo_data(data)
    data = replace(data, heldout="")
    training = replace(
        config.train, out=str(folder), resume=False, steps=LONGEST_WARM_UP + MEASURED + 1,
        batch_size=stage.batch_size, log_every=EACH, checkpoint_every=NEVER, validate_every=NEVER, sample_every=0,
        save_async=False, tensorboard=False, wandb_project="",
    )  # fmt: skip
    return replace(config, stages=(), data=data, buckets=stage.buckets, train=training)


def _prepared(config: Config, world: World) -> Prepared:
    """What `refimpl.train.setup.prepare` makes, without reading or writing any weights."""
    check_placement(config, world.device)
    check_library(config.optimizer)
    cache = open_cache(config.data, config.image_prompt)
    (stage,) = config.all_stages()
    data = read_stage(config, stage, None if cache is None else cache.quarantined)
    latents = None if cache is None else find_latents(cache, data, config.data.cache, world)
    stage_steps(config.data, config.train, data, world)
    with torch.random.fork_rng(), torch.device(world.device):
        torch.manual_seed(config.train.seed)
        model = _networks(config)
    model.unet.set_ops(load_ops(config.train.backend))
    set_weight_dtype(model.unet, config.train)
    parts = make_trainable(model, config)
    towers = (model.tokenizer, model.encoder_l, model.encoder_g)
    states = TextStates(towers, config.text.pooling, config.text.cached_prompts, config.text.is_trained)
    place(model, config, world.device)
    read = cached_text(config.data, config.text, states, world)
    sharding = divide(model.unet, parts, config.train, world)
    return Prepared(model, parts, read, [data], [latents], None, sharding)


def _networks(config: Config) -> Model:
    """The networks of a run with random weights, on torch's current device."""
    config_l, config_g = config.text.architectures()
    image_folder = config.image_prompt.folder
    frozen = (
        VAE(config.vae).eval().requires_grad_(False),
        SDXL_DEFAULT,
        tiny_tokenizer(),
        None if config_l is None else CLIPTextModel(config_l).eval(),
        CLIPTextModelWithProjection(config_g).eval(),
        config.text,
        config.diffusion,
    )
    tower = None
    if image_folder:
        vision = image_tower_config(image_folder, config.text.pooled_dim)
        tower = CLIPVisionModelWithProjection(vision).eval().requires_grad_(False)
    return Model(UNet(config.unet, config.train.activation_checkpointing), *frozen, tower)


def _rate(path: Path, warm_up: int) -> float:
    """Images per second over the measured rows; every step has equally many images."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rates = [row["images_per_second"] for row in rows if warm_up < row["step"] <= warm_up + MEASURED]
    return len(rates) / sum(1 / rate for rate in rates)
