"""Noise levels, latents, gradients, words, prompts: numbers and texts with their edge cases."""

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
    """A sigma_edm, including 0 and inf."""
    return st.sampled_from(NOISE_LEVEL_EDGES) | st.floats(min_value=0, allow_nan=False)


def latent_shapes(max_batch: int = 4) -> st.SearchStrategy[tuple[int, int, int, int]]:
    """[B, C, H, W] with odd sides; the batch may be empty, the samples not."""
    return st.tuples(st.integers(0, max_batch), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))


@st.composite
def latents(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Finite values, including edge cases, in a contiguous, channels-last, transposed or strided layout."""
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
    """alpha and sigma [B] in float64, with alpha² + sigma² = 1, including pure signal and pure noise."""
    angle = st.sampled_from((0.0, math.pi / 2)) | st.floats(0, math.pi / 2)
    phi = torch.tensor(draw(st.lists(angle, min_size=batch, max_size=batch)), dtype=torch.float64)
    alpha = torch.where(phi == math.pi / 2, torch.zeros_like(phi), phi.cos())
    return alpha, phi.sin()


GRADIENT_EDGES = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-30,
    1e-12,
    -65504.0,
    1e18,
    -1e25,
)  # their squares under- and overflow


@st.composite
def adamw_tensors(
    draw: st.DrawFn,
) -> tuple[tuple[list[torch.Tensor], ...], torch.Tensor, torch.Tensor]:
    """Weights, gradients, both moments, averages (perhaps none) and steps, float32; then scale and found_inf.

    Sizes are odd or even, some tensors empty, some 4 bytes from a 16-byte boundary.
    """
    value = st.sampled_from(GRADIENT_EDGES) | st.floats(-100, 100, width=32)
    pool = torch.tensor(draw(st.lists(value, min_size=1, max_size=8)), dtype=torch.float32)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.sampled_from((0, 1, 4, 2048, 4096, 4100)) | st.integers(1, 70), max_size=5))

    def tensors() -> list[torch.Tensor]:
        gap = draw(st.sampled_from((0, 0, 1)))
        return [pool[torch.randint(len(pool), (gap + n,), generator=generator)][gap:] for n in sizes]

    weights, gradients, exp_avgs = (tensors() for _ in range(3))
    exp_avg_sqs = [v.abs() for v in tensors()]
    averages = tensors() if draw(st.booleans()) else []
    steps = draw(st.lists(st.sampled_from((0, 1, 9, 10**6)), min_size=len(sizes), max_size=len(sizes)))
    scale = draw(st.sampled_from((1.0, 0.5, 1e-6)) | st.floats(2**-7, 1, width=32))
    lists = weights, gradients, exp_avgs, exp_avg_sqs, averages, [torch.tensor(float(t)) for t in steps]
    return lists, torch.tensor(scale), torch.tensor(draw(st.sampled_from((0.0, 0.0, 0.0, 1.0))))


def adamw_settings() -> st.SearchStrategy[tuple[float, float, float, float, float, float]]:
    """learning_rate, beta1, beta2, epsilon, weight_decay, decay of the average; each may be at its range's end."""
    beta = st.sampled_from((0.0, 0.5, 0.9, 0.999)) | st.floats(0, 0.9999)
    return st.tuples(
        st.sampled_from((0.0, 1e-4, 1.0)) | st.floats(0, 1),
        beta,
        beta,
        st.sampled_from((1e-8, 1e-3)),
        st.sampled_from((0.0, 0.01, 1.0)),
        st.sampled_from((0.0, 0.4, 0.5, 0.9999)) | st.floats(0, 0.9999),
    )


def words(size: int) -> st.SearchStrategy[list[int]]:
    """uint32 values, including both ends."""
    word = st.sampled_from((0, 1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)) | st.integers(
        0, 2**32 - 1
    )
    return st.lists(word, min_size=size, max_size=size)


# --- latents and text ---


@st.composite
def partitions(draw: st.DrawFn, total: int) -> list[int]:
    """Sizes of consecutive parts that sum to total, including empty parts, single values and one whole part."""
    cuts = sorted(draw(st.lists(st.integers(0, total), max_size=12)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def channel_values() -> st.SearchStrategy[list[float]]:
    """Values of one channel: with a spread far below or above their mean, constant, tiny, huge, or a single one."""
    mean = st.sampled_from((0.0, -1.7753, 10000000.2, -1e-30, 1e30))
    spread = st.sampled_from((0.0, 1e-30, 0.1, 9.9181, 1e30))
    unit = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40)
    return st.builds(lambda m, s, u: [m + s * v for v in u], mean, spread, unit)


def scale_shifts(channels: int = 4) -> st.SearchStrategy[tuple[list[float], list[float]]]:
    """Per-channel means and stds, from those of latents to far outside."""
    mean = st.sampled_from((0.0, -0.0, 4.8119, -1.7753)) | st.floats(-1e3, 1e3)
    std = st.sampled_from((1.0, 9.9181, 1 / 0.13025)) | st.floats(1e-3, 1e3)
    return st.tuples(*(st.lists(each, min_size=channels, max_size=channels) for each in (mean, std)))


def prompts() -> st.SearchStrategy[str]:
    """Any text: empty, blank, control characters, other scripts, special tokens spelled out, 0 to 400 tokens."""
    edges = (
        "",
        " ",
        "\t\r\n\u00a0\u3000",
        "\x00\x07\x1b[31m\u200b\ufeff",
        "<|endoftext|>",
        "a <|endoftext|> b <|startoftext|>",
        "</w>",
        "日本語のプロンプト",
        "e\u0301 é ﬁ İ ß 👩‍👩‍👧‍👦",
        "completely black",
    )
    repeated = st.builds(
        lambda word, count: " ".join([word] * count),
        st.sampled_from(("red", "circle", "!", "7")),
        st.sampled_from((1, 74, 75, 76, 149, 150, 151, 400)),
    )
    return st.sampled_from(edges) | repeated | st.text(max_size=40)
