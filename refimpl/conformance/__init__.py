"""The property tests of this project, pointed at any trainer through an adapter."""

from refimpl.conformance.adapter import Adapter

__all__ = ["Adapter"]
