"""Batches of pixels, read ahead by worker processes."""
