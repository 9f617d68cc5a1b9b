"""The MLP of the timestep embedding and of the vector conditioning, whose sum the residual blocks get (S §2.2)."""

from torch import nn


class EmbeddingMLP(nn.Sequential):
    """Linear, SiLU, Linear: [B, in] → [B, out]; keys 0 and 2."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(
            nn.Linear(in_features, out_features), nn.SiLU(), nn.Linear(out_features, out_features)
        )
