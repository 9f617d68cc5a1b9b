"""From images to a checkpoint: the whole of training, top to bottom (N §4, S §2.5).

batch plan → latents and text states → keyed t and noise → add_noise → UNet → v_loss × weights → backward →
accumulate → clip → AdamW → EMA → log, sample, checkpoint
"""

import time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from refimpl.diffusion.philox import Purpose, draw_key, keyed_uniform
from refimpl.diffusion.v_prediction import v_from_output
from refimpl.errors import InputError
from refimpl.model.lora.adapters import draw_lora_dropout
from refimpl.ops import load_ops
from refimpl.run.adamw import make_adamw, set_rates
from refimpl.run.config import Config
from refimpl.run.ema import ema_start, ema_update
from refimpl.run.world import World, add_in_order, gradient_sync, mean_gradients
from refimpl.text.conditioning import apply_dropout, vector_conditioning
from refimpl.text.image_tower import embed_images
from refimpl.train.checkpoint import load_checkpoint, write_checkpoint
from refimpl.train.log import RunLog
from refimpl.train.quarantine import Quarantine
from refimpl.train.setup.prepare import Prepared
from refimpl.train.step_plan import plan_steps
from refimpl.train.validate import draw_samples, heldout_loss


def train(config: Config, run: Path, prepared: Prepared, world: World) -> None:
    """Trains until `config.train.steps` and leaves checkpoints, metrics.jsonl and samples in the run folder.

    run       the run folder, made by `refimpl.train.setup.prepare`; continued from its newest checkpoint, if any
    prepared  the networks and the stages' images
    Raises InputError when an image cannot be read or the loss stops being finite (naming the step and the images).
    """
    settings, device = config.train, world.device
    ops = load_ops(settings.backend)
    schedule, weights = config.diffusion.schedule(), config.diffusion.loss_weights().to(device)
    first_t = config.diffusion.first_timestep
    t_count = config.diffusion.last_timestep + 1 - first_t
    model, parts, text_states = prepared.model, prepared.parts, prepared.text_states
    unet, vae, scale_shift = model.unet, model.vae, model.scale_shift

    optimizer = make_adamw([(part.peak, part.parameters().values()) for part in parts], config.optimizer)
    ema = {part.name: ema_start(part) for part in parts} if world.is_main else {}
    start = load_checkpoint(config, run, parts, ema, optimizer, world.size)
    ordered = settings.reduction == "ordered"
    use_ddp = world.size > 1 and not ordered and parts[0].module is unet
    network = DistributedDataParallel(unet) if use_ddp else unet
    parameters = [parameter for part in parts for parameter in part.parameters().values()]
    # Text towers run once per chunk of a caption, another number of times on every rank: DDP can't follow that.
    outside_ddp = [p for part in parts if part.module is not unet for p in part.parameters().values()]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
    if settings.threads:
        torch.set_num_threads(settings.threads)
    log = RunLog(config, run, start, world)
    log.weight_mass(config.diffusion)
    quarantine = Quarantine(run, world)

    if start == 0 and world.is_main:
        log.row(step=0, heldout_loss=heldout_loss(config, prepared, ema))
    started = time.perf_counter()
    for step, plan_step in enumerate(plan_steps(config, prepared.stages, start, world, quarantine), start):
        rate = set_rates(optimizer, config.optimizer, plan_step.stage.learning_rate, step, settings.steps)
        totals = [torch.zeros_like(parameter) for parameter in parameters] if ordered else []
        loss_sum = torch.zeros((), device=device)

        for k, batch in enumerate(plan_step.batches):
            # Latents and text states.
            ids, visit, offset = batch.draw_ids.to(device), plan_step.epoch, plan_step.stage.offset_noise
            images = batch.images.to(device, non_blocking=True).float() / 127.5 - 1
            with torch.no_grad():
                encoded = vae.encode(images) if batch.latents is None else batch.latents.to(device).float()
                latents = scale_shift.standardise(encoded)
            context, pooled = text_states(batch.captions)
            if model.image_tower is not None:  # S §2.6
                pooled = embed_images(model.image_tower, images)
            chance = keyed_uniform(draw_key(settings.seed, ids, visit, Purpose.CAPTION_DROPOUT), 1)[:, 0]
            is_dropped, null = chance < settings.caption_dropout, text_states.null(config.text.null)
            context, pooled = apply_dropout(context, pooled, is_dropped, null)
            scores = None if batch.scores is None else batch.scores.to(device)
            vector = vector_conditioning(pooled, batch.size_ints.to(device), scores)

            # Keyed t and noise: functions of (seed, id, visit), the same in any batch on any number of ranks.
            u = keyed_uniform(draw_key(settings.seed, ids, visit, Purpose.TIMESTEP), 1)[:, 0]
            t = first_t + (u * t_count).long()
            alpha, sigma = schedule.at(t)
            key = draw_key(settings.seed, ids, visit, Purpose.NOISE)
            x_t = ops.add_keyed_noise(latents, key, alpha, sigma, offset)

            # UNet and loss. Every image weighs 1 / images_per_step, whatever batch it came in.
            is_last = k == len(plan_step.batches) - 1
            draw_lora_dropout(unet, draw_key(settings.seed, ids, visit, Purpose.LORA_DROPOUT))
            with gradient_sync(network, is_last):
                with autocast:
                    output = network(x_t, t, context, vector)
                v = v_from_output(output, x_t, alpha, sigma, config.diffusion.parameterisation)
                weight = (weights[t] * batch.tag_weights.to(device)).float()
                losses = ops.keyed_v_loss(v, latents, key, alpha, sigma, weight, offset)
                loss = losses.sum() / plan_step.images_per_step
                # DDP takes the mean over ranks where the sum is meant.
                (loss if ordered else loss * world.size).backward()
            loss_sum += loss.detach()

            if ordered:
                add_in_order(totals, [parameter.grad for parameter in parameters], world)  # pyright: ignore[reportArgumentType]
                optimizer.zero_grad(set_to_none=True)

        # Clip, AdamW, EMA.
        if ordered:
            for parameter, total in zip(parameters, totals, strict=True):
                parameter.grad = total
        elif world.size > 1:
            mean_gradients(outside_ddp, world)
        clip_norm = config.optimizer.clip_norm or float("inf")
        gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        if not torch.isfinite(gradient_norm):
            raise InputError(
                f"step {step + 1}, rank {world.rank}: the gradient is not finite; lower optimizer.learning_rate, or "
                f"look at the images {', '.join(plan_step.names)}"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if world.is_main:
            for part in parts:
                ema_update(ema[part.name], part, done, settings.ema_decay)

        # Log, measure, sample, checkpoint.
        log.step(done, plan_step, world.mean(loss_sum) * world.size, rate, gradient_norm, started)
        if world.is_main:
            final = done == settings.steps
            if final or done % settings.validate_every == 0:
                log.row(step=done, heldout_loss=heldout_loss(config, prepared, ema))
            if settings.sample_every and (final or done % settings.sample_every == 0):
                draw_samples(config, prepared, ema, run / "samples" / f"step-{done:08d}.png")
            if final or done % settings.checkpoint_every == 0:
                write_checkpoint(config, run, done, parts, ema, optimizer, world.size)
        started = time.perf_counter()  # of the next step, with the loading of its images
    log.close()
    world.barrier()
