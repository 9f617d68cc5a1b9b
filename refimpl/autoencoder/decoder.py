"""Finetuning an autoencoder's decoder, its encoder frozen (N §4.4; the moving average of S §2.4).

crops → frozen encoder → latents → decoder → L1 + perceptual + adversarial → backward → mean over ranks → AdamW → EMA

The encoder, and so the latents, do not change, so that a diffusion model trained on them stays valid. Several ranks
share each batch: the mean of their gradients is the whole batch's, so that their number changes nothing but rounding.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from refimpl.autoencoder.decoder_config import DecoderConfig
from refimpl.autoencoder.decoder_losses import Features, l1_loss, perceptual_loss
from refimpl.autoencoder.decoder_state import DecoderState
from refimpl.autoencoder.patch_discriminator import discriminator_loss, generator_loss, make_discriminator
from refimpl.autoencoder.square_crops import square_crops
from refimpl.data.images.decode import BadImage
from refimpl.data.index.data_set import Index
from refimpl.data.loading.loader import ImageCache, SameBucket
from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import committed_steps
from refimpl.latents.image_quality import SSIM_WINDOW
from refimpl.latents.pixels import from_pixels
from refimpl.latents.vae import VAE
from refimpl.progress import Progress
from refimpl.run.ema import ema_start, ema_update
from refimpl.run.shared_work import gathered
from refimpl.run.world import World

CACHE_BYTES = 2**28  # of decoded images; a small data set is read many times
CLIP_NORM = 1.0
BETAS = (0.5, 0.9)  # of AdamW, as adversarial training has them


class Notes(Protocol):
    """Where bad images are noted: `refimpl.train.quarantine.Quarantine`."""

    def add(self, bad: Sequence[BadImage], images: int) -> None:
        """Notes bad images of a data set of so many."""
        ...

    def has_news(self) -> bool:
        """Whether this rank has noted images that it has not told the others of."""
        ...

    def share(self) -> None:
        """Tells the other ranks; all must call it."""
        ...


def finetune_decoder(
    vae: VAE,
    index: Index,
    config: DecoderConfig,
    run: Path,
    world: World,
    features: Features | None = None,
    notes: Notes | None = None,
) -> VAE:
    """Train the decoder and return the autoencoder, frozen, with the moving average as its decoder.

    vae       changed in place: `decoder` and `post_quant_conv`; `encoder` and `quant_conv` are left untouched
    index     training images
    run       folder of checkpoints/ and metrics.jsonl; resumed from its newest checkpoint if it has one
    world     the ranks, which share each batch out, and the device; every rank calls it, and gets the same
    features  feature network of the perceptual term
    notes     receives bad images, which other images replace; without it, a bad image is an error
    Data order and crops are functions of (seed, step), so a resumed run ends bitwise equal to an uninterrupted one.
    Raises InputError for settings that do not fit the images or the autoencoder, and when the loss is not finite.
    """
    check_fits(vae, index, config, features, run, world)
    device = world.device
    vae.to(device).eval().requires_grad_(False)
    trained = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    trained.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), config.learning_rate, BETAS, weight_decay=0.0)
    judge = make_discriminator(config.seed).to(device)
    judge_optimizer = torch.optim.AdamW(judge.parameters(), config.learning_rate, BETAS, weight_decay=0.0)
    average = ema_start(trained)
    state = DecoderState(trained, optimizer, judge, judge_optimizer, average, world)
    start = state.load(config, run)

    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    batches = square_crops(
        index, config.size, config.batch_size, config.seed, start, ImageCache(CACHE_BYTES),
        SameBucket(np.zeros(len(index), np.int64)) if notes else None, (world.rank, world.size),
    )  # fmt: skip
    progress = Progress(config.steps, "decoder", "steps", start, is_shown=world.is_main)
    for step, batch in enumerate(batches, start):
        if step >= config.steps:
            break
        x = from_pixels(batch.images.to(device))
        with torch.no_grad():
            z = vae.encode(x)
        with autocast:
            restored = vae.decode(z).float()
            terms = {"l1": l1_loss(restored, x)}
            if features and config.perceptual_weight:
                terms["perceptual"] = perceptual_loss(features, restored, x)
            if config.adversarial_weight and step >= config.adversarial_start:
                judge.requires_grad_(False)
                terms["adversarial"] = generator_loss(judge(restored))
        loss = torch.stack([getattr(config, f"{name}_weight") * term for name, term in terms.items()]).sum()
        _agree(loss, batch.items, batch.bad, index, step, notes, world)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(trained, world)
        torch.nn.utils.clip_grad_norm_(trained.parameters(), CLIP_NORM)
        optimizer.step()
        ema_update(average, trained, step + 1, config.ema_decay)

        if config.adversarial_weight:
            judge.requires_grad_(True)
            with autocast:
                terms["discriminator"] = discriminator_loss(judge(x), judge(restored.detach()))
            judge_optimizer.zero_grad(set_to_none=True)
            terms["discriminator"].backward()
            _average_gradients(judge, world)
            judge_optimizer.step()

        done = step + 1
        progress.update()
        if done % config.log_every == 0 or done == config.steps:
            means = world.mean(torch.stack([term.detach().float() for term in terms.values()])).tolist()
            world.on_main(lambda: write_row(run, done, dict(zip(terms, means, strict=True))))  # noqa: B023
        if done % config.checkpoint_every == 0 or done == config.steps:
            state.write(config, run, done)
    progress.close()
    trained.load_state_dict({name: value.to(device) for name, value in average.items()})
    return vae.requires_grad_(False)


def _agree(
    loss: Tensor,
    items: Sequence[int] | np.ndarray,
    bad: Sequence[BadImage],
    index: Index,
    step: int,
    notes: Notes | None,
    world: World,
) -> None:
    """Shares what any rank has met. Raises InputError on all ranks when the loss of one is not finite."""
    if notes is not None:
        notes.add(bad, len(index))
    has_news = notes is not None and notes.has_news()
    mean, news = world.mean(torch.stack([loss.detach().float(), loss.new_tensor(float(has_news))])).tolist()
    if not math.isfinite(mean):
        rows = [row for part in gathered(world, [int(item) for item in items]) for row in part]
        names = ", ".join(str(index.ids[row]) for row in rows)
        raise InputError(
            f"step {step + 1}: the loss is not finite; lower decoder.learning_rate, or look at the images {names}"
        )
    if notes is not None and news:
        notes.share()


def _average_gradients(network: nn.Module, world: World) -> None:
    """Replaces every gradient by its mean over the ranks, in one exchange."""
    if world.size == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    means = world.mean(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def write_row(run: Path, step: int, values: Mapping[str, float]) -> None:
    """Append one JSON object to the run's metrics.jsonl; values that are not finite become null."""
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    path = run / "metrics.jsonl"
    try:
        run.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror}; free space and resume") from error


