"""The devices of the kernels' tests."""

from tests.ops.conftest import device as device
