"""Training of small networks by the project's own step, and their weights kept by content (N §2; S §2.2)."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from refimpl.data.crop import conditioning_at_inference
from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.philox import sample_id
from refimpl.latents.scale_shift import ScaleShift
from refimpl.latents.welford import Welford
from refimpl.model.pipeline import Model
from refimpl.ops import load_ops
from refimpl.paper.trained.pictures import pictures
from refimpl.paper.trained.small_model import SHAPE, small_model
from refimpl.run.ema import ema_start, ema_update
from refimpl.storage.safetensors_file import read, write
from refimpl.text.states import TextStates
from refimpl.train.step import Conditions, denoising_loss, make_conditions, step_draws

VERSION = 1  # of what the settings below train: weights of another version are not reused
PICTURES = 768  # of a run's own seed
CAPTIONS_KEPT = 256
WARMUP = 20  # optimizer steps


@dataclass(frozen=True)
class SmallRun:
    """One training of a small network; everything random in it is a function of the seed."""

    diffusion: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(loss_weight="snr_plus_one"))
    """Parameterisation, schedule and loss weight."""
    seed: int = 0
    """Seed of the pictures, the initial weights, the timesteps and the noise."""
    side: int = 16
    """Side of the canvas, px; also its cells, since latents are pixels."""
    steps: int = 500
    """Optimizer steps."""
    batch: int = 32
    """Pictures per step."""
    learning_rate: float = 3e-3
    """Largest learning rate, after a warm-up and before a cosine decay to 0."""
    ema_decay: float = 0.98
    """Decay of the weights' moving average, which is the result."""

    def digest(self) -> str:
        """What the weights are a function of, as 16 hexadecimal digits."""
        content = {"run": asdict(self), "network": asdict(SHAPE), "pictures": PICTURES, "version": VERSION}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def trained_model(run: SmallRun, folder: Path) -> Model:
    """The model of a run: read from `folder` where an earlier call has left its weights, else trained and kept."""
    path = folder / f"{run.digest()}.safetensors"
    if not path.is_file():
        model = train(run)
        folder.mkdir(parents=True, exist_ok=True)
        write(path, dict(model.unet.state_dict()))
        return model
    images, _ = pictures(PICTURES, run.side, run.seed)
    model = small_model(run.diffusion, _measured(images), run.seed)
    model.unet.load_state_dict(read(path)[0])
    model.unet.eval().requires_grad_(False)
    return model


def train(run: SmallRun) -> Model:
    """Trains a small network; returns the model with the averaged weights, frozen."""
    images, captions = pictures(PICTURES, run.side, run.seed)
    model = small_model(run.diffusion, _measured(images), run.seed)
    conditions = _conditions(model, captions, run.side)
    latents = model.scale_shift.standardise(images)
    weights = run.diffusion.loss_weights().float()
    ids = torch.tensor([sample_id(f"picture {number}") for number in range(PICTURES)])
    order = torch.Generator().manual_seed(run.seed)
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=run.learning_rate, betas=(0.9, 0.99))
    average = ema_start(model.unet)
    ops = load_ops("reference")
    for step in range(1, run.steps + 1):
        warm, left = min(1.0, step / WARMUP), 1 - (step - 1) / run.steps
        optimizer.param_groups[0]["lr"] = run.learning_rate * warm * math.sin(left * math.pi / 2) ** 2
        chosen = torch.randint(PICTURES, (run.batch,), generator=order)
        span = (run.diffusion.first_timestep, run.diffusion.last_timestep)
        draws = step_draws(run.seed, ids[chosen], step, span, 0.0)
        rows = Conditions(conditions.context[chosen], conditions.vector[chosen])
        loss = denoising_loss(
            model.unet, model, rows, latents[chosen], draws.noise, draws.t, weights[draws.t],
            run.diffusion.offset_noise, ops,
        )  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.unet.parameters(), 1.0)
        optimizer.step()
        ema_update(average, model.unet, step, run.ema_decay)
    model.unet.load_state_dict(average)
    model.unet.eval().requires_grad_(False)
    return model


def _measured(images: torch.Tensor) -> ScaleShift:
    """The scale-and-shift of a set of pictures (N App. B)."""
    welford = Welford(images.shape[1])
    welford.update(images)
    return ScaleShift(tuple(welford.mean.tolist()), tuple(welford.std.tolist()))


@torch.no_grad()
def _conditions(model: Model, captions: list[str], side: int) -> Conditions:
    """What each picture's network call is conditioned on; captions are never dropped."""
    states = TextStates(
        (model.tokenizer, model.encoder_l, model.encoder_g), model.text.pooling, CAPTIONS_KEPT
    )
    sizes = torch.tensor([conditioning_at_inference(side, side)] * len(captions))
    return make_conditions(model, states, captions, torch.empty(0), sizes)
