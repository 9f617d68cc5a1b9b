"""What files hold: predictions, tensors, shards, lookup tables, JSON."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

from refimpl.interop.checkpoint import Prediction
from refimpl.storage.safetensors_file import DTYPES

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
