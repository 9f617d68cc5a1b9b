"""How long a step takes on this machine: ten are measured before a run begins, so that its end can be told.

The networks are the configuration's, with random weights and noise in place of images. Nothing of it is kept, and the
random draws of what follows are as they would be without it.
"""

import statistics
import time
from collections.abc import Callable

import torch

from refimpl.latents.config import LatentConfig, VAEConfig
from refimpl.latents.vae import VAE
from refimpl.model.unet import UNet
from refimpl.run.config import Config

WARM, MEASURED = 2, 10  # steps; the first ones also plan and allocate
TOKENS = 77  # of a prompt that fits into one chunk


def seconds_per_step(step: Callable[[], object]) -> float:
    """Median of MEASURED calls, after WARM calls that are not measured."""
    for _ in range(WARM):
        step()
    taken = []
    for _ in range(MEASURED):
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def autoencoder_step(shape: VAEConfig, settings: LatentConfig) -> Callable[[], None]:
    """A step with the arithmetic of `refimpl.autoencoder.training`: both ways through the network and an update."""
    with torch.random.fork_rng(devices=[]):
        network = VAE(shape).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images = torch.rand(
            settings.train_batch, shape.image_channels, settings.train_size, settings.train_size
        )
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (network.decode(network.encode(images)) - images).square().mean().backward()
        optimizer.step()

    return step


def training_step(config: Config) -> Callable[[], None]:
    """A step with the arithmetic of training from images in float32: they are encoded, the UNet goes both ways."""
    with torch.random.fork_rng(devices=[]):
        encoder, network = VAE(config.vae).requires_grad_(False), UNet(config.unet)
        batch, (width, height) = (
            config.train.batch_size,
            max(config.buckets.sizes(), key=lambda b: b[0] * b[1]),
        )
        images = torch.rand(batch, config.vae.image_channels, height, width)
        context, vector = (
            torch.rand(batch, TOKENS, config.unet.context_dim),
            torch.rand(batch, config.unet.vector_dim),
        )
        t = torch.randint(0, 1000, (batch,))
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        with torch.no_grad():
            latents = encoder.encode(images)
        optimizer.zero_grad(set_to_none=True)
        network(latents, t, context, vector).square().mean().backward()
        optimizer.step()

    return step
