"""Every Hypothesis strategy of the test suite, by the concept it draws."""

import math
from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st

from refimpl.data.config import MAX_BETA, BucketConfig, DataConfig, TagWeightConfig
from refimpl.diffusion.config import DiffusionConfig
from refimpl.interop.checkpoint import Prediction
from refimpl.latents.config import LatentConfig
from refimpl.latents.vae import VAEConfig
from refimpl.model.lora.config import LoRAConfig
from refimpl.model.unet import UNetConfig
from refimpl.run.config import Config, Stage, TrainConfig
from refimpl.run.optimizer_config import OptimizerConfig
from refimpl.sample.config import SampleConfig
from refimpl.storage.safetensors_file import DTYPES
from refimpl.text.config import ImagePromptConfig, TextConfig

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


# --- sample: grids ---


@st.composite
def grid_levels(draw: st.DrawFn, from_infinity: bool | None = None) -> torch.Tensor:
    """A grid: 1 to 8 strictly decreasing levels, with equal ratios or large jumps, then 0."""
    ratio = st.sampled_from((1.0001, 2.0, 1e3)) | st.floats(1.01, 30)
    ratios = torch.tensor(draw(st.lists(ratio, min_size=1, max_size=8)), dtype=torch.float64)
    levels = draw(st.sampled_from((1e-6, 0.029167158151720367, 1.0))) * ratios.cumprod(0).flip(0)
    if from_infinity if from_infinity is not None else draw(st.booleans()):
        levels[0] = math.inf
    return torch.cat([levels, levels.new_zeros(1)])


def steps(most: int = 1000) -> st.SearchStrategy[int]:
    """Numbers of sampling steps, including the smallest, the paper's 28 and the largest."""
    return st.sampled_from((1, 2, 3, 28, most)) | st.integers(1, most)


# --- sample: analytic data ---


def gaussian_moments() -> st.SearchStrategy[tuple[float, float]]:
    """(mean, std) of a Gaussian data distribution, including point masses."""
    return st.tuples(st.sampled_from((0.0, -1.5, 40.0)) | st.floats(-3, 3), st.sampled_from((0.0, 1.0, 1e-3)))


# --- networks ---


@st.composite
def unet_configs(draw: st.DrawFn, size_features: int = 48) -> UNetConfig:
    """Small UNets: one to three levels, transformers on any of them, arbitrary widths and depths.

    As in diffusers, the oracle, the first multiplier is 1, and the middle is as deep as the last level if that
    has transformers.
    """
    groups, head_dim = draw(st.sampled_from(((1, 2), (2, 6), (3, 3), (4, 8), (5, 10))))
    unit = math.lcm(groups, head_dim, 2)
    levels = draw(st.integers(1, 3))
    middle = draw(st.integers(1, 2))
    depths = draw(st.lists(st.integers(0, 2), min_size=levels - 1, max_size=levels - 1))
    return UNetConfig(
        in_channels=draw(st.integers(1, 5)),
        out_channels=draw(st.integers(1, 5)),
        channels=unit * draw(st.integers(1, 2)),
        channel_mult=(1, *draw(st.lists(st.integers(1, 3), min_size=levels - 1, max_size=levels - 1))),
        transformer_depth=(*depths, draw(st.sampled_from((0, middle)))),
        middle_depth=middle,
        res_blocks=draw(st.integers(1, 3)),
        head_dim=head_dim,
        context_dim=draw(st.integers(1, 13)),
        vector_dim=size_features + draw(st.integers(1, 9)),
        groups=groups,
    )


@st.composite
def vae_configs(draw: st.DrawFn) -> VAEConfig:
    """Small autoencoders: one to four levels, arbitrary widths."""
    groups = draw(st.sampled_from((1, 2, 3, 4)))
    levels = draw(st.integers(1, 4))
    return VAEConfig(
        image_channels=draw(st.integers(1, 4)),
        latent_channels=draw(st.integers(1, 5)),
        channels=groups * draw(st.integers(1, 3)),
        channel_mult=tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))),
        res_blocks=draw(st.integers(1, 2)),
        groups=groups,
    )


# --- LoRA ---


