"""Checks of the preconditioner, the first step, the noise grids and guidance."""