def check_fits(
    vae: VAE, index: Index, config: DecoderConfig, features: Features | None, run: Path, world: World
) -> None:
    """Raise InputError for settings that do not fit the images, the autoencoder, the ranks or the run's progress."""
    if config.batch_size % world.size:
        raise InputError(
            f"{world.size} ranks do not share decoder.batch_size {config.batch_size} evenly; give a multiple"
        )
    done = max(committed_steps(run), default=0)
    if done > config.steps:
        raise InputError(
            f"decoder.steps {config.steps}: the run {run} has already done {done}; give at least as many"
        )
    factor = vae.config.factor
    if config.size < SSIM_WINDOW:
        raise InputError(f"decoder.size {config.size} px is below the SSIM window, {SSIM_WINDOW} px")
    if config.size % factor:
        raise InputError(
            f"decoder.size {config.size} px is not a multiple of the autoencoder's factor {factor}"
        )
    if len(index) < config.batch_size:
        raise InputError(
            f"{len(index)} images are fewer than one batch, decoder.batch_size {config.batch_size}; add "
            f"{config.batch_size - len(index)} images, or lower it"
        )
    if config.perceptual_weight and features is None:
        raise InputError(
            f"decoder.perceptual_weight {config.perceptual_weight} needs a feature network; give one, or set it to 0"
        )
    least = make_discriminator(0).smallest_side
    if config.adversarial_weight and config.size < least:
        raise InputError(
            f"decoder.size {config.size} px is below the discriminator's smallest image, {least} px"
        )
