"""What a run logs: metrics.jsonl and its progress always, TensorBoard and W&B on request."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.min_snr import weight_mass
from refimpl.progress import Progress
from refimpl.run.config import Config
from refimpl.run.world import World
from refimpl.sample.images.picture_files import pixels_of, tiled, write_grid
from refimpl.tables import to_table
from refimpl.train.batches.micro_batch import MicroBatch
from refimpl.train.budget.utilisation import utilisation
from refimpl.train.metrics.deciles import TimestepLosses
from refimpl.train.metrics.interval import Interval, peak_memory
from refimpl.train.metrics.loggers import open_writers, scalars_of
from refimpl.train.metrics.rows import open_rows, representable, write_row
from refimpl.train.step_plan import PlanStep

WEIGHT_MASS_FROM = 950  # zero terminal SNR trains nothing there if the loss weight is 0 (N §2.2, §2.4)


class RunLog:
    """Rank 0's rows and progress; the other ranks add what they have measured and write nothing.

    A row of metrics.jsonl is one JSON object with `step` and any of: loss (mean weighted v-loss of the global batch),
    learning_rate, gradient_norm, epoch, bucket, of this step; and over all steps since the row before it, or since
    the run was continued: loss_by_timestep (the same loss in each tenth of the timesteps, null where no image was),
    images_per_second, mfu (share of the GPUs' peak arithmetic that the UNet's passes need at that speed, see
    `refimpl.train.budget.utilisation`), loader_stall (share of the time that rank 0 waited for its images); ema_drift
    (distance between the weights and their moving average, relative to the weights) and peak_memory (bytes that rank
    0 has held at most: in tensors on its GPU, on the CPU in all); heldout_loss, weight_mass. A run continued from
    step `start` keeps the rows up to it and drops those of later steps, which it runs again.
    """

    def __init__(self, config: Config, run: Path, start: int, world: World):
        self._world, self._start = world, start
        self._every, self._last = config.train.log_every, config.train.steps
        self._losses = TimestepLosses(len(config.diffusion.schedule().alpha))
        if not world.is_main:
            return
        self._run, self._prompts = run, config.sample.prompts
        self._writers = list(open_writers(config.train, to_table(config), run))
        self._file = open_rows(run / "metrics.jsonl", start)
        self._interval = Interval(utilisation(config, world))
        self._progress = Progress(config.train.steps, "train", "steps", start, on_report=True)

    def row(self, step: int, **values: Any) -> None:
        """Appends one row of the values that are not None; writes nothing if all are None.

        Values that are not finite become null, since JSON cannot represent them.
        """
        measured = {name: representable(value) for name, value in values.items() if value is not None}
        if not self._world.is_main or not measured:
            return
        write_row(self._file, step, measured)
        for writer in self._writers:
            writer.scalars(step, scalars_of(measured))

    def samples(self, step: int, images: Tensor | None) -> None:
        """Writes the images of the fixed prompts as one picture: a row per prompt, a column per seed.

        images  [prompts, seeds, 3, H, W] in 0 … 1; None on a rank that drew none
        """
        if not self._world.is_main or images is None:
            return
        write_grid(images, self._run / "samples" / f"step-{step:08d}.png", self._prompts)
        rows = [pixels_of(tiled(row[None])) for row in images]
        for writer in self._writers:
            writer.samples(step, list(zip(self._prompts, rows, strict=True)))

    def add(self, batch: MicroBatch, losses: Tensor) -> None:
        """Counts the losses [B] of a micro-batch, unless it only repeats another; waits for nothing."""
        if not batch.is_repeat:
            self._losses.add(batch.t, losses)

    def step(
        self,
        done: int,
        plan_step: PlanStep,
        loss: Tensor,
        rate: float,
        gradient_norm: Tensor,
        started: float,
        drift: Callable[[], Tensor],
    ) -> None:
        """Advances the progress by one optimizer step, and writes a row at every log_every-th step.

        drift  distance between weights and average, asked for by all ranks and only where a row is written
        """
        if self._world.is_main:
            self._interval.add(plan_step, time.perf_counter() - started)
            self._progress.update()
        if done % self._every and done != self._last:
            return
        by_timestep, drifted = self._losses.take(self._world), drift()
        if not self._world.is_main:
            return
        value = loss.item()
        self._progress.note(loss=f"{value:.4f}")
        self.row(
            step=done,
            loss=value,
            learning_rate=rate,
            gradient_norm=gradient_norm.item(),
            epoch=plan_step.epoch,
            bucket=list(plan_step.bucket),
            loss_by_timestep=by_timestep,
            ema_drift=drifted.item(),
            peak_memory=peak_memory(self._world.device),
            **self._interval.take(),
        )
        self._progress.report()

    def weight_mass(self, config: DiffusionConfig) -> None:
        """Reports once what share of the loss weight of all trained timesteps lies on the noisiest ones."""
        if not self._world.is_main:
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
        """Closes the progress, the file and the loggers."""
        if self._world.is_main:
            self._progress.close()
            self._file.close()
            for writer in self._writers:
                writer.close()