LORA_ALPHAS = (1e-30, 0.5, 1.0, 16.0, 1e30)  # extremes included: only alpha / rank · up · down has a size


def lora_alphas() -> st.SearchStrategy[float]:
    """Positive and finite in float32."""
    return st.sampled_from(LORA_ALPHAS) | st.floats(2.0**-10, 2.0**10, width=32)


@st.composite
def layers_to_adapt(draw: st.DrawFn) -> tuple[torch.nn.Linear | torch.nn.Conv2d, torch.Tensor]:
    """A float64 Linear or Conv2d of any geometry, and an input for it; the batch may be empty."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    wide, out = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    bias = draw(st.booleans())
    if draw(st.booleans()):
        x = draw(latents((draw(st.integers(0, 3)), draw(st.integers(1, 4)), 1, wide)))
        return torch.nn.Linear(wide, out, bias).double(), draw(st.sampled_from((x, x[:, 0], x[:, 0, 0])))
    conv = torch.nn.Conv2d(
        wide,
        out,
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        bias=bias,
        padding_mode=draw(st.sampled_from(("zeros", "circular"))),
    ).double()
    sides = (draw(st.integers(5, 8)), draw(st.integers(5, 8)))
    return conv, draw(latents((draw(st.integers(0, 3)), wide, *sides)))


def lora_targets() -> st.SearchStrategy[tuple[str, ...]]:
    """Patterns that every SDXL-shaped UNet with a transformer on its last level has modules for."""
    patterns = (
        "*.attn1.to_q",
        "*.attn2.*",
        "*.transformer_blocks.*",
        "*.ff.net.2",
        "*.proj_*",
        "*.in_layers.2",
        "*.emb_layers.1",
        "*_blocks.*.0.out_layers.3",
        "time_embed.[02]",
        "label_emb.*",
        "input_blocks.0.0",
        "out.2",
        "*",
    )
    return st.lists(st.sampled_from(patterns), min_size=1, max_size=4).map(tuple)


def sides() -> st.SearchStrategy[int]:
    """A side of a latent: 1, odd, divisible by 2 at every level, or only once."""
    return st.sampled_from((1, 2, 3, 4, 5, 7, 8, 9, 12, 13))


# --- interop: what a checkpoint says of itself ---


def predictions() -> st.SearchStrategy[Prediction]:
    """Every kind on either end of the schedule that goes with it, and the models conditioned on sigma."""
    plain = st.builds(
        Prediction, st.sampled_from(("eps", "v", "x0")), st.just(False), st.just("drawn")
    ) | st.builds(Prediction, st.sampled_from(("v", "x0")), st.just(True), st.just("drawn"))
    sigmas = st.tuples(st.none() | st.sampled_from((0.002, 0.5)), st.sampled_from((14.5, 120.0)))
    return plain | sigmas.map(lambda pair: Prediction("v", False, "drawn", *pair))


# --- interop: stored tensors ---


@st.composite
def stored_tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bits in any dtype a file can hold, of any shape: scalars, empty ones, odd sides, turned views."""
    dtype = draw(st.sampled_from(tuple(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype == torch.bool:
        data = bytearray(byte % 2 for byte in data)
    tensor = torch.frombuffer(data, dtype=dtype) if size else torch.empty(0, dtype=dtype)
    tensor = tensor.view(shape)
    return tensor.t() if len(shape) == 2 and draw(st.booleans()) else tensor


# --- data: sizes, buckets, datasets ---

IMAGE_SIDES = (1, 2, 63, 64, 512, 513, 1024, 10_000, 65_535, 2**31 - 1)


def image_sizes(most: int = 60) -> st.SearchStrategy[list[tuple[int, int]]]:
    """(width, height) pairs: small ones, among which exact ties between buckets are common, and extreme ones."""
    side = st.integers(1, most) | st.sampled_from(IMAGE_SIDES)
    return st.lists(st.tuples(side, side), max_size=30)


def bucket_sets() -> st.SearchStrategy[list[tuple[int, int]]]:
    """Any buckets, small so that some share an aspect or an area; repeated ones and single ones among them."""
    return st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12)


@st.composite
def bucket_arguments(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(max_area, max_side, min_side, step) for which some bucket fits, sides off the step among them."""
    step = draw(st.sampled_from((1, 3, 8, 64)))
    shortest = draw(st.integers(1, 6))
    min_side = shortest * step - draw(st.integers(0, step - 1))
    max_side = (shortest + draw(st.integers(0, 10))) * step + draw(st.integers(0, step - 1))
    max_area = (shortest * step) ** 2 + draw(st.integers(0, 40 * step * step))
    return max_area, max_side, min_side, step


@st.composite
def bucketed_items(draw: st.DrawFn, least: int) -> list[int]:
    """Bucket of each item, at least `least` items: even, all in one bucket, in few, or one bucket each."""
    n = draw(st.integers(least, least + 40) | st.just(least))
    n_buckets = draw(st.sampled_from((1, 2, 5, max(n, 1))))
    return draw(st.lists(st.integers(0, n_buckets - 1), min_size=n, max_size=n))


def tags_by_class() -> st.SearchStrategy[dict[str, tuple[str, ...]]]:
    """Tags of one image: none, empty classes, repeated tags."""
    tags = st.lists(st.sampled_from("abcdefgh"), max_size=5).map(tuple)
    return st.dictionaries(st.sampled_from(("general", "character", "artist")), tags, max_size=3)


def image_ids() -> st.SearchStrategy[str]:
    """Ids that repeat, differ only in case, and sort otherwise in other encodings."""
    return st.sampled_from(("a", "A", "b", "a/b", "a-b", "\u00e9", "\u00c9", "\uffee", "\U0001f600"))


# --- compiled operations ---


def keys_of(batch: int) -> st.SearchStrategy[torch.Tensor]:
    """Two-word keys [B, 2], including both ends of uint32."""
    return words(2 * batch).map(lambda w: torch.tensor(w, dtype=torch.int64).view(-1, 2))


def packed_shapes() -> st.SearchStrategy[tuple[int, int, int, int]]:
    """[B, h, w, 2·n] of two halves side by side; the batch may be empty, n is odd or crosses a vector's length."""
    sizes = st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 20))
    return sizes.map(lambda size: (*size[:3], 2 * size[3]))


def grouped_shapes() -> st.SearchStrategy[tuple[tuple[int, int, int, int], int]]:
    """[B, C, H, W] with odd sides, and a number of groups that divides C; neither is empty but the batch."""
    sizes = st.tuples(
        st.integers(0, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)
    )
    return sizes.map(lambda s: ((s[0], s[1] * s[2], s[3], s[4]), s[1]))


def offsets() -> st.SearchStrategy[float]:
    """Factors of the offset noise: none, the paper's, negative, large."""
    return st.sampled_from((0.0, 0.05, -1.0, 3.0))


def sample_scalars(batch: int) -> st.SearchStrategy[torch.Tensor]:
    """One weight or incoming gradient per sample, [B] float32 or float64: zero, equal, different, large."""
    value = st.sampled_from((0.0, 1.0, 65536.0)) | st.floats(-10, 10, width=32)
    equal = value.map(lambda v: [v] * batch)
    dtype = st.sampled_from((torch.float32, torch.float64))
    return st.builds(
        lambda v, d: torch.tensor(v, dtype=d), equal | st.lists(value, min_size=batch, max_size=batch), dtype
    )


@st.composite
def mixed_precisions(draw: st.DrawFn, dtype: torch.dtype) -> torch.dtype:
    """A dtype for the latents given the prediction's: the same one, or the one that autocast leaves them in."""
    return dtype if dtype == torch.float64 else draw(st.sampled_from((dtype, torch.float32, torch.bfloat16)))


# --- training: settings of a run ---


@st.composite
def run_configs(draw: st.DrawFn) -> Config:
    """Settings that make sense together, each section's fields at defaults, edges and values between."""
    fraction = st.sampled_from((0.0, 1.0)) | st.floats(0, 1)
    offset = st.none() | fraction
    positive = st.sampled_from((1e-30, 1.0, 1e6)) | st.floats(1e-6, 1e6)
    count = st.sampled_from((1, 2**31)) | st.integers(1, 1000)
    names = st.text(st.characters(exclude_categories=("C", "Z")), max_size=6)
    buckets = st.sampled_from(
        (BucketConfig(), BucketConfig("sdxl"), BucketConfig(extra=((64, 64), (128, 32))))
    )
    stages = [
        Stage(start, draw(buckets), draw(names), learning_rate=draw(fraction), offset_noise=draw(offset))
        for start in sorted(draw(st.sets(st.integers(1, 99), max_size=2)) | {0})
    ]
    data = DataConfig(
        folder=draw(names),
        tag_classes=tuple(draw(st.lists(names, max_size=3))),
        max_aspect_error=draw(fraction),
        horizontal_flip=draw(st.booleans()),
        plan=draw(st.sampled_from(("global", "paper"))),
    )
    diffusion = DiffusionConfig(
        parameterisation=draw(st.sampled_from(("v", "x0"))),
        min_snr_gamma=draw(positive),
        loss_weight=draw(st.sampled_from(("paper", "none", "snr_plus_one"))),
        offset_noise=draw(fraction),
        first_timestep=draw(st.integers(0, 500)),
        last_timestep=draw(st.integers(500, 999)),
    )
    train = TrainConfig(
        out=draw(names),
        seed=draw(st.sampled_from((0, 2**63 - 1))),
        steps=draw(count),
        batch_size=draw(count),
        accumulate=draw(count),
        caption_dropout=draw(fraction),
        keep_checkpoints=draw(st.integers(0, 3)),
        resume=draw(st.booleans()),
        precision=draw(st.sampled_from(("tf32", "fp32", "bf16"))),
        activation_checkpointing=draw(st.sampled_from(("none", "cheap", "full"))),
    )
    optimizer = OptimizerConfig(
        learning_rate=draw(positive), weight_decay=draw(fraction), clip_norm=draw(positive)
    )
    sample = SampleConfig(
        prompts=tuple(draw(st.lists(names, min_size=1, max_size=3))), rescale=draw(fraction)
    )
    way = draw(st.sampled_from(("everything", "lora", "image prompt", "towers")))
    rates = {"learning_rate_l": draw(positive), "learning_rate_g": draw(fraction)} if way == "towers" else {}
    if way in ("lora", "image prompt"):
        train = replace(train, init_from="x")
    return Config(
        data,
        draw(buckets),
        VAEConfig(),
        LatentConfig(scale_shift=draw(names)),
        TextConfig(folder=draw(names), **rates),
        UNetConfig.sdxl(),
        diffusion,
        TagWeightConfig(beta=draw(st.floats(0, MAX_BETA))),
        optimizer,
        train,
        sample,
        tuple(stages) if draw(st.booleans()) else (),
        LoRAConfig(rank=draw(count), alpha=draw(positive)) if way == "lora" else LoRAConfig(),
        ImagePromptConfig("x") if way == "image prompt" else ImagePromptConfig(),
    )


# --- caches: shards and lookups ---

SHARD_DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8)


@st.composite
def shard_tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Named tensors of every dtype that a cache's file has; empty ones, odd sizes and transposed views too."""
    tensors = {}
    for name in draw(st.lists(st.text("abü_0", min_size=1, max_size=5), max_size=4, unique=True)):
        dtype, shape = (
            draw(st.sampled_from(SHARD_DTYPES)),
            draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)),
        )
        values = torch.arange(-3, math.prod(shape) - 3).view(shape).to(dtype)
        tensors[name] = values.transpose(0, -1) if draw(st.booleans()) else values
    return tensors


@st.composite
def lookup_tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A table [M, 3] and rows to ask for [N, 3], int64, of so few values that ids repeat; either may be empty."""
    values = st.sampled_from((-(2**63), -1, 0, 1, 2**63 - 1))
    rows = st.lists(st.tuples(values, st.integers(0, 1), st.integers(0, 1)), max_size=12)
    return tuple(np.array(draw(rows), np.int64).reshape(-1, 3) for _ in range(2))  # pyright: ignore[reportReturnType]


# --- ranks ---


def json_values() -> st.SearchStrategy[object]:
    """Anything that JSON gives back as it is."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
    )
    return st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
    )
