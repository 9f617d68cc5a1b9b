"""Rows of the table of docs/claims.md by their names, such as N01: the letter of a source and a number."""

import re
from collections.abc import Collection

ROW = re.compile(r"\|\s*\**`?([NSR]\d\d)`?\**\s*\|")


def named(words: str) -> list[str]:
    """The claims that `N01 N06-N08` names, one by one. Raises ValueError for anything else."""
    names = []
    for word in words.split():
        match = re.fullmatch(r"([NSR])(\d\d)(?:-\1(\d\d))?", word)
        if not match:
            raise ValueError(f"{word!r} names no claim: write N01, or N06-N08")
        first, last = int(match[2]), int(match[3] or match[2])
        names += [f"{match[1]}{number:02}" for number in range(first, last + 1)]
    return names


def table_of(page: str, names: Collection[str]) -> list[str]:
    """The rows with these names, under the head of the table that they are in; empty where there are none."""
    lines: list[str] = []
    head: list[str] = []
    last_head: list[str] = []
    before = ""
    for line in page.splitlines():
        if re.fullmatch(r"\|[\s:|-]+\|", line):
            head = [before, line]
        match = ROW.match(line)
        if match and match[1] in names:
            lines += [line] if head == last_head else ["", *head, line]
            last_head = head
        before = line
    return lines[1:]
