"""Arguments of the compiled operations."""

import torch
from hypothesis import strategies as st

from tests.strategies.values import words

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


def row_shapes() -> st.SearchStrategy[tuple[int, int, int, int]]:
    """[B, h, w, C] of rows of C channels; the batch may be empty, C is 1, odd or crosses a vector's length."""
    return st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 40))


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
