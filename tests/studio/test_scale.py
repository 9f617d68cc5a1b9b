"""Six million images: how long a question takes, and what memory the studio holds while it answers."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from refimpl.data.index.index_file import Shaped, write_table
from tests.tolerances import QUERY_SECONDS, STUDIO_BYTES

IMAGES, TAGS, EACH = 6_000_000, 200_000, 10  # EACH: tags of an image
DIGITS = 8


def numbered(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and ends of the names 00000000, 00000001 and so on."""
    digits = (np.arange(count)[:, None] // 10 ** np.arange(DIGITS)[::-1]) % 10
    return (digits + ord("0")).astype(np.uint8).ravel(), np.arange(1, count + 1, dtype=np.int64) * DIGITS


def write_large_index(path: Path, images: int) -> None:
    """An index of made-up images; no picture is there."""
    draws = np.random.default_rng(0)
    names, ends = numbered(images)
    tag_names, tag_ends = numbered(TAGS)
    none, no_ends = np.empty(0, np.uint8), np.empty(0, np.int64)
    arrays = {
        **{f"{name}.bytes": names for name in ("id", "name", "caption")},
        **{f"{name}.ends": ends for name in ("id", "name", "caption")},
        **{f"{name}.bytes": none for name in ("bad_path", "bad_reason", "bad_kind")},
        **{f"{name}.ends": no_ends for name in ("bad_path", "bad_reason", "bad_kind")},
        "container": np.zeros(images, np.int32), "offset": np.full(images, -1, np.int64),
        "size": np.full(images, 1000, np.int64), "captioned": np.ones(images, np.uint8),
        "width": draws.integers(300, 3000, images).astype(np.int32),
        "height": draws.integers(300, 3000, images).astype(np.int32),
        "tag_name.bytes": tag_names, "tag_name.ends": tag_ends, "tag_class": np.zeros(TAGS, np.int32),
        "tag.ids": (draws.random(images * EACH) ** 3 * TAGS).astype(np.int32),
        "tag.ends": np.arange(1, images + 1, dtype=np.int64) * EACH,
    }  # fmt: skip
    columns: dict[str, Shaped] = {name: (array.dtype, array.shape, [array]) for name, array in arrays.items()}
    write_table(path, columns, {"containers": [["files", str(path.parent), "", 0]], "classes": ["general"]})


PROBE = """
import json, sys, time
from pathlib import Path
from refimpl.studio.browsed import browse
from tests.studio.asking import asking, data_settings

def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

began = time.process_time()
browsed = browse(Path(sys.argv[1]), data_settings())
found = {"open": time.process_time() - began, "images": len(browsed.flags)}
client = asking(Path(sys.argv[1]).parent, browsed)
queries = {"first": "", "far": "?from=5900000&count=200", "enlarged": "?problem=enlarged", "bucket": "?bucket=3",
           "tag": "?tag=00000007", "both": "?tag=00150000&enlarged=yes",
           "again": "?tag=00150000&enlarged=yes&from=9", "totals": None}
for name, query in queries.items():
    began = time.process_time()
    answer = client.get("/api/data" if query is None else "/api/data/rows" + query)
    found[name] = time.process_time() - began
    assert answer.status_code == 200, answer.text
found["resident"] = resident()
began = time.process_time()
browsed.count()
found |= {"count": time.process_time() - began, "counted": resident()}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_six_million_images_are_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "index"
    began = time.process_time()
    write_large_index(path, IMAGES)
    print(f"written in {time.process_time() - began:.1f} s, {path.stat().st_size / 1e9:.2f} GB")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(json.dumps(found))
    assert found["images"] == IMAGES
    for name in ("first", "far", "enlarged", "bucket", "tag", "both", "again", "totals"):
        assert found[name] < QUERY_SECONDS, name
    assert found["resident"] < STUDIO_BYTES
