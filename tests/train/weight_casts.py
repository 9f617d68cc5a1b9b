"""How often the weights of a network are cast, whoever casts them."""

from collections import Counter
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class WeightCasts(TorchDispatchMode):
    """Counts how often each parameter of a network is cast."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.names = {parameter.data_ptr(): name for name, parameter in network.named_parameters()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        source = {"_to_copy": 0, "copy_": 1}.get(func.overloadpacket.__name__)
        if source is not None and args[source].data_ptr() in self.names:
            self.counts[self.names[args[source].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))
