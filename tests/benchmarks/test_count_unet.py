"""The counter of traffic and kept activations, on a small network against what is known of it."""

import pytest
import torch

from benchmarks.count_unet import GEGLU_ALONE, Counts, count, line_of
from refimpl.model.config import Recompute, UNetConfig
from refimpl.train.budget.cards import GIB

CONFIG = UNetConfig.tiny()
SIDE = 64


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], dict]:
    cases: tuple[tuple[str, Recompute], ...] = (
        ("reference", "none"), ("kernel", "none"), ("kernel", "cheap"), ("kernel", "full"),
    )  # fmt: skip
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
    named = {"backend": "kernel", "activation_checkpointing": "none", "precision": "tf32"}
    assert "GiB" in line_of({**named, **rows["kernel", "none"]})


# What SDXL's UNet may keep and move without matrix products for 8 images of 1024²: GiB, and GB.
@pytest.mark.parametrize(
    ("backend", "how", "precision", "most_kept", "most_traffic"),
    [
        (GEGLU_ALONE, "none", "tf32", 90, None),
        ("kernel", "none", "tf32", 86, 360),
        ("kernel", "cheap", "tf32", 78, None),
        ("kernel", "none", "bf16", 49, 200),
        ("kernel", "full", "bf16", 10, 245),
    ],
)
def test_what_sdxl_keeps_and_moves(
    backend: str, how: Recompute, precision: str, most_kept: float, most_traffic: float | None
) -> None:
    row = count(UNetConfig.sdxl(), 8, 1024, backend, how, precision)
    assert row["kept_bytes"] <= most_kept * GIB
    assert most_traffic is None or row["other_bytes"] <= most_traffic * 1e9


def test_casts_are_those_of_autocast(rows: dict) -> None:
    low = count(CONFIG, 2, SIDE, "kernel", "none", "bf16")
    assert low["product_bytes"] < rows["kernel", "none"]["product_bytes"]
    assert low["cast_calls"] > low["product_calls"] / 2
    assert 0 < low["cast_bytes"] < low["other_bytes"]
