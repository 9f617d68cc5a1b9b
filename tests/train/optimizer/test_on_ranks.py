"""Other optimizers and bfloat16 weights on two ranks: each may own half of the state, and one may go on alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.train import runs
from tests.train.optimizer.test_resumed import BF16, WIDER, needs_library
from tests.train.processes import run_ranks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "adafactor"])
def test_owned_state_takes_the_steps_of_replicated_state(kind: str, root: Path, tmp_path: Path) -> None:
    """Of two ranks' gradients there is one sum, whatever its order."""
    needs_library(kind)
    results = []
    for zero1 in (False, True):
        out = tmp_path / f"zero1-{zero1}"
        train: dict[str, Any] = {**BF16, "zero1": zero1, "batch_size": 2}
        sections: dict[str, Any] = {
            "optimizer": {"kind": kind},
            "unet": WIDER,
            "train": {**train, "steps": 2},
        }
        toml = runs.write_toml(root, tmp_path / f"{zero1}.toml", out, **sections)
        assert run_ranks([toml], 2, tmp_path / f"output-{zero1}") == [0, 0]
        alone = runs.write_toml(
            root, tmp_path / f"{zero1}-alone.toml", out, **{**sections, "train": {**train, "steps": 3}}
        )
        assert run_ranks([alone, "--train.resume"], 1, tmp_path / f"output-{zero1}-alone") == [0]
        results.append((runs.checkpoint(out, 2), runs.checkpoint(out, 3)))
    for replicated, owned in zip(*results, strict=True):
        assert not runs.differing(replicated, owned)
