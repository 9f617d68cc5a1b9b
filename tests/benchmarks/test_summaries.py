"""Tables of the benchmarks' results, from their JSON."""

from benchmarks.summaries import photographs_table


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
