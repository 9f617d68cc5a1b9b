"""The memory plan of a run: what it holds throughout, what each moment of a step adds, and the reserve.

The moments do not add up: the autoencoder's working memory is free again when the UNet runs. So the peak is what is
held throughout plus the largest moment. Fused AdamW and clipping in place need no memory of their own.
"""

from dataclasses import dataclass

from refimpl.model.config import Recompute, UNetConfig
from refimpl.model.unet import UNet
from refimpl.ops import load_ops
from refimpl.run.config import Config
from refimpl.train.batches.shares import micro_batches, rounds
from refimpl.train.budget.cards import GIB
from refimpl.train.budget.counted import META, Counted, count, count_unet, lay_out
from refimpl.train.budget.live_memory import Timeline

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
            batch = train.pixel_budget // (width * height) or stage.batch_size
            if largest is None or batch * width * height > most:
                most = batch * width * height
                setting = "train.pixel_budget" if train.pixel_budget else setting
                passes = rounds(micro_batches(train, ranks), ranks)
                largest = Work((width, height), batch, passes, ranks, train.reduction, setting)
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
    trained, several = counted.trained, work.ranks > 1
    held = {
        "weights of the UNet": counted.unet,
        "autoencoder and towers": counted.frozen,
        "moments of AdamW": 2 * trained,
        "moving average": counted.average,
    }
    # Gradients of earlier micro-batches are there while the next is encoded and passes through the network.
    summed = trained if work.accumulate > 1 else 0
    encoding = counted.encoding.peak(work.batch) + summed
    if work.reduction == "ordered":
        # The totals have a place of their own, and every rank's gradients are gathered tensor by tensor.
        passes = trained + counted.step.peak(work.batch)
        update = 2 * trained + (work.ranks * counted.largest if several else 0)
    else:
        passes = summed + counted.step.peak(work.batch, with_gradients=not summed)
        update = trained
        if several:
            held["DDP's gradient buckets"] = trained
    moments = {
        "encoding": encoding,
        "forward and backward": passes,
        "update": update,
        **counted.measuring,
    }
    peak = sum(held.values()) + max(moments.values())
    return Plan(held, moments, CONTEXT + several * NCCL + int(FRAGMENTS * peak))


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
    counted = Counted(
        unet=total, frozen=0, trained=total, largest=max(sizes), average=average * total,
        encoding=Timeline(), step=step, measuring={},
    )  # fmt: skip
    return plan_step(counted, Work((width, height), batch, accumulate))
