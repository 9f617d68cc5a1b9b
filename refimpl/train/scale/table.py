"""The estimates for a cluster as a human-readable table (docs/scale.md explains it)."""

from refimpl.errors import InputError
from refimpl.run.config import Config
from refimpl.train.budget.cards import GIB, Card, peak_flops
from refimpl.train.budget.counted import Counted
from refimpl.train.budget.flops import bucket_flops
from refimpl.train.budget.plan import Work as MicroBatch
from refimpl.train.scale.communication import AIMED_AT, KINDS, Cluster, Work, cost, least_network

# Share of the peak that a single H200 reached at 1024² (benchmarks/README.md: 97 and 172 TFLOP/s).
SHARES = {"tf32": 97 / 494.7, "bf16": 172 / 989.4}
GB = 1e9


def step_of(config: Config, counted: Counted, batch: MicroBatch, card: Card) -> Work | None:
    """One optimizer step of a rank on a card; None where the card's peak or the share of it to expect isn't known.

    Raises InputError for an optimizer or weights whose state is not counted here.
    """
    kind, weights = config.optimizer.kind, config.train.weight_dtype
    if (kind, weights) != ("adamw", "fp32"):
        raise InputError(
            f"--nodes estimates adamw on fp32 weights alone, not optimizer.kind {kind!r} on train.weight_dtype "
            f"{weights!r}; leave it out"
        )
    precision = config.train.precision
    peak, share = peak_flops(card.name, precision), SHARES.get(precision)
    if peak is None or share is None:
        return None
    images = batch.batch * batch.accumulate
    seconds = images * bucket_flops(config, batch.bucket) / (peak * share)
    return Work(counted.unet, counted.trained, seconds, batch.accumulate)


def scale_table(work: Work, cluster: Cluster) -> str:
    """What each sharding holds, sends and takes on a cluster."""
    lines = [
        f"on {cluster.nodes} nodes of {cluster.gpus} GPUs: ESTIMATES from the links' speeds, nothing of it measured",
        f"assumed: {cluster.nvlink / GB:g} GB/s within a node and {cluster.network / GB:g} GB/s across nodes for "
        "each GPU and direction,",
        f"{cluster.reached:.0%} of which are reached; {cluster.hidden:.0%} of the transfers hidden by arithmetic; "
        f"{cluster.jitter:.0%} of a step lost to the slowest",
        f"rank; {work.seconds * 1e3:.0f} ms of arithmetic for {work.accumulate} micro-batches in a step",
        f"{'sharding':<10}{'state':>9}{'sent within':>13}{'across':>9}{'transfer':>10}{'exposed':>9}{'step':>9}"
        f"{'scaling':>9}  network for {AIMED_AT}",
        f"{'':<10}{'GiB':>9}{'GB':>13}{'GB':>9}{'ms':>10}{'ms':>9}{'ms':>9}{'':>9}  GB/s",
    ]
    for kind in KINDS:
        found, least = cost(kind, work, cluster), least_network(kind, work, cluster)
        lines.append(
            f"{kind:<10}{found.state / GIB:9.1f}{found.within / GB:13.1f}{found.across / GB:9.2f}"
            f"{found.transfer * 1e3:10.0f}{found.exposed * 1e3:9.0f}{found.step * 1e3:9.0f}{found.scaling:9.3f}  "
            + ("none suffices" if least is None else f"{least / GB:.1f}")
        )
    return "\n".join(lines)
