"""Where the networks run, and in what precision (N §4)."""

import torch
from torch import Tensor, nn

from refimpl.run.config import TrainConfig
from refimpl.train.step import Network


def set_arithmetic(settings: TrainConfig) -> None:
    """Sets, for this process, whether float32 products may use TF32."""
    allowed = settings.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def in_precision(network: nn.Module, settings: TrainConfig, device: torch.device) -> Network:
    """The network under autocast to bfloat16 where the settings ask for it; noise and loss stay in float32."""

    def call(x: Tensor, t: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            return network(x, t, context, vector)

    return call
