"""Checks of what the network is told: token rows, pooled states, sizes, and the markers in files."""
