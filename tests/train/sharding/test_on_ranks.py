"""What four ranks make of divided tensors: each check runs on all of them, in processes that the checks share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from refimpl.model.unet import UNet, UNetConfig
from refimpl.run.adamw import load_optimizer_state, make_adamw, optimizer_state
from refimpl.run.config import TrainConfig
from refimpl.run.optimizer_config import OptimizerConfig
from refimpl.run.world import World, join_world, leave_world
from refimpl.storage.local_tensors import divided_like, is_divided, local, local_like, whole
from refimpl.train.metrics.drift import ema_drift
from refimpl.train.setup.trainable import Part, averaged
from refimpl.train.sharding.kinds import Owned, Sharding, divide, rates_and_tensors, stepped
from refimpl.train.sharding.norms import gradient_norm
from refimpl.train.sharding.ordered_sum import OrderedSum, OrderedTotals
from refimpl.train.sharding.owners import owners_of, send_from_owners
from tests.model.diffusers_unet import trained_looking
from tests.tolerances import FLOAT32_ROUNDING
from tests.train.processes import run_ranks

RANKS = 4
SMALL = UNetConfig(
    channels=8, channel_mult=(1, 2), transformer_depth=(0, 1), middle_depth=1, res_blocks=1, head_dim=8,
    context_dim=6, vector_dim=12, groups=4,
)  # fmt: skip
KINDS: tuple[dict[str, Any], ...] = (
    {"sharding": "shard"}, {"sharding": "hybrid", "ranks_per_node": 2}, {"zero1": True}, {},
)  # fmt: skip


def gradient(j: int, length: int) -> Tensor:
    """Of micro-batch j; sums of such numbers depend on their order."""
    generator = torch.Generator().manual_seed(j)
    return torch.randn(length, generator=generator) * 10.0 ** torch.randint(
        -6, 7, (length,), generator=generator
    )


def sums_follow_the_order_of_micro_batches(world: World) -> None:
    for ranks, nodes, length in ((1, 4, 7), (4, 1, 12), (2, 2, 10), (1, 4, 1)):
        inside, node = world.rank % ranks, world.rank // ranks
        groups = [dist.new_group([n * ranks + r for n in range(nodes)]) for r in range(ranks)]
        running = OrderedSum(ranks, nodes, groups[inside])
        for _ in range(2):  # the sum begins anew
            expected = torch.zeros(length)
            for k, real in enumerate((4, 4, 3)):
                for j in range(4 * k, 4 * k + real):
                    expected += gradient(j, length)
                own = (
                    gradient(4 * k + world.rank, length)
                    if world.rank < real
                    else torch.full((length,), torch.nan)
                )
                running.add(own, real)
            assert torch.equal(running.take(), expected.chunk(ranks)[inside]), (ranks, nodes, node)


def totals_lie_as_their_parameters_do(world: World) -> None:
    parameters = [
        nn.Parameter(torch.randn(3, 5, 2, 2).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.zeros(6)),
    ]
    totals = OrderedTotals(parameters, world)
    expected = [torch.zeros(3, 5, 2, 2), torch.zeros(6)]
    for k, real in enumerate((4, 2)):
        for j in range(4 * k, 4 * k + real):
            for total, n in zip(expected, (60, 6), strict=True):
                total += gradient(j, n).view(total.shape)
        for parameter in parameters:
            value = gradient(4 * k + world.rank, parameter.numel()).view(parameter.shape)
            parameter.grad = torch.empty_like(parameter).copy_(value)
        totals.add(real)
        assert all(parameter.grad is None for parameter in parameters)
    totals.finish()
    for parameter, total in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, total)
        assert parameter.grad.stride() == parameter.stride()


def owners_send_what_they_changed(world: World) -> None:
    parameters = [nn.Parameter(torch.zeros(n)) for n in (2, 9, 4, 4, 1)]
    parameters.append(nn.Parameter(torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)))
    owners = owners_of(parameters, world.size)
    loads = [sum(p.numel() for p, owner in owners.items() if owner == rank) for rank in range(world.size)]
    assert sorted(loads) == [5, 6, 9, 24]  # of 24, 9, 4, 4, 2 and 1: the largest first, to who has the least
    for number, (parameter, owner) in enumerate(owners.items()):
        if owner == world.rank:
            values = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape) + number
            parameter.data.copy_(values)
    send_from_owners(owners, world.size)
    for number, parameter in enumerate(parameters):
        values = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape) + number
        assert torch.equal(parameter, values)


def network(kind: dict[str, Any], world: World, ordered: bool = False) -> tuple[UNet, list[Part], Sharding]:
    """A UNet divided in a way, its values the same in every call."""
    torch.manual_seed(0)
    unet = trained_looking(UNet(SMALL))
    parts = [Part("unet", unet, 0.0)]
    settings = TrainConfig(**kind, reduction="ordered" if ordered else "fast")
    return unet, parts, divide(unet, parts, settings, world)


def inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(1, 4, 6, 5, generator=generator),
        torch.tensor([17]),
        torch.randn(1, 7, 6, generator=generator),
        torch.randn(1, 12, generator=generator),
    )


def averages_are_what_is_computed_with(world: World) -> None:
    torch.manual_seed(0)
    plain = trained_looking(UNet(SMALL)).eval()
    with torch.no_grad():
        raw = plain(*inputs())
        for parameter in plain.parameters():
            parameter.add_(0.125)
        moved = plain(*inputs())
    assert not torch.equal(raw, moved)
    for kind in KINDS:
        unet, parts, sharding = network(kind, world)
        averages = sharding.averages(parts)
        for value in averages.get("unet", {}).values():
            local(value).add_(0.125)
        assert sharding.measures == (bool(kind) or world.is_main)
        for _ in range(2 if sharding.measures else 0):
            with torch.no_grad():
                with averaged(parts, averages, sharding):
                    assert torch.equal(unet(*inputs()), moved), kind
                    assert torch.equal(unet(*inputs()), moved), kind
                assert torch.equal(unet(*inputs()), raw), kind
        if sharding.mesh is not None:
            unet.reshard()  # pyright: ignore[reportCallIssue]
            assert all(is_divided(parameter) for parameter in unet.parameters())


def norms_are_those_of_the_whole(world: World) -> None:
    torch.manual_seed(0)
    plain = [torch.randn_like(parameter) for parameter in trained_looking(UNet(SMALL)).parameters()]
    extra = torch.randn(5)  # of a tower, on every rank
    wanted = {how: gradient_norm([*plain, extra], how) for how in ("fast", "ordered")}
    for kind in KINDS[:2]:
        unet, _, _ = network(kind, world)
        divided = [
            divided_like(p, local_like(p, value).clone())
            for p, value in zip(unet.parameters(), plain, strict=True)
        ]
        assert all(torch.equal(whole(d), value) for d, value in zip(divided, plain, strict=True))
        assert torch.equal(gradient_norm([*divided, extra], "ordered"), wanted["ordered"])
        near = gradient_norm([*divided, extra], "fast")
        torch.testing.assert_close(near, wanted["fast"], rtol=FLOAT32_ROUNDING, atol=0)
        bad = divided_like(divided[0], local(divided[0]) * torch.nan)
        is_bad = (
            world.rank % kind.get("ranks_per_node", RANKS) == 1
        )  # its part; the other nodes have the same
        for how in ("fast", "ordered"):
            assert not gradient_norm([bad if is_bad else divided[0], *divided[1:]], how).isfinite()


def every_rank_steps_its_share(world: World) -> None:
    total = sum(parameter.numel() for parameter in UNet(SMALL).parameters())
    for kind in KINDS:
        _, parts, sharding = network(kind, world)
        sizes = torch.tensor([sum(tensor.numel() for tensor in stepped(sharding, parts[0]).values())])
        mean = world.mean(sizes.double()).item() * world.size
        assert mean == total * {"hybrid": 2, "replicate": 1 if kind else 4}.get(
            kind.get("sharding", "replicate"), 1
        )
        optimizer = make_adamw(rates_and_tensors(sharding, parts), OptimizerConfig())
        for tensor in stepped(sharding, parts[0]).values():
            tensor.grad = torch.ones_like(tensor)
        optimizer.step()
        own = sharding.own(parts[0])
        state = optimizer_state(parts[0].parameters(), optimizer)
        assert {name.rpartition(".")[0] for name in state} == own.keys()
        for name, parameter in own.items():
            assert state[f"{name}.exp_avg"].shape == parameter.shape
            assert is_divided(state[f"{name}.exp_avg"]) == is_divided(parameter)
        # What is saved whole or divided comes back divided.
        other = make_adamw(rates_and_tensors(sharding, parts), OptimizerConfig())
        for saved in (state, {name: whole(value).clone() for name, value in state.items()}):
            load_optimizer_state(own, other, saved, "x")
            for name, value in optimizer_state(own, other).items():
                assert torch.equal(local(value), local(state[name])), name


def drift_is_that_of_the_whole(world: World) -> None:
    alone = World(0, 1, world.device)
    wanted = None
    for kind in ({}, *KINDS):
        _, parts, sharding = network(kind, world) if wanted is not None else network({}, alone)
        tower = nn.Linear(3, 3)
        nn.init.constant_(tower.weight, 2.0)
        nn.init.constant_(tower.bias, 1.0)
        parts.append(Part("text_g", tower, 1.0))
        if isinstance(sharding, Owned):
            sharding = Owned(parts, world)
        averages = sharding.averages(parts)
        for state in averages.values():
            for value in state.values():
                local(value).mul_(0.5)
        drift = ema_drift(parts, averages, sharding, alone if wanted is None else world)
        assert float(drift) == pytest.approx(0.5, rel=FLOAT32_ROUNDING)  # pyright: ignore
        for name in averages.get("text_g", {}):
            averages["text_g"][name].zero_()
        drift = float(ema_drift(parts, averages, sharding, alone if wanted is None else world))
        wanted = wanted or drift
        assert 0.5 < drift == pytest.approx(wanted, rel=FLOAT32_ROUNDING), kind  # pyright: ignore


CHECKS: tuple[Callable[[World], None], ...] = (
    sums_follow_the_order_of_micro_batches,
    totals_lie_as_their_parameters_do,
    owners_send_what_they_changed,
    averages_are_what_is_computed_with,
    norms_are_those_of_the_whole,
    every_rank_steps_its_share,
    drift_is_that_of_the_whole,
)


def check_all(names: list[str]) -> None:
    """What each rank does; it prints the name of every check that holds."""
    world = join_world("cpu")
    for check in CHECKS:
        if check.__name__ not in names:
            continue
        check(world)
        print(f"{check.__name__} holds", flush=True)
    leave_world(world)


@pytest.fixture(scope="module")
def printed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the ranks print when they have made the checks of those tests that are to run."""
    folder = tmp_path_factory.mktemp("ranks")
    asked = {item.name for item in request.session.items if item.path == request.path}
    names = [check.__name__ for check in CHECKS if f"test_on_every_rank[{check.__name__}]" in asked]
    run_ranks(names, RANKS, folder, check_all)
    return [(folder / f"rank{rank}.txt").read_text() for rank in range(RANKS)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_every_rank(check: Callable[[World], None], printed: list[str], tmp_path: Path) -> None:
    for text in printed:
        assert f"{check.__name__} holds" in text, text[-2000:]
