"""Figures: the drawn data are the given data, and N's numbers appear where its figures show them."""

import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text

from refimpl.diffusion.config import POLICIES
from refimpl.diffusion.min_snr import min_snr_weight
from refimpl.diffusion.schedule import sdxl_schedule, zero_terminal_snr
from refimpl.errors import InputError
from refimpl.latents.scale_shift import NOVELAI_ANIME
from refimpl.report import data_figures, figures
from refimpl.report.noised_image import example_image, noised_image
from refimpl.report.page import static
from refimpl.report.style import ON_DARK, matplotlib_module, png_bytes
from tests.studio.page.browser import LEAST_CONTRAST, LEAST_TEXTS
from tests.tolerances import FLOAT64_ROUNDING, PRINTED_PERCENT

PLAIN = sdxl_schedule()
ZERO_TERMINAL = zero_terminal_snr(PLAIN)
MOMENTS = ([1.0, 2.0], [3.0, 4.0])
DRAWN = {
    "buckets": lambda: figures.bucket_histogram([(64, 64), (32, 128)], [5, 7], 0.04),
    "schedule": lambda: figures.schedule_figure(PLAIN, ZERO_TERMINAL),
    "latents": lambda: figures.latent_statistics(MOMENTS, MOMENTS, MOMENTS),
    "weights": lambda: figures.weight_mass({"none": torch.ones(1000)}),
    "sizes": lambda: data_figures.size_density(np.eye(4), 64, [(64, 64)]),
    "errors": lambda: data_figures.aspect_errors([0.1, 0.2], 0.15),
    "weights of images": lambda: data_figures.weight_histogram([0.5, 1.0, 2.0], [3, 4]),
    "noised": lambda: noised_image(example_image(128), PLAIN, ZERO_TERMINAL),
}


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.1)."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("name", DRAWN)
def test_words_in_figures_can_be_read(name: str) -> None:
    """Labels, ticks, legends and notes, in the colours of a light and of a dark page."""
    light, dark = re.findall(r"--page: (#[0-9a-f]{6})", static("style.css"))
    figure = DRAWN[name]()
    figure.draw_without_rendering()
    words = [each for each in figure.findobj(Text) if isinstance(each, Text) and each.get_text().strip()]
    assert len(words) > LEAST_TEXTS
    for each in words:
        colour = to_hex(each.get_color())
        for ink, ground in ((colour, light), (ON_DARK[colour], dark)):
            less, more = sorted((luminance(ink), luminance(ground)))
            assert (more + 0.05) / (less + 0.05) >= LEAST_CONTRAST, (each.get_text(), ink, ground)


def texts(axes) -> str:
    return " | ".join([axes.get_title(loc="left"), *(text.get_text() for text in axes.texts)])


