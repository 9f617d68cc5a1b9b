"""The source of the CUDA kernels, run on the CPU thread by thread (tests/ops/emulator), under the kernels' checks.

Only a GPU can show the rest: data races that the emulation does not expose, the compiler's code, and speed.
"""

import ctypes
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from refimpl.ops import Ops, load_ops
from tests.ops import checks, network_checks, test_group_norm, test_layer_norm
from tests.ops.emulator.build import CSRC, HERE, link, shared_objects
from tests.ops.test_kernel import example
from tests.strategies import keys_of, latent_shapes, latents, offsets, sample_scalars, vp_pairs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # DType of problem.h
# Tails, whole tiles, more tiles than blocks (the emulated GPU has 32), the paths for four channels and for many, and
# channels of few elements, of which an access touches several and a tile thousands.
SHAPES = [
    (2, 4, 16, 16),
    (1, 4, 30, 36),
    (3, 3, 7, 9),
    (1, 70, 3, 5),
    (2, 4, 3, 3),
    (40, 1, 2, 2),
    (1, 4, 128, 100),
    (2, 5, 1, 3),
    (1, 4100, 1, 1),
]
ORDERS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(scope="module")
def ops(tmp_path_factory) -> Ops:
    """The operations over the emulated launchers."""
    sources = [HERE / "emulated.cpp", *sorted(CSRC.glob("*.cu"))]
    library = tmp_path_factory.mktemp("emulator") / "emulated.so"
    link(sources, library, shared_objects(tmp_path_factory), "-shared")
    return emulated(ctypes.CDLL(str(library)))


def order_of(x: Tensor) -> torch.memory_format:
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def emulated(library: ctypes.CDLL) -> Ops:
    """Operations with the bindings' part in Python: one memory format, float64 scalars, outputs filled with NaN."""

    def sizes(x: Tensor):
        return (ctypes.c_int64 * 3)(x.shape[0], x.shape[1], x.shape[2] * x.shape[3])

    def noise(x0, eps, key, alpha, sigma, offset, out):
        scalars = [s.double().contiguous() for s in (alpha, sigma)]
        key = None if key is None else key.contiguous()
        last, number = order_of(out) == torch.channels_last, NUMBERS[out.dtype]
        arguments = (*map(pointer, (x0, eps, key)), ctypes.c_double(offset), *map(pointer, (*scalars, out)))
        assert library.emulated_noise(sizes(out), int(last), number, *arguments) == 0
        return out

    def add_noise(x0, eps, alpha, sigma):
        order = order_of(x0)
        x0, eps = x0.contiguous(memory_format=order), eps.to(x0.dtype).contiguous(memory_format=order)
        return noise(x0, eps, None, alpha, sigma, 0.0, torch.full_like(x0, torch.nan))

    def add_keyed_noise(x0, key, alpha, sigma, offset=0.0):
        x0 = x0.contiguous(memory_format=order_of(x0))
        return noise(x0, None, key, alpha, sigma, offset, torch.full_like(x0, torch.nan))

    def keyed_normal(key, shape, offset=0.0):
        out = torch.full((len(key), *shape), torch.nan)
        unused = torch.zeros(len(key))
        return noise(None, None, key, unused, unused, offset, out)

    def loss(prediction, x0, eps, key, alpha, sigma, weight, offset, grad, incoming, expected):
        """The loss or, given `incoming`, the correction of a gradient computed for another incoming gradient."""
        order = order_of(prediction)
        wanted = prediction.dtype if x0.dtype == prediction.dtype else torch.float32
        tensors = [prediction.contiguous(memory_format=order), x0.to(wanted).contiguous(memory_format=order)]
        tensors.append(None if eps is None else eps.to(wanted).contiguous(memory_format=order))
        tensors.append(None if key is None else key.contiguous())
        scalars = [s.double().contiguous() for s in (alpha, sigma, weight)]
        scalars.append(None if incoming is None else incoming.double().contiguous())
        losses = torch.full(prediction.shape[:1], torch.nan) if incoming is None else None
        status = library.emulated_loss(
            sizes(prediction),
            int(order == torch.channels_last),
            NUMBERS[prediction.dtype],
            NUMBERS[wanted],
            *map(pointer, tensors),
            ctypes.c_double(offset),
            *map(pointer, scalars),
            ctypes.c_double(expected),
            int(incoming is not None),
            pointer(losses),
            pointer(grad),
        )
        assert status == 0
        return losses

    class Loss(torch.autograd.Function):
        """The forward pass writes the gradient for incoming 1; the backward pass corrects it, as autograd.h does."""

        @staticmethod
        def forward(ctx, prediction, *arguments):
            ctx.grad = torch.full_like(prediction.contiguous(memory_format=order_of(prediction)), torch.nan)
            ctx.arguments = (prediction.detach(), *arguments)
            return loss(*ctx.arguments, ctx.grad, None, 1.0)

        @staticmethod
        def backward(ctx, *incoming):
            loss(*ctx.arguments, ctx.grad, incoming[0], 1.0)
            return (ctx.grad, *[None] * 7)

    def v_loss(prediction, x0, eps, alpha, sigma, weight):
        return Loss.apply(prediction, x0, eps, None, alpha, sigma, weight, 0.0)

    def keyed_v_loss(prediction, x0, key, alpha, sigma, weight, offset=0.0):
        return Loss.apply(prediction, x0, None, key, alpha, sigma, weight, offset)

    def channel_moments(x):
        x = x.contiguous(memory_format=order_of(x))
        results = [
            torch.full(shape, torch.nan, dtype=torch.float64) for shape in ((), x.shape[1:2], x.shape[1:2])
        ]
        last = order_of(x) == torch.channels_last
        arguments = (int(last), NUMBERS[x.dtype], pointer(x), *map(pointer, results))
        assert library.emulated_moments(sizes(x), *arguments) == 0
        return tuple(results)

    return Ops(
        add_noise,
        v_loss,
        add_keyed_noise,
        keyed_v_loss,
        channel_moments,
        keyed_normal,
        emulated_geglu(library),
        emulated_group_norm_silu(library),
        emulated_layer_norm(library),
    )


