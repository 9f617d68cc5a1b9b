"""Training an autoencoder from scratch, and measuring its latents (S §2.4; N App. B).

S trains the architecture of Stable Diffusion's autoencoder with an exponential moving average of the weights. The
loss here is a reconstruction term (squared error) and the KL term; perceptual and adversarial terms are not needed
at the scale of a demonstration.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refimpl.autoencoder.square_crops import square_crops
from refimpl.data.index.data_set import Index
from refimpl.data.loading.loader import ImageCache, load_batches
from refimpl.errors import InputError
from refimpl.latents.config import SCALE_SHIFT_NAMES, LatentConfig, VAEConfig
from refimpl.latents.pixels import from_pixels
from refimpl.latents.scale_shift import NOVELAI_ANIME, SDXL_DEFAULT, ScaleShift
from refimpl.latents.vae import VAE
from refimpl.latents.welford import Welford
from refimpl.progress import Progress, shown
from refimpl.run.ema import ema_start, ema_update
from refimpl.run.visit_draws import CentreDraws

EMA_DECAY = 0.99
CACHE_BYTES = 2**28  # of decoded images; a small data set is read many times
FIRST_LOGVAR = -8.0

SCALE_SHIFTS = dict(zip(SCALE_SHIFT_NAMES, (SDXL_DEFAULT, NOVELAI_ANIME), strict=True))


def train_autoencoder(
    index: Index,
    vae_config: VAEConfig,
    config: LatentConfig,
    seed: int,
    device: torch.device,
    ema_decay: float = EMA_DECAY,
) -> VAE:
    """Train on random square crops and return the autoencoder with the averaged weights, frozen.

    ema_decay  of the average (S §2.4); 0 returns the weights of the last step
    Batch order and crops are functions of the seed, so two runs on one machine give the same autoencoder.
    Raises InputError when there are fewer images than one batch.
    """
    if len(index) < config.train_batch:
        raise InputError(
            f"{len(index)} images are fewer than one batch of autoencoder training, latents.train_batch "
            f"{config.train_batch}; add {config.train_batch - len(index)} images, or lower it"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights only; nothing else draws from the global generator
        vae = VAE(vae_config)
        _initialise(vae)
        _lay_out(vae.to(device), torch.channels_last)  # convolutions of few channels are faster so
        noise = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=config.train_learning_rate, betas=(0.9, 0.99), fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.train_learning_rate,
        total_steps=config.train_steps,
        pct_start=0.1 if config.train_steps == 20 else 0.05,  # a warm-up of one step divides by zero in torch
    )
    average = ema_start(vae)
    progress = Progress(config.train_steps, "autoencoder", "steps")
    crops = square_crops(index, config.train_size, config.train_batch, seed, cache=ImageCache(CACHE_BYTES))
    for step, batch in enumerate(crops, start=1):
        x = from_pixels(batch.images.to(device))
        mean, logvar = vae.moments(x)
        z = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=noise, device=device)
        squared_error = (vae.decode(z) - x).square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        optimizer.zero_grad(set_to_none=True)
        (squared_error + config.kl_weight * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema_update(average, vae, step, ema_decay)
        progress.update()
        if step % 50 == 0:
            progress.note(psnr=f"{psnr_from_error(squared_error.item()):.1f} dB")
        if step == config.train_steps:
            break
    progress.close()
    vae.load_state_dict(average)
    _lay_out(vae, torch.contiguous_format)
    return vae.eval().requires_grad_(False)


def _lay_out(vae: VAE, memory_format: torch.memory_format) -> None:
    """Changes the order in memory of the convolutions' weights, and with it that of what passes through them."""
    vae.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]  torch's stubs lack it


@torch.no_grad()
def _initialise(vae: VAE) -> None:
    """Initial weights from which a few hundred steps suffice; PyTorch's lose two thirds of the variance per layer.

    Residual branches and attention start at zero, other convolutions preserve the variance, and the posterior starts
    narrow: at log-variance 0 its noise would drown out the first latents.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        if name.endswith(("conv2", "attn_1.proj_out")):
            for parameter in module.parameters():
                parameter.zero_()
        else:
            module.weight.mul_(3**0.5)
    assert vae.quant_conv.bias is not None
    vae.quant_conv.bias[vae.config.latent_channels :] = FIRST_LOGVAR


def measure_scale_shift(
    vae: VAE, index: Index, buckets: list[tuple[int, int]], bucket_of: np.ndarray, device: torch.device
) -> tuple[ScaleShift, Welford]:
    """Scale-and-shift of a data set's latents by Welford's streaming moments (N App. B), from centre crops.

    returns  the map that gives every channel mean 0 and std 1, and the statistics it came from
    """
    statistics = Welford(vae.config.latent_channels)
    batches = list(bucket_batches(buckets, bucket_of, 16))
    for images in shown(centre_crops(index, batches), len(batches), "latent statistics", "batches"):
        with torch.no_grad():
            statistics.update(vae.encode(images.to(device)).cpu())
    return ScaleShift.from_welford(statistics), statistics


@torch.no_grad()
def heldout_psnr(
    vae: VAE, index: Index, buckets: list[tuple[int, int]], bucket_of: np.ndarray, device: torch.device
) -> list[float]:
    """PSNR in dB of the reconstruction of each image's centre crop, in its bucket's size; bucket after bucket."""
    values = []
    for images in centre_crops(index, bucket_batches(buckets, bucket_of, 16)):
        restored = vae.decode(vae.encode(images.to(device))).clamp(-1, 1).cpu()
        errors = (restored - images).square().mean(dim=(1, 2, 3))
        values += [psnr_from_error(error) for error in errors.tolist()]
    return values


def psnr_from_error(squared_error: float) -> float:
    """PSNR in dB from the mean squared error of pixels in −1 … 1: 10·log₁₀(2² / error), capped at 100."""
    return min(100.0, 10 * float(np.log10(4 / max(squared_error, 1e-30))))


def bucket_batches(
    buckets: Sequence[tuple[int, int]], bucket_of: np.ndarray, batch_size: int
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Every item once, as batches from one bucket each, in order: ((width, height), items)."""
    for bucket in np.unique(bucket_of):
        items = np.flatnonzero(bucket_of == bucket)
        for start in range(0, len(items), batch_size):
            yield buckets[bucket], items[start : start + batch_size]


def centre_crops(
    index: Index, batches: Iterable[tuple[tuple[int, int], Sequence[int] | npt.NDArray[np.integer]]]
) -> Iterator[Tensor]:
    """Centre crops of each batch, as float images [B, 3, H, W] in −1 … 1."""
    for batch in load_batches(index, list(batches), 0, CentreDraws()):
        yield from_pixels(batch.images)
