"""The counter of traffic and kept activations, on a small network against what is known of it."""

import pytest
import torch

from benchmarks.count_unet import Counts, count, line_of
from refimpl.model.config import UNetConfig

CONFIG = UNetConfig.tiny()
SIDE = 64


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], dict]:
    cases = (("reference", "none"), ("kernel", "none"), ("kernel", "cheap"), ("kernel", "full"))
    return {(backend, how): count(CONFIG, 2, SIDE, backend, how) for backend, how in cases}


def test_views_and_allocations_move_nothing() -> None:
    x = torch.empty(4, 6, device="meta")
    with Counts() as counts:
        x.view(6, 4).t().unsqueeze(0)
        torch.empty_like(x)
    assert not counts.traffic


def test_reads_and_writes_are_counted_in_bytes() -> None:
    x, y = torch.empty(4, 6, device="meta"), torch.empty(6, 5, device="meta")
    with Counts() as counts:
        x + x[:1]
        x @ y
        x.add_(1)
    assert counts.traffic == {"add": 4 * (24 + 6 + 24), "mm": 4 * (24 + 30 + 20), "add_": 4 * (24 + 24)}


def test_the_kernels_move_and_keep_less(rows: dict) -> None:
    reference, kernel = rows["reference", "none"], rows["kernel", "none"]
    assert kernel["other_bytes"] < reference["other_bytes"]
    assert kernel["kept_bytes"] < reference["kept_bytes"]
    assert kernel["product_bytes"] == reference["product_bytes"]


def test_cheap_computes_no_product_twice_and_full_does(rows: dict) -> None:
    plain, cheap, full = (rows["kernel", how] for how in ("none", "cheap", "full"))
    assert cheap["product_calls"] == plain["product_calls"]
    assert cheap["product_bytes"] == plain["product_bytes"]
    assert full["product_calls"] > plain["product_calls"]
    assert full["kept_bytes"] < cheap["kept_bytes"] < plain["kept_bytes"]
    assert cheap["other_bytes"] > plain["other_bytes"]


def test_a_larger_batch_keeps_more_but_no_more_per_image(rows: dict) -> None:
    one = rows["kernel", "none"]
    two = count(CONFIG, 4, SIDE, "kernel", "none")
    assert one["kept_bytes"] < two["kept_bytes"] <= 2 * one["kept_bytes"]


def test_a_row_for_the_terminal(rows: dict) -> None:
    row = {"backend": "kernel", "activation_checkpointing": "none", **rows["kernel", "none"]}
    assert "GiB" in line_of(row)
