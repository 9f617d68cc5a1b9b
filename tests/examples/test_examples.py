"""The scripts of examples/ run, are short, and print what they claim."""

import json
import math
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from refimpl.diffusion.min_snr import min_snr_weight
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.diffusion.v_prediction import v_target
from tests.tolerances import STANDARD_ERRORS

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = 60
ZERO_SNR = zero_terminal_snr(sdxl_schedule())
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(script, *arguments) -> (exit status, what it printed), in this process."""

    def run_script(name: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with torch.random.fork_rng():
            try:
                runpy.run_path(str(EXAMPLES / name), run_name="__main__")
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run_script


def tables(schedule=ZERO_SNR) -> dict[str, torch.Tensor]:
    """A trainer's tables that agree with ours."""
    draw = torch.Generator().manual_seed(1)
    t, (x0, eps) = (
        torch.tensor([0, 500, 999]),
        torch.randn(2, 3, 4, 8, 8, dtype=torch.float64, generator=draw),
    )
    return {
        "alphas_cumprod": schedule.alpha**2,
        "weights": min_snr_weight(schedule.snr),
        "target": v_target(x0, eps, *schedule.at(t)),
        "x0": x0,
        "eps": eps,
        "t": t,
    }


def write(path: Path, content: dict[str, torch.Tensor]) -> str:
    if path.suffix == ".json":
        path.write_text(json.dumps({name: table.tolist() for name, table in content.items()}))
    elif path.suffix == ".npy":
        np.save(path, content["alphas_cumprod"].numpy())
    else:
        torch.save(content, path)
    return str(path)


def test_three_scripts_of_at_most_sixty_lines():
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")
    }
    assert len(lengths) == 3
    assert max(lengths.values()) <= LINES, lengths


def test_only_the_start_from_infinity_draws_the_datas_colours(run: Run):
    status, output = run("sample_from_infinity.py")
    assert status == 0
    (mean, std), infinity, published = (
        tuple(map(float, line)) for line in re.findall(r"mean +(\S+) +std +(\S+)", output)
    )
    canvases = 64  # independent ones; the others mirror them, so the mean has no error of chance
    assert infinity[0] == mean
    assert infinity[1] == pytest.approx(std, abs=STANDARD_ERRORS * std / math.sqrt(2 * canvases))
    assert published[0] < mean / 10
    assert published[1] < std / 2


@pytest.mark.parametrize("backend", ["kernel", "reference"])
def test_one_step_lowers_the_loss(run: Run, backend: str):
    status, output = run("train_step.py", backend)
    assert status == 0
    before, after = map(float, re.findall(r"\d\.\d+", output))
    assert 0 < after < before


def test_the_backend_is_asked_for(run: Run):
    assert run("train_step.py")[0] == 2


def test_diffusers_formulas_agree(run: Run):
    status, output = run("check_my_schedule.py")
    assert status == 0
    assert re.findall(r"^(\w+) .* agrees$", output, re.MULTILINE) == ["alpha", "sigma", "weights", "target"]


@pytest.mark.parametrize("suffix", [".json", ".pt", ".npy"])
def test_agreeing_files_agree(run: Run, tmp_path: Path, suffix: str):
    status, output = run("check_my_schedule.py", write(tmp_path / f"mine{suffix}", tables()))
    assert status == 0
    assert output.count("agrees") == (2 if suffix == ".npy" else 4)


def test_the_published_schedule_is_compared_on_request(run: Run, tmp_path: Path):
    path = write(tmp_path / "mine.json", tables(sdxl_schedule()))
    assert run("check_my_schedule.py", path, "--published")[0] == 0
    assert run("check_my_schedule.py", path)[0] == 1


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("alphas_cumprod", sdxl_schedule().alpha ** 2),
        ("alphas_cumprod", (ZERO_SNR.alpha**2).clamp(min=2.0**-24)),  # a "zero" that is not
        ("alphas_cumprod", torch.full((1000,), math.nan)),
        ("weights", min_snr_weight(ZERO_SNR.snr) * (ZERO_SNR.snr + 1)),  # of an x0-loss
        ("target", -tables()["target"]),
        ("target", tables()["eps"]),
    ],
    ids=["published", "clamped", "nan", "weights", "sign", "eps"],
)
@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_a_wrong_table_is_named_and_the_exit_status_is_one(
    run: Run, tmp_path: Path, name: str, wrong: torch.Tensor, suffix: str
):
    status, output = run("check_my_schedule.py", write(tmp_path / f"mine{suffix}", {**tables(), name: wrong}))
    assert status == 1
    named = set(re.findall(r"^(\w+) .* DIFFERS$", output, re.MULTILINE))
    assert named & ({"alpha", "sigma"} if name == "alphas_cumprod" else {name})
    assert name == "alphas_cumprod" or named == {name}


def test_a_table_of_another_length_is_no_traceback(run: Run, tmp_path: Path):
    short = {"alphas_cumprod": ZERO_SNR.alpha[:500] ** 2}
    status, output = run("check_my_schedule.py", write(tmp_path / "mine.json", short))
    assert status == 2
    assert "alphas_cumprod has shape [500], not [1000]" in output


def test_an_absent_file_is_no_traceback(run: Run, tmp_path: Path):
    status, output = run("check_my_schedule.py", str(tmp_path / "mine.json"))
    assert status == 2
    assert "mine.json is not a file" in output
    assert "Traceback" not in output
