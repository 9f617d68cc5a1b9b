"""Tables of the benchmarks' results, from their JSON."""

from benchmarks.summaries import counts_table, photographs_table


def test_photographs_are_counted_where_they_were_encoded() -> None:
    row = {"seconds": 61.4, "processor_seconds": 50.0, "peak_bytes": 3 * 2**30}
    result = {
        "images": 200,
        "buckets": 12,
        "cached_when_killed": 104,
        "rows": {"continued": row, "uninterrupted": row},
    }
    lines = photographs_table(result)
    assert lines[-2:] == ["| continued | 96 | 61 | 50 | 3.00 |", "| uninterrupted | 200 | 61 | 50 | 3.00 |"]
    assert photographs_table(None) == []


def test_counts_are_in_the_units_of_their_heads() -> None:
    row = {
        "precision": "bf16",
        "backend": "kernel",
        "activation_checkpointing": "none",
        "other_bytes": 196.44e9,
        "product_bytes": 197e9,
        "kept_bytes": 48 * 2**30,
        "calls": 6237,
    }
    lines = counts_table({"batch": 8, "side": 1024, "rows": [row]})
    assert lines[-1] == "| bf16 | kernel | none | 196.4 | 197.0 | 48.0 | 6,237 |"
    assert any("of 8 images of 1024²" in line for line in lines)
    assert counts_table(None) == []
