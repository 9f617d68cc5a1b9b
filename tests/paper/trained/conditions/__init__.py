"""Tests of refimpl.paper.trained.conditions."""
