"""Other people's implementations that the tests compare with, loaded as the conformance suite loads them."""

import gzip
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from refimpl.conformance.adapters.stand_ins import k_diffusion
from refimpl.text.tiny_vocabulary import BOS, EOS

__all__ = ["k_diffusion", "open_clip_tokenizer", "write_clip_vocabulary"]


@lru_cache(maxsize=1)
def open_clip_tokenizer() -> ModuleType:
    """open_clip/tokenizer.py alone: the package itself imports torchvision. Fails where it is not installed."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None, "open_clip is not installed: pip install --no-deps open_clip_torch ftfy wcwidth"
    assert spec.origin is not None
    path = Path(spec.origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_clip_vocabulary(folder: Path) -> None:
    """CLIP's own vocab.json and merges.txt, made of the merges in open_clip's wheel."""
    merges = gzip.decompress(Path(open_clip_tokenizer().default_bpe()).read_bytes()).decode("utf-8")
    special = {"<start_of_text>": BOS, "<end_of_text>": EOS}
    ids = open_clip_tokenizer()._tokenizer.encoder
    vocabulary = {special.get(token, token): number for token, number in ids.items()}
    used = merges.split("\n")[1 : 1 + len(ids) - 2 * 256 - len(special)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(used) + "\n", encoding="utf-8")
