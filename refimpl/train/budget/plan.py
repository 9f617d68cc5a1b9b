"""The memory plan of a run: what it holds throughout, what each moment of a step adds, and the reserve.

The moments do not add up: the autoencoder's working memory is free again when the UNet runs. So the peak is what is
held throughout plus the largest moment. Fused AdamW and clipping in place need no memory of their own; what other
optimizers and weights of bfloat16 need is counted in `refimpl.train.optimizer.memory`.
"""

from dataclasses import dataclass

from refimpl.model.config import Recompute, UNetConfig
from refimpl.model.unet import UNet
from refimpl.ops import load_ops
from refimpl.run.config import Config
from refimpl.run.stage import images_at
from refimpl.train.batches.shares import micro_batches, rounds
from refimpl.train.budget.cards import GIB
from refimpl.train.budget.counted import META, Counted, count, count_unet, gathered_together, lay_out
from refimpl.train.budget.live_memory import Timeline
from refimpl.train.sharding.flat import BUCKET
from refimpl.train.sharding.mesh import ranks_per_node

# Ours, until measured on a card: the CUDA context with the kernels that were loaded (0.5 to 0.6 GiB), and workspaces
# of cuBLAS and cuDNN; NCCL's buffers; and blocks of the allocator that are free but fit nothing.
CONTEXT = int(1.5 * GIB)
NCCL = GIB
FRAGMENTS = 0.02  # of the peak


@dataclass(frozen=True)
class Work:
    """The largest micro-batch of a run, and how its gradients are summed."""

    bucket: tuple[int, int]
    """Width and height, px."""
    batch: int
    """Images per micro-batch on one rank."""
    accumulate: int = 1
    """Micro-batches per optimizer step on one rank."""
    ranks: int = 1
    """Processes of the run, each with a GPU."""
    reduction: str = "fast"
    """`train.reduction`."""
    divided: int = 1
    """Ranks among which the UNet's weights, and what belongs to them, are divided."""
    zero1: bool = False
    """`train.zero1`, with several ranks."""
    in_backward: bool = False
    """`train.step_in_backward`."""
    setting: str = "train.batch_size"
    """The setting that gives the batch."""


@dataclass(frozen=True)
class Plan:
    """Bytes that a run needs on rank 0, the rank that needs the most."""

    held: dict[str, int]
    """Held throughout, by what it is."""
    moments: dict[str, int]
    """Held besides at each moment of a step, by its name."""
    reserve: int
    """Outside torch's allocator, or lost in it."""

    @property
    def peak(self) -> int:
        """Most bytes that tensors hold at once, as `torch.cuda.max_memory_allocated` counts them."""
        return sum(self.held.values()) + max(self.moments.values())

    @property
    def largest(self) -> str:
        """The moment with the peak."""
        return max(self.moments, key=lambda name: self.moments[name])

    @property
    def needed(self) -> int:
        """Memory that the card has to have."""
        return self.peak + self.reserve


def largest_work(config: Config, ranks: int = 1) -> Work:
    """The micro-batch with the most pixels in any stage."""
    train, largest, most = config.train, None, 0
    for number, stage in enumerate(config.all_stages()):
        is_own = bool(config.stages) and config.stages[number].batch_size > 0
        setting = "stages.batch_size" if is_own else "train.batch_size"
        for width, height in stage.buckets.sizes():
            batch = images_at(train, stage, (width, height))
            if largest is None or batch * width * height > most:
                most = batch * width * height
                setting = "train.pixel_budget" if train.pixel_budget else setting
                largest = Work(
                    (width, height),
                    batch,
                    rounds(micro_batches(train, ranks), ranks),
                    ranks,
                    train.reduction,
                    ranks_per_node(train, ranks),
                    train.zero1 and ranks > 1,
                    train.step_in_backward,
                    setting,
                )
    assert largest is not None  # a stage without buckets is refused when its settings are read
    return largest


def plan_run(config: Config, ranks: int = 1) -> Plan:
    """The memory plan of a configuration, counted in a few seconds without a GPU.

    Raises InputError when a LoRA target matches nothing.
    """
    work = largest_work(config, ranks)
    return plan_step(count(config, work.bucket), work)


def plan_step(counted: Counted, work: Work) -> Plan:
    """The memory plan of a micro-batch of any size at the counted bucket."""
    held = _held(counted, work)
    encoding, passes, update = _gradients(counted, work)
    moments = {
        "encoding": counted.encoding.peak(work.batch) + encoding,
        "forward and backward": passes,
        "update": update + (0 if work.in_backward else counted.working),
        **counted.measuring,
    }
    peak = sum(held.values()) + max(moments.values())
    return Plan(held, moments, CONTEXT + (work.ranks > 1) * NCCL + int(FRAGMENTS * peak))


