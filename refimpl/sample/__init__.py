"""Noise → images: grids, guidance, samplers (N §2.3, §5, App. A)."""
