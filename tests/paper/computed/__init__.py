"""Tests of refimpl.paper.computed."""