def emulated_geglu(library: ctypes.CDLL) -> Callable[[Tensor], Tensor]:
    """geglu, whose derivative keeps the input alone."""

    def run(packed: Tensor, incoming: Tensor | None, out: Tensor) -> Tensor:
        width = packed.shape[-1] // 2
        rows = ctypes.c_int64(packed.numel() // (2 * width))
        pointers = map(pointer, (packed, incoming, out))
        status = library.emulated_geglu(rows, ctypes.c_int64(width), NUMBERS[packed.dtype], *pointers)
        assert status == 0
        return out

    class Geglu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, packed):
            ctx.packed = packed.detach().contiguous()
            shape = (*packed.shape[:-1], packed.shape[-1] // 2)
            return run(ctx.packed, None, torch.full(shape, torch.nan, dtype=packed.dtype))

        @staticmethod
        def backward(ctx, *incoming):
            return run(ctx.packed, incoming[0].contiguous(), torch.full_like(ctx.packed, torch.nan))

    return Geglu.apply


def emulated_group_norm_silu(library: ctypes.CDLL) -> Callable[..., Tensor]:
    """group_norm_silu; results, and statistics going forward, are filled with NaN before."""

    def run(x: Tensor, parameters, groups: int, eps: float, statistics, incoming, out, slopes) -> None:
        sizes = (ctypes.c_int64 * 3)(x.shape[0], x.shape[1], x.shape[2] * x.shape[3])
        last, number = int(order_of(x) == torch.channels_last), NUMBERS[x.dtype]
        pointers = map(pointer, (x, *parameters, *statistics, incoming, out, *slopes))
        scalars = (ctypes.c_int64(groups), ctypes.c_double(eps))
        assert library.emulated_group_norm(sizes, last, number, *scalars, *pointers) == 0

    class GroupNormSilu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias, groups, eps):
            x = x.detach().contiguous(memory_format=order_of(x))
            parameters = [p.detach().float().contiguous() for p in (weight, bias)]
            statistics = [torch.full((x.shape[0], groups), torch.nan) for _ in range(2)]
            y = torch.full_like(x, torch.nan)
            run(x, parameters, groups, eps, statistics, None, y, (None, None))
            ctx.call = x, parameters, groups, eps, statistics
            return y

        @staticmethod
        def backward(ctx, *incoming):
            x, parameters, *_ = ctx.call
            by_x = torch.full_like(x, torch.nan)
            slopes = [torch.full_like(p, torch.nan) for p in parameters]
            run(*ctx.call, incoming[0].contiguous(memory_format=order_of(x)), by_x, slopes)
            return by_x, *slopes, None, None

    return GroupNormSilu.apply


