"""The optional services that a run logs to: TensorBoard and Weights & Biases."""

import importlib.util
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refimpl.errors import InputError
from refimpl.packages import install_line
from refimpl.printable import one_line
from refimpl.run.config import TrainConfig
from refimpl.storage.atomic import replace_text

WANDB_ID = "wandb-id.txt"
Pixels = npt.NDArray[np.uint8]
SHOWN = 80  # letters of a prompt in the name of a picture


class Writer(NamedTuple):
    """A logger's functions: each takes the step first."""

    scalars: Callable[[int, Mapping[str, float]], Any]
    samples: Callable[[int, Sequence[tuple[str, Pixels]]], Any]
    """Takes (prompt, pixels [H, W, 3]) of each row of a grid of samples."""
    close: Callable[[], Any]


def check_loggers(settings: TrainConfig) -> None:
    """Raises InputError when an optional logger is asked for but not installed."""
    wanted = {"tensorboard": settings.tensorboard, "wandb": bool(settings.wandb_project)}
    names = {"tensorboard": "train.tensorboard", "wandb": "train.wandb_project"}
    for package, is_wanted in wanted.items():
        if is_wanted and importlib.util.find_spec(package) is None:
            raise InputError(f"{names[package]} needs the {package} package: {install_line(package)}")


def open_writers(settings: TrainConfig, table: dict[str, Any], run: Path) -> Iterator[Writer]:
    """A function for each logger that the settings ask for."""
    if settings.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(run / "tensorboard"))
        yield Writer(
            lambda step, scalars: [writer.add_scalar(name, value, step) for name, value in scalars.items()],
            lambda step, rows: [
                writer.add_image(f"samples/{number} {label_of(prompt)}", pixels, step, dataformats="HWC")
                for number, (prompt, pixels) in enumerate(rows)
            ],
            writer.close,
        )
    if settings.wandb_project:
        import wandb  # pyright: ignore[reportMissingImports]

        session = wandb.init(
            project=settings.wandb_project, config=table, dir=str(run), id=wandb_id(run), resume="allow"
        )
        yield Writer(
            lambda step, scalars: session.log(scalars, step=step),
            lambda step, rows: session.log(
                {"samples": [wandb.Image(pixels, caption=label_of(prompt)) for prompt, pixels in rows]},
                step=step,
            ),
            session.finish,
        )


def label_of(prompt: str) -> str:
    """What a picture is called by its prompt: one line, not too long, never empty."""
    line = one_line(" ".join(prompt.split()))
    return (line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…") or "(empty prompt)"


def wandb_id(run: Path) -> str:
    """The run's id at Weights & Biases, made once and kept in its folder: a continued run is the same one there."""
    path = run / WANDB_ID
    if not path.is_file():
        replace_text(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()


def scalars_of(row: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers of a row; those of a list of losses each by its place."""
    found = {name: value for name, value in row.items() if isinstance(value, int | float)}
    for place, value in enumerate(row.get("loss_by_timestep") or []):
        if value is not None:
            found[f"loss_by_timestep/{place}"] = value
    return found
