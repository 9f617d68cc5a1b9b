"""200 steps of the trainer with either backend: the same run, within the rounding that no run is free of."""

from pathlib import Path

import pytest
import torch

from refimpl.run.world import World
from refimpl.train.loop import train
from refimpl.train.setup.out_folder import run_folder
from refimpl.train.setup.prepare import prepare
from tests.tolerances import BACKEND_ROUNDINGS, STILL_ONE_RUN
from tests.train import runs

STEPS = 200
RATE = 1e-3  # at 1e-2, which the other tests of the trainer take, these runs are chaotic


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Folder with images and an autoencoder, as tests.train.runs needs them."""
    folder = tmp_path_factory.mktemp("data")
    runs.write_images(folder / "train", 18)
    runs.write_images(folder / "heldout", 4, seed=1)
    runs.write_autoencoder(folder / "autoencoder.safetensors")
    return folder


def trained(root: Path, out: Path, device: str, precision: str, backend: str, roundings: int = 0):
    """Losses [STEPS] and final weights of a run whose initial weights were changed by so many roundings."""
    world = World(0, 1, torch.device(device))
    settings = runs.config(
        root,
        out,
        optimizer={"learning_rate": RATE},
        train={
            "steps": STEPS,
            "checkpoint_every": STEPS,
            "validate_every": STEPS,
            "backend": backend,
            "precision": precision,
            "device": device,
        },
    )
    folder = run_folder(settings, "test", world)
    prepared = prepare(settings, folder, world)
    up_or_down = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in prepared.model.unet.parameters():
            signs = torch.randint(0, 2, weights.shape, generator=up_or_down) * 2 - 1
            weights.mul_(1 + roundings * torch.finfo(torch.float32).eps * signs.to(weights))
    train(settings, folder, prepared, world)
    losses = [row["loss"] for row in runs.rows(folder) if "loss" in row]
    assert len(losses) == STEPS
    return torch.tensor(losses, dtype=torch.float64), runs.checkpoint(folder, STEPS)["unet"]


def apart(a, b) -> tuple[float, float]:
    """How far two runs are apart: the largest |ln ratio| of their losses, and the distance of their weights."""
    losses = (a[0] / b[0]).log().abs().max()
    weights = sum((a[1][name].double() - b[1][name].double()).square().sum() for name in a[1])
    return float(losses), float(torch.as_tensor(weights).sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["full", "bf16"])
def test_the_backend_changes_a_run_no_more_than_a_rounding_of_its_weights(root, tmp_path, precision, device):
    if precision == "full":
        precision = "tf32" if device == "cuda" else "fp32"
    reference = trained(root, tmp_path / "reference", device, precision, "reference")
    kernel = trained(root, tmp_path / "kernel", device, precision, "kernel")
    rounded = trained(root, tmp_path / "rounded", device, precision, "reference", roundings=1)
    losses, weights = apart(kernel, reference)
    losses_of_rounding, weights_of_rounding = apart(rounded, reference)
    print(
        f"{device} {precision}: losses {losses:.1e} apart (one rounding: {losses_of_rounding:.1e}), "
        f"weights {weights:.1e} ({weights_of_rounding:.1e})"
    )
    assert losses_of_rounding < STILL_ONE_RUN, "a chaotic run would compare nothing"
    assert losses <= BACKEND_ROUNDINGS * losses_of_rounding
    assert weights <= BACKEND_ROUNDINGS * weights_of_rounding
    assert reference[0][-20:].mean() < reference[0][:20].mean(), "nothing was learned"
