"""Shapes and names of the networks in files."""
