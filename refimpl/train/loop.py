"""From images to a checkpoint: the whole of training, top to bottom (N §4, S §2.5).

batch plan → latents and conditions → denoising loss → backward → accumulate → clip → AdamW → EMA → log, sample,
checkpoint. The step itself is in refimpl.train.step.
"""

import time
from pathlib import Path

import torch
from torch import Tensor

from refimpl.model.lora.dropout import rank_dropout
from refimpl.ops import load_ops
from refimpl.run.adamw import make_adamw, set_rates
from refimpl.run.config import Config
from refimpl.run.world import World
from refimpl.train.checkpoint import load_checkpoint, write_checkpoint
from refimpl.train.gradients import make_gradients
from refimpl.train.log import RunLog
from refimpl.train.placement import in_precision, resolve, set_arithmetic
from refimpl.train.prefetch import prefetched
from refimpl.train.quarantine import Quarantine
from refimpl.train.setup.prepare import Prepared
from refimpl.train.setup.trainable import Averages
from refimpl.train.sharding.kinds import rates_and_tensors
from refimpl.train.step import Conditions, denoising_loss, encode_latents, make_conditions
from refimpl.train.step_plan import MicroBatch, plan_steps
from refimpl.train.update import check_finite, is_read_at_once, read_norm, update
from refimpl.train.validate import draw_samples, heldout_loss


def train(config: Config, run: Path, prepared: Prepared, world: World) -> None:
    """Trains up to step `config.train.steps` and leaves checkpoints, metrics.jsonl and samples in the run folder.

    run       the run folder, made by `refimpl.train.setup.prepare`; continued from its newest checkpoint, if any
    prepared  the networks and the stages' images
    Raises InputError when an image cannot be read or the loss stops being finite (naming the step and the images).
    """
    settings, device, model, parts = config.train, world.device, prepared.model, prepared.parts
    set_arithmetic(settings)
    ops = load_ops(settings.backend)
    sharding = prepared.sharding
    optimizer = make_adamw(rates_and_tensors(sharding, parts), config.optimizer)
    averages = sharding.averages(parts)
    start = load_checkpoint(config, run, parts, averages, optimizer, world, sharding)
    gradients = make_gradients(settings.reduction, model.unet, parts, world, sharding.mesh)
    network = in_precision(gradients.network, settings, device)
    log = RunLog(config, run, start, world)
    log.placement(resolve(settings, device, world.size))
    log.weight_mass(config.diffusion)
    quarantine = Quarantine(run, world)
    if start == 0:
        log.row(step=0, heldout_loss=heldout_loss(prepared, averages, settings.backend))

    dropout = rank_dropout(model.unet)
    planned = plan_steps(config, prepared.stages, start, world, quarantine, prepared.latents, dropout)
    steps = prefetched(planned, device)
    reading, started = None, time.perf_counter()
    for done, step in enumerate(steps, start + 1):
        rate = set_rates(optimizer, config.optimizer, step.stage.learning_rate, done - 1, settings.steps)
        step_losses = []
        offset, expected = step.stage.offset_noise or 0.0, gradients.incoming(step.images_per_step)
        for k, batch in enumerate(step.batches):
            latents, conditions = network_inputs(prepared, batch)
            if batch.kept is not None:
                dropout.apply(batch.kept)
            with gradients.micro_batch(is_last=k == len(step.batches) - 1, real=world.size):
                losses = denoising_loss(
                    network,
                    model,
                    conditions,
                    latents,
                    batch.noise,
                    batch.t,
                    batch.weight,
                    offset,
                    ops,
                    expected,
                    (batch.alpha, batch.sigma),
                )
                # Every image has the weight 1 / images_per_step, whichever batch it is in.
                loss = losses.sum() / step.images_per_step
                gradients.backward(loss)
            step_losses.append(loss.detach())
        gradients.finish()
        steps.load_next()
        check_finite(reading)  # of the step before
        clip_norm, decay = config.optimizer.clip_norm, settings.ema_decay
        backend, reduction = settings.backend, settings.reduction
        norm = update(optimizer, parts, averages, clip_norm, decay, done, backend, sharding, reduction)
        reading = read_norm(norm, done, world.rank, step.names)
        if is_read_at_once(settings, done):
            check_finite(reading)
        log.step(done, step, gradients.total(step_losses), rate, norm, started)
        _measure_and_keep(config, run, prepared, averages, optimizer, log, done, world)
        started = time.perf_counter()  # the next step's time includes loading its images
    log.close()
    world.barrier()


def network_inputs(prepared: Prepared, batch: MicroBatch) -> tuple[Tensor, Conditions]:
    """The standardised latents of a batch on the device and what the network is conditioned on."""
    conditions = make_conditions(
        prepared.model,
        prepared.text_states,
        batch.captions,
        batch.images,
        batch.size_ints,
        batch.scores,
        batch.is_dropped,
        batch.features,
    )
    return encode_latents(prepared.model, batch.images, batch.latents), conditions


def _measure_and_keep(
    config: Config,
    run: Path,
    prepared: Prepared,
    averages: Averages,
    optimizer: torch.optim.AdamW,
    log: RunLog,
    done: int,
    world: World,
) -> None:
    """Makes the held-out loss, samples and checkpoint that are due after a step; every rank calls it."""
    settings = config.train
    final = done == settings.steps
    if final or done % settings.validate_every == 0:
        log.row(step=done, heldout_loss=heldout_loss(prepared, averages, settings.backend))
    if settings.sample_every and (final or done % settings.sample_every == 0):
        draw_samples(
            prepared, averages, config.sample, run / "samples" / f"step-{done:08d}.png", world.is_main
        )
    if final or done % settings.checkpoint_every == 0:
        write_checkpoint(config, run, done, prepared.parts, averages, optimizer, world, prepared.sharding)
