"""From images to a checkpoint: the whole of training, top to bottom (N §4, S §2.5).

batch plan → latents and conditions → denoising loss → backward → accumulate → clip → AdamW → EMA → log, sample,
checkpoint. The step itself is in refimpl.train.step.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from refimpl.model.lora.dropout import rank_dropout
from refimpl.ops import load_ops
from refimpl.run.adamw import set_rates
from refimpl.run.config import Config
from refimpl.run.world import World
from refimpl.train.batches.micro_batch import MicroBatch
from refimpl.train.batches.shares import real_ranks
from refimpl.train.checkpoint import begin_saving, load_checkpoint, write_checkpoint
from refimpl.train.faults import Faults
from refimpl.train.gradients import make_gradients
from refimpl.train.log import RunLog
from refimpl.train.metrics.drift import ema_drift
from refimpl.train.optimizer.kinds import make_optimizer
from refimpl.train.optimizer.stepping import make_stepping
from refimpl.train.placement import casting_once, in_precision, set_arithmetic
from refimpl.train.prefetch import prefetched
from refimpl.train.setup.prepare import Prepared
from refimpl.train.setup.trainable import Averages
from refimpl.train.sharding.kinds import rates_and_tensors
from refimpl.train.step import Conditions, denoising_loss, encode_latents, make_conditions
from refimpl.train.step_plan import plan_steps
from refimpl.train.update import update
from refimpl.train.validate import draw_samples, heldout_loss


def train(
    config: Config, run: Path, prepared: Prepared, world: World, asked: Callable[[], bool] = lambda: False
) -> bool:
    """Trains up to step `config.train.steps` and leaves checkpoints, metrics.jsonl and samples in the run folder.

    run       the run folder, made by `refimpl.train.setup.prepare`; continued from its newest checkpoint, if any
    prepared  the networks and the stages' images
    asked     whether to stop early, with a checkpoint: as soon as any rank is asked, all stop after the same step
    returns   whether the last step was reached
    Raises InputError when too many images are bad, or too many steps in a row not finite (naming them).
    """
    settings, model, parts, sharding = config.train, prepared.model, prepared.parts, prepared.sharding
    set_arithmetic(settings)
    ops = load_ops(settings.backend)
    optimizer = make_optimizer(rates_and_tensors(sharding, parts), config.optimizer)
    averages, saving = sharding.averages(parts), begin_saving(settings, world)
    start = load_checkpoint(config, run, parts, averages, optimizer, saving)
    stepping = make_stepping(optimizer, config, parts, sharding, start)
    gradients = make_gradients(settings.reduction, model.unet, parts, world, sharding.mesh)
    network = in_precision(gradients.network, settings, world.device)
    log, faults = RunLog(config, run, start, world), Faults(settings, run, world, asked)
    log.weight_mass(config.diffusion)
    if start == 0:
        log.row(step=0, heldout_loss=heldout_loss(prepared, averages, settings.backend))

    dropout, drift = rank_dropout(model.unet), partial(ema_drift, parts, averages, sharding, world)
    planned = plan_steps(config, prepared.stages, start, world, faults.quarantine, prepared.latents, dropout)
    steps = prefetched(planned, world.device)
    started, done = time.perf_counter(), start
    for done, step in enumerate(steps, start + 1):
        faults.begin(done, step.names)
        rate = set_rates(optimizer, config.optimizer, step.stage.learning_rate, done - 1, settings.steps)
        step_losses, offset = [], step.stage.offset_noise or 0.0
        with casting_once(settings, world.device):
            for k, batch in enumerate(step.batches):
                latents, conditions = network_inputs(prepared, batch)
                dropout.apply(batch.kept)
                is_last, real = k == len(step.batches) - 1, real_ranks(step.micro_batches, world.size, k)
                with gradients.micro_batch(is_last, real):
                    losses = denoising_loss(
                        network, model, conditions, latents, batch.noise, batch.t, batch.weight, offset, ops,
                        gradients.incoming(step.images_per_step), (batch.alpha, batch.sigma),
                    )  # fmt: skip
                    # Every image has the weight 1 / images_per_step, whichever batch it is in.
                    loss = losses.sum() / step.images_per_step
                    gradients.backward(loss)
                step_losses.append(loss.detach())
                log.add(batch, losses)
                faults.saw(batch.t, batch.sigma, losses)
        gradients.finish()
        steps.load_next()
        norm = update(
            optimizer, parts, averages, config.optimizer.clip_norm, settings.ema_decay, done, settings.backend,
            sharding, settings.reduction, faults.agree, stepping,
        )  # fmt: skip
        is_stopping, loss_sum = faults.settle(), gradients.total(step_losses)
        log.step(done, step, loss_sum, rate, norm, started, drift)
        with faults.takes_long():
            _measure(config, prepared, averages, log, faults, done)
            if is_stopping or faults.keeps(done):
                write_checkpoint(config, run, done, parts, averages, optimizer, saving)
        if is_stopping:
            break
        started = time.perf_counter()  # the next step's time includes loading its images
    with faults.takes_long():
        saving.finish()
    log.close()
    world.barrier()
    return done >= settings.steps


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


def _measure(
    config: Config, prepared: Prepared, averages: Averages, log: RunLog, faults: Faults, done: int
) -> None:
    """Makes the held-out loss and samples that are due after a step; every rank calls it."""
    settings = config.train
    if done == settings.steps or done % settings.validate_every == 0:
        log.row(step=done, heldout_loss=heldout_loss(prepared, averages, settings.backend))
    if faults.draws(done):
        log.samples(done, draw_samples(prepared, averages, config.sample))
