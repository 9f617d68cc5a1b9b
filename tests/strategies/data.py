"""Sizes of images, buckets, tags and ids of data sets."""

from hypothesis import strategies as st

# --- data: sizes, buckets, datasets ---

IMAGE_SIDES = (1, 2, 63, 64, 512, 513, 1024, 10_000, 65_535, 2**31 - 1)


def image_sizes(most: int = 60) -> st.SearchStrategy[list[tuple[int, int]]]:
    """(width, height) pairs: small ones, among which exact ties between buckets are common, and extreme ones."""
    side = st.integers(1, most) | st.sampled_from(IMAGE_SIDES)
    return st.lists(st.tuples(side, side), max_size=30)


def bucket_sets() -> st.SearchStrategy[list[tuple[int, int]]]:
    """Any buckets, small so that some share an aspect or an area; repeated ones and single ones among them."""
    return st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12)


@st.composite
def bucket_arguments(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(max_area, max_side, min_side, step) for which some bucket fits, sides off the step among them."""
    step = draw(st.sampled_from((1, 3, 8, 64)))
    shortest = draw(st.integers(1, 6))
    min_side = shortest * step - draw(st.integers(0, step - 1))
    max_side = (shortest + draw(st.integers(0, 10))) * step + draw(st.integers(0, step - 1))
    max_area = (shortest * step) ** 2 + draw(st.integers(0, 40 * step * step))
    return max_area, max_side, min_side, step


@st.composite
def bucketed_items(draw: st.DrawFn, least: int) -> list[int]:
    """Bucket of each item, at least `least` items: even, all in one bucket, in few, or one bucket each."""
    n = draw(st.integers(least, least + 40) | st.just(least))
    n_buckets = draw(st.sampled_from((1, 2, 5, max(n, 1))))
    return draw(st.lists(st.integers(0, n_buckets - 1), min_size=n, max_size=n))


def tags_by_class() -> st.SearchStrategy[dict[str, tuple[str, ...]]]:
    """Tags of one image: none, empty classes, repeated tags."""
    tags = st.lists(st.sampled_from("abcdefgh"), max_size=5).map(tuple)
    return st.dictionaries(st.sampled_from(("general", "character", "artist")), tags, max_size=3)


def image_ids() -> st.SearchStrategy[str]:
    """Ids that repeat, differ only in case, and sort otherwise in other encodings."""
    return st.sampled_from(("a", "A", "b", "a/b", "a-b", "\u00e9", "\u00c9", "\uffee", "\U0001f600"))
