"""Our optimizer step on cached latents, composed of the functions that the training loop calls."""

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.step_inputs import Case, Marks, cached_batches, with_random_weights
from refimpl.latents.scale_shift import SDXL_DEFAULT
from refimpl.latents.vae import VAE
from refimpl.model.pipeline import Model
from refimpl.model.unet import UNet
from refimpl.ops import load_ops
from refimpl.run.adamw import make_adamw
from refimpl.run.config import Config
from refimpl.run.ema import ema_start
from refimpl.run.presets import load_config
from refimpl.run.world import World
from refimpl.train.gradients import make_gradients
from refimpl.train.placement import check_placement, in_precision, place, set_arithmetic
from refimpl.train.setup.trainable import Part
from refimpl.train.step import Conditions, denoising_loss, step_draws
from refimpl.train.update import update


def settings_of(case: Case) -> Config:
    """The preset of NovelAI V3, or the tiny one, as the case runs it."""
    preset = load_config("tiny" if case.small else "novelai_v3")
    train = replace(
        preset.train,
        precision=case.precision,
        backend="kernel",
        batch_size=case.batch,
        compile=case.compile,
    )
    return replace(preset, train=train)


def planned_bytes(case: Case) -> int:
    """What the memory plan says this case needs."""
    return 0


def our_step(case: Case, marks: Marks) -> Callable[[], None]:
    """One optimizer step as a function without arguments."""
    config = settings_of(case)
    device = torch.device(marks.device)
    world = World(0, 1, device)
    check_placement(config, device)
    set_arithmetic(config.train)
    ops = load_ops(config.train.backend)
    with device:
        unet = UNet(config.unet, case.checkpointing == "full")
    with_random_weights(unet)
    with torch.device("meta"):
        vae = VAE(config.vae)
    model = Model(unet, vae, SDXL_DEFAULT, None, None, None, config.text, config.diffusion)  # pyright: ignore[reportArgumentType]
    place(model, config, device)
    part = Part("unet", unet, 0.0)
    parts = [part]
    optimizer = make_adamw([(0.0, part.parameters().values())], config.optimizer)
    averages = {"unet": ema_start(part)}
    gradients = make_gradients("fast", unet, parts, world)
    network = in_precision(gradients.network, config.train, device)
    weights = config.diffusion.loss_weights().to(device)
    timesteps = config.diffusion.first_timestep, config.diffusion.last_timestep
    batches = cached_batches(case, marks.device, case.accumulate)
    images = case.batch * case.accumulate
    visit = 0

    def step() -> None:
        nonlocal visit
        visit += 1
        marks.start()
        for k, batch in enumerate(batches):
            ids = torch.arange(k * case.batch, (k + 1) * case.batch, device=device)
            draws = step_draws(0, ids, visit, timesteps, 0.1)
            weight = weights[draws.t].float()
            marks("prelude")
            with gradients.micro_batch(is_last=k == len(batches) - 1):
                losses = denoising_loss(
                    network,
                    model,
                    Conditions(batch.context, batch.vector),
                    batch.latents,
                    draws.noise,
                    draws.t,
                    weight,
                    0.0,
                    ops,
                )
                loss = losses.sum() / images
                marks("forward")
                gradients.backward(loss)
                marks("backward")
        gradients.finish()
        update(optimizer, parts, averages, 1.0, 0.9999, visit, config.train.backend)
        marks("update")

    return step
