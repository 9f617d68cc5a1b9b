"""Where the other tools are, at which commits they were tried, and how their code is run: in processes of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from refimpl.conformance.adapters.checkouts.checkout import FOLDER, Checkout
from refimpl.errors import InputError

COMMITS = {
    "Comfy-Org/ComfyUI": "a125cd84b054a57729b5eecab930ca9408719832",
    "kohya-ss/sd-scripts": "48d368fa557731ad0488c07304dfeba8c07910eb",
    "lllyasviel/stable-diffusion-webui-forge": "dfdcbab685e57677014f05a3309b48cc87383167",
    "lllyasviel/huggingface_guess": "84826248b49bb7ca754c73293299c4d4e23a548d",
    "AUTOMATIC1111/stable-diffusion-webui": "82a973c04367123ae98bd9abdf80d9eda9b910e2",
}
A1111_DEVELOPMENT = "5865da28d1800eea27b3a14979e788b17e010afe"
"""A1111's branch `dev` of October 2024, which reads the markers; its release 1.10.1 does not."""
OTHER_TRANSFORMERS = "REFIMPL_PEERS_TRANSFORMERS"
"""Names a folder with the version of transformers that kohya pins, and what it needs (`pip install --target`)."""
SECONDS = 1800
ROOT = Path(__file__).parents[2]


def checkout(repository: str) -> Checkout:
    """A checkout at its commit; the test is skipped, naming it, where it is absent or at another commit."""
    try:
        return Checkout(repository, COMMITS[repository])
    except InputError as error:
        pytest.skip(str(error))


def at_commit(repository: str, commit: str, files: Iterable[str], folder: Path) -> Checkout:
    """Some files of a checkout as another commit has them, written to a folder; skipped where git has no such commit.

    Git must have the commit's branch: a clone of the whole repository does.
    """
    place = folder / repository.partition("/")[2]
    for file in files:
        command = ["git", "-C", str(checkout(repository).path), "show", f"{commit}:{file}"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        if shown.returncode:
            pytest.skip(f"{repository} is not cloned with its commit {commit}: {shown.stderr.strip()}")
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(shown.stdout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        return Checkout(repository, commit)


def other_transformers() -> str:
    """The folder of kohya's version of transformers; the test is skipped where it is absent."""
    folder = os.environ.get(OTHER_TRANSFORMERS, "")
    if not folder or not Path(folder).is_dir():
        pytest.skip(
            f"{OTHER_TRANSFORMERS} names no folder with the transformers that kohya pins: see noxfile.py"
        )
    return folder


def run_in(script: str, tool: Checkout, *arguments: object, first_on_path: str = "") -> dict[str, Any]:
    """Runs tests/peers/<script>.py with the tool's folder as working directory; returns the JSON object it writes.

    first_on_path  a folder whose packages come before those that are installed
    Fails with the script's output when it does.
    """
    path = [first_on_path, str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", f"tests.peers.{script}", str(tool.path), *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def answer(**facts: Any) -> None:
    """What a script writes as its last line."""
    print(json.dumps(facts), flush=True)
