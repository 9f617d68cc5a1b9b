"""Shapes of the networks in files, and the names of their tensors."""
