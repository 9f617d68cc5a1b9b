"""Finetuning an autoencoder's decoder, its encoder frozen (N §4.4, S §2.4).

crops → frozen encoder → latents → decoder → L1 + perceptual + adversarial → backward → AdamW → EMA

The encoder, and so the latents, do not change, so that a diffusion model trained on them stays valid.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from refimpl.autoencoder.decoder_config import DecoderConfig
from refimpl.autoencoder.decoder_losses import Features, l1_loss, perceptual_loss
from refimpl.autoencoder.patch_discriminator import discriminator_loss, generator_loss, make_discriminator
from refimpl.autoencoder.square_crops import square_crops
from refimpl.autoencoder.training import centre_crops
from refimpl.data.images.decode import BadImage, decode
from refimpl.data.index.data_set import Index
from refimpl.data.loading.loader import ImageCache
from refimpl.errors import InputError
from refimpl.interop.run.checkpoints import committed_steps, newest_whole, prune, step_folder
from refimpl.interop.run.run_folder import state_number
from refimpl.latents.image_quality import JPEG_BLOCK, SSIM_WINDOW, blockiness, psnr, ssim
from refimpl.latents.pixels import from_pixels
from refimpl.latents.vae import VAE
from refimpl.progress import Progress, shown
from refimpl.run.adamw import load_optimizer_state, optimizer_state
from refimpl.run.ema import ema_start, ema_update
from refimpl.storage import committed
from refimpl.storage.key_report import check_state
from refimpl.storage.streaming import load_state
from refimpl.tables import to_table

CACHE_BYTES = 2**28  # of decoded images; a small data set is read many times
CLIP_NORM = 1.0
BETAS = (0.5, 0.9)  # of AdamW, as adversarial training has them
MEASURED_BATCH = 8


def finetune_decoder(
    vae: VAE,
    index: Index,
    config: DecoderConfig,
    run: Path,
    device: torch.device,
    features: Features | None = None,
) -> VAE:
    """Train the decoder and return the autoencoder, frozen, with the moving average as its decoder.

    vae       changed in place: `decoder` and `post_quant_conv`; `encoder` and `quant_conv` are left untouched
    index     training images
    run       folder of checkpoints/ and metrics.jsonl; resumed from its newest checkpoint if it has one
    features  feature network of the perceptual term
    Data order and crops are functions of (seed, step), so a resumed run ends bitwise equal to an uninterrupted one.
    Raises InputError for settings that do not fit the images or the autoencoder, and when the loss is not finite.
    """
    check_fits(vae, index, config, features, run)
    vae.to(device).eval().requires_grad_(False)
    trained = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    trained.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), config.learning_rate, BETAS, weight_decay=0.0)
    judge = make_discriminator(config.seed).to(device)
    judge_optimizer = torch.optim.AdamW(judge.parameters(), config.learning_rate, BETAS, weight_decay=0.0)
    average = ema_start(trained)
    state = _State(trained, optimizer, judge, judge_optimizer, average)
    start = state.load(config, run)

    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    batches = square_crops(index, config.size, config.batch_size, config.seed, start, ImageCache(CACHE_BYTES))
    progress = Progress(config.steps, "decoder", "steps", start)
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
        if not torch.isfinite(loss):
            names = ", ".join(str(index.ids[item]) for item in batch.items)
            raise InputError(
                f"step {step + 1}: the loss is not finite; lower decoder.learning_rate, or look at the images {names}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), CLIP_NORM)
        optimizer.step()
        ema_update(average, trained, step + 1, config.ema_decay)

        if config.adversarial_weight:
            judge.requires_grad_(True)
            with autocast:
                terms["discriminator"] = discriminator_loss(judge(x), judge(restored.detach()))
            judge_optimizer.zero_grad(set_to_none=True)
            terms["discriminator"].backward()
            judge_optimizer.step()

        done = step + 1
        progress.update()
        if done % config.log_every == 0 or done == config.steps:
            write_row(run, done, {name: term.item() for name, term in terms.items()})
        if done % config.checkpoint_every == 0 or done == config.steps:
            state.write(config, run, done)
    progress.close()
    trained.load_state_dict({name: value.to(device) for name, value in average.items()})
    return vae.requires_grad_(False)


@torch.no_grad()
def measure_decoder(vae: VAE, index: Index, size: int, device: torch.device) -> dict[str, float]:
    """Means over the centre crops of all images: PSNR (dB), SSIM, and blockiness of the restored and the originals.

    size  side of the square crops, px. Restored images are clamped to −1..1 before they are compared.
    """
    batches = [
        ((size, size), np.arange(first, min(first + MEASURED_BATCH, len(index))))
        for first in range(0, len(index), MEASURED_BATCH)
    ]
    values: dict[str, list[Tensor]] = {
        "psnr": [], "ssim": [], "blockiness": [], "blockiness of the originals": []
    }  # fmt: skip
    for images in centre_crops(index, batches):
        images = images.to(device)
        restored = vae.decode(vae.encode(images)).clamp(-1, 1)
        values["psnr"].append(psnr(restored, images))
        values["ssim"].append(ssim(restored, images))
        values["blockiness"].append(blockiness(restored))
        values["blockiness of the originals"].append(blockiness(images))
    return {name: torch.cat(parts).mean().item() for name, parts in values.items()}


def without_jpeg_blocks(index: Index, limit: float) -> tuple[Index, dict[str, float]]:
    """The images whose unscaled pixels have a blockiness of at most `limit`; and id → blockiness of the others.

    Images that are too small to contain a block boundary, or that cannot be read, are kept and left to the loader.
    """
    found: dict[str, float] = {}
    for name, path in zip(shown(index.ids, len(index), "blocks of JPEG", "images"), index.paths, strict=True):
        with contextlib.suppress(BadImage):
            image = decode(path)
            if min(image.size) > JPEG_BLOCK:
                pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
                value = blockiness(
                    pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2).float()
                ).item()
                if value > limit:
                    found[name] = value
    return index.take([row for row, name in enumerate(index.ids) if name not in found]), found


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


class _State:
    """Everything in a checkpoint, kept together for writing and reading."""

    def __init__(
        self,
        trained: nn.Module,
        optimizer: torch.optim.AdamW,
        judge: nn.Module,
        judge_optimizer: torch.optim.AdamW,
        average: dict[str, Tensor],
    ) -> None:
        self.networks = {"decoder": (trained, optimizer), "discriminator": (judge, judge_optimizer)}
        self.average = average

    def _used(self, config: DecoderConfig) -> list[str]:
        return ["decoder", "discriminator"] if config.adversarial_weight else ["decoder"]

    def write(self, config: DecoderConfig, run: Path, step: int) -> None:
        """Commit the state after `step` steps; older checkpoints are removed once the new one is complete."""
        tensors: dict[str, Mapping[str, Tensor]] = {"ema": self.average}
        for name in self._used(config):
            network, optimizer = self.networks[name]
            tensors[name] = network.state_dict()
            tensors[f"{name}_optimizer"] = optimizer_state(dict(network.named_parameters()), optimizer)
        committed.write(
            step_folder(run, step), tensors, {"config": to_table(config), "state": {"step": step}}
        )
        prune(run, 1)

    def load(self, config: DecoderConfig, run: Path) -> int:
        """Load the newest checkpoint's state and return its step; 0 when there is none."""
        folder = newest_whole(run)
        if folder is None:
            return 0
        tensors, documents = committed.read(folder)
        for name in self._used(config):
            network, optimizer = self.networks[name]
            if name not in tensors:
                raise InputError(
                    f"{folder} has no {name}; the run was started without decoder.adversarial_weight"
                )
            load_state(network, tensors[name], f"{folder}/{name}.safetensors")
            source = f"{folder}/{name}_optimizer.safetensors"
            load_optimizer_state(
                dict(network.named_parameters()), optimizer, tensors[f"{name}_optimizer"], source
            )
        shapes = {name: tuple(value.shape) for name, value in self.average.items()}
        check_state(shapes, tensors["ema"], f"{folder}/ema.safetensors")
        for name, value in tensors["ema"].items():
            self.average[name].copy_(value)
        return state_number(folder, documents, "step")


def check_fits(vae: VAE, index: Index, config: DecoderConfig, features: Features | None, run: Path) -> None:
    """Raise InputError for settings that do not fit the images, the autoencoder or the run's progress."""
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
