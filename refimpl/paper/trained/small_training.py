"""Training of small networks by the project's own step, and their weights kept by content (N §2; S §2.2)."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

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
# Adam moves a layer's output by up to the number of its inputs times the learning rate. Sizes come in as 1,536 sines
# and cosines. At the rate of the other layers, which have about 64 inputs, nine tenths of the units behind them are
# driven below zero within 60 steps, where they stay, and the network is blind to sizes from then on.
SIZES_LEARNED = 64 / SHAPE.vector_dim


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
    size_rate: float = 1.0
    """Its factor for the layer that takes in the sizes and the pooled text. `SIZES_LEARNED` where sizes differ."""
    ema_decay: float = 0.98
    """Decay of the weights' moving average, which is the result."""

    def digest(self) -> str:
        """What the weights are a function of, as 16 hexadecimal digits."""
        content = {"run": asdict(self), "network": asdict(SHAPE), "pictures": PICTURES, "version": VERSION}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Examples:
    """Pictures of one shape as a model learns them.

    latents     [N, C, h, w] float32, standardised
    conditions  N rows
    weights     [N] float32, of each picture's loss
    """

    latents: Tensor
    conditions: Conditions
    weights: Tensor


Order = Sequence[tuple[int, Tensor]]  # of each step: the number of the set, and its pictures [B]


def trained_model(run: SmallRun, folder: Path) -> Model:
    """The model of a run: read from `folder` where an earlier call has left its weights, else trained and kept."""
    path = folder / f"{run.digest()}.safetensors"
    if not path.is_file():
        model = train(run)
        folder.mkdir(parents=True, exist_ok=True)
        write(path, dict(model.unet.state_dict()))
        return model
    images, _ = pictures(PICTURES, run.side, run.seed)
    return frozen(small_model(run.diffusion, measured(images), run.seed), read(path)[0])


def train(run: SmallRun) -> Model:
    """Trains a small network; returns the model with the averaged weights, frozen."""
    model, examples = pictured(run)
    (average,) = fit(model, (examples,), drawn_order(PICTURES, run), run).values()
    return frozen(model, average)


def pictured(run: SmallRun, scale_shift: ScaleShift | None = None) -> tuple[Model, Examples]:
    """The untrained model of a run and its pictures.

    scale_shift  of the pixels; None measures it on the pictures (N App. B)
    """
    images, captions = pictures(PICTURES, run.side, run.seed)
    model = small_model(run.diffusion, scale_shift or measured(images), run.seed)
    return model, examples_of(model, images, captions)


def examples_of(
    model: Model, images: Tensor, captions: Sequence[str], sizes: Tensor | None = None
) -> Examples:
    """Pictures [N, 3, H, W] in −1 … 1 as a model learns them.

    sizes  [N, 6] int64, the conditioning integers; None for pictures that were neither scaled nor cropped
    """
    if sizes is None:
        sizes = torch.tensor([conditioning_at_inference(*images.shape[-2:])] * len(captions))
    latents = model.scale_shift.standardise(images)
    return Examples(latents, _conditions(model, captions, sizes), torch.ones(len(captions)))


def drawn_order(count: int, run: SmallRun) -> Order:
    """The pictures of each step, of one set of `count`, drawn with replacement."""
    generator = torch.Generator().manual_seed(run.seed)
    return [(0, torch.randint(count, (run.batch,), generator=generator)) for _ in range(run.steps)]


def fit(
    model: Model, sets: Sequence[Examples], order: Order, run: SmallRun, milestones: Sequence[int] = ()
) -> dict[int, dict[str, Tensor]]:
    """Trains a model's network in place; returns the averaged weights after each milestone.

    sets        pictures, those of one shape together
    order       for each step, the set and the pictures of it
    milestones  optimizer steps; none stands for the last step
    """
    weights = run.diffusion.loss_weights().float()
    span = (run.diffusion.first_timestep, run.diffusion.last_timestep)
    optimizer = torch.optim.AdamW(_groups(model, run), lr=run.learning_rate, betas=(0.9, 0.99))
    average = ema_start(model.unet)
    ops = load_ops("reference")
    kept = {}
    for step, (number, chosen) in enumerate(order, start=1):
        examples = sets[number]
        warm, left = min(1.0, step / WARMUP), 1 - (step - 1) / run.steps
        for group, factor in zip(optimizer.param_groups, (1.0, run.size_rate), strict=True):
            group["lr"] = factor * run.learning_rate * warm * math.sin(left * math.pi / 2) ** 2
        ids = torch.tensor([sample_id(f"picture {each}") for each in chosen.tolist()])
        draws = step_draws(run.seed, ids, step, span, 0.0)
        rows = Conditions(examples.conditions.context[chosen], examples.conditions.vector[chosen])
        loss = denoising_loss(
            model.unet, model, rows, examples.latents[chosen], draws.noise, draws.t,
            weights[draws.t] * examples.weights[chosen], run.diffusion.offset_noise, ops,
        )  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.unet.parameters(), 1.0)
        optimizer.step()
        ema_update(average, model.unet, step, run.ema_decay)
        if step in (milestones or (run.steps,)):
            kept[step] = {name: value.clone() for name, value in average.items()}
    return kept


def _groups(model: Model, run: SmallRun) -> list[dict[str, list[nn.Parameter]]]:
    """The weights that learn at the run's rate, and those that learn at its `size_rate`."""
    takes_sizes = model.unet.get_parameter("label_emb.0.0.weight")
    others = [weight for weight in model.unet.parameters() if weight is not takes_sizes]
    return [{"params": others}, {"params": [takes_sizes]}]


def frozen(model: Model, weights: Mapping[str, Tensor]) -> Model:
    """The model with these weights of its UNet, which no longer learns."""
    model.unet.load_state_dict(dict(weights))
    model.unet.eval().requires_grad_(False)
    return model


def measured(images: Tensor) -> ScaleShift:
    """The scale-and-shift of a set of pictures (N App. B)."""
    welford = Welford(images.shape[1])
    welford.update(images)
    return ScaleShift(tuple(welford.mean.tolist()), tuple(welford.std.tolist()))


@torch.no_grad()
def _conditions(model: Model, captions: Sequence[str], sizes: Tensor) -> Conditions:
    """What each picture's network call is conditioned on; captions are never dropped."""
    states = TextStates(
        (model.tokenizer, model.encoder_l, model.encoder_g), model.text.pooling, CAPTIONS_KEPT
    )
    return make_conditions(model, states, captions, torch.empty(0), sizes)
