"""Memoised results on the meta device are those of the operations themselves."""

import pytest
import torch
import torch.nn.functional as F

from refimpl.train.budget.shapes_only import call_on_meta

ATEN = torch.ops.aten
X = torch.zeros(2, 6, 4, device="meta")


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (ATEN.mul.Tensor, (X, X)),
        (ATEN.mul.Tensor, (X.transpose(0, 1), X.transpose(0, 1))),
        (ATEN.gelu.default, (X,)),
        (ATEN.native_layer_norm.default, (X, [4], None, None, 1e-5)),
        (ATEN.sum.dim_IntList, (X, [0], True)),
        (ATEN.cat.default, ([X, X], 1)),
        (ATEN._to_copy.default, (X,)),
    ],
)
def test_the_second_call_is_like_the_first(func, args) -> None:
    plain = func(*args)
    for _ in range(2):
        result = call_on_meta(func, args, {})
        outputs = result if isinstance(result, tuple) else (result,)
        for mine, wanted in zip(outputs, plain if isinstance(plain, tuple) else (plain,), strict=True):
            assert (mine.shape, mine.stride(), mine.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)


def test_keywords_count() -> None:
    halves = call_on_meta(ATEN._to_copy.default, (X,), {"dtype": torch.bfloat16})
    doubles = call_on_meta(ATEN._to_copy.default, (X,), {"dtype": torch.float64})
    assert (halves.dtype, doubles.dtype) == (torch.bfloat16, torch.float64)


@pytest.mark.parametrize("func", [ATEN._unsafe_view.default, ATEN.view.default])
def test_a_view_stays_a_view(func) -> None:
    for _ in range(2):
        view = call_on_meta(func, (X, [12, 4]), {})
        assert view.untyped_storage()._cdata == X.untyped_storage()._cdata


def test_results_are_never_shared() -> None:
    first, second = (call_on_meta(ATEN.gelu.default, (X,), {}) for _ in range(2))
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    assert F.gelu(X).shape == first.shape
