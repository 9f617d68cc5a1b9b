"""The optional services that a run logs to: TensorBoard and Weights & Biases."""

import importlib.util
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from refimpl.errors import InputError
from refimpl.packages import install_line
from refimpl.run.config import TrainConfig
from refimpl.storage.atomic import replace_text

WANDB_ID = "wandb-id.txt"
Writer = Callable[[int, Mapping[str, float]], Any]  # (step, scalars)


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
        yield lambda step, scalars: [writer.add_scalar(name, value, step) for name, value in scalars.items()]
    if settings.wandb_project:
        import wandb  # pyright: ignore[reportMissingImports]

        session = wandb.init(
            project=settings.wandb_project, config=table, dir=str(run), id=wandb_id(run), resume="allow"
        )
        yield lambda step, scalars: session.log(scalars, step=step)


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
