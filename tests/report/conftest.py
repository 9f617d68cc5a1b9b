"""The data and the run that the training tests use."""

from tests.train.conftest import root, trained

__all__ = ["root", "trained"]
