"""torch.compile of the UNet's blocks: few graphs, none of them left to chance (N §4).

A graph with fixed shapes is the fastest, but every bucket has shapes of its own. Transformer blocks see a bucket only
through its number of tokens, of which the 40 buckets of SDXL have 14. So a level's transformers get a graph for each
number of tokens where at most MOST_GRAPHS are compiled in all, the deepest level first, as it has most blocks;
elsewhere one graph takes any number. A residual block has one graph for each pair of channels and takes any size.
The number of text chunks never makes a graph. Compiled are the forward and backward passes of training alone: without
gradients, as in validation and sampling, a block runs as it is written.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from refimpl.errors import InputError
from refimpl.model.attention import SpatialTransformer
from refimpl.model.attention_options import transformers
from refimpl.model.blocks import ResBlock
from refimpl.model.unet import UNet
from refimpl.run.config import Config
from refimpl.run.stage import images_at

BACKEND: str | Callable[..., Any] = "inductor"
MOST_GRAPHS = 30  # each takes seconds to tens of seconds to compile
RECOMPILE_LIMIT = (
    64  # per class of blocks; a frozen network under adapters needs a few graphs more than MOST_GRAPHS
)

Size = tuple[int, int, int]  # images, latent height and latent width of a micro-batch


def compile_blocks(unet: UNet, sizes: Iterable[Size]) -> None:
    """Compiles, when it is first called, every residual and transformer block, in place; keys stay as they are.

    sizes  every size that the run will train on
    From then on, in this process, a graph too many is an error where torch would silently stop compiling.
    """
    import torch._dynamo
    from torch.fx.experimental import _config as symbols

    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.optimize_ddp = False  # it would cut a block's graph at the borders of DDP's buckets
    symbols.use_duck_shape = False  # sides that are equal in the first bucket are not so in the next
    static = static_levels(unet, sizes)
    for transformer, level in transformers(unet):
        transformer.register_forward_pre_hook(_any_text_length)
        for block in transformer.transformer_blocks:
            _compile(block, dynamic=level not in static)
    for block in unet.modules():
        if isinstance(block, ResBlock):
            _compile(block, dynamic=True)


def static_levels(unet: UNet, sizes: Iterable[Size]) -> set[int]:
    """The levels whose transformers get a graph for each batch and number of tokens (level 0 is the widest map)."""
    sizes = list(sizes)
    levels = {level for _, level in transformers(unet)}
    left = MOST_GRAPHS - len(_channel_pairs(unet)) - len(levels)
    static = set()
    for level in sorted(levels, reverse=True):
        more = len({(images, tokens(height, width, level)) for images, height, width in sizes}) - 1
        if more <= left:
            static.add(level)
            left -= more
    return static


def tokens(height: int, width: int, level: int) -> int:
    """Cells of a level's feature map, whose sides are halved `level` times and rounded up."""
    return math.ceil(height / 2**level) * math.ceil(width / 2**level)


def training_sizes(config: Config) -> set[Size]:
    """The sizes of all micro-batches of all stages."""
    factor = config.vae.factor
    return {
        (images_at(config.train, stage, (width, height)), height // factor, width // factor)
        for stage in config.all_stages()
        for width, height in stage.buckets.sizes()
    }


def check_compiler(device: torch.device) -> None:
    """Raises InputError, saying what is missing, unless a graph can be compiled for this device."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        torch.compile(_probe, backend=BACKEND, fullgraph=True)(torch.ones(2, device=device))
    except (TorchDynamoException, RuntimeError, ImportError) as error:
        reason = " ".join(
            str(error).strip().split("\n")[:2]
        )  # dynamo names the backend first, then the error
        raise InputError(
            f"train.compile 'blocks' cannot compile for {device} here: {reason}; install what it names, or use "
            "train.compile none"
        ) from error


def _probe(x: Tensor) -> Tensor:
    return torch.sin(x) + x


def _compile(block: nn.Module, dynamic: bool) -> None:
    from torch._dynamo.exc import FailOnRecompileLimitHit

    written = block.forward
    compiled = torch.compile(written, fullgraph=True, dynamic=dynamic, backend=BACKEND)

    def forward(*inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return written(*inputs)
        try:
            return compiled(*inputs)
        except FailOnRecompileLimitHit as error:
            raise InputError(
                f"train.compile 'blocks' needs more than {RECOMPILE_LIMIT} graphs of {type(block).__name__}; use "
                "fewer batch sizes, or train.compile none"
            ) from error

    block.forward = forward


def _any_text_length(_: SpatialTransformer, inputs: tuple[Tensor, Tensor]) -> None:
    """Lets one graph take any number of text states."""
    import torch._dynamo

    if torch.is_grad_enabled():
        torch._dynamo.maybe_mark_dynamic(inputs[1], 1)


def _channel_pairs(unet: UNet) -> set[tuple[int, int]]:
    """Channels in and out of every residual block."""
    blocks = [block for block in unet.modules() if isinstance(block, ResBlock)]
    first = [block.in_layers.get_parameter("2.weight") for block in blocks]
    return {(weight.shape[1], weight.shape[0]) for weight in first}
