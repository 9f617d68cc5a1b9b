"""`refimpl sample` and `python -m refimpl.sample`: images from a run (N §2.3, §5)."""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from refimpl.commands.terminal import parsed, run_command
from refimpl.errors import InputError
from refimpl.sample.config import SampleConfig
from refimpl.tables import from_table, to_table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from refimpl.model.pipeline import Model
    from refimpl.sample.images.refiner import Refiner


@dataclass(frozen=True)
class SampleCommand:
    """Draws images from a run folder or one of its checkpoints; options left out come from the run's settings."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder (its newest checkpoint is used) or one of its checkpoints/step-* folders."""
    out: Path | None = None
    """Folder for grid.png, the single images and samples.json; made when absent, refused when it holds files. When
    left out, samples, samples-002 and so on, the first that holds none."""
    weights: str = "ema"
    """Weights to use: ema (moving average) or unet (as trained)."""
    start_sigma: float | None = None
    """Start at this finite sigma_edm; when left out, at the end of the schedule, which is ∞ with zero terminal
    SNR."""
    batch_size: int = 16
    """Images per network call; this changes no image."""
    device: str = "auto"
    """Device to sample on: auto, cpu or cuda."""
    prompts: tuple[str, ...] | None = None
    """What to draw: one or more prompts."""
    seeds: int | None = None
    """Images per prompt."""
    seed: int | None = None
    """Seed of the initial noise."""
    steps: int | None = None
    """Sampling steps."""
    grid: str | None = None
    """Noise levels: native, trailing, leading, karras, exponential, canvas, laplace or community_trainer."""
    terminal: str | None = None
    """How the zero-SNR end is sampled: exact (σ = ∞), or a finite level in its place as other tools have it: 20000,
    4518.7637 or 4096."""
    sampler: str | None = None
    """Sampler: euler, euler_ancestral, heun, ddim, dpmpp_2m, dpmpp_2m_sde or unipc."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 for none."""
    rescale: float | None = None
    """CFG rescale factor φ; 0 for none."""
    width: int | None = None
    """Width of the images, px."""
    height: int | None = None
    """Height of the images, px."""
    attention_train_side: int | None = None
    """Side in px of the square canvas trained on: self-attention logits are rescaled at any other size. 0 turns this
    off."""
    attention_window: int | None = None
    """Distance in px to either side that each position attends to, for very large canvases; 0 for the whole
    canvas."""
    refiner: Path | None = None
    """Run or checkpoint of a refiner (S §2.5)."""
    refiner_mode: str = "sdedit"
    """How the refiner is used: sdedit (noise the finished latents and denoise them again) or last (take over for the
    last steps of the grid)."""
    refiner_from: float | None = None
    """Share of the noise scales that the refiner works on: 0.2 means t < 200. When left out, all that it was trained
    on."""
    aesthetic_score: float | None = None
    """Aesthetic score that the refiner is conditioned on."""
    negative_aesthetic_score: float | None = None
    """Aesthetic score for the unconditional half of guidance."""
    image_prompt: Path | None = None
    """Image whose CLIP embedding replaces the prompts' pooled state (S §2.6), for runs trained on image prompts."""


