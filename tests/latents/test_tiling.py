"""Layer by layer over strips, the autoencoder gives what it gives for the whole picture, in the memory it states."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from refimpl.errors import InputError
from refimpl.latents.tiling import group_scale_shift, in_strips, residual_in_strips, spans
from refimpl.latents.vae import VAE, VAEConfig
from refimpl.latents.vae_blocks import AttnBlock, ResnetBlock
from refimpl.train.budget.live_memory import COUNTED_BATCH, count_inference
from tests.strategies import latents, vae_configs
from tests.tolerances import (
    BFLOAT16_ROUNDING,
    FLOAT64_ROUNDING,
    NETWORK_BFLOAT16_FACTOR,
    NETWORK_FLOAT32,
    NETWORK_FLOAT64,
)

SMALL = VAEConfig(channels=4, channel_mult=(1, 2, 2), res_blocks=1, groups=2)
SIDE = 512


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp(min=torch.finfo(torch.float64).tiny)).item()


@given(st.integers(1, 300), st.integers(1, 320))
def test_strips_cover_every_row_once(height: int, rows: int) -> None:
    found = list(spans(height, rows))
    assert [row for first, last in found for row in range(first, last)] == list(range(height))
    assert all(last - first == rows for first, last in found[:-1])


@settings(max_examples=25)
@given(vae_configs(), st.integers(1, 9), st.integers(1, 4), st.integers(2, 9), st.data())
def test_any_size_in_any_strips_is_the_whole(
    config: VAEConfig, height: int, width: int, cells: int, data: st.DataObject
) -> None:
    """Values as well as sizes: zeros, constants and huge ones among them."""
    torch.manual_seed(0)
    vae, factor = VAE(config).double(), config.factor
    images = data.draw(latents((2, config.image_channels, height * factor, width * factor)))
    z = data.draw(latents((2, config.latent_channels, height, width)))
    with torch.no_grad():
        for whole, strips in zip(
            (*vae.moments(images), vae.decode(z)),
            (*vae.moments(images, cells * factor), vae.decode(z, cells * factor)),
            strict=True,
        ):
            assert strips.shape == whole.shape
            assert relative_error(strips, whole) <= NETWORK_FLOAT64


@pytest.mark.parametrize("tile", [16, 24, 40])
def test_float32_differs_by_rounding_alone(tile: int) -> None:
    torch.manual_seed(0)
    vae = VAE(VAEConfig.tiny())
    with torch.no_grad():
        for images in (
            torch.randn(2, 3, 120, 40),
            torch.zeros(1, 3, 48, 16),
            torch.full((1, 3, 64, 8), -1.0),
        ):
            whole = vae.encode(images)
            assert relative_error(vae.encode(images, tile), whole) <= NETWORK_FLOAT32
            assert relative_error(vae.decode(whole, tile), vae.decode(whole)) <= NETWORK_FLOAT32


def test_bfloat16_is_as_near_to_float64_in_strips_as_whole() -> None:
    torch.manual_seed(0)
    vae = VAE(SMALL).bfloat16()
    images = torch.randn(2, 3, 64, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        z = vae.encode(images)
        found = [(vae.encode(images, 16), z), (vae.decode(z, 16), vae.decode(z))]
        wide = vae.double()
        exact = [wide.encode(images.double()), wide.decode(z.double())]
    for (strips, whole), expected in zip(found, exact, strict=True):
        assert strips.dtype == torch.bfloat16
        allowed = NETWORK_BFLOAT16_FACTOR * relative_error(whole.double(), expected) + BFLOAT16_ROUNDING
        assert relative_error(strips.double(), expected) <= allowed


def test_what_is_not_a_number_stays_so() -> None:
    vae = VAE(SMALL)
    images = torch.zeros(1, 3, 64, 8)
    images[0, 0, 50, 3] = torch.nan
    with torch.no_grad():
        assert torch.equal(vae.encode(images, 16).isnan(), vae.encode(images).isnan())


def test_an_empty_batch_is_empty_in_strips() -> None:
    vae = VAE(SMALL).requires_grad_(False)
    assert vae.encode(torch.zeros(0, 3, 32, 8), 8).shape == (0, 4, 8, 2)
    assert vae.decode(torch.zeros(0, 4, 8, 2), 8).shape == (0, 3, 32, 8)


def test_no_image_sees_another() -> None:
    """The statistics are each image's own: alone it gives the bits that it gives in a batch."""
    vae = VAE(SMALL).double()
    images = torch.randn(3, 3, 48, 16, dtype=torch.float64)
    with torch.no_grad():
        together = vae.encode(images, 16)
        for number in range(3):
            alone = vae.encode(images[number : number + 1], 16)
            assert relative_error(together[number : number + 1], alone) <= NETWORK_FLOAT64


