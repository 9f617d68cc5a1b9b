"""Philox4x32-10 against Random123, and the keyed draws against their definition and their statistics."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from refimpl.conformance.checks.noise.keyed import correlation
from refimpl.diffusion.philox import (
    KeyedIntegers,
    Purpose,
    draw_key,
    draw_key_of,
    draw_keys,
    keyed_halves,
    keyed_normal,
    keyed_uniform,
    philox4x32,
    sample_id,
)
from refimpl.errors import InputError
from tests import strategies
from tests.conforming import conforms
from tests.tolerances import KEYED_NORMAL_ULPS, KS_CRITICAL, STANDARD_ERRORS

# kat_vectors of Random123 1.14: counter, key, output
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, §3.3, word by word on Python integers with full products."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def scalar_normal(key: list[int], element: int, stream: int = 0) -> float:
    """Element e of a keyed normal, from its definition."""
    block, lane = divmod(element, 4)
    words = scalar_philox([block, 0, stream, 0], key)
    even, odd = words[lane // 2 * 2], words[lane // 2 * 2 + 1]
    r = math.sqrt(-2 * math.log((even + 0.5) / 2**32))
    return r * (math.sin if lane % 2 else math.cos)(2 * math.pi * odd / 2**32)


def keys(n: int, seed: int = 0, visit: int = 0, purpose: Purpose = Purpose.NOISE) -> torch.Tensor:
    return draw_key(seed, torch.arange(n), visit, purpose)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_random123(counter, key, expected):
    assert philox4x32(torch.tensor(counter), torch.tensor(key)).tolist() == expected


@given(strategies.words(4), strategies.words(2))
def test_philox_equals_the_scalar_definition(counter, key):
    assert philox4x32(torch.tensor(counter), torch.tensor(key)).tolist() == scalar_philox(counter, key)


def test_philox_broadcasts_counters_against_keys():
    counter = torch.tensor([row[0] for row in KNOWN_ANSWERS])  # [3, 4]
    key = torch.tensor([row[1] for row in KNOWN_ANSWERS])  # [3, 2]
    table = philox4x32(counter, key[:, None])
    assert table.shape == (3, 3, 4)
    assert torch.equal(table.diagonal().T, torch.tensor([row[2] for row in KNOWN_ANSWERS]))


@given(strategies.words(4), strategies.words(2))
def test_philox_reads_32_bits_of_each_word(counter, key):
    signed = [word - 2**32 if word >= 2**31 else word for word in counter]
    assert torch.equal(
        philox4x32(torch.tensor(signed), torch.tensor(key)),
        philox4x32(torch.tensor(counter), torch.tensor(key)),
    )


def test_sample_ids_are_pinned():
    assert sample_id("") == 0x03590142F7026A78  # BLAKE2b-512 of nothing begins 786a02f742015903
    assert sample_id("photos/astronaut_0") == -2864472551926036466
    assert sample_id("café") == 3681246862502055898


def test_sample_id_takes_a_file_name_that_is_not_utf8():
    assert sample_id(b"caf\xe9".decode("utf-8", "surrogateescape")) != sample_id("café")


@given(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from(Purpose),
)
@example(-1, -1, 2**32 - 1, Purpose.INIT_NOISE)
@example(2**64 - 1, -(2**63), 0, Purpose.NOISE)
def test_draw_key_is_philox_of_id_visit_and_purpose_under_the_seed(seed, identity, visit, purpose):
    words = scalar_philox(
        [identity % 2**32, (identity >> 32) % 2**32, visit, purpose], [seed % 2**32, (seed >> 32) % 2**32]
    )
    ids = torch.tensor([identity])
    assert draw_key(seed, ids, visit, purpose).tolist() == [words[:2]]
    assert draw_key(seed, ids, torch.tensor([visit]), purpose).tolist() == [words[:2]]
    assert list(draw_key_of(seed, identity, visit, purpose)) == words[:2]


def test_keys_do_not_collide():
    rows = [
        keys(500, seed, visit, purpose)
        for seed, visit, purpose in itertools.product((0, 1), (0, 1, 2), Purpose)
    ]
    assert len(torch.cat(rows).unique(dim=0)) == sum(map(len, rows))


def test_keyed_normal_is_pinned():
    key = torch.tensor([[0, 0], [0xA4093822, 0x299F31D0]])
    expected = [
        [0.9911376792540323, -0.9246625883905122, -0.6176089598118041, -0.48206858703542393],
        [-1.0319784305961297, -2.162098783103154, -1.3431164067894137, 0.5415085085146963],
    ]
    np.testing.assert_array_max_ulp(
        keyed_normal(key, (1, 1, 4)).flatten(1).numpy(),
        np.array(expected, dtype=np.float32),
        maxulp=KEYED_NORMAL_ULPS,
    )


@given(strategies.words(2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
def test_keyed_normal_equals_the_scalar_definition(key, c, h, w):
    noise = keyed_normal(torch.tensor([key]), (c, h, w)).flatten()
    expected = np.array([scalar_normal(key, e) for e in range(c * h * w)], dtype=np.float32)
    np.testing.assert_array_max_ulp(noise.numpy(), expected, maxulp=KEYED_NORMAL_ULPS)


@given(strategies.words(2), st.integers(1, 6), st.sampled_from((0.05, -0.3, 1e6)))
def test_offset_adds_one_normal_per_channel(key, channels, offset):
    noise = keyed_normal(torch.tensor([key]), (channels, 2, 3), offset)[0]
    expected = [
        [scalar_normal(key, c * 6 + e) + offset * scalar_normal(key, c, stream=1) for e in range(6)]
        for c in range(channels)
    ]
    np.testing.assert_array_max_ulp(
        noise.flatten(1).numpy(), np.array(expected, dtype=np.float32), maxulp=KEYED_NORMAL_ULPS
    )


@pytest.mark.parametrize("check", ["repeats", "batch_independent", "distinct"])
def test_noise_is_a_function_of_its_key(check):
    conforms(f"keyed.{check}")


@given(st.permutations(range(6)), st.integers(1, 6))
def test_offset_noise_and_uniforms_have_the_same_bits_in_any_batch(order, size):
    key, shape = keys(6), (3, 5, 7)
    whole = keyed_normal(key, shape, 0.05)
    part = list(order)[:size]
    assert torch.equal(keyed_normal(key[part], shape, 0.05), whole[part])
    assert torch.equal(keyed_uniform(key[part], 9), keyed_uniform(key, 9)[part])


def test_a_strided_key_gives_the_same_bits():
    key = keys(4)
    strided = torch.stack([key, key], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(keyed_normal(strided, (4, 8, 8), 0.05), keyed_normal(key, (4, 8, 8), 0.05))


def test_a_longer_draw_begins_with_the_shorter_one():
    assert torch.equal(keyed_normal(keys(2), (1, 1, 1001))[..., :7], keyed_normal(keys(2), (1, 1, 7)))
    assert torch.equal(keyed_uniform(keys(2), 1001)[:, :7], keyed_uniform(keys(2), 7))


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_empty_shapes_and_batches(shape):
    assert keyed_normal(keys(2), shape, 0.05).shape == (2, *shape)
    assert keyed_normal(keys(0), (4, 8, 8), 0.05).shape == (0, 4, 8, 8)
    assert keyed_uniform(keys(0), 3).shape == (0, 3)
    assert keyed_uniform(keys(3), 0).shape == (3, 0)


# --- statistics, on 2^22 draws ---


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return keyed_normal(keys(16), (4, 256, 256)).double()


def test_moments_of_the_noise():
    conforms("keyed.standard_normal", within=STANDARD_ERRORS)


def test_neighbours_samples_visits_and_seeds_are_independent():
    conforms("keyed.uncorrelated", within=STANDARD_ERRORS)


def test_distribution_of_the_noise_and_its_tails(noise):
    flat = noise.flatten().numpy()
    assert stats.kstest(flat, "norm").statistic * math.sqrt(flat.size) < KS_CRITICAL
    for threshold in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(threshold) * flat.size
        count = int((np.abs(flat) > threshold).sum())
        assert abs(count - expected) < STANDARD_ERRORS * math.sqrt(expected), threshold


@pytest.mark.parametrize("other", [{"seed": 2**32}, {"purpose": Purpose.INIT_NOISE}])
def test_seeds_of_64_bits_and_purposes_are_independent(noise, other):
    second = keyed_normal(keys(4, **other), (4, 256, 256)).double()
    assert correlation(noise[:4], second) < STANDARD_ERRORS


@pytest.mark.parametrize("offset", [0.05, 0.5])
def test_offset_noise_moves_channel_means_only(offset):
    key = keys(4096)
    plain, shifted = keyed_normal(key, (4, 2, 2)).double(), keyed_normal(key, (4, 2, 2), offset).double()
    z = (shifted - plain)[:, :, 0, 0] / offset
    n = z.numel()
    assert abs(z.mean().item()) < STANDARD_ERRORS * math.sqrt(1 / n)
    assert abs(z.var().item() - 1) < STANDARD_ERRORS * math.sqrt(2 / n)
    assert correlation(z, plain[:, :, 0, 0]) < STANDARD_ERRORS
    assert correlation(z[:, 0], z[:, 1]) < STANDARD_ERRORS


def test_uniforms_fill_the_open_interval():
    u = keyed_uniform(keys(64), 2**14).flatten()
    assert 0 < u.min() < u.max() < 1
    assert stats.kstest(u.numpy(), "uniform").statistic * math.sqrt(u.numel()) < KS_CRITICAL
    assert keyed_uniform(keys(3), 6).dtype == torch.float64


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_the_ends_of_a_word_stay_inside_the_open_interval(word, monkeypatch):
    monkeypatch.setattr(
        "refimpl.diffusion.philox.philox4x32", lambda counter, key: torch.full((1, 1, 4), word)
    )
    assert 0 < keyed_uniform(torch.tensor([[0, 0]]), 1).item() < 1
    assert torch.isfinite(keyed_normal(torch.tensor([[0, 0]]), (1, 1, 4))).all()


# --- integers ---


@pytest.mark.parametrize("span", [1, 2, 3, 7, 1000])
def test_integers_are_uniform(span):
    rng, n = KeyedIntegers(keys(1)[0]), 20_000
    counts = np.bincount([rng.integers(5, 5 + span) - 5 for _ in range(n)], minlength=span)
    assert counts.shape == (span,)
    assert np.abs(counts - n / span).max() <= STANDARD_ERRORS * math.sqrt(n / span)


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**32), strategies.words(2))
@example(0, 2**32, [0, 0])
@example(0, 2**31 + 1, [0, 0])  # rejects every second word or so
def test_integers_stay_in_range_and_repeat(low, span, key):
    first, second = KeyedIntegers(key), KeyedIntegers(torch.tensor(key))
    drawn = [first.integers(low, low + span) for _ in range(5)]
    assert all(low <= value < low + span for value in drawn)
    assert drawn == [second.integers(low, low + span) for _ in range(5)]


def test_integers_take_words_in_order():
    rng = KeyedIntegers([7, 9])
    words = [rng.integers(2**32) for _ in range(6)]
    assert words == (scalar_philox([0, 0, 3, 0], [7, 9]) + scalar_philox([1, 0, 3, 0], [7, 9]))[:6]


def test_integers_accept_numpy_bounds_and_pickle():
    rng = KeyedIntegers([7, 9])
    assert KeyedIntegers([7, 9]).integers(np.int64(3), np.int64(2**31)) == rng.integers(3, 2**31)
    copy = pickle.loads(pickle.dumps(rng))
    assert [copy.integers(100) for _ in range(5)] == [rng.integers(100) for _ in range(5)]


# --- wrong input ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_key(2**64, torch.arange(2), 0, 0), "seed 18446744073709551616"),
        (lambda: draw_key(-(2**63) - 1, torch.arange(2), 0, 0), "seed -9223372036854775809"),
        (lambda: draw_key(0, torch.zeros(2), 0, 0), "int64.*float32"),
        (lambda: draw_key(0, torch.tensor(3), 0, 0), r"\[B\]"),
        (lambda: draw_key(0, torch.arange(2), -1, 0), "visit must lie.*-1"),
        (lambda: draw_key(0, torch.arange(2), torch.tensor([0, 2**32]), 0), "visit must lie.*4294967296"),
        (lambda: draw_key(0, torch.arange(2), torch.arange(3), 0), r"ids' shape \[2\], got .*\[3\]"),
        (lambda: draw_key(0, torch.arange(2), torch.ones(2), 0), r"visit.*float32"),
        (lambda: draw_key(0, torch.arange(2), 1.5, 0), r"visit.*float32"),  # type: ignore[arg-type]
        (lambda: draw_key_of(2**64, 0, 0, 0), r"seed 18446744073709551616"),
        (lambda: draw_key_of(0, 0, -1, 0), r"visit must lie.*-1"),
        (lambda: keyed_normal(keys(2)[0], (4, 8, 8)), r"\[B, 2\], got \[2\]"),
        (lambda: keyed_normal(keys(2).int(), (4, 8, 8)), "int64.*int32"),
        (lambda: keyed_normal(keys(2), (8, 8)), r"\(C, H, W\).*\(8, 8\)"),
        (lambda: keyed_normal(keys(2), (4, -1, 8)), "-1"),
        (lambda: keyed_normal(keys(2), (4, 8, 8), math.nan), "offset must be finite, got nan"),
        (lambda: keyed_uniform(keys(2), -1), "-1"),
        (lambda: philox4x32(torch.zeros(3, dtype=torch.int64), keys(1)), r"counter.*\[3\]"),
        (lambda: KeyedIntegers([1, 2, 3]), r"\[1, 2, 3\]"),
        (lambda: KeyedIntegers([-1, 2]), "-1"),
        (lambda: KeyedIntegers([1, 2]).integers(5, 5), r"\[5, 5\)"),
        (lambda: KeyedIntegers([1, 2]).integers(0, 2**32 + 1), "4294967297"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: KeyedIntegers([1, 2]).integers(0.5),  # type: ignore[arg-type]
        lambda: draw_key(1.5, torch.arange(2), 0, 0),  # type: ignore[arg-type]
        lambda: draw_key_of(1, 2, 1.5, 0),  # type: ignore[arg-type]
        lambda: keyed_normal(keys(1), (4.0, 8, 8)),  # type: ignore[arg-type]
    ],
)
def test_fractions_are_not_truncated(call):
    with pytest.raises(TypeError, match="integer"):
        call()


@pytest.mark.parametrize("purpose", [-1, max(Purpose) + 1, 2**32])
def test_unknown_purposes_are_refused(purpose):
    for call in (lambda: draw_key(0, torch.arange(2), 0, purpose), lambda: draw_key_of(0, 0, 0, purpose)):
        with pytest.raises(ValueError, match=f"{purpose} is not a valid Purpose"):
            call()


def test_keys_of_several_purposes_are_those_of_each() -> None:
    ids, visits = torch.tensor([5, -7, 2**62]), torch.tensor([0, 3, 2**32 - 1])
    purposes = (Purpose.NOISE, Purpose.TIMESTEP, 9)
    for visit in (4, visits):
        keys = draw_keys(-3, ids, visit, purposes)
        assert keys.shape == (3, 3, 2)
        for key, purpose in zip(keys, purposes, strict=True):
            assert torch.equal(key, draw_key(-3, ids, visit, purpose))
    with pytest.raises(ValueError, match="11"):
        draw_keys(0, ids, 0, (Purpose.NOISE, 11))


def test_halves_are_the_words_low_half_first() -> None:
    """Of a block's four words eight halves, whichever block the draw begins with."""
    key = keys(3)
    counter = torch.tensor([[0, 0, 4, 0], [1, 0, 4, 0]])
    words = philox4x32(counter, key[:, None, :]).flatten(1)
    wanted = torch.stack([words % 2**16, words // 2**16], dim=-1).flatten(1)
    assert torch.equal(keyed_halves(key, 16), wanted)
    assert torch.equal(keyed_halves(key, 5), wanted[:, :5])
    assert torch.equal(keyed_halves(key, 5, first=8), wanted[:, 8:13])
    assert keyed_halves(key, 0).shape == (3, 0)
    for first in (-8, 4):
        with pytest.raises(InputError, match=f"first {first} must be a multiple of 8"):
            keyed_halves(key, 1, first)
