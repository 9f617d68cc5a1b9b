"""Where the networks run, and how: precision, attention kernel, memory format, compilation (N §4)."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from refimpl.errors import InputError
from refimpl.model.attention import Attention
from refimpl.model.dot_product import check_attention, dot_product, resolve_attention
from refimpl.model.pipeline import Model
from refimpl.model.projections import keeping_casts
from refimpl.model.unet import UNet
from refimpl.run.config import Config, TrainConfig
from refimpl.train.setup.compiled_blocks import check_compiler, compile_blocks, training_sizes
from refimpl.train.step import Network

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_REPEATABLE = (
    ":4096:8",
    ":16:8",
)  # workspaces with which cuBLAS gives the same bits (its documentation, §2.1.4)


class Placement(NamedTuple):
    """What a run computes with, every "auto" decided."""

    device: torch.device
    backend: str  # of refimpl.ops
    precision: str
    weight_dtype: str
    attention: str  # a kernel of refimpl.model.dot_product
    memory_format: torch.memory_format
    compile: str
    deterministic: bool
    ranks: int = 1
    sharding: str = "replicate"

    def __str__(self) -> str:
        """The first line of a run's log."""
        device = str(self.device)
        if self.device.type == "cuda":
            device += f" ({torch.cuda.get_device_name(self.device)})"
        last = self.memory_format == torch.channels_last
        return ", ".join(
            [
                f"device {device}",
                f"backend {self.backend}",
                f"precision {self.precision}",
                *(["weights kept in bf16"] if self.weight_dtype == "bf16" else []),
                f"attention {self.attention}",
                "channels last" if last else "channels first",
                f"compile {self.compile}",
                *(["deterministic"] if self.deterministic else []),
                *([f"{self.ranks} ranks", f"sharding {self.sharding}"] if self.ranks > 1 else []),
            ]
        )


def resolve(settings: TrainConfig, device: torch.device, ranks: int = 1) -> Placement:
    """What the settings come to on a device, on one rank of several."""
    last = settings.channels_last == "on" or (settings.channels_last == "auto" and device.type != "cpu")
    return Placement(
        device,
        settings.backend,
        settings.precision,
        settings.weight_dtype,
        resolve_attention(settings.attention, device, settings.precision, settings.deterministic),
        torch.channels_last if last else torch.contiguous_format,
        settings.compile,
        settings.deterministic,
        ranks,
        settings.sharding + (" with zero1" if settings.zero1 else ""),
    )


def check_placement(config: Config, device: torch.device) -> None:
    """Raises InputError when this machine cannot run the attention, compile the blocks or repeat its bits.

    To be called before anything is computed on a GPU: cuBLAS reads its workspace's setting once.
    """
    placement = resolve(config.train, device)
    if placement.deterministic and device.type == "cuda":
        workspace = os.environ.setdefault(CUBLAS_WORKSPACE, CUBLAS_REPEATABLE[0])
        if workspace not in CUBLAS_REPEATABLE:
            raise InputError(
                f"train.deterministic: the environment has {CUBLAS_WORKSPACE}={workspace}, with which cuBLAS may "
                f"differ from run to run; unset it, or set it to {' or '.join(CUBLAS_REPEATABLE)}"
            )
    check_attention(placement.attention, device, placement.precision, config.unet.head_dim)
    if placement.compile == "blocks":
        check_compiler(device)


def place(model: Model, config: Config, device: torch.device) -> None:
    """Gives the networks their memory format and the UNet its attention kernel, and has its blocks compiled.

    After the adapters are in their places, and before anything is made after the weights: the optimizer's moments and
    the moving average have the weights' memory format. Under ordered reduction the UNet's weights stay contiguous,
    and only its activations have the format.
    """
    placement = resolve(config.train, device)
    # Divided weights lie contiguous (FSDP2), and a convolution may round otherwise for another order of its weight.
    # So where every sharding is to give the same bits, they lie contiguous under each.
    same_bits = config.train.reduction == "ordered"
    for network in [model.vae] if same_bits else [model.unet, model.vae]:
        network.to(memory_format=placement.memory_format)  # pyright: ignore[reportCallIssue]
    for module in model.unet.modules():
        if isinstance(module, Attention):
            module.dot_product = dot_product(placement.attention)
    if placement.compile == "blocks":
        compile_blocks(model.unet, training_sizes(config))


def set_weight_dtype(unet: UNet, settings: TrainConfig) -> None:
    """Rounds the UNet's matrices and kernels to what they are kept in, before adapters are added to it.

    A UNet that keeps bfloat16 computes under autocast wherever it is called, in validation and sampling too.
    """
    if settings.weight_dtype != "bf16":
        return
    keep_in_bfloat16(unet)
    written = unet.forward

    def forward(x: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return written(x, t, context, vector)

    unet.forward = forward


def keep_in_bfloat16(unet: UNet) -> None:
    """Rounds the matrices and kernels to nearest, in place.

    Vectors stay float32: norms are computed in float32, and they are a thousandth of the weights.
    """
    for parameter in unet.parameters():
        if parameter.ndim >= 2:
            parameter.data = parameter.data.to(torch.bfloat16)


def set_arithmetic(settings: TrainConfig) -> None:
    """Sets, for this process, whether float32 products may use TF32.

    A run in bf16 allows it too, for what autocast leaves in float32: the autoencoder, whose published weights lose
    visible detail in bfloat16, and the frozen towers.
    """
    allowed = settings.precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    torch.use_deterministic_algorithms(settings.deterministic)
    # Filling new memory would show a read before a write; the algorithms are as deterministic without it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def casting_once(settings: TrainConfig, device: torch.device) -> Iterator[None]:
    """Within it, autocast casts each trained weight once: for all micro-batches, and for what is computed again.

    It has to end before the weights change. Until then the casts are kept, as long as the outermost autocast lasts:
    whole on every rank, so divided weights are cast anew in each pass.
    """
    is_cast = "bf16" in (settings.precision, settings.weight_dtype)
    if not is_cast or settings.sharding != "replicate":
        yield
        return
    with torch.autocast(device.type, enabled=False), _nested_in_backward(device), keeping_casts():
        yield


@contextlib.contextmanager
def _nested_in_backward(device: torch.device) -> Iterator[None]:
    """Within it, the autocasts of a backward pass that computes again are no outermost ones.

    On a GPU the backward pass has a thread of its own, torch counts the nesting of autocasts by thread, and the end
    of a thread's outermost one drops the casts of all threads.
    """
    start, grad = torch.empty((), device=device, requires_grad=True), torch.empty((), device=device)

    def in_backward(function: Callable[[], int]) -> None:
        def hook(grad: Tensor) -> None:
            function()

        end = start.view(())  # nothing is computed
        end.register_hook(hook)
        torch.autograd.grad(end, start, grad)

    in_backward(torch.autocast_increment_nesting)
    try:
        yield
    finally:
        in_backward(torch.autocast_decrement_nesting)


def in_precision(network: nn.Module, settings: TrainConfig, device: torch.device) -> Network:
    """The network under autocast to bfloat16 where the settings ask for it; noise and loss stay in float32.

    Its activations have the memory format of `place`, its output is contiguous.
    """
    memory_format = resolve(settings, device).memory_format

    def call(x: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            return network(x.contiguous(memory_format=memory_format), t, context, vector).contiguous()

    return call
