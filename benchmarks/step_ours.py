"""Our optimizer step on cached latents, composed of the functions that the training loop calls."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.step_captured import Captured, Inputs, inputs_of
from benchmarks.step_inputs import CachedBatch, Case, Marks, cached_batches, with_random_weights
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
from refimpl.text.conditioning import size_features
from refimpl.train.batches.micro_batch import MicroBatch, batch_draws
from refimpl.train.budget.plan import unet_step
from refimpl.train.gradients import make_gradients
from refimpl.train.loop import network_inputs
from refimpl.train.placement import casting_once, check_placement, in_precision, place, set_arithmetic
from refimpl.train.prefetch import prefetched
from refimpl.train.setup.prepare import Prepared
from refimpl.train.setup.trainable import Part
from refimpl.train.sharding.kinds import Replicated
from refimpl.train.step import Conditions, denoising_loss, step_draws
from refimpl.train.step_plan import PlanStep
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
        attention=case.attention,
    )
    return replace(preset, train=train)


def planned_bytes(case: Case) -> int:
    """The peak that the memory plan gives for this case."""
    return unet_step(
        case.unet,
        case.batch,
        case.height,
        case.width,
        case.precision,
        case.checkpointing,
        case.accumulate,
        backend="kernel",
    ).peak


def our_step(case: Case, marks: Marks) -> Callable[[], None]:
    """One optimizer step as a function without arguments."""
    config = settings_of(case)
    device = torch.device(marks.device)
    world = World(0, 1, device)
    check_placement(config, device)
    set_arithmetic(config.train)
    ops = load_ops(config.train.backend)
    with device:
        unet = UNet(config.unet, case.checkpointing)
    with_random_weights(unet)
    with torch.device("meta"):
        vae = VAE(config.vae)
    model = Model(unet, vae, SDXL_DEFAULT, None, None, None, config.text, config.diffusion)  # pyright: ignore[reportArgumentType]
    unet.set_ops(ops)
    place(model, config, device)
    part = Part("unet", unet, 0.0)
    parts = [part]
    optimizer = make_adamw([(0.0, part.parameters().values())], config.optimizer)
    averages = {"unet": ema_start(part)}
    gradients = make_gradients("fast", unet, parts, world)
    network = in_precision(gradients.network, config.train, device)
    states = CachedStates(cached_batches(case, marks.device, case.accumulate))
    prepared = Prepared(model, parts, states, [], [], None, Replicated())  # pyright: ignore[reportArgumentType]
    images = case.batch * case.accumulate
    steps = prefetched(_plan(config, case), device)
    planned = iter(steps)
    expected = gradients.incoming(images)
    casts = partial(casting_once, config.train, device)

    def forward(x: Inputs) -> Tensor:
        conditions, levels = Conditions(x.context, x.vector), (x.alpha, x.sigma)
        return denoising_loss(
            network, model, conditions, x.latents, x.noise, x.t, x.weight, 0.0, ops, expected, levels
        )

    def backward(losses: Tensor) -> Tensor:
        gradients.backward(losses.sum() / images)
        return losses.detach()

    def both(x: Inputs) -> Tensor:
        with casts():  # within the graph, so that every replay casts the weights as they then are
            return backward(forward(x))

    captured = Captured(both, list(part.parameters().values())) if case.captured else None

    def take(x: Inputs) -> None:
        marks("prelude")
        if captured is not None:
            captured(x)
            marks("replay")
            return
        losses = forward(x)
        marks("forward")
        backward(losses)
        marks("backward")

    def step() -> None:
        marks.start()
        plan = next(planned)
        if captured is not None:
            captured.begin()
        with casts() if captured is None else contextlib.nullcontext():
            for k, batch in enumerate(plan.batches):
                latents, conditions = network_inputs(replace(prepared, text_states=states.of(k)), batch)
                with gradients.micro_batch(is_last=k == len(plan.batches) - 1, real=1):
                    take(inputs_of(batch, latents, conditions))
        gradients.finish()
        steps.load_next()
        update(optimizer, parts, averages, 1.0, 0.9999, plan.epoch + 1, config.train.backend)
        marks("update")
        marks.held_bytes = captured.held_bytes if captured is not None else 0

    return step


class CachedStates:
    """Text states of every micro-batch, as a cache gives them."""

    def __init__(self, batches: list[CachedBatch], k: int = 0):
        self._batches, self._k = batches, k

    def of(self, k: int) -> "CachedStates":
        """The states of micro-batch k."""
        return CachedStates(self._batches, k)

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context and pooled state."""
        batch = self._batches[self._k]
        return batch.context, batch.pooled

    def null(self, kind: str) -> tuple[Tensor, Tensor]:
        """Zeros, as SDXL's."""
        batch = self._batches[self._k]
        return torch.zeros_like(batch.context[:1]), torch.zeros_like(batch.pooled[:1])


def _plan(config: Config, case: Case) -> Iterator[PlanStep]:
    """The steps that the loop would get from its loader, with latents from a cache and the draws of their visits."""
    stage = config.all_stages()[0]
    cached = cached_batches(case, "cpu", case.accumulate)
    draws = batch_draws(config, None)
    sizes = torch.tensor([[case.height, case.width, 0, 0, case.height, case.width]]).expand(case.batch, 6)
    for visit in itertools.count():
        batches = []
        for k, batch in enumerate(cached):
            ids = torch.arange(k * case.batch, (k + 1) * case.batch)
            drawn = step_draws(draws.seed, ids, visit, draws.timesteps, draws.caption_dropout)
            alpha, sigma = draws.schedule.at(drawn.t)
            batches.append(
                MicroBatch(
                    images=torch.empty(case.batch, 3, 0, 0, dtype=torch.uint8),
                    latents=batch.latents,
                    size_ints=sizes,
                    captions=[""] * case.batch,
                    scores=None,
                    features=size_features(sizes, None),
                    t=drawn.t,
                    alpha=alpha,
                    sigma=sigma,
                    weight=draws.weights[drawn.t].float(),
                    is_dropped=drawn.is_dropped,
                    noise=drawn.noise,
                    kept=None,
                )
            )
        images = case.batch * case.accumulate
        size = (case.width, case.height)
        yield PlanStep(stage, visit, size, images, float(images), [], batches, 0.0)
