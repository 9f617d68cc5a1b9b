"""Every Hypothesis strategy of the test suite, by the concept it draws."""

import math

import torch
from hypothesis import strategies as st

# --- diffusion: noise levels and latents ---

NOISE_LEVEL_EDGES = (
    0.0,
    1e-300,
    1e-30,
    0.029167158151720367,
    1.0,
    14.6,
    2254.24,
    20000.0,
    1e30,
    1e200,
    math.inf,
)
VALUE_EDGES = (0.0, -0.0, 1.0, -1.0, 1e-30, -65504.0, 3e4)  # the last two: the ends of float16


def noise_levels() -> st.SearchStrategy[float]:
    """A sigma_edm, 0 and inf included."""
    return st.sampled_from(NOISE_LEVEL_EDGES) | st.floats(min_value=0, allow_nan=False)


def latent_shapes(max_batch: int = 4) -> st.SearchStrategy[tuple[int, int, int, int]]:
    """[B, C, H, W] with odd sides; the batch may be empty, the samples not."""
    return st.tuples(st.integers(0, max_batch), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))


@st.composite
def latents(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Finite values, edges among them, in a contiguous, channels-last, transposed or strided layout."""
    value = st.sampled_from(VALUE_EDGES) | st.floats(-100, 100, width=32)
    pool = torch.tensor(draw(st.lists(value, min_size=1, max_size=8)), dtype=torch.float64)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    x = pool[torch.randint(len(pool), shape, generator=generator)].to(dtype)
    layout = draw(st.sampled_from(("contiguous", "channels_last", "transposed", "strided")))
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "strided":
        return torch.stack([x, x], dim=-1).flatten(-2)[..., ::2]
    return x


@st.composite
def vp_pairs(draw: st.DrawFn, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma [B] in float64, with alpha² + sigma² = 1; pure signal and pure noise among them."""
    angle = st.sampled_from((0.0, math.pi / 2)) | st.floats(0, math.pi / 2)
    phi = torch.tensor(draw(st.lists(angle, min_size=batch, max_size=batch)), dtype=torch.float64)
    alpha = torch.where(phi == math.pi / 2, torch.zeros_like(phi), phi.cos())
    return alpha, phi.sin()


def words(size: int) -> st.SearchStrategy[list[int]]:
    """uint32 values, the ends included."""
    word = st.sampled_from((0, 1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)) | st.integers(
        0, 2**32 - 1
    )
    return st.lists(word, min_size=size, max_size=size)
