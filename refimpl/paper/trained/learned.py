"""Networks kept by everything that they are a function of: settings, pictures, order and initial weights."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from refimpl.model.pipeline import Model
from refimpl.paper.trained.small_model import SHAPE
from refimpl.paper.trained.small_training import VERSION, Examples, Order, SmallRun, drawn_order, fit, frozen
from refimpl.storage.safetensors_file import read, write


@dataclass(frozen=True)
class Lesson:
    """What a network is to learn, and how.

    run    of which the pictures' number, seed and side are those of `sets`
    sets   pictures, those of one shape together
    order  for each step, the set and the pictures of it
    """

    run: SmallRun
    sets: tuple[Examples, ...]
    order: Order


def lesson(run: SmallRun, examples: Examples) -> Lesson:
    """One set of pictures, drawn from with replacement."""
    return Lesson(run, (examples,), drawn_order(len(examples.latents), run))


def learned(model: Model, taught: Lesson, folder: Path) -> Model:
    """The model after its lesson, frozen: read from `folder` where an earlier call left the weights, else trained."""
    (average,) = learned_on_the_way(model, taught, (taught.run.steps,), folder).values()
    return frozen(model, average)


def learned_on_the_way(
    model: Model, taught: Lesson, milestones: Sequence[int], folder: Path
) -> dict[int, dict[str, Tensor]]:
    """The averaged weights after each milestone, kept as `learned` keeps its own; the model may change.

    milestones  optimizer steps, each from 1 to the run's
    """
    path = folder / f"{_digest(model, taught, milestones)}.safetensors"
    if path.is_file():
        tensors = read(path)[0]
        return {
            step: {
                name.removeprefix(f"{step}."): value
                for name, value in tensors.items()
                if name.startswith(f"{step}.")
            }
            for step in milestones
        }
    kept = fit(model, taught.sets, taught.order, taught.run, milestones)
    folder.mkdir(parents=True, exist_ok=True)
    write(path, {f"{step}.{name}": value for step, each in kept.items() for name, value in each.items()})
    return kept


def _digest(model: Model, taught: Lesson, milestones: Sequence[int]) -> str:
    """What the weights are a function of, as 16 hexadecimal digits."""
    settings = {
        "run": asdict(taught.run),
        "network": asdict(SHAPE),
        "milestones": list(milestones),
        "version": VERSION,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for examples in taught.sets:
        rows = examples.conditions
        for tensor in (examples.latents, rows.context, rows.vector, examples.weights):
            _add(digest, tensor)
    for number, chosen in taught.order:
        digest.update(number.to_bytes(4, "little"))
        _add(digest, chosen)
    for name, value in model.unet.state_dict().items():
        digest.update(name.encode())
        _add(digest, value)
    return digest.hexdigest()[:16]


def _add(digest: "hashlib._Hash", tensor: Tensor) -> None:
    digest.update(str(list(tensor.shape)).encode())
    digest.update(tensor.contiguous().numpy().tobytes())
