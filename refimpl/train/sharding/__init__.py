"""How weights, optimizer state and gradients are divided among ranks (N §4: 256 GPUs is the design point)."""
