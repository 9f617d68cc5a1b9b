"""What a picture of samples says about itself: its prompts and columns, which a run's settings may no longer name."""

import contextlib
from typing import Any

from PIL import Image

from refimpl.tables import parsed_json


def notes_of(image: Image.Image) -> dict[str, Any]:
    """What `refimpl.sample.images.picture_files.write_grid` has noted in a picture; empty where it has not.

    returns  prompts, a list with one for each row, and columns
    """
    with contextlib.suppress(ValueError, TypeError):
        found = parsed_json(image.info.get("refimpl", "{}"))
        if (
            isinstance(found, dict)
            and isinstance(found.get("prompts"), list)
            and type(found.get("columns")) is int
        ):
            return found
    return {}
