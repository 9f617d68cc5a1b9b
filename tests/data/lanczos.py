"""The mark of tests that need torch's Lanczos filter for uint8, which torch has had since 2.13."""

import pytest

from refimpl.data.images.lanczos import check_torch_lanczos
from refimpl.errors import InputError


def _is_there() -> bool:
    try:
        check_torch_lanczos()
    except InputError:
        return False
    return True


needs_lanczos = pytest.mark.skipif(not _is_there(), reason="this torch has no Lanczos filter for uint8")
