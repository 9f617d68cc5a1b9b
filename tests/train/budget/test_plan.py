"""The memory plan: published numbers, what grows with what, and every preset on an 80 GB card."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refimpl.model.config import Recompute
from refimpl.model.unet import UNet, UNetConfig
from refimpl.run.config import Stage
from refimpl.run.presets import load_config, preset_names
from refimpl.train.budget.cards import CARDS, GIB
from refimpl.train.budget.counted import META, gathered_together
from refimpl.train.budget.fit import fits
from refimpl.train.budget.live_memory import Timeline
from refimpl.train.budget.plan import Plan, Work, largest_work, plan_run, plan_step, unet_step
from tests.tolerances import MEASURED_MEMORY, PRINTED_GIBIBYTES
from tests.train.budget.networks import counted, small

UNET_BYTES = 4 * 2_567_463_684
RANKS = 256  # the design point of N §4
GLOBAL_BATCH = 8  # images in a step of one rank, in the presets of real sizes
IMAGES_IN_A_STEP = {"finetune_24gb": 2}  # whose step is one micro-batch, on a small card
works = st.builds(
    Work,
    bucket=st.just((64, 64)),
    batch=st.integers(1, 64),
    accumulate=st.integers(1, 4),
    ranks=st.integers(1, 3),
    reduction=st.sampled_from(("fast", "ordered")),
)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_80_gigabytes_as_shipped(name: str) -> None:
    config = load_config(name)
    for ranks in (1, RANKS):
        work = largest_work(config, ranks)
        assert fits(plan_step(counted(config), work), CARDS["h100"]), f"{name} on {ranks} ranks"


@pytest.mark.parametrize("name", sorted({*preset_names()} - {"tiny"}))
def test_presets_of_real_sizes(name: str) -> None:
    train = load_config(name).train
    assert train.backend == "kernel"
    assert train.batch_size * train.accumulate == IMAGES_IN_A_STEP.get(name, GLOBAL_BATCH)


@pytest.mark.parametrize("name", ["lora_24gb", "finetune_24gb"])
def test_presets_for_24_gigabytes_fit_them(name: str) -> None:
    config = load_config(name)
    assert fits(plan_step(counted(config), largest_work(config)), CARDS["rtx4090"])


def test_sdxl_without_recomputation() -> None:
    """By hand: four float32 copies of 2,567,463,684 weights, and 12.8 GiB of activations for each 1024² image."""
    plan = unet_step(UNetConfig.sdxl(), 8, 1024, 1024, channels_last=False)
    assert plan.held["weights of the UNet"] == plan.held["moving average"] == UNET_BYTES
    assert plan.held["moments of AdamW"] == 2 * UNET_BYTES
    assert plan.moments["update"] == UNET_BYTES
    assert plan.moments["forward and backward"] / GIB == pytest.approx(102.3, abs=PRINTED_GIBIBYTES)
    assert plan.peak == 4 * UNET_BYTES + plan.moments["forward and backward"]


def test_a_run_plans_its_largest_work() -> None:
    assert plan_run(small()) == plan_step(counted(small()), largest_work(small()))


def test_the_moments_do_not_add_up() -> None:
    plan = Plan({"a": 5, "b": 7}, {"first": 3, "second": 4}, reserve=100)
    assert (plan.peak, plan.largest, plan.needed) == (16, "second", 116)


@given(work=works)
def test_more_images_need_more(work: Work) -> None:
    here, more = (plan_step(counted(small()), replace(work, batch=work.batch + n)) for n in (0, 1))
    assert more.needed >= here.needed
    assert more.moments["forward and backward"] > here.moments["forward and backward"]


@given(work=works)
def test_gradients_held_between_micro_batches_need_more(work: Work) -> None:
    one, two = (plan_step(counted(small()), replace(work, accumulate=n)) for n in (1, 2))
    trained = counted(small()).trained
    kept = (
        -(-trained // work.ranks) if work.reduction == "ordered" else trained
    )  # of the totals, a part on each rank
    assert two.needed >= one.needed
    assert two.moments["encoding"] - one.moments["encoding"] == kept


def test_casts_wait_for_the_next_micro_batch() -> None:
    """Under autocast, while it is encoded; not under FSDP2, where every pass casts for itself."""
    low = small(precision="bf16", micro_batches=8)
    shard = replace(low, train=replace(low.train, sharding="shard"))
    for config, ranks, waits in ((low, 1, True), (shard, 8, False)):
        work = largest_work(config, ranks)
        one, two = (plan_step(counted(config), replace(work, accumulate=n)) for n in (1, 2))
        held = two.moments["encoding"] - one.moments["encoding"] - counted(config).trained
        assert (held > 0) == waits
        assert held == counted(config).step.left


@given(work=works)
def test_more_ranks_need_more(work: Work) -> None:
    one, two = (plan_step(counted(small()), replace(work, ranks=n)) for n in (1, 2))
    assert two.needed > one.needed
    assert ("DDP's gradient buckets" in two.held) == (work.reduction == "fast")


@given(work=works)
def test_summing_in_order_needs_a_second_set_of_gradients(work: Work) -> None:
    fast, ordered = (
        plan_step(counted(small()), replace(work, ranks=1, reduction=name)) for name in ("fast", "ordered")
    )
    trained = counted(small()).trained
    assert ordered.moments["update"] - fast.moments["update"] == trained
    assert ordered.moments["forward and backward"] >= fast.moments["forward and backward"]


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("reduction", ["fast", "ordered"])
def test_divided_weights_are_a_rank_s_share(ranks: int, reduction: str) -> None:
    """Weights, two moments, average and gradients, each by the number of ranks; nothing of the towers."""
    config = small()
    config = replace(config, text=replace(config.text, learning_rate_g=1e-5))
    count = counted(config)
    work = replace(largest_work(config, ranks), reduction=reduction)
    one, shard, zero1 = (
        plan_step(count, replace(work, divided=divided, zero1=zero1))
        for divided, zero1 in ((1, False), (ranks, False), (1, True))
    )
    assert count.towers_trained > 0
    assert shard.held["weights of the UNet"] == math.ceil(count.unet / ranks)
    assert zero1.held["weights of the UNet"] == one.held["weights of the UNet"] == count.unet
    stepped = count.towers_trained + math.ceil((count.trained - count.towers_trained) / ranks)
    assert shard.held["moments of AdamW"] == 2 * stepped
    assert zero1.held["moments of AdamW"] == 2 * math.ceil(count.trained / ranks)
    averaged = count.towers_average + math.ceil((count.average - count.towers_average) / ranks)
    assert shard.held["moving average"] == averaged
    assert zero1.held["moving average"] == math.ceil(count.average / ranks)
    assert shard.held["autoencoder and towers"] == zero1.held["autoencoder and towers"] == count.frozen
    assert ("DDP's gradient buckets" in zero1.held) == (reduction == "fast")
    assert "DDP's gradient buckets" not in shard.held
    assert (shard.moments["update"] < one.moments["update"]) == (reduction == "ordered")
    if reduction == "fast":
        assert shard.moments["update"] == stepped


def test_without_communication_whole_gradients_add_up_on_every_rank() -> None:
    count = counted(small())
    one, two = (plan_step(count, Work((64, 64), 4, n, ranks=8, divided=8)) for n in (1, 2))
    more = two.moments["forward and backward"] - one.moments["forward and backward"]
    assert more == count.trained - math.ceil(count.trained / 8)


def test_sdxl_on_eight_ranks() -> None:
    """By hand: what 2,567,463,684 weights of four bytes come to in eighths, and the groups that FSDP2 gathers."""
    with META:
        *blocks, root = gathered_together(UNet(UNetConfig.sdxl()))
    assert sum(blocks) + root == UNET_BYTES
    assert max(blocks) == 4 * (
        2560 * 1280 * 9 + 1280 * 1280 * 9 + 2560 * 1280 + 1280 * 1280 + 2 * 2560 + 6 * 1280
    )
    config = load_config("novelai_v3")
    train = replace(config.train, sharding="shard")
    held = plan_run(replace(config, train=train), 8).held
    assert held["weights of the UNet"] == math.ceil(UNET_BYTES / 8)
    assert held["moments of AdamW"] == 2 * math.ceil(UNET_BYTES / 8)
    assert held["weights and gradients under way in FSDP2"] == root + 7 * max(blocks)


def test_larger_images_need_more() -> None:
    peaks = [
        unet_step(UNetConfig.tiny(), 64, height, width).peak
        for height, width in ((64, 64), (64, 128), (128, 128), (128, 256))
    ]
    assert peaks == sorted(set(peaks))


def test_recomputing_activations_needs_less() -> None:
    plain, recomputed = (
        unet_step(UNetConfig.tiny(), 16, 128, 128, activation_checkpointing=how) for how in ("none", "full")
    )
    assert recomputed.peak < plain.peak
    assert recomputed.held == plain.held


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_compiled_operations_save_less(channels_last: bool) -> None:
    """Of a gate and of a norm with its SiLU, they keep the input alone."""
    reference, ours = (
        unet_step(UNetConfig.tiny(), 16, 128, 128, backend=backend, channels_last=channels_last)
        for backend in ("reference", "kernel")
    )
    assert ours.peak < reference.peak


def test_without_a_moving_average() -> None:
    with_average, without = (unet_step(UNetConfig.tiny(), 1, 64, 64, average=on) for on in (True, False))
    assert with_average.peak - without.peak == with_average.held["weights of the UNet"]


def test_the_largest_work_of_a_stage_is_found() -> None:
    config = load_config("sdxl_base")
    work = largest_work(config, ranks=4)
    assert work.bucket[0] * work.bucket[1] == max(w * h for w, h in config.all_stages()[-1].buckets.sizes())
    assert (work.batch, work.ranks, work.setting) == (8, 4, "train.batch_size")
    first = replace(config.stages[0], batch_size=8 * 17)
    assert largest_work(replace(config, stages=(first, *config.stages[1:]))) == Work(
        (256, 256), 8 * 17, config.train.accumulate, setting="stages.batch_size"
    )


def test_a_pixel_budget_sets_the_batch() -> None:
    config = small(pixel_budget=64 * 64 * 5 + 17)
    work = largest_work(config)
    assert work.setting == "train.pixel_budget"
    assert work.batch == (64 * 64 * 5 + 17) // (work.bucket[0] * work.bucket[1])


def test_a_stage_without_images_has_nothing_to_plan() -> None:
    assert largest_work(replace(small(), stages=(Stage(0),))).batch == small().train.batch_size


def test_an_empty_timeline_takes_nothing() -> None:
    plan = plan_step(replace(counted(small()), encoding=Timeline()), Work((64, 64), 4))
    assert plan.moments["encoding"] == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["none", "cheap", "full"])
def test_within_five_percent_of_what_a_gpu_allocates(precision: str, checkpointing: Recompute) -> None:
    config = replace(UNetConfig.tiny(), channels=128, channel_mult=(1, 2, 4), head_dim=64, groups=32)
    batch, side = 32, 512  # large against the workspaces of cuBLAS and cuDNN
    unet = UNet(config, checkpointing).cuda()
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    before = torch.cuda.memory_allocated() - sum(p.nbytes for p in unet.parameters())
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        x = torch.randn(batch, 4, side // 8, side // 8, device="cuda")
        inputs = (
            torch.zeros(batch, device="cuda"),
            torch.randn(batch, 77, config.context_dim, device="cuda"),
        )
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            output = unet(x, *inputs, torch.randn(batch, config.vector_dim, device="cuda"))
        output.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    plan = unet_step(config, batch, side, side, precision, checkpointing, average=False, channels_last=False)
    measured = torch.cuda.max_memory_allocated() - before
    assert plan.peak == pytest.approx(measured, rel=MEASURED_MEMORY)
