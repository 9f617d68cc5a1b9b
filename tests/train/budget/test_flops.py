"""Operations from shapes: equal to those that torch counts, for any network and size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from refimpl.model.unet import UNet, UNetConfig
from refimpl.run.presets import load_config, preset_names
from refimpl.train.budget.flops import bucket_flops, forward_flops, step_flops
from tests import strategies
from tests.tolerances import EARLY_LAYERS, PRINTED_TERAFLOPS


def counted(
    config: UNetConfig, height: int, width: int, tokens: int, everything: bool = True
) -> tuple[int, int]:
    """Operations of a forward pass, and of forward and backward, that torch counts; attention is two products."""
    with torch.device("meta"):
        unet = UNet(config).requires_grad_(everything)
        unet.label_emb.requires_grad_(True)
        x, t = torch.zeros(1, config.in_channels, height, width), torch.zeros(1, dtype=torch.int64)
        context, vector = torch.zeros(1, tokens, config.context_dim), torch.zeros(1, config.vector_dim)
    with FlopCounterMode(display=False) as counter:
        output = unet(x, t, context, vector)
        forward = counter.get_total_flops()
        output.square().mean().backward()
    return forward, counter.get_total_flops()


@settings(max_examples=6)
@given(
    config=strategies.unet_configs(),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    tokens=st.integers(1, 9),
)
def test_equal_to_what_torch_counts(config: UNetConfig, height: int, width: int, tokens: int) -> None:
    both = forward_flops(config, height, width, tokens), step_flops(config, height, width, tokens)
    assert both == counted(config, height, width, tokens)


@pytest.mark.parametrize(
    "config",
    [UNetConfig.sdxl(), pytest.param(UNetConfig.refiner(), marks=pytest.mark.slow)],
    ids=["sdxl", "refiner"],
)
def test_full_size_networks(config: UNetConfig) -> None:
    assert (forward_flops(config, 104, 152), step_flops(config, 104, 152)) == counted(config, 104, 152, 77)


def test_sdxl_at_1024() -> None:
    assert forward_flops(UNetConfig.sdxl(), 128, 128) == 6_761_236_398_080
    assert step_flops(UNetConfig.sdxl(), 128, 128) == 20_230_842_449_920
    assert step_flops(UNetConfig.sdxl(), 128, 128) / 1e12 == pytest.approx(20.23, abs=PRINTED_TERAFLOPS)


def test_a_small_part_saves_the_products_for_the_weights() -> None:
    """Trained is label_emb: gradients pass through nearly all of the network."""
    config = UNetConfig.tiny()
    part = step_flops(config, 8, 8, trains_weights=False)
    _, exact = counted(config, 8, 8, 77, everything=False)
    assert forward_flops(config, 8, 8) < part < step_flops(config, 8, 8)
    assert part == pytest.approx(exact, rel=EARLY_LAYERS)


@given(
    config=strategies.unet_configs(),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    tokens=st.integers(1, 200),
)
def test_more_of_anything_is_more_work(config: UNetConfig, height: int, width: int, tokens: int) -> None:
    here = step_flops(config, height, width, tokens)
    assert step_flops(config, height + 1, width, tokens) >= here
    assert step_flops(config, height, width + 1, tokens) >= here
    assert step_flops(config, height, width, tokens + 1) >= here
    assert forward_flops(config, height, width, tokens) < here


@pytest.mark.parametrize("name", preset_names())
def test_a_run_counts_its_bucket(name: str) -> None:
    config = load_config(name)
    bucket = config.all_stages()[-1].buckets.sizes()[0]
    everything = not (config.image_prompt.folder or config.lora.rank)
    assert bucket_flops(config, bucket) == step_flops(
        config.unet, bucket[1] // 8, bucket[0] // 8, trains_weights=everything
    )
