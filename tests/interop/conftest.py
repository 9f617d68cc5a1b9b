"""The data and the run that the training tests use."""

from tests.train.conftest import one_thread, root, trained

__all__ = ["one_thread", "root", "trained"]
