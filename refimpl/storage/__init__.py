"""Folders that are whole or absent, and tensors in safetensors files."""
