"""Tests of refimpl.paper.trained.recipe."""