def sample_command(arguments: list[str], program: str = "python -m refimpl.sample") -> None:
    """Draws the images; writes grid.png (one row per prompt), promptNN-NN.png for each image, and samples.json."""
    command = parsed(SampleCommand, arguments, program)
    if command.batch_size < 1:
        raise InputError(f"--batch-size {command.batch_size} must be at least 1")
    out = command.out or _unused_folder()
    _check_out(out)
    from refimpl.interop.run.run_folder import load_model
    from refimpl.run.threads import use_threads_for
    from refimpl.sample.images.draw import draw_images
    from refimpl.sample.images.picture_files import write_grid, write_image
    from refimpl.storage.atomic import replace_text

    model, table, step = load_model(command.run, command.weights)
    use_threads_for((model.unet, model.vae))
    last = model.diffusion.last_timestep
    if command.start_sigma is None and last < model.schedule.timesteps - 1:
        raise InputError(
            f"{command.run} is a refiner, trained up to t = {last}: it cannot begin from pure noise; name it as "
            "the --refiner of another run, or give a --start-sigma within its range"
        )
    settings = from_table(SampleConfig, table.get("sample", {}), f"{command.run} [sample]")
    given = {f.name: getattr(command, f.name, None) for f in fields(SampleConfig)}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    device = _device(command.device)
    _say_what_is_lost(model, settings, command.start_sigma)
    images = draw_images(
        model.to(device),
        settings,
        start_sigma=command.start_sigma,
        batch_size=command.batch_size,
        refiner=_refiner(command, device),
        image_prompt=_read_image(command.image_prompt) if command.image_prompt else None,
    )
    write_grid(images, out / "grid.png", settings.prompts)
    for row, prompt_images in enumerate(images):
        for number, image in enumerate(prompt_images):
            write_image(image, out / f"prompt{row:02d}-{number:02d}.png")
    summary = {
        "run": str(command.run),
        "step": step,
        "weights": command.weights,
        "start_sigma": command.start_sigma,
        "refiner": str(command.refiner) if command.refiner else None,
        "refiner_mode": command.refiner_mode if command.refiner else None,
        "refiner_from": command.refiner_from,
        "image_prompt": str(command.image_prompt) if command.image_prompt else None,
        "settings": to_table(settings),
        "mean_rgb": images.mean(dim=(1, 3, 4)).tolist(),  # by prompt
    }
    replace_text(out / "samples.json", json.dumps(summary, indent=1) + "\n")
    print(f"wrote {images.shape[0] * images.shape[1]} images and a grid to {out}")


def _say_what_is_lost(model: Model, settings: SampleConfig, start_sigma: float | None) -> None:
    """One line on stderr where the grid jumps over levels that the canvas' average needs (docs/grids.md)."""
    from refimpl.paper.exact_posteriors import jump_note
    from refimpl.sample.grids import grid_of_settings

    factor = model.vae.config.factor
    size = (-(-settings.height // factor), -(-settings.width // factor))
    schedule = model.schedule
    note = jump_note(settings, grid_of_settings(settings, schedule, size, start_sigma), schedule, size)
    if note:
        print(note, file=sys.stderr)


def _refiner(command: SampleCommand, device: torch.device) -> Refiner | None:
    if command.refiner is None:
        if command.refiner_from is not None:
            raise InputError("--refiner-from says where a refiner starts; name it with --refiner")
        return None
    from refimpl.interop.run.run_folder import load_model
    from refimpl.sample.images.refiner import Refiner

    model, _, _ = load_model(command.refiner, command.weights)
    return Refiner(model.to(device), command.refiner_mode, command.refiner_from)


def _read_image(path: Path) -> Tensor:
    """[3, H, W] in −1 … 1."""
    import numpy as np
    import torch

    from refimpl.data.images.decode import decode
    from refimpl.latents.pixels import from_pixels

    pixels = np.array(decode(path))
    return from_pixels(torch.from_numpy(pixels).permute(2, 0, 1))


def _unused_folder() -> Path:
    """samples, or the first of samples-002, samples-003, … that holds nothing."""
    folder = Path("samples")
    for number in itertools.count(2):
        try:
            if not _is_used(folder):
                break
        except OSError:  # what cannot be looked into is another's
            if not os.path.lexists(folder):  # nothing can be looked for here; `_check_out` says why
                break
        folder = Path(f"samples-{number:03d}")
    return folder


def _is_used(folder: Path) -> bool:
    """Whether something is there but an empty folder."""
    return _is_there(folder) and (not folder.is_dir() or any(folder.iterdir()))


def _is_there(path: Path) -> bool:
    """Whether the name is taken, be it by a link that leads nowhere."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_out(out: Path) -> None:
    """Raises InputError unless images can be written to `out`, before any is drawn; creates nothing."""
    try:
        if _is_used(out):
            raise InputError(f"--out {out} exists and is not an empty folder; choose another")
        nearest = next(parent for parent in (out, *out.absolute().parents) if _is_there(parent))
    except OSError as error:
        raise InputError(f"--out {out} cannot be made: {error.strerror}; choose another folder") from error
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"--out {out} cannot be made: {nearest} is not a writable folder; choose another folder"
        )


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {name!r} is unknown; use auto, cpu or cuda")
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for, but torch sees no GPU; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def main() -> None:
    """Entry point of `python -m refimpl.sample`."""
    run_command(lambda: sample_command(sys.argv[1:]))