def emulated_layer_norm(library: ctypes.CDLL) -> Callable[..., Tensor]:
    """layer_norm; results, and statistics going forward, are filled with NaN before."""

    def run(x: Tensor, parameters, eps: float, statistics, incoming, out, slopes) -> None:
        width = x.shape[-1]
        rows = ctypes.c_int64(x.numel() // width)
        pointers = map(pointer, (x, *parameters, *statistics, incoming, out, *slopes))
        scalars = (ctypes.c_int64(width), NUMBERS[x.dtype], ctypes.c_double(eps))
        assert library.emulated_layer_norm(rows, *scalars, *pointers) == 0

    class LayerNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias, eps):
            x = x.detach().contiguous()
            parameters = [p.detach().float().contiguous() for p in (weight, bias)]
            statistics = [torch.full(x.shape[:-1], torch.nan) for _ in range(2)]
            y = torch.full_like(x, torch.nan)
            run(x, parameters, eps, statistics, None, y, (None, None))
            ctx.call = x, parameters, eps, statistics
            return y

        @staticmethod
        def backward(ctx, *incoming):
            x, parameters, *_ = ctx.call
            by_x = torch.full_like(x, torch.nan)
            slopes = [torch.full_like(p, torch.nan) for p in parameters]
            run(*ctx.call, incoming[0].contiguous(), by_x, slopes)
            return by_x, *slopes, None

    return LayerNorm.apply


