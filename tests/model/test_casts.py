"""One cast in place of many, only where autocast would cast."""

import torch

from refimpl.model.casts import cast_once


def test_nothing_is_cast_where_autocast_would_not() -> None:
    x = torch.randn(2, 3)
    assert cast_once(x) is x
    assert cast_once(x.to("meta")).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert cast_once(x).dtype == torch.bfloat16
        assert cast_once(low := x.bfloat16()) is low
        assert cast_once(trained := x.clone().requires_grad_()) is trained
        with torch.autocast("cpu", enabled=False):
            assert cast_once(x) is x
