"""Tests of refimpl.paper.trained."""
