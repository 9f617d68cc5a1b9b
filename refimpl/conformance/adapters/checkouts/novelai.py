"""Adapter of NovelAI's published aspect-ratio bucketing, read from a checkout."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refimpl.conformance.adapter import Adapter, Batch, Size
from refimpl.conformance.adapters.checkouts.checkout import Checkout

COMMIT = "6e977c5475c0fbe0768aaa3da41906e02628ed3b"
FILE = "bucketmanager.py"
FIELDS = {"f": 8, "max_ar_error": 4, "debug": False}  # as its __init__ sets them
SIZE = (768, 512)  # of its default, whose tokens of 8 × 8 pixels are the limit


class NovelAIBucketing(Adapter):
    """BucketManager, without the pickle that it is made from."""

    name = "NovelAI bucketing"

    def __init__(self) -> None:
        self.code = Checkout("NovelAI/novelai-aspect-ratio-bucketing", COMMIT)
        self.version = self.code.version
        self.manager: Any = self.code.take(FILE, "BucketManager", "get_prng", np=np).BucketManager
        self.prng: Any = self.code.take(FILE, "get_prng", np=np).get_prng

    def link(self, method: str) -> str:
        """The line of the function that the method calls."""
        called = {"buckets": "gen_buckets", "assign": "assign_buckets", "epoch": "start_epoch"}
        return self.code.link(FILE, "BucketManager", called[method]) if method in called else ""

    def buckets(self, max_area: int, max_side: int, min_side: int, step: int) -> Sequence[Size]:
        """gen_buckets; its extra 512×512 is left in."""
        made = self._made(max_tokens=max_area / 64, div=step, min_dim=min_side, dim_limit=max_side)
        return [(int(width), int(height)) for width, height in made.resolutions]

    def assign(self, sizes: Sequence[Size]) -> Sequence[Size | None]:
        """assign_buckets, with the default buckets."""
        made = self._made()
        made.res_map = dict(enumerate(sizes))
        made.assign_buckets()
        found: list[Size | None] = [None] * len(sizes)
        for bucket, ids in made.buckets.items():
            width, height = made.resolutions[bucket]
            for i in ids:
                found[i] = (int(width), int(height))
        return found

    def epoch(
        self, bucket_of: Sequence[int], batch_size: int, world_size: int, seed: int, epoch: int
    ) -> Sequence[Sequence[Batch]]:
        """The generator of each rank, after as many epochs as come before this one."""
        return [
            self._rank(bucket_of, batch_size, world_size, rank, seed, epoch) for rank in range(world_size)
        ]

    def _rank(
        self, bucket_of: Sequence[int], batch_size: int, world_size: int, rank: int, seed: int, epoch: int
    ) -> list[Batch]:
        made = self._made(bsz=batch_size, world_size=world_size, global_rank=rank)
        # the lines of its __init__ that seed the draws
        made.prng = self.prng(seed)
        made.epoch_prng = self.prng(made.prng.tomaxint() % (2**32 - 1))
        made.res_map = {i: made.resolutions[bucket] for i, bucket in enumerate(bucket_of)}
        made.buckets = {b: [i for i, own in enumerate(bucket_of) if own == b] for b in sorted(set(bucket_of))}
        for _ in range(epoch + 1):
            made.start_epoch()
        return [(tuple(map(int, size)), [int(i) for i in ids]) for ids, size in made.generator()]

    def _made(self, **fields: Any) -> Any:
        """A manager with the default fields and these, and the buckets that they make."""
        made = object.__new__(self.manager)
        default = {"max_tokens": SIZE[0] * SIZE[1] / 64, "div": 64, "min_dim": 256, "dim_limit": 1024}
        made.__dict__ |= FIELDS | {"base_res": (512, 512)} | default | fields
        made.gen_buckets()
        return made
