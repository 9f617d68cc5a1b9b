"""What a run logs: metrics.jsonl and a progress bar always, TensorBoard and W&B on request."""

import contextlib
import importlib.util
import json
import math
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.min_snr import weight_mass
from refimpl.errors import InputError
from refimpl.run.config import Config, TrainConfig
from refimpl.run.world import World
from refimpl.storage.atomic import replace_text
from refimpl.tables import to_table
from refimpl.train.budget.utilisation import utilisation
from refimpl.train.placement import Placement
from refimpl.train.step_plan import PlanStep

WEIGHT_MASS_FROM = 950  # zero terminal SNR trains nothing there if the loss weight is 0 (N §2.2, §2.4)


class RunLog:
    """Rank 0's rows and progress bar; on the other ranks every method does nothing.

    A row of metrics.jsonl is one JSON object with `step` and any of: loss (mean weighted v-loss of the global batch),
    learning_rate, gradient_norm, epoch, bucket, images_per_second, mfu (share of the GPUs' peak arithmetic that the
    UNet's passes need at that speed, see `refimpl.train.budget.utilisation`), loader_stall (share of the step's time
    that rank 0 waited for its images), heldout_loss, weight_mass. A run continued from step `start` keeps the rows
    up to it and drops those of later steps, which it runs again.
    """

    def __init__(self, config: Config, run: Path, start: int, world: World):
        self._main, self._every, self._start = world.is_main, config.train.log_every, start
        if not self._main:
            return
        self._writers = list(_open_writers(config.train, to_table(config), run))
        self._file = _open_rows(run / "metrics.jsonl", start)
        self._utilisation = utilisation(config, world)
        self._bar = tqdm(
            total=config.train.steps, initial=start, desc="train", unit="step", dynamic_ncols=True
        )

    def row(self, step: int, **values: Any) -> None:
        """Appends one row of the values that are not None; writes nothing if all are None.

        Values that are not finite become null, since JSON cannot represent them.
        """
        measured = {name: value for name, value in values.items() if value is not None}
        if not self._main or not measured:
            return
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in measured.items()
        }
        try:
            self._file.write(json.dumps({"step": step, **clean}) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"could not write {self._file.name}: {error.strerror}; free space and continue with --train.resume"
            ) from error
        for write in self._writers:
            write(step, {name: value for name, value in clean.items() if isinstance(value, int | float)})

    def step(
        self, done: int, plan_step: PlanStep, loss: Tensor, rate: float, gradient_norm: Tensor, started: float
    ) -> None:
        """Advances the bar by one optimizer step, and writes a row at every log_every-th step."""
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
            mfu=self._utilisation(plan_step.bucket, plan_step.images / seconds),
            loader_stall=min(1.0, plan_step.waited / seconds),
        )

    def placement(self, placement: Placement) -> None:
        """Says what the run computes with, and how."""
        if self._main:
            tqdm.write(str(placement))

    def weight_mass(self, config: DiffusionConfig) -> None:
        """Reports once what share of the loss weight of all trained timesteps lies on the noisiest ones."""
        if not self._main:
            return
        weights = config.loss_weights()
        trained = torch.zeros_like(weights)
        trained[config.first_timestep : config.last_timestep + 1] = 1
        share = weight_mass(weights * trained, WEIGHT_MASS_FROM)
        if self._start == 0:
            self.row(step=0, weight_mass={"from_timestep": WEIGHT_MASS_FROM, "share": share})
        tqdm.write(f"{share:.4%} of the loss weight lies on t ≥ {WEIGHT_MASS_FROM}")
        if config.zero_terminal_snr and trained[-1] == 1 and weights[-1] == 0:
            tqdm.write("t = 999 has weight 0: policy 'floor' or 'snr_plus_one' trains the zero-SNR step too")

    def close(self) -> None:
        """Closes the bar and the file."""
        if self._main:
            self._bar.close()
            self._file.close()


def _open_rows(path: Path, start: int) -> TextIO:
    """The file to append rows to, holding the whole rows of steps 0 … `start` if the run is continued."""
    kept = []
    if start and path.exists():
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror}; move whatever is in its place"
            ) from error
        for line in text.split("\n")[:-1]:
            # A process killed while writing leaves half a line.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= start:
                    kept.append(line + "\n")
    replace_text(path, "".join(kept))
    return path.open("a", encoding="utf-8")


def check_loggers(settings: TrainConfig) -> None:
    """Raises InputError when an optional logger is asked for but not installed."""
    wanted = {"tensorboard": settings.tensorboard, "wandb": bool(settings.wandb_project)}
    names = {"tensorboard": "train.tensorboard", "wandb": "train.wandb_project"}
    for package, is_wanted in wanted.items():
        if is_wanted and importlib.util.find_spec(package) is None:
            raise InputError(
                f"{names[package]} needs the {package} package: pip install 'refimpl[{package}]'"
            )


def _open_writers(settings: TrainConfig, table: dict[str, Any], run: Path):
    """Functions (step, scalars) → None for the optional loggers."""
    if settings.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(run / "tensorboard"))
        yield lambda step, scalars: [writer.add_scalar(name, value, step) for name, value in scalars.items()]
    if settings.wandb_project:
        import wandb  # pyright: ignore[reportMissingImports]

        session = wandb.init(project=settings.wandb_project, config=table, dir=str(run))
        yield lambda step, scalars: session.log(scalars, step=step)