@pytest.mark.parametrize(
    ("shape", "order"),
    # A tensor of one row and one column has the same strides in both orders.
    [(shape, order) for shape in SHAPES for order in ORDERS if shape[2:] != (1, 1) or order is ORDERS[0]],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes_and_layouts(ops, dtype, shape, order):
    prediction, x0, eps, key, alpha, sigma, weight = example(shape, dtype, "cpu", order)
    incoming = torch.linspace(0, 2, shape[0])
    checks.check_add_noise(ops, x0, eps, alpha, sigma)
    checks.check_add_keyed_noise(ops, x0, key, alpha, sigma, 0.05)
    checks.check_v_loss(ops, prediction, x0, eps, alpha, sigma, weight, incoming)
    checks.check_keyed_v_loss(ops, prediction, x0, key, alpha, sigma, weight, 0.05, incoming)
    checks.check_channel_moments(ops, x0)
    checks.check_noise_belongs_to_the_sample(ops, x0, key, 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_low_precision_prediction_beside_float32_latents(ops, dtype):
    prediction, x0, eps, key, alpha, sigma, weight = example(
        (2, 4, 9, 16), dtype, "cpu", latent_dtype=torch.float32
    )
    checks.check_v_loss(ops, prediction, x0, eps, alpha, sigma, weight, weight)
    checks.check_keyed_v_loss(ops, prediction, x0, key, alpha, sigma, weight, 0.05, weight)


@settings(max_examples=15)
@given(data=st.data())
def test_values(ops, data):
    shape = data.draw(latent_shapes())
    dtype = data.draw(st.sampled_from(DTYPES))
    prediction, x0, eps = (data.draw(latents(shape, dtype)) for _ in range(3))
    alpha, sigma = data.draw(vp_pairs(shape[0]))
    weight, incoming = (data.draw(sample_scalars(shape[0])) for _ in range(2))
    key, offset = data.draw(keys_of(shape[0])), data.draw(offsets())
    checks.check_add_noise(ops, x0, eps, alpha, sigma)
    checks.check_v_loss(ops, prediction, x0, eps, alpha, sigma, weight, incoming)
    checks.check_keyed_v_loss(ops, prediction, x0, key, alpha, sigma, weight, offset, incoming)
    checks.check_channel_moments(ops, x0)


@pytest.mark.parametrize("shape", [(4, 32, 32), (3, 7, 9), (70, 3, 5), (1, 1, 2049)], ids=str)
def test_the_cpu_kernels_draw_the_same_bits(ops, shape):
    key = torch.tensor([[1, 2], [0xFFFFFFFF, 0], [0x80000000, 0x7FFFFFFF]])
    for offset in (0.0, 0.05):
        checks.check_keyed_normal(ops, key, shape, offset)
        assert torch.equal(
            ops.keyed_normal(key, shape, offset), load_ops("kernel").keyed_normal(key, shape, offset)
        )


@pytest.mark.parametrize("shape", [(3, 2), (5, 7, 66), (70, 48), (3, 5120), (40, 2048)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_geglu_has_the_bits_of_the_cpu(ops, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    packed = (4 * torch.randn(shape, generator=generator)).to(dtype)
    incoming = torch.randn(*shape[:-1], shape[-1] // 2, generator=generator).to(dtype)
    network_checks.check_geglu(ops, packed, incoming)
    ours = network_checks.value_and_gradient(ops.geglu, packed, incoming)
    on_cpu = network_checks.value_and_gradient(load_ops("kernel").geglu, packed, incoming)
    assert all(torch.equal(a, b) for a, b in zip(ours, on_cpu, strict=True))


@pytest.mark.parametrize("order", ORDERS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "groups"), test_group_norm.SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_group_norm_silu(ops, dtype, shape, groups, order):
    x, weight, bias, incoming = test_group_norm.example(shape, dtype, "cpu", order)
    network_checks.check_group_norm_silu(ops, x, weight, bias, groups, 1e-5, incoming)
    first, again = (
        network_checks.norm_results(ops, x, weight, bias, groups, 1e-5, incoming) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("shape", test_layer_norm.SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_norm_of_rows(ops, dtype, shape):
    x, weight, bias, incoming = test_layer_norm.example(shape, dtype, "cpu")
    network_checks.check_layer_norm(ops, x, weight, bias, 1e-5, incoming)
    first, again = (
        network_checks.row_results(ops.layer_norm, x, weight, bias, 1e-5, incoming) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("width", [640, 1536])
def test_layer_norm_of_a_small_deviation_on_a_large_mean(ops, width):
    x, weight, bias, incoming = test_layer_norm.example((6, width), torch.float32, "cpu")
    network_checks.check_layer_norm(ops, x + 4096, weight, bias, 1e-5, incoming)


def test_unaligned_tensors(ops):
    """A batch that is not 16-byte aligned takes the element-wise path, with bitwise equal results."""
    prediction, x0, eps, key, alpha, sigma, weight = example((3, 4, 16, 16), torch.bfloat16, "cpu")
    shifted = []
    for t in (prediction, x0, eps):
        storage = torch.zeros(t.numel() + 1, dtype=t.dtype)
        storage[1:] = t.flatten()
        shifted.append(storage[1:].view(t.shape))
        assert shifted[-1].data_ptr() % 16
    plain = checks.results_of(ops, prediction, x0, eps, key, alpha, sigma, weight)
    unaligned = checks.results_of(ops, *shifted, key, alpha, sigma, weight)
    for a, b in zip(plain[:-3], unaligned[:-3], strict=True):
        assert torch.equal(a, b)


def test_batch_splits_and_repeats(ops):
    arguments = example((3, 4, 20, 52), torch.float32, "cpu")
    checks.check_repeatable(ops, *arguments, repeats=1)
    checks.check_batch_split(ops, *arguments)
