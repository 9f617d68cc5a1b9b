"""What the figures of the pages plot: the kept results, the network's own counts, and what is sampled."""

import numpy as np
import pytest
import torch

from docs.ext.drawn import measured
from docs.ext.drawn.networks import CANVAS, mean_entropy, shares_by_level
from docs.ext.drawn.schedules import STEPS
from docs.ext.drawn.steps import MODE, asked_levels, guided_mode, spread_of_averages
from refimpl.diffusion.offset_noise import SDXL_OFFSET
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.model.config import UNetConfig
from refimpl.model.unet import UNet
from refimpl.paper.results_file import TRAINED, read_results
from refimpl.paper.trained.small_figures import PREDICTED
from refimpl.sample.grids import native
from refimpl.sample.samplers import euler
from refimpl.train.budget.flops import forward_flops


@pytest.mark.parametrize(
    ("draw", "numbers"),
    [(measured.starts, (2, 3, 4)), (measured.raised_starts, (6, 7))],
    ids=["starts", "raised"],
)
def test_effects_are_plotted_as_they_are_kept(draw, numbers) -> None:
    kept = read_results(TRAINED)
    effects = [e for number in numbers for e in kept[f"figure {number}"] if e.name in PREDICTED]
    (axes,) = draw().axes
    plotted = [list(line.get_xdata()) for line in axes.lines]
    for effect in effects:
        assert [effect.low, effect.high] in plotted
        assert [effect.value] in plotted
    names = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert [name.partition(": ")[2] for name in names] == [effect.name for effect in effects]


def test_levels_hold_all_of_the_network_but_its_embeddings_and_output() -> None:
    config = UNetConfig.tiny()
    parameters, operations = shares_by_level(config)
    with torch.device("meta"):
        unet = UNet(config)
    rest = [p.numel() for part in (unet.time_embed, unet.label_emb, unet.out) for p in part.parameters()]
    assert parameters.sum() == sum(p.numel() for p in unet.parameters()) - sum(rest)
    features, emb = (config.channels, config.vector_dim), 4 * config.channels
    embeddings = sum(2 * (each * emb + emb * emb) for each in features)
    output = 2 * 9 * config.channels * config.out_channels * CANVAS**2
    assert operations.sum() == forward_flops(config, CANVAS, CANVAS) - embeddings - output
    assert [bool(depth) for depth in config.transformer_depth] == (parameters[:, 1] > 0).tolist()


def test_each_network_is_asked_at_its_own_levels() -> None:
    again, last = asked_levels().values()
    level = float(sdxl_schedule().sigma_edm[199])
    assert [name for name, _ in again[:STEPS]] == ["base"] * STEPS
    assert {name for name, _ in again[STEPS:]} == {"refiner"}
    assert again[STEPS][1] == pytest.approx(level)
    assert len(last) == STEPS
    assert all((name == "refiner") == (sigma <= level) for name, sigma in last)
    assert {name for name, _ in last} == {"base", "refiner"}


def test_guided_samples_leave_the_prompts_own_mode() -> None:
    noise = torch.linspace(-2, 2, 101, dtype=torch.float64).view(-1, 1, 1, 1)
    sigmas = native(zero_terminal_snr(sdxl_schedule()), STEPS)
    plain, guided = (float(euler(guided_mode(scale), noise, sigmas).mean()) for scale in (1.0, 5.0))
    assert plain == pytest.approx(MODE)  # the noise is symmetric
    assert guided > plain


def test_only_offset_noise_has_an_average_on_large_latents() -> None:
    assert spread_of_averages(64, SDXL_OFFSET) > SDXL_OFFSET / 2 > spread_of_averages(64, 0.0)


def test_equal_logits_have_the_entropy_of_their_number() -> None:
    assert mean_entropy(256, 0.0) == pytest.approx(np.log(256))
    assert mean_entropy(256, 1.0) < mean_entropy(256, 0.5)
