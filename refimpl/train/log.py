"""What a run writes while it goes: metrics.jsonl always, a progress bar, TensorBoard and W&B on request."""

import json
import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from refimpl.diffusion.min_snr import weight_mass
from refimpl.diffusion.schedule import NoiseSchedule
from refimpl.errors import InputError
from refimpl.tables import to_table
from refimpl.train.config import Config
from refimpl.train.distributed import World
from refimpl.train.steps import PlanStep

WEIGHT_MASS_FROM = 950  # spec'd timestep: ZTSNR trains nothing there if the loss weight is 0 (N §2.2, §2.4)


class RunLog:
    """Rank 0's rows and progress bar; on the other ranks every method does nothing.

    A row of metrics.jsonl is one JSON object with `step` and any of: loss (mean weighted v-loss of the global batch),
    learning_rate, gradient_norm, epoch, bucket, images_per_second, heldout_loss, weight_mass.
    """

    def __init__(self, config: Config, run: Path, start: int, world: World):
        self._main, self._every, self._world = world.is_main, config.train.log_every, world
        if not self._main:
            return
        self._file = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self._bar = tqdm(
            total=config.train.steps, initial=start, desc="train", unit="step", dynamic_ncols=True
        )
        self._writers = list(_open_writers(config, run))

    def row(self, step: int, **values: Any) -> None:
        """Appends one row; values that are not finite become null, as JSON has no word for them."""
        if not self._main:
            return
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        for write in self._writers:
            write(step, {name: value for name, value in clean.items() if isinstance(value, int | float)})

    def step(
        self, done: int, plan_step: PlanStep, loss: Tensor, rate: float, gradient_norm: Tensor, started: float
    ) -> None:
        """One optimizer step: moves the bar, and writes every log_every-th."""
        if not self._main:
            return
        self._bar.update()
        if done % self._every and done != self._bar.total:
            return
        seconds = time.perf_counter() - started
        value = loss.item()
        self._bar.set_postfix(loss=f"{value:.4f}", refresh=False)
        self.row(
            step=done,
            loss=value,
            learning_rate=rate,
            gradient_norm=gradient_norm.item(),
            epoch=plan_step.epoch,
            bucket=list(plan_step.bucket),
            images_per_second=plan_step.images / seconds,
        )

    def weight_mass(self, schedule: NoiseSchedule, weights: Tensor) -> None:
        """Says once how much of all loss weight lies on the noisiest timesteps."""
        if not self._main:
            return
        share = float(weight_mass(weights, WEIGHT_MASS_FROM))
        self.row(step=0, weight_mass={"from_timestep": WEIGHT_MASS_FROM, "share": share})
        tqdm.write(f"{share:.4%} of the loss weight lies on t ≥ {WEIGHT_MASS_FROM}")
        if schedule.is_zero_terminal and weights[-1] == 0:
            tqdm.write("t = 999 has weight 0: policy 'floor' or 'snr_plus_one' trains the zero-SNR step too")

    def close(self) -> None:
        """Ends the bar and the file."""
        if self._main:
            self._bar.close()
            self._file.close()


def _open_writers(config: Config, run: Path):
    """Functions (step, scalars) → None for the optional loggers."""
    if config.train.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "train.tensorboard needs the tensorboard package: pip install 'refimpl[tensorboard]'"
            ) from error
        writer = SummaryWriter(str(run / "tensorboard"))
        yield lambda step, scalars: [writer.add_scalar(name, value, step) for name, value in scalars.items()]
    if config.train.wandb_project:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(
                "train.wandb_project needs the wandb package: pip install 'refimpl[wandb]'"
            ) from error
        session = wandb.init(project=config.train.wandb_project, config=to_table(config), dir=str(run))
        yield lambda step, scalars: session.log(scalars, step=step)
