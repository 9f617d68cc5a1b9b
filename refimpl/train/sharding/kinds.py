"""Who holds what: the ways in which weights, optimizer state and moving averages lie on the ranks of a run.

replicate  everything on every rank, the averages on rank 0 alone
zero1      weights on every rank; each parameter's moments and average on one, its owner (Rajbhandari et al. 2020,
           "ZeRO", §5.1)
shard      the UNet's weights, moments and averages divided among all ranks (`fully_sharded`)
hybrid     the same among the ranks of a node, and alike on all nodes

Trained text towers are small beside the UNet: under shard and hybrid every rank holds them whole.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from refimpl.model.unet import UNet
from refimpl.run.config import TrainConfig
from refimpl.run.ema import ema_start
from refimpl.run.world import World
from refimpl.storage.local_tensors import exchange, local
from refimpl.train.setup.trainable import Averages, Part
from refimpl.train.sharding.fully_sharded import shard_unet
from refimpl.train.sharding.mesh import make_mesh
from refimpl.train.sharding.owners import owners_of, send_from_owners


class Sharding(Protocol):
    """What this rank holds, and what has to happen when that has changed."""

    @property
    def together(self) -> bool:
        """Whether no rank holds everything, so that all measure and save together; else rank 0 does so alone."""
        ...

    @property
    def measures(self) -> bool:
        """Whether this rank takes part in validation and sampling."""
        ...

    @property
    def mesh(self) -> DeviceMesh | None:
        """Nodes by ranks of a node, where weights are divided."""
        ...

    def own(self, part: Part) -> dict[str, nn.Parameter]:
        """The trained parameters of a part that this rank's optimizer steps, as far as it holds them."""
        ...

    def averages(self, parts: Sequence[Part]) -> Averages:
        """The moving averages that this rank keeps, equal to the weights."""
        ...

    def exchange(self, parts: Sequence[Part], averages: Averages) -> None:
        """Exchanges trained weights and averages, on every rank that measures; a second call undoes it."""
        ...

    def spread(self, parts: Sequence[Part]) -> None:
        """Brings the weights that this rank has changed to all that compute with them; every rank calls it."""
        ...


def divide(unet: UNet, parts: Sequence[Part], settings: TrainConfig, world: World) -> Sharding:
    """Divides the UNet in place as the settings say; every rank calls it, after `place` and `check_sharding`.

    parts  what is trained
    """
    mesh = make_mesh(settings, world)
    if mesh is not None:
        shard_unet(unet, mesh, settings.reduction == "ordered")
        return Divided(unet, mesh)
    if settings.zero1 and world.size > 1:
        return Owned(parts, world)
    return Replicated(world.is_main)


def stepped(sharding: Sharding, part: Part) -> dict[str, Tensor]:
    """The tensors of a part that this rank's optimizer steps, by parameter: what it holds of its own parameters."""
    return {name: local(parameter) for name, parameter in sharding.own(part).items()}


def rates_and_tensors(sharding: Sharding, parts: Sequence[Part]) -> list[tuple[float, list[Tensor]]]:
    """What `make_adamw` steps on this rank."""
    return [(part.peak, list(stepped(sharding, part).values())) for part in parts]


class Replicated:
    """replicate, or a run of one rank."""

    together, mesh = False, None

    def __init__(self, is_main: bool = True):
        self.measures = is_main

    def own(self, part: Part) -> dict[str, nn.Parameter]:
        """All."""
        return part.parameters()

    def averages(self, parts: Sequence[Part]) -> Averages:
        """All on rank 0, none elsewhere."""
        return {part.name: ema_start(part) for part in parts} if self.measures else {}

    def exchange(self, parts: Sequence[Part], averages: Averages) -> None:
        """On rank 0 alone, which alone measures."""
        exchange(_pairs(self, parts, averages))

    def spread(self, parts: Sequence[Part]) -> None:
        """Nothing: every rank has taken the same step."""


class Owned:
    """zero1: one owner for each parameter, about as much for each rank."""

    together, measures, mesh = True, True, None

    def __init__(self, parts: Sequence[Part], world: World):
        self._rank, self._size = world.rank, world.size
        parameters = [parameter for part in parts for parameter in part.parameters().values()]
        self._owners = owners_of(parameters, world.size)

    def own(self, part: Part) -> dict[str, nn.Parameter]:
        """Those whose owner this rank is."""
        return {n: p for n, p in part.parameters().items() if self._owners[p] == self._rank}

    def averages(self, parts: Sequence[Part]) -> Averages:
        """Those of its own parameters; what has no owner, as frozen weights have none, is kept by rank 0."""
        averages: Averages = {}
        for part in parts:
            others = part.parameters().keys() - self.own(part).keys()
            elsewhere = others if self._rank == 0 else part.state_dict().keys() - self.own(part).keys()
            averages[part.name] = ema_start(part, without=elsewhere)
        return averages

    def exchange(self, parts: Sequence[Part], averages: Averages) -> None:
        """By each owner, which then sends what were the averages to all."""
        exchange(_pairs(self, parts, averages))
        self.spread(parts)

    def spread(self, parts: Sequence[Part]) -> None:
        """Every owner sends its parameters."""
        send_from_owners(self._owners, self._size)


class Divided:
    """shard and hybrid: FSDP2."""

    together, measures = True, True

    def __init__(self, unet: UNet, mesh: DeviceMesh):
        self._unet, self.mesh = unet, mesh

    def own(self, part: Part) -> dict[str, nn.Parameter]:
        """All, of the UNet's a part each."""
        return part.parameters()

    def averages(self, parts: Sequence[Part]) -> Averages:
        """All, divided as the weights are."""
        return {part.name: ema_start(part) for part in parts}

    def exchange(self, parts: Sequence[Part], averages: Averages) -> None:
        """By every rank, of what it holds. What was gathered to measure is let go of first."""
        assert isinstance(self._unet, FSDPModule)
        self._unet.reshard()
        exchange(_pairs(self, parts, averages))

    def spread(self, parts: Sequence[Part]) -> None:
        """Nothing: the next pass gathers the weights anyway."""


def _pairs(
    sharding: Sharding, parts: Sequence[Part], averages: Mapping[str, Mapping[str, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Each own parameter and its average."""
    return [
        (parameter, averages[part.name][name])
        for part in parts
        for name, parameter in sharding.own(part).items()
    ]
