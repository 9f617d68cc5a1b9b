"""NaN and infinities in a loss, a gradient or an image: the step is skipped on every rank, and the run goes on."""

import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from refimpl.commands.train import train_command
from refimpl.interop.run.checkpoints import committed_steps
from refimpl.run.adamw import optimizer_state
from refimpl.storage import safetensors_file
from refimpl.storage.shards import DIGEST, READER, shard_bytes
from refimpl.train import loop
from tests.faults.watching import losses, printed
from tests.train import caches, runs
from tests.train.processes import run_ranks

VALUES = (math.nan, math.inf, -math.inf)
PLACES = ("loss", "gradient", "input")
CASES = list(itertools.product(VALUES, PLACES, range(2)))  # value × place × rank
EVERY = 2  # the steps with an even number are spoilt, the others are sound
STEPS = EVERY * len(CASES) + 1


def spoil_steps(arguments: list[str]) -> None:
    """Trains, and spoils every other step of one rank; notes which tensors of its state each step has changed."""
    rank, folder = int(os.environ["RANK"]), Path(arguments.pop())
    notes = (folder / f"state{rank}.jsonl").open("w")
    step, taken = [0], loop.update
    first: list[torch.nn.Parameter] = []

    def case(place: str) -> float | None:
        """What to spoil in this step at that place of this rank."""
        number = step[0] // EVERY - 1
        is_spoilt = step[0] % EVERY == 0 and CASES[number][1:] == (place, rank)
        return CASES[number][0] if is_spoilt else None

    def inputs(prepared: Any, batch: Any, original: Callable[..., Any] = loop.network_inputs) -> Any:
        latents, conditions = original(prepared, batch)
        value = case("input")
        if value is not None:
            latents = latents.clone()
            latents[0, 0, 0, 0] = value
        return latents, conditions

    def loss(*given: Any, original: Callable[..., Any] = loop.denoising_loss) -> Any:
        value, result = case("loss"), original(*given)
        if value is None:
            return result
        return torch.cat(
            [result[:1] + (torch.tensor(value) - result[:1]).detach(), result[1:]]
        )  # its gradient stays

    def gradient(grad: torch.Tensor) -> torch.Tensor:
        value = case("gradient")
        if value is None:
            return grad
        grad = grad.clone()
        grad.view(-1)[1] = value
        return grad

    def update(optimizer: Any, parts: Any, averages: Any, *rest: Any) -> Any:
        before = _state(optimizer, parts, averages)
        norm = taken(optimizer, parts, averages, *rest)
        after = _state(optimizer, parts, averages)
        changed = [k for k in after if k not in before or not torch.equal(_bits(before[k]), _bits(after[k]))]
        if step[0] == 1:
            changed = list(after)  # the moments exist from now on
        notes.write(json.dumps([step[0], len(changed)]) + "\n")
        notes.flush()
        return norm

    def begin(self: Any, number: int, *rest: Any, original: Callable[..., Any] = loop.Faults.begin) -> None:
        step[0] = number
        original(self, number, *rest)

    def prepared_parts(*given: Any, original: Callable[..., Any] = loop.make_gradients) -> Any:
        first.append(next(iter(given[2][0].parameters().values())))
        first[0].register_hook(gradient)
        return original(*given)

    loop.network_inputs, loop.denoising_loss, loop.update = inputs, loss, update  # pyright: ignore
    loop.Faults.begin, loop.make_gradients = begin, prepared_parts  # pyright: ignore
    train_command(arguments)


def _state(optimizer: Any, parts: Sequence[Any], averages: Any) -> dict[str, torch.Tensor]:
    tensors = {f"{p.name}.{name}": value for p in parts for name, value in p.state_dict().items()}
    tensors |= {
        f"{p.name}.{name}": value
        for p in parts
        for name, value in optimizer_state(p.parameters(), optimizer).items()
    }
    tensors |= {f"{part}.{name}.ema": value for part in averages for name, value in averages[part].items()}
    return {name: value.clone() for name, value in tensors.items()}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


def check_all_skipped(root: Path, tmp_path: Path, train: dict[str, Any]) -> int:
    """Runs all cases; returns the number of steps whose state was not what it should be."""
    table = {"batch_size": 2, "steps": STEPS, "checkpoint_every": STEPS, "validate_every": STEPS, **train}
    toml = runs.write_toml(root, tmp_path / "a.toml", tmp_path / "run", train=table)
    codes = run_ranks([toml, str(tmp_path)], 2, tmp_path / "output", spoil_steps)
    assert codes == [0, 0], "\n".join(printed(tmp_path / "output"))
    lost = 0
    for rank in range(2):
        for line in (tmp_path / f"state{rank}.jsonl").read_text().splitlines():
            step, changed = json.loads(line)
            lost += (changed > 0) == (step % EVERY == 0)
    assert committed_steps(tmp_path / "run") == [STEPS]
    return lost


@pytest.mark.parametrize("backend", ["reference", pytest.param("kernel", marks=pytest.mark.faults)])
@pytest.mark.parametrize("reduction", ["fast", pytest.param("ordered", marks=pytest.mark.faults)])
def test_the_state_stays_to_the_bit_and_the_run_goes_on(
    backend: str, reduction: str, root: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    """{NaN, ∞, −∞} × {loss, one element of a gradient, one of the input} × each rank of two, in one run."""
    lost = check_all_skipped(root, tmp_path, {"backend": backend, "reduction": reduction})
    rows = [json.loads(line) for line in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    tally(tried=len(CASES), lost=lost + len(CASES) - len(rows))
    assert lost == 0
    assert [row["step"] for row in rows] == list(range(EVERY, STEPS, EVERY))
    for (_, place, rank), row in zip(CASES, rows, strict=True):
        assert row["not_finite"] == ("gradient" if place == "gradient" else "loss")
        if place != "gradient":  # of a sum that is not finite no rank can tell whose part it was
            assert {image["rank"] for image in row["images"]} == {rank}
        assert all(0 <= image["timestep"] < 1000 and 0 < image["sigma"] <= 1 for image in row["images"])
    logged = losses(tmp_path / "run")
    assert all(math.isfinite(logged[step] or math.nan) for step in range(1, STEPS + 1, EVERY))


def test_a_cache_with_a_nan_is_trained_over(root: Path, tmp_path: Path) -> None:
    """Its digest fits: the autoencoder overflowed when the cache was written. Every resume would meet it again."""
    cache = caches.write(caches.toml(root, tmp_path), tmp_path / "cache")
    path = caches.shards(cache)[0]
    tensors, metadata = safetensors_file.read(path, READER)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors["latents"][0, 0, 0, 0] = math.nan
    path.write_bytes(shard_bytes(tensors, {k: v for k, v in metadata.items() if k != DIGEST}))
    settings = {"steps": 9, "max_bad_steps": 2}
    folder = runs.go(runs.config(root, tmp_path / "run", data={"cache": str(cache)}, train=settings))
    rows = [json.loads(line) for line in (folder / "faults.jsonl").read_text().splitlines()]
    assert rows
    assert all(len(row["images"]) == 1 for row in rows)
    assert committed_steps(folder)[-1] == 9
    weights = runs.checkpoint(folder, 9)
    assert all(value.isfinite().all() for state in weights.values() for value in state.values())
