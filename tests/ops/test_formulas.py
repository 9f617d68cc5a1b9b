"""csrc/formulas.h on the host: values and derivatives against float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.ops import _kernels
from tests.strategies import words
from tests.tolerances import (
    CENTRAL_DIFFERENCE,
    FLOAT64_ROUNDING,
    KEYED_NORMAL_KERNEL_ULPS,
    LOGARITHM_ULPS,
    NORMAL_CDF_ULPS,
    NORMAL_TAIL_ULPS,
    ROUNDED_PRODUCTS,
    SIGMOID_ULPS,
)

F = _kernels.formulas
VALUES = st.sampled_from((0.0, -0.0, 1.0, -1.0, 2.0**-100, 65504.0)) | st.floats(-100, 100, width=32)
UNIT = st.sampled_from((0.0, 1.0)) | st.floats(0, 1, width=32)


@pytest.mark.parametrize("bits", [32, 64])
@given(alpha=UNIT, x0=VALUES, sigma=UNIT, eps=VALUES, prediction=VALUES)
def test_v_prediction(bits, alpha, x0, sigma, eps, prediction):
    rounding = ROUNDED_PRODUCTS * float(np.finfo(f"float{bits}").eps)
    underflow = float(np.finfo(f"float{bits}").tiny)
    noised, velocity = getattr(F, f"noised_float{bits}"), getattr(F, f"velocity_float{bits}")
    term, slope = getattr(F, f"loss_term_float{bits}"), getattr(F, f"loss_term_derivative_float{bits}")
    assert noised(alpha, x0, sigma, eps) == pytest.approx(
        alpha * x0 + sigma * eps, rel=0, abs=rounding * (abs(alpha * x0) + abs(sigma * eps)) + underflow
    )
    v = velocity(alpha, x0, sigma, eps)
    assert v == pytest.approx(
        alpha * eps - sigma * x0, rel=0, abs=rounding * (abs(alpha * eps) + abs(sigma * x0)) + underflow
    )
    assert noised(0.0, x0, 1.0, eps) == eps
    assert velocity(0.0, x0, 1.0, eps) == -x0
    residual, size = prediction - v, abs(prediction) + abs(v)
    assert term(prediction, v) == pytest.approx(residual**2, rel=0, abs=2 * rounding * size**2 + underflow)
    assert slope(prediction, v) == pytest.approx(2 * residual, rel=0, abs=2 * rounding * size + underflow)


@given(prediction=st.floats(-10, 10), v=st.floats(-10, 10))
def test_the_slope_is_the_derivative_of_the_loss_term(prediction, v):
    h = 2.0**-10  # the central difference of a parabola is exact but for rounding
    above, below = F.loss_term_float64(prediction + h, v), F.loss_term_float64(prediction - h, v)
    assert F.loss_term_derivative_float64(prediction, v) == pytest.approx(
        (above - below) / (2 * h), rel=0, abs=CENTRAL_DIFFERENCE
    )


@given(weight=VALUES, total=VALUES, incoming=VALUES, n=st.integers(1, 2**40))
def test_the_mean_and_what_comes_in_by_it(weight, total, incoming, n):
    assert F.weighted_mean(weight, total, n) == pytest.approx(weight * total / n, rel=FLOAT64_ROUNDING)
    assert F.gradient_scale(incoming, weight, n) == pytest.approx(incoming * weight / n, rel=FLOAT64_ROUNDING)


def normal_cdf(b: np.ndarray) -> np.ndarray:
    """Φ(b) in float64."""
    return np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in b.astype(np.float64)])


def test_normal_distribution():
    x = np.concatenate([np.linspace(0, 13, 100_000), np.geomspace(1e-30, 13, 10_000)]).astype(np.float32)
    density = np.exp(-(x.astype(np.float64) ** 2) / 2) / math.sqrt(2 * math.pi)
    above, below = normal_cdf(x), normal_cdf(-x)

    def ulps(ours, exact):
        return np.abs(ours.astype(np.float64) - exact) / np.spacing(exact.astype(np.float32))

    assert (ulps(F.normal_cdf_float32(x), above) <= NORMAL_CDF_ULPS).all()
    for end, limit in NORMAL_TAIL_ULPS:
        near = x <= end
        assert (ulps(F.normal_cdf_float32(-x), below)[near] <= limit).all()
        assert (ulps(F.normal_density_float32(x), density)[near] <= limit).all()
    assert np.array_equal(F.normal_density_float32(-x), F.normal_density_float32(x))
    far = np.array([14, 1e4, 1e30, np.inf], np.float32)
    assert (F.normal_cdf_float32(far) == 1).all()
    assert not F.normal_cdf_float32(-far).any()
    assert not F.normal_density_float32(far).any()
    for sign in (-1, 1):
        exact = normal_cdf(sign * x.astype(np.float64))
        np.testing.assert_allclose(F.normal_cdf_float64(sign * x.astype(np.float64)), exact, FLOAT64_ROUNDING)


def test_sigmoid_and_silu():
    z = np.concatenate([np.linspace(-86.9, 86.9, 200_000), np.geomspace(1e-30, 1, 10_000)]).astype(np.float32)
    exact = 1 / (1 + np.exp(-z.astype(np.float64)))
    error = np.abs(F.sigmoid(z).astype(np.float64) - exact) / np.spacing(exact.astype(np.float32))
    assert (error <= SIGMOID_ULPS).all()
    assert F.sigmoid(np.array([-88, -np.inf, 88, np.inf], np.float32)).tolist() == [0, 0, 1, 1]
    z = z.astype(np.float64)
    np.testing.assert_allclose(F.silu_float64(z), z * exact, FLOAT64_ROUNDING)
    slope = exact * (1 + z * (1 - exact))
    np.testing.assert_allclose(F.silu_derivative_float64(z), slope, 0, FLOAT64_ROUNDING)


@given(m2=st.floats(0, 1e6), n=st.integers(1, 2**31), eps=st.sampled_from((1e-5, 1e-6)))
def test_reciprocal_deviation(m2, n, eps):
    assert F.reciprocal_deviation(m2, n, eps) == pytest.approx(
        1 / math.sqrt(m2 / n + eps), rel=FLOAT64_ROUNDING
    )


@given(a=VALUES, b=st.floats(-20, 20), g=VALUES)
def test_gated_product_and_its_slopes(a, b, g):
    cdf = float(normal_cdf(np.array([b]))[0])
    density = math.exp(-(b**2) / 2) / math.sqrt(2 * math.pi)
    size = abs(a) + abs(g) + abs(a * g) + 1
    for ours, exact in (
        (F.gated_float64(a, b), a * b * cdf),
        (F.gated_slope_float64(a, b, g, 0), g * b * cdf),
        (F.gated_slope_float64(a, b, g, 1), g * a * (cdf + b * density)),
    ):
        assert ours == pytest.approx(exact, rel=0, abs=FLOAT64_ROUNDING * size)


@pytest.mark.parametrize("bits", [32, 64])
@given(start=VALUES, end=VALUES, share=UNIT)
def test_toward(bits, start, end, share):
    """Both ends are exact, and between them it is the weighted mean."""
    toward = getattr(F, f"toward_float{bits}")
    rounding = ROUNDED_PRODUCTS * float(np.finfo(f"float{bits}").eps)
    underflow = float(np.finfo(f"float{bits}").tiny)
    assert toward(start, end, 0.0) == start
    assert toward(start, end, 1.0) == end
    assert toward(start, end, share) == pytest.approx(
        (1 - share) * start + share * end, rel=0, abs=rounding * (abs(start) + abs(end)) + underflow
    )


@pytest.mark.parametrize("bits", [32, 64])
@given(theta=VALUES, m=VALUES, v=st.floats(0, 100, width=32), g=VALUES, beta=UNIT, kept=UNIT, rate=UNIT)
def test_adamw(bits, theta, m, v, g, beta, kept, rate):
    """Loshchilov & Hutter 2019, alg. 2, lines 8 to 12."""
    eps, underflow = float(np.finfo(f"float{bits}").eps), float(np.finfo(f"float{bits}").tiny)
    second_moment, weight = getattr(F, f"second_moment_float{bits}"), getattr(F, f"adamw_weight_float{bits}")
    exact = beta * v + (1 - beta) * g**2
    assert second_moment(v, g, beta, 1 - beta) == pytest.approx(
        exact, rel=0, abs=2 * ROUNDED_PRODUCTS * eps * (v + g**2) + underflow
    )
    correction, epsilon = 0.5, 2.0**-20
    pull = rate * m / (math.sqrt(v) / correction + epsilon)
    assert weight(theta, m, v, kept, rate, correction, epsilon) == pytest.approx(
        kept * theta - pull,
        rel=0,
        abs=3 * ROUNDED_PRODUCTS * eps * (abs(kept * theta) + abs(pull)) + underflow,
    )


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known-answer vectors for philox4x32-10
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert [int(F.philox4x32(*counter, *key, i)) for i in range(4)] == expected


def uniform_logarithm(word: np.ndarray) -> np.ndarray:
    """ln((w + 1/2) / 2^32) in float64, through log1p of the exact complement above 1/2."""
    w = word.astype(np.float64)
    below, complement = (w + 0.5) / 2**32, (2.0**32 - w - 0.5) / 2**32
    return np.where(w < 2**31, np.log(below), np.log1p(-complement))


def edge_words() -> np.ndarray:
    """Every power of two and its neighbours, from both ends, and words around √½ and the quarter turns."""
    powers = [2**k + d for k in range(32) for d in (-2, -1, 0, 1, 2)]
    special = [0xB504F333 + d for d in range(-3, 4)] + [q * 2**29 + d for q in range(8) for d in (-1, 0, 1)]
    ends = [w for p in powers for w in (p, 2**32 - 1 - p)]
    return np.unique(np.array([w % 2**32 for w in ends + special], dtype=np.uint32))


def test_logarithm_of_a_uniform():
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    word = np.concatenate([edge_words(), random, random >> 12, ~(random >> 20)])
    exact = uniform_logarithm(word)
    error = np.abs(F.log_uniform(word).astype(np.float64) - exact)
    assert (error <= LOGARITHM_ULPS * np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)).all()


def test_normals_within_ulps_of_their_radius():
    random = np.random.default_rng(1).integers(0, 2**32, (2, 200_000), dtype=np.uint32)
    edges = edge_words()
    even = np.concatenate([np.repeat(edges, len(edges)), random[0], ~(random[0] >> 16)])
    odd = np.concatenate([np.tile(edges, len(edges)), random[1], random[1]])
    radius = np.sqrt(-2 * uniform_logarithm(even))
    angle = 2 * math.pi * (odd / 2**32)
    limit = KEYED_NORMAL_KERNEL_ULPS * np.spacing(radius.astype(np.float32)).astype(np.float64)
    for lane, exact in ((0, radius * np.cos(angle)), (1, radius * np.sin(angle))):
        assert (np.abs(F.normal(even, odd, lane).astype(np.float64) - exact) <= limit).all()


def test_every_sixteen_bit_number_widens_and_narrows_exactly():
    bits = np.arange(2**16, dtype=np.uint16)
    half = bits.view(np.float16)
    assert np.array_equal(F.widen_float16(bits), half.astype(np.float32), equal_nan=True)
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(F.widen_bfloat16(bits), wide, equal_nan=True)
    for narrow, values in ((F.narrow_float16, half.astype(np.float32)), (F.narrow_bfloat16, wide)):
        kept = ~np.isnan(values)
        assert np.array_equal(narrow(values)[kept], bits[kept])


@given(words(1))
def test_narrowing_rounds_to_nearest_even(word):
    import torch

    x = np.array(word, dtype=np.uint32).view(np.float32)
    for narrow, dtype in ((F.narrow_float16, torch.float16), (F.narrow_bfloat16, torch.bfloat16)):
        expected = torch.from_numpy(x).to(dtype)
        ours = torch.from_numpy(narrow(x).astype(np.uint16).view(np.int16)).view(dtype)
        assert torch.equal(ours.isnan(), expected.isnan())
        assert torch.equal(ours.nan_to_num(0), expected.nan_to_num(0))


@given(st.lists(st.floats(-1e3, 1e3), max_size=8), st.lists(st.floats(-1e3, 1e3), max_size=8))
def test_welford_merge(a, b):
    def moments(values):
        mean = math.fsum(values) / max(1, len(values))
        return float(len(values)), mean, math.fsum((v - mean) ** 2 for v in values)

    size = max([1.0, *map(abs, a + b)])
    count, mean, m2 = F.welford_merge(moments(a), moments(b))
    expected = moments(a + b)
    assert count == expected[0]
    assert mean == pytest.approx(expected[1], rel=0, abs=FLOAT64_ROUNDING * size)
    assert m2 == pytest.approx(expected[2], rel=0, abs=FLOAT64_ROUNDING * size**2)
