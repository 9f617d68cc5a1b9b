"""Memory, traffic and step time of a run on many nodes, by sharding (N §4: 256 H100; Rajbhandari et al. 2020).

Nothing here is measured. Bytes follow from what each sharding has to exchange, by algorithms that send the least:
of S bytes on n ranks, an all-reduce sends 2 (n − 1)/n · S from every rank, an all-gather or a reduce-scatter half of
that (Thakur et al. 2005). In a ring through all GPUs of a cluster, one in g of these transfers leaves its node of g
GPUs, each by a network adapter of its own. Times follow from the links' speeds and the assumptions of `Cluster`.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

Kind = Literal["replicate", "zero1", "shard", "hybrid"]
KINDS: tuple[Kind, ...] = get_args(Kind)
AIMED_AT = 0.97  # share of the speed of so many single GPUs
BACKWARD = 2 / 3  # of a pass's arithmetic is the backward pass


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs, and what is assumed of their links; by default those of a DGX H100 (NVIDIA's datasheet).

    All speeds are of one GPU in one direction, bytes per second.
    """

    nodes: int
    """Number of nodes."""
    gpus: int = 8
    """GPUs of a node."""
    nvlink: float = 450e9
    """Speed within a node: NVLink 4, 900 GB/s both directions together."""
    network: float = 50e9
    """Speed between nodes: one 400 Gbit/s adapter for each GPU."""
    reached: float = 0.8
    """Assumed share of the links' speed that collective operations reach."""
    hidden: float = 0.9
    """Assumed share of the transfers that arithmetic hides where there is enough of it; the first and last stay."""
    jitter: float = 0.01
    """Assumed share of a step for which the slowest rank keeps the others waiting."""

    @property
    def ranks(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Work:
    """One optimizer step on one rank."""

    weights: int
    """Bytes of the UNet's weights, float32."""
    trained: int
    """Bytes of what is trained of it, float32; its gradients are as large."""
    seconds: float
    """Time of the arithmetic of all micro-batches on one GPU by itself."""
    accumulate: int
    """Micro-batches."""


@dataclass(frozen=True)
class Cost:
    """What a sharding costs every GPU."""

    state: int
    """Bytes of weights, gradients, AdamW's moments and the moving average that rank 0 holds, as none holds more."""
    within: float
    """Bytes that it sends to GPUs of its node in a step."""
    across: float
    """Bytes that it sends to other nodes in a step."""
    transfer: float
    """Seconds of these transfers by themselves."""
    exposed: float
    """Seconds of them that no arithmetic hides."""
    step: float
    """Seconds of the whole step, the wait for the slowest rank included."""
    scaling: float
    """Images per second as a share of so many single GPUs'."""


@dataclass(frozen=True)
class _Transfer:
    """A collective operation of every step: bytes sent by each GPU, and seconds of arithmetic beside it."""

    within: float
    across: float
    window: float

    def seconds(self, cluster: Cluster) -> float:
        """The slower of the two links decides, as both work at once."""
        return max(self.within / cluster.nvlink, self.across / cluster.network) / cluster.reached

    def exposed(self, cluster: Cluster) -> float:
        """The share that is never hidden, or what exceeds the arithmetic beside it."""
        seconds = self.seconds(cluster)
        return max(seconds * (1 - cluster.hidden if self.window else 1.0), seconds - self.window)


def cost(kind: Kind, work: Work, cluster: Cluster) -> Cost:
    """What a sharding costs on a cluster. An estimate, see the module."""
    transfers = _transfers(kind, work, cluster)
    exposed = sum(transfer.exposed(cluster) for transfer in transfers)
    step = work.seconds * (1 + cluster.jitter) + exposed
    return Cost(
        state=_state(kind, work, cluster),
        within=sum(transfer.within for transfer in transfers),
        across=sum(transfer.across for transfer in transfers),
        transfer=sum(transfer.seconds(cluster) for transfer in transfers),
        exposed=exposed,
        step=step,
        scaling=work.seconds / step,
    )


def _transfers(kind: Kind, work: Work, cluster: Cluster) -> list[_Transfer]:
    last = work.seconds / work.accumulate  # only the last micro-batch's gradients are summed over ranks
    all_reduced = _ring(2 * work.trained, cluster, BACKWARD * last)  # a reduce-scatter and an all-gather
    gathers = 2 * work.accumulate  # forwards and backwards, for every micro-batch
    if kind == "replicate":
        return [all_reduced]
    if kind == "zero1":
        return [all_reduced, _ring(work.trained, cluster, 0.0)]  # owners send their weights after the update
    if kind == "shard":
        return [
            _ring(gathers * work.weights, cluster, work.seconds),
            _ring(work.trained, cluster, BACKWARD * last),
        ]
    node = replace(cluster, nodes=1)
    shard = 2 * (cluster.nodes - 1) / cluster.nodes * work.trained / cluster.gpus
    return [
        _ring(gathers * work.weights, node, work.seconds),
        _ring(work.trained, node, BACKWARD * last),
        _Transfer(0.0, shard, BACKWARD * last),
    ]


def _ring(size: float, cluster: Cluster, window: float) -> _Transfer:
    """All-gathers or reduce-scatters of `size` bytes in all, over all GPUs."""
    sent = (cluster.ranks - 1) / cluster.ranks * size
    leaving = 1 / cluster.gpus if cluster.nodes > 1 else 0.0
    return _Transfer(sent * (1 - leaving), sent * leaving, window)


def _state(kind: Kind, work: Work, cluster: Cluster) -> int:
    """Weights, gradients, two moments, the average. Gradients that wait for further micro-batches are whole."""
    owned = 3 * work.trained
    if kind == "replicate":
        return work.weights + work.trained + owned
    if kind == "zero1":
        return work.weights + work.trained + owned // cluster.ranks
    parts = cluster.ranks if kind == "shard" else cluster.gpus
    gradients = work.trained // (parts if work.accumulate == 1 else 1)
    return (work.weights + owned) // parts + gradients


def least_network(kind: Kind, work: Work, cluster: Cluster) -> float | None:
    """The network's least speed, bytes per second and GPU, at which a sharding scales as AIMED_AT; None: at none."""
    low, high = 1e6, 1e13
    if _scaling(kind, work, cluster, high) < AIMED_AT:
        return None
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if _scaling(kind, work, cluster, middle) >= AIMED_AT else (middle, high)
    return high


def _scaling(kind: Kind, work: Work, cluster: Cluster, network: float) -> float:
    return cost(kind, work, replace(cluster, network=network)).scaling
