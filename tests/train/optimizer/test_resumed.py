"""A run of any optimizer, on weights of either dtype, that was stopped and continued is the run that was not."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train import runs
from tests.train.test_resume import whole_and_in_parts

Run = Callable[..., Path]

BF16 = {"weight_dtype": "bf16", "precision": "bf16"}
IN_BACKWARD = {"step_in_backward": True, "max_bad_steps": 1}
UNCLIPPED = {"clip_norm": 0.0}
RUNS: dict[str, dict[str, Any]] = {
    "adamw8bit": {"optimizer": {"kind": "adamw8bit"}},
    "adafactor": {"optimizer": {"kind": "adafactor"}},
    "prodigy": {"optimizer": {"kind": "prodigy", "learning_rate": 1.0, "warmup_steps": 3}},
    "adamw on bf16": {"train": BF16},
    "adafactor on bf16 in backward": {
        "optimizer": {"kind": "adafactor", **UNCLIPPED}, "train": {**BF16, **IN_BACKWARD},
    },
    "adamw8bit on bf16": {"optimizer": {"kind": "adamw8bit"}, "train": BF16},
    "prodigy on bf16": {"optimizer": {"kind": "prodigy", "learning_rate": 1.0}, "train": BF16},
}  # fmt: skip
SLOW = {"adafactor", "adamw8bit on bf16", "prodigy on bf16"}  # whose parts the others have
# Wide enough that torchao quantizes some of the moments.
WIDER = {**runs.UNET_TABLE, "channels": 16}


def needs_library(kind: str) -> None:
    library = {"adamw8bit": "torchao", "prodigy": "prodigyopt"}.get(kind.split()[0])
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in RUNS]
)
def test_a_run_stopped_and_resumed_is_the_run_never_stopped(
    kind: str, run: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_library(kind)
    data = {"heldout": str(root / "heldout")}
    whole = whole_and_in_parts(run, monkeypatch, **RUNS[kind], unet=WIDER, data=data)
    first, last = runs.checkpoint(whole, 2)["unet"], runs.checkpoint(whole, 4)["unet"]
    assert any(not torch.equal(first[name], last[name]) for name in first)
