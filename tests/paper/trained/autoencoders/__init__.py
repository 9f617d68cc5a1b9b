"""Tests of refimpl.paper.trained.autoencoders."""