@pytest.mark.parametrize("wanted", ["weights", "picture"])
def test_where_a_gradient_is_wanted_strips_are_refused(wanted: str) -> None:
    vae = VAE(SMALL).requires_grad_(wanted == "weights")
    images = torch.zeros(1, 3, 32, 8, requires_grad=wanted == "picture")
    with pytest.raises(InputError, match="keeps nothing for a gradient"):
        vae.encode(images, 16)
    with torch.no_grad():
        vae.encode(images, 16)
    assert vae.encode(images, 32).requires_grad  # one strip is the whole


def test_the_picture_and_the_weights_are_left_alone() -> None:
    vae = VAE(SMALL).requires_grad_(False)
    images, before = torch.randn(1, 3, 32, 8), [weight.clone() for weight in vae.parameters()]
    kept = images.clone()
    vae.decode(vae.encode(images, 8), 8)
    assert torch.equal(images, kept)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), before, strict=True))


@settings(max_examples=30)
@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 7),
    st.sampled_from([(1, 1), (2, 1), (1, 2)]),
    st.data(),
)
def test_a_convolution_in_strips_is_itself(
    height: int, width: int, rows: int, scale: tuple[int, int], data: st.DataObject
) -> None:
    """With weights that are whole numbers, whose sums no order changes."""
    up, down = scale
    height, rows = height * down, rows * down
    values = data.draw(st.lists(st.integers(-8, 8), min_size=2 * height * width, max_size=2 * height * width))
    x = torch.tensor(values, dtype=torch.float64).reshape(1, 2, height, width)
    weight = torch.arange(-9.0, 9.0, dtype=torch.float64).reshape(1, 2, 3, 3)

    def function(part: torch.Tensor) -> torch.Tensor:
        if down == 2:
            return F.conv2d(F.pad(part, (1, 1, 0, 1)), weight, stride=(2, 1))
        return F.conv2d(part.repeat_interleave(up, 2), weight, padding=1)

    assert torch.equal(in_strips(function, x, rows, 2 if down == 2 else 1, up, down), function(x))


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 6), st.integers(1, 7), st.data())
def test_a_group_norm_has_the_statistics_of_the_whole_map(
    groups: int, height: int, width: int, rows: int, data: st.DataObject
) -> None:
    x = data.draw(latents((2, 2 * groups, height, width)))
    norm = nn.GroupNorm(groups, 2 * groups, eps=1e-6, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-2, 3, 2 * groups))
        norm.bias.copy_(torch.linspace(1, -1, 2 * groups))
        scale, shift = group_scale_shift(norm, x, rows)
        kept = x.clone()
        size = (x * scale).abs().max() + shift.abs().max()  # of the terms, which may cancel
        assert ((x * scale + shift) - norm(x)).abs().max() <= FLOAT64_ROUNDING * max(size.item(), 1)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("queries", [1, 7, 12, 100])
def test_attention_answers_some_of_the_queries_at_a_time(queries: int) -> None:
    torch.manual_seed(0)
    block = AttnBlock(6, 2).double().requires_grad_(False)
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    assert relative_error(block(x, queries), block(x)) <= NETWORK_FLOAT64


@pytest.mark.parametrize("out", [4, 6])
def test_a_block_reads_each_row_before_it_overwrites_it(out: int) -> None:
    torch.manual_seed(0)
    block = ResnetBlock(4, out, 2).double().requires_grad_(False)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    kept = x.clone()
    for rows in (1, 2, 3, 7, 9):
        assert relative_error(residual_in_strips(block, x, rows), block(x)) <= NETWORK_FLOAT64
    assert torch.equal(x, kept)


@pytest.mark.parametrize(("what", "maps"), [("encode", 2), ("decode", 3)])
def test_memory_is_that_of_two_maps_and_of_strips(what: str, maps: int) -> None:
    """SDXL's autoencoder, counted to the byte without computing: maps of the picture's size, and a strip's needs."""
    with torch.device("meta"):
        vae = VAE(VAEConfig.sdxl())
        side = SIDE if what == "encode" else SIDE // 8
        x = torch.empty(COUNTED_BATCH, 3 if what == "encode" else 4, side, side)
    peaks = {
        tile: count_inference([vae], lambda tile=tile: getattr(vae, what)(x, tile)).peak(1)
        for tile in (None, 32, 64)
    }
    pixels = SIDE**2
    bound = maps * 128 * 4 * pixels
    strip = peaks[64] - peaks[32]  # 32 rows more
    assert strip > 0
    assert bound <= peaks[32] <= bound + 2 * strip
    assert peaks[32] < 0.6 * peaks[None]