def test_bucket_histogram_runs_from_tall_to_wide():
    axes = figures.bucket_histogram([(64, 64), (128, 32), (32, 128)], [5, 0, 7], 0.0412).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [7, 5, 0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["32×128", "64×64", "128×32"]
    assert "0.041" in axes.get_title(loc="left")
    assert "N: 0.033" in axes.get_title(loc="left")


@pytest.mark.parametrize(("buckets", "counts"), [([], []), ([(64, 64)], []), ([(64, 64)], [1, 2])])
def test_bucket_histogram_wants_one_count_for_each_bucket(buckets, counts):
    with pytest.raises(InputError, match="one count for each bucket"):
        figures.bucket_histogram(buckets, counts, 0.0)


def test_figure_5_holds_both_schedules_and_marks_infinity():
    axes = figures.schedule_figure(PLAIN, ZERO_TERMINAL).axes[0]
    plain, rescaled, infinity = axes.lines
    assert axes.get_yscale() == "log"
    assert np.array_equal(plain.get_ydata(), PLAIN.sigma_edm.numpy())
    assert np.array_equal(rescaled.get_ydata(), ZERO_TERMINAL.sigma_edm[:-1].numpy())
    assert rescaled.get_xdata()[-1] == 998
    assert infinity.get_xdata() == [999]
    assert "σ = 14.6 at t = 999" in texts(axes)
    assert "σ = 2254 at t = 998" in texts(axes)
    assert "σ = ∞ at t = 999" in texts(axes)


def test_figure_5_of_two_finite_schedules_has_no_infinity():
    axes = figures.schedule_figure(PLAIN, PLAIN).axes[0]
    assert len(axes.lines) == 2
    assert "∞" not in texts(axes)


def test_figure_8_is_the_table_of_the_paper():
    (table,) = figures.latent_table(NOVELAI_ANIME.mean, NOVELAI_ANIME.std).axes[0].tables
    cells = [[table[row, column].get_text().get_text() for column in range(5)] for row in range(3)]
    assert cells == [
        ["variable", "0", "1", "2", "3"],
        ["μ", "4.8119", "0.1607", "1.3538", "-1.7753"],
        ["σ", "9.9181", "6.2753", "7.5978", "5.9956"],
    ]


def test_latent_statistics_bars_are_the_moments():
    before, after = (torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])), ([0.0, 0.1], [1.0, 0.9])
    means, stds = figures.latent_statistics(before, after).axes
    assert [bar.get_height() for bar in means.patches] == [1.0, -2.0, 0.0, 0.1]
    assert [bar.get_height() for bar in stds.patches] == [3.0, 4.0, 1.0, 0.9]
    means, _ = figures.latent_statistics(before, after, reference=([5.0, 6.0], [7.0, 8.0])).axes
    assert [bar.get_height() for bar in means.patches][4:] == [5.0, 6.0]


def test_latent_statistics_of_unequal_channels_are_refused():
    with pytest.raises(InputError, match="standardised has 1 means and 2 stds; expected 2"):
        figures.latent_statistics(([0, 0], [1, 1]), ([0], [1, 1]))


def test_weight_mass_bars_sum_to_all_weight_and_show_how_min_snr_fights_ztsnr():
    snr = ZERO_TERMINAL.snr
    weights = {p: min_snr_weight(snr, policy=p, floor=0.1 if p == "floor" else 0.0) for p in POLICIES}
    panels = figures.weight_mass(weights).axes
    for axes in panels:
        heights = [bar.get_height() for bar in axes.patches]
        assert len(heights) == 20
        assert sum(heights) == pytest.approx(100, rel=FLOAT64_ROUNDING)
    late = sum(bar.get_height() for bar in panels[0].patches[16:])
    assert late == pytest.approx(0.36, abs=PRINTED_PERCENT)  # 800 ≤ t, MinSNR as N §2.4 writes it
    assert "paper: 0.36 % on t ≥ 800" in panels[0].get_title(loc="left")


def test_weight_mass_with_an_odd_number_of_policies_and_a_last_short_bar():
    panels = figures.weight_mass({"a": np.ones(970)}, per=50).axes
    assert len(panels[0].patches) == 20
    assert panels[0].patches[-1].get_height() == pytest.approx(100 * 20 / 970, rel=FLOAT64_ROUNDING)


@pytest.mark.parametrize("weights", [{}, {"a": np.zeros(1000)}, {"a": np.full(1000, np.inf)}])
def test_weight_mass_without_weight_is_refused(weights):
    with pytest.raises(InputError, match=r"no policy|nothing would be learned"):
        figures.weight_mass(weights)


def test_wrong_dimensions_are_named():
    with pytest.raises(InputError, match=r"a must have 1 dimension\(s\), got shape \[2, 2\]"):
        figures.weight_mass({"a": np.ones((2, 2))})


def test_png_bytes_are_the_same_each_time_and_settings_stay():
    before = dict(mpl.rcParams)
    first, second = (png_bytes(figures.latent_table([0.0], [1.0])) for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before


def test_missing_matplotlib_names_the_command(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r'pip install "matplotlib>=3.8"'):
        matplotlib_module()
