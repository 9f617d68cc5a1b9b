"""Run folders as training leaves them, written for the tests of pages."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title = 'hacked'\">"
RIGHT_TO_LEFT = (
    "\u05d0\u05d1 7 \u05d2 3"  # Hebrew letters and numbers, which move what follows unless isolated
)
SETTINGS = {
    "train": {"steps": 400, "seed": 0},
    "diffusion": {"zero_terminal_snr": True},
    "sample": {"prompts": ["completely black", HOSTILE]},
}


def rows(count: int, every: int = 10) -> list[dict[str, Any]]:
    """Rows of a run in which all goes well."""
    found: list[dict[str, Any]] = [{"step": 0, "weight_mass": {"from_timestep": 950, "share": 0.05}}]
    for number in range(count):
        step, loss = (number + 1) * every, 1 / (1 + number / 20)
        found.append(
            {
                "step": step, "loss": loss, "learning_rate": 1e-3, "gradient_norm": 1.0, "epoch": 0,
                "loss_by_timestep": [loss] * 9 + [None], "ema_drift": 0.01, "peak_memory": 7e8,
                "images_per_second": 41.5, "mfu": 0.31, "loader_stall": 0.01,
            }
        )  # fmt: skip
        if number % 10 == 0:
            found.append({"step": step, "heldout_loss": loss * 1.1})
    return found


def write_run(
    folder: Path,
    metrics: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] = SETTINGS,
    grids: Sequence[int] = (),
    faults: Sequence[Mapping[str, Any]] = (),
    quarantine: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes a run folder, with a sample grid of two rows and three columns after each of the steps `grids`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    files = {"metrics.jsonl": metrics, "faults.jsonl": faults, "quarantine.jsonl": quarantine}
    for name, lines in files.items():
        if lines:
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in grids:
        (folder / "samples").mkdir(exist_ok=True)
        pixels = np.full((2 * 34 - 2, 3 * 34 - 2, 3), step % 256, np.uint8)
        Image.fromarray(pixels).save(folder / "samples" / f"step-{step:08d}.png")
    return folder
