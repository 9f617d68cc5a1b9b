"""The settings of the training loop (N §4, S §2.5)."""

from dataclasses import dataclass
from typing import get_args

from refimpl.checks import check_at_least, check_at_most, check_choice, check_fraction, check_seed
from refimpl.errors import InputError
from refimpl.model.config import ATTENTION_KERNELS, BFLOAT16_KERNELS, DETERMINISTIC_KERNELS, Recompute

MOST_THREADS = 4096  # more than any machine has; torch would ask the system for all of them


@dataclass(frozen=True)
class TrainConfig:
    """The training loop: its length, batch size and precision, and what it writes (N §4, S §2.5)."""

    out: str = ""
    """Run folder; empty for runs/<preset>-001, -002 and so on."""
    resume: bool = False
    """Continue the run in `out` from its newest checkpoint; `--resume RUN` does so with the run's own settings."""
    accept_data: bool = False
    """Continue even though the images, their sizes, captions or files are not those that the run began with."""
    init_from: str = ""
    """What this run starts from (uptraining, N §2.1): a run or one of its checkpoints, a .safetensors file or a
    diffusers folder. Its autoencoder and text towers are used too, unless latents and text name others."""
    seed: int = 0
    """Seed of the data order, crops, noise, timesteps, dropout and initial weights."""
    steps: int = 1000
    """Optimizer steps in all stages together."""
    batch_size: int = 16
    """Images per micro-batch on one rank."""
    accumulate: int = 1
    """Micro-batches per optimizer step on one rank when the run begins; this sets `micro_batches` where that is 0."""
    micro_batches: int = 0
    """Micro-batches per optimizer step on all ranks together: the global batch is micro_batches · batch_size, on any
    number of ranks up to this one. 0 for ranks · accumulate when the run begins, which the run then keeps."""
    pixel_budget: int = 0
    """Pixels per micro-batch (S §2.3): a bucket's batch size is budget // area instead of batch_size. 0 turns this
    off."""
    caption_dropout: float = 0.1
    """Probability that a visit sees the null condition (for classifier-free guidance)."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving average of the weights."""
    backend: str = "reference"
    """Implementation of refimpl.ops for the loss, the noise and the UNet's blocks, and of the step that the optimizer
    and the moving averages take: reference (torch) or kernel (compiled)."""
    device: str = "auto"
    """Device to train on: auto, cpu or cuda."""
    threads: int = 0
    """CPU threads per rank. 0 chooses: 1 when `reduction` is ordered, else as many as the network is large enough
    for, within the CPUs that the process may use (affinity mask, cgroup quota)."""
    precision: str = "tf32"
    """Arithmetic: tf32 (float32 with TF32 matmuls, N §4), fp32, or bf16 (autocast for the UNet; the autoencoder and
    frozen towers compute as under tf32)."""
    weight_dtype: str = "fp32"
    """What the UNet's matrices and kernels are kept in: fp32 (N §4), or bf16, for half the memory of weights and
    gradients: 8 significant bits, trained with float32 moments and rounded at random after every step, so that small
    updates arrive on average. Its vectors, adapters and the moving average stay float32. Needs precision bf16."""
    step_in_backward: bool = False
    """Step each bucket of parameters in the backward pass, as soon as its gradients are whole, and free them: less
    memory by nearly all gradients, the same bits. Rules out clipping, several micro-batches in a step, and several
    ranks; and a gradient that isn't finite ends the run, as part of its step was taken: max_bad_steps must be 1."""
    attention: str = "auto"
    """Kernel of the UNet's attention: math, efficient (memory-efficient, in float32 three TF32 products for one),
    flash or cudnn (both in bfloat16, in a tf32 run too), or flex (compiled, TF32). auto is efficient in tf32 and fp32
    and, in bf16, cudnn on Hopper and newer cards and flash on others; on the CPU it is torch's own kernel."""
    channels_last: str = "auto"
    """Whether the UNet's and the autoencoder's convolutions keep their channels innermost in memory: on, off, or
    auto, which is on for a GPU and off for the CPU."""
    compile: str = "none"
    """What torch.compile compiles: none, or blocks, the UNet's residual and transformer blocks in training steps.
    Validation and sampling are never compiled."""
    deterministic: bool = False
    """Only kernels that give the same bits on every run of the same machine: torch's deterministic algorithms, and
    for attention not cudnn or flex. An operation that has no such kernel ends the run."""
    reduction: str = "fast"
    """How gradients are summed over ranks: fast (by the library's own all-reduce or reduce-scatter) or ordered (one
    micro-batch after the other in global order, with one thread unless `threads` says more: the same bits on any
    number of ranks and under any sharding)."""
    sharding: str = "replicate"
    """How the UNet and what is trained with it lie on the ranks: replicate (whole on each, DDP), shard (divided among
    all, FSDP2) or hybrid (divided among the ranks of a node and the same on every node)."""
    zero1: bool = False
    """With sharding replicate: divide AdamW's moments and the moving averages among the ranks (ZeRO stage 1)."""
    ranks_per_node: int = 0
    """Ranks among which hybrid sharding divides; 0 for as many as torchrun started on this node."""
    checkpoint_every: int = 1000
    """Optimizer steps between checkpoints; the last step always writes one."""
    activation_checkpointing: Recompute = "none"
    """What the UNet's blocks compute again in the backward pass instead of keeping it: none, cheap (norms,
    activations and GEGLU, but no matrix product, convolution or attention) or full (whole blocks). Less memory, the
    same gradients."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep; 0 keeps all. Older ones are deleted once a new one is committed."""
    keep_every: int = 0
    """Checkpoints at multiples of this many optimizer steps are never deleted; 0 for none."""
    save_async: bool = False
    """Write checkpoints while training goes on: each rank copies what it will write to the CPU's memory, as many
    bytes as its files have, and a thread writes that. One at a time: a save that is due waits for the one before, and
    raises its errors. Until one is committed those before it stay, and a run that dies goes on from the newest."""
    validate_every: int = 1000
    """Optimizer steps between measurements of the held-out loss, which is also measured at the first and last
    step."""
    sample_every: int = 0
    """Optimizer steps between sample grids of the fixed prompts; 0 for none."""
    log_every: int = 10
    """Optimizer steps between rows of metrics.jsonl."""
    max_bad_steps: int = 10
    """Steps in a row whose loss or gradient is not finite, after which the run ends. Each of them is skipped: it
    changes neither weights nor moments nor averages."""
    step_timeout: float = 600.0
    """Seconds that a training step may take on any rank: after that, a rank that has stopped is named and the run
    ends (exit code 69). Preparing, measuring, sampling and saving do not count. 0 for no limit."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the package tensorboard)."""
    wandb_project: str = ""
    """Also log to this Weights & Biases project (needs the package wandb); empty for none."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "validate_every", "log_every",
                     "max_bad_steps"):  # fmt: skip
            check_at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("pixel_budget", "micro_batches", "keep_checkpoints", "keep_every", "sample_every", "threads",
                     "ranks_per_node"):  # fmt: skip
            check_at_least(f"train.{name}", getattr(self, name), 0)
        check_at_least("train.step_timeout", self.step_timeout, 0)
        check_at_most("train.threads", self.threads, MOST_THREADS)
        check_seed("train.seed", self.seed)
        if not self.out.isprintable():  # what the tokenizers write goes through UTF-8
            raise InputError(f"train.out {self.out!r} is not UTF-8, or holds control characters; rename it")
        check_fraction("train.caption_dropout", self.caption_dropout)
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"train.ema_decay {self.ema_decay} is outside [0, 1)")
        check_choice(
            "train.activation_checkpointing", str(self.activation_checkpointing), get_args(Recompute)
        )
        check_choice("train.backend", self.backend, ("reference", "kernel"))
        check_choice("train.device", self.device, ("auto", "cpu", "cuda"))
        check_choice("train.precision", self.precision, ("tf32", "fp32", "bf16"))
        check_choice("train.weight_dtype", self.weight_dtype, ("fp32", "bf16"))
        check_choice("train.reduction", self.reduction, ("fast", "ordered"))
        check_choice("train.sharding", self.sharding, ("replicate", "shard", "hybrid"))
        if self.zero1 and self.sharding != "replicate":
            raise InputError(
                f"train.zero1 divides the optimizer's state of replicated weights, and train.sharding "
                f"{self.sharding!r} divides it already; set one of the two"
            )
        if self.ranks_per_node and self.sharding != "hybrid":
            raise InputError(
                f"train.ranks_per_node {self.ranks_per_node} is for train.sharding 'hybrid' alone, not "
                f"{self.sharding!r}; leave it at 0"
            )
        check_choice("train.attention", self.attention, ("auto", *ATTENTION_KERNELS))
        check_choice("train.channels_last", self.channels_last, ("auto", "on", "off"))
        check_choice("train.compile", self.compile, ("none", "blocks"))
        if self.precision == "fp32" and self.attention in BFLOAT16_KERNELS:
            raise InputError(
                f"train.attention {self.attention!r} computes in bfloat16, which train.precision 'fp32' rules out; "
                "use efficient or math, or precision tf32"
            )
        if self.deterministic and self.attention not in ("auto", *DETERMINISTIC_KERNELS):
            raise InputError(
                f"train.attention {self.attention!r} is not deterministic; use auto, "
                f"{', '.join(DETERMINISTIC_KERNELS)}, or train.deterministic = false"
            )