def _held(counted: Counted, work: Work) -> dict[str, int]:
    """What a rank holds throughout: rank 0 if the averages are its alone."""
    moment = _share(
        counted.state // 2, counted.towers_state // 2, work, work.zero1
    )  # of AdamW's two, each divided
    held = {
        "weights of the UNet": _share(counted.unet, 0, work),
        "autoencoder and towers": counted.frozen,
        "moments of AdamW" if counted.optimizer == "adamw" else f"state of {counted.optimizer}": 2 * moment,
        "moving average": _share(counted.average, counted.towers_average, work, work.zero1),
    }
    if work.divided > 1:
        # From FSDP2's code, not measured: beside the root's weights, a block's and the next one's, each with the
        # buffer that it is gathered in; a block's gradients, and two buffers in which gradients are sent.
        held["weights and gradients under way in FSDP2"] = counted.root + 7 * counted.block
    elif work.ranks > 1 and work.reduction == "fast":
        held["DDP's gradient buckets"] = counted.trained
    return held


def _share(total: int, whole: int, work: Work, zero1: bool = False) -> int:
    """What a rank holds of `total` bytes, of which FSDP2 leaves `whole` with every rank; rounded up."""
    if zero1:
        return -(-total // work.ranks)
    return whole + -(-(total - whole) // work.divided)


def _gradients(counted: Counted, work: Work) -> tuple[int, int, int]:
    """Bytes while the next micro-batch is encoded, in its two passes (with what these need), and in the update."""
    trained, alone = counted.trained, work.ranks == 1
    if work.in_backward:
        waiting, passes = counted.waiting, counted.step.peak(work.batch, with_gradients=False)
        return 0, passes + waiting + counted.working, waiting + counted.working
    kept = _share(trained, counted.towers_trained, work)
    summed = trained if work.accumulate > 1 else 0
    left = counted.step.left if work.accumulate > 1 else 0
    passes = counted.step.peak(work.batch, with_gradients=False)
    if work.reduction == "ordered":
        # Of the totals each rank has an equal part until they are gathered.
        totals = -(-trained // work.ranks)
        sent = 0 if alone else 3 * min(trained, max(BUCKET, counted.largest))
        if work.divided > 1:
            return totals * (work.accumulate > 1) + left, totals + passes, totals + kept + sent
        own = counted.step.peak(work.batch)
        return totals * (work.accumulate > 1) + left, totals + own, totals + trained + sent
    if work.divided > 1:
        # Without communication between micro-batches, FSDP2 adds up whole gradients.
        return summed + left, max(summed, kept) + passes, kept
    if alone:
        return summed + left, summed + (passes if summed else counted.step.peak(work.batch)), trained
    return summed + left, summed + passes + counted.largest, 0  # gradients lie in DDP's buckets at the end


def unet_step(
    config: UNetConfig,
    batch: int,
    height: int,
    width: int,
    precision: str = "tf32",
    activation_checkpointing: Recompute = "none",
    accumulate: int = 1,
    average: bool = True,
    backend: str = "reference",
    channels_last: bool = True,
) -> Plan:
    """The memory plan of a UNet that is trained by itself on cached latents and text states, as a benchmark does it.

    height, width  of the images, px, 8 to a latent cell       precision  `train.precision`
    average        whether a moving average is kept     backend    `train.backend`
    channels_last  whether weights and activations of convolutions have that memory format
    returns        its `peak` is to be compared with `torch.cuda.max_memory_allocated`, reset after the first step
    """
    with META:
        unet = UNet(config, activation_checkpointing)
    unet.set_ops(load_ops(backend))
    lay_out(unet, channels_last)
    sizes = [parameter.nbytes for parameter in unet.parameters()]
    total = sum(sizes)
    step = count_unet(unet, height // 8, width // 8, precision == "bf16")
    *blocks, root = gathered_together(unet)
    counted = Counted(
        unet=total, frozen=0, trained=total, largest=max(sizes), average=average * total,
        towers_trained=0, towers_average=0, root=root, block=max(blocks), encoding=Timeline(), step=step,
        measuring={}, state=2 * total, waiting=total,
    )  # fmt: skip
    return plan_step(counted, Work((width, height), batch, accumulate))
