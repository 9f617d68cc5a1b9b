"""N Fig. 2, 3, 4, 6 and 7 reproduced from a run: their contents, checked numerically, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from refimpl.commands.paper.figures import figures_command, run_figures
from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.errors import InputError
from refimpl.interop.run.run_folder import load_model
from refimpl.model.pipeline import Model
from refimpl.paper import experiments as module
from refimpl.paper.denoising import canvas_mean, decoded, denoising, level_name, paper_level
from refimpl.paper.effects import PUBLISHED_END, SECOND_NATIVE_LEVEL
from refimpl.paper.experiments import EFFECT_SEEDS, figure_4
from refimpl.sample.config import SampleConfig
from refimpl.sample.grids import native
from refimpl.sample.images.draw import draw_images
from tests.tolerances import FLOAT64_ROUNDING, NETWORK_FLOAT32

SETTINGS = SampleConfig(prompts=("red circle", "dark"), seeds=2, steps=5, guidance=1.0, width=48, height=32)


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return load_model(trained)[0]


def test_a_run_gives_five_figures_and_their_numbers(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "figures"
    figures_command(["--run", str(trained), "--out", str(out)])
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    names = [f"run_figure_{number}.png" for number in (2, 3, 4, 6, 7)]
    assert [path.name for path in paths] == [*names, "experiments.json"]
    assert sorted(paths) == sorted(out.iterdir())
    for path in paths[:-1]:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width == 1800
    numbers = json.loads(paths[-1].read_text(encoding="utf-8"))
    assert list(numbers) == [f"figure {number}" for number in (2, 3, 4, 6, 7)]
    for figure, starts in zip(numbers.values(), (2, 2, 3, 2, 2), strict=True):
        assert len(figure) == starts + 1
        for effect in figure["effects"].values():
            assert len(effect["seeds"]) == EFFECT_SEEDS
            assert effect["low"] <= effect["value"] <= effect["high"]


@pytest.mark.parametrize("start", [None, 3.0])
def test_the_last_estimate_is_the_image_that_sampling_draws(model: Model, start: float | None) -> None:
    drawn = draw_images(model, SETTINGS, start_sigma=start)
    for row, prompt in enumerate(SETTINGS.prompts):
        path = denoising(model, SETTINGS, prompt, start)
        assert path.sigmas[0] == (math.inf if start is None else start)
        assert path.estimates.shape == (5, 2, 4, 4, 6)
        images = decoded(model, path.estimates[-1])
        assert (images - drawn[row]).abs().max() <= NETWORK_FLOAT32


def test_levels_hide_as_much_of_the_canvas_as_at_1024_pixels(model: Model) -> None:
    square = replace(SETTINGS, width=1024, height=1024)
    assert paper_level(model, square, 14.6) == 14.6
    assert paper_level(model, replace(square, width=2048, height=2048), 14.6) == 29.2
    assert paper_level(model, SETTINGS, 14.6) == pytest.approx(
        14.6 * math.sqrt(32 * 48) / 1024, rel=FLOAT64_ROUNDING
    )


def test_the_canvas_mean_is_of_the_colour_not_of_the_detail() -> None:
    detail = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).expand(3, 4, 2, 2)
    assert canvas_mean(detail).tolist() == [0, 0, 0]
    assert canvas_mean(detail - 2).tolist() == [2, 2, 2]
    assert level_name(math.inf) == "σ = ∞"
    assert level_name(7.0222) == "σ = 7.02"


class BlackNetwork(torch.nn.Module):
    """The optimal network for a data set of one black canvas with latent `clean`: predicts it whatever the noise."""

    def __init__(self, clean: torch.Tensor, schedule):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.clean, self.schedule = clean, schedule

    def forward(self, x, t, context, vector):
        sigma_edm = self.schedule.t_to_sigma_edm(t.double()).reshape(-1, 1, 1, 1)
        alpha, sigma = 1 / torch.sqrt(1 + sigma_edm**2), 1 / torch.sqrt(1 + sigma_edm**-2)
        return (alpha * x - self.clean) / sigma


def test_figure_4_shows_the_estimates_of_each_start(model: Model) -> None:
    clean = torch.full((1, 4, 1, 1), -0.5, dtype=torch.float64)
    perfect = replace(model, unet=BlackNetwork(clean, model.diffusion.schedule()))
    numbers = figure_4(perfect, SETTINGS).numbers
    second, last = (
        level_name(paper_level(model, SETTINGS, sigma)) for sigma in (SECOND_NATIVE_LEVEL, PUBLISHED_END)
    )
    assert list(numbers) == ["from σ = ∞", f"from {second} (N: 56.2)", f"from {last} (N: 14.6)"]
    for row in numbers.values():
        assert len(row["sigma"]) == 5
        assert row["rms of the canvas' mean latent"] == pytest.approx([0.5] * 5, abs=NETWORK_FLOAT32)
        assert row["mean pixel"] == pytest.approx([row["mean pixel"][0]] * 5, abs=NETWORK_FLOAT32)


def test_levels_of_the_figures_are_those_of_the_schedules() -> None:
    plain = sdxl_schedule()
    second = float(native(zero_terminal_snr(plain), 28)[1])
    assert pytest.approx(float(plain.sigma_edm[-1]), rel=FLOAT64_ROUNDING) == PUBLISHED_END
    assert pytest.approx(second, rel=FLOAT64_ROUNDING) == SECOND_NATIVE_LEVEL


def test_finite_starts_are_those_of_the_published_schedule(model: Model) -> None:
    numbers = module.figure_2(model, SETTINGS).numbers
    finite = level_name(paper_level(model, SETTINGS, PUBLISHED_END))
    assert list(numbers) == ["from σ = ∞", f"from {finite} (N: 14.6)"]


def test_figure_6_starts_at_the_levels_of_the_canvas_and_of_its_double(model: Model) -> None:
    """N's 14.6 belongs to the canvas C; on one of twice its side it is kept in one row and doubled in the other."""
    levels = [paper_level(model, SETTINGS, sigma) for sigma in (PUBLISHED_END, 2 * PUBLISHED_END)]
    for figure in (module.figure_6(model, SETTINGS), module.figure_7(model, SETTINGS)):
        starts = [name.split(" (")[0] for name in figure.numbers]
        assert starts == [f"from {level_name(level)}" for level in levels]


def test_a_run_without_zero_snr_is_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(model, diffusion=DiffusionConfig(zero_terminal_snr=False))
    monkeypatch.setattr(module, "load_model", lambda *_: (plain, {}, 4))
    with pytest.raises(InputError, match=r"was trained without diffusion\.zero_terminal_snr"):
        run_figures(tmp_path, tmp_path / "figures")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="is a file; name a folder"):
        run_figures(trained, tmp_path / "taken")


def test_two_kinds_of_figures_at_once_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give one of them"):
        figures_command(["--run", str(trained), "--statistics", "x.json", "--out", str(tmp_path / "figures")])
    assert list(tmp_path.iterdir()) == []
