"""ComfyUI as a library on the CPU, for the scripts beside this file."""

import logging
import sys
from pathlib import Path

from tests.peers.stand_ins import stand_in_for


class Log(logging.Handler):
    """What ComfyUI says while it loads: it reports missing and unexpected tensors nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the message."""
        self.lines.append(record.getMessage())

    def telling(self, *phrases: str) -> list[str]:
        """The messages with any of these phrases, shortened."""
        return [line[:400] for line in self.lines if any(phrase in line.lower() for phrase in phrases)]


def begin(folder: str) -> Log:
    """Makes `comfy` importable, without a GPU; returns what listens to it from here on."""
    stand_in_for("torchvision", "torchaudio", "kornia", "spandrel", "av", "sentencepiece")
    sys.path.insert(0, str(Path(folder)))
    sys.argv = sys.argv[:1]
    import comfy.cli_args
    import utils.install_util  # as main.py does: nodes.py puts another `utils` before it

    assert utils.install_util
    comfy.cli_args.args.cpu = True
    log = Log()
    logging.getLogger().addHandler(log)
    logging.getLogger().setLevel(logging.DEBUG)
    return log
