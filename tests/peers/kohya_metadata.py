"""Kohya's own metadata tools on a folder of images. Arguments: checkout, images, file to write, cleaned file.

merge_captions_to_metadata.py takes the captions, merge_dd_tags_to_metadata.py the tags, clean_captions_and_tags.py
cleans both.
"""

import runpy
import sys

from tests.peers.checkouts import answer
from tests.peers.kohya import begin


def main() -> None:
    """Runs the three tools as a user does."""
    folder, images, out, cleaned = sys.argv[1:5]
    begin(folder)
    for tool, arguments in (
        (
            "merge_captions_to_metadata.py",
            [images, out, "--full_path", "--recursive", "--caption_extension", ".caption"],
        ),
        ("merge_dd_tags_to_metadata.py", [images, out, "--full_path", "--recursive", "--in_json", out]),
        ("clean_captions_and_tags.py", [out, cleaned]),
    ):
        sys.argv = [tool, *arguments]
        runpy.run_path(f"{folder}/finetune/{tool}", run_name="__main__")
    answer(done=True)


if __name__ == "__main__":
    main()
