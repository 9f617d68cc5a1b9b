"""What a docstring or message may not say: sources that no reader has, and phrases that no native speaker uses."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACKED = subprocess.run(
    ["git", "ls-files", "*.py", "*.md", "*.toml", "*.h", "*.cpp", "*.cu", "*.cuh"],
    cwd=ROOT, capture_output=True, text=True, check=False,
).stdout.split()  # fmt: skip
FILES = [ROOT / name for name in TRACKED] or [*ROOT.rglob("refimpl/**/*.py"), *ROOT.rglob("tests/**/*.py")]
FORBIDDEN = {
    r"\bspec \d": "cite the paper, the format or its documentation",
    r"\bspec of\b|\(spec[ :]|; spec ": "cite the paper, the format or its documentation",
    r"\bspec.md\b|\bdesign.md\b|design rule|house rule": "no user has that document",
    r"ours, no paper": "not from a paper",
    r"set apart by commas|apart by commas": "comma-separated",
    r"\bfor people\b": "human-readable",
    r"another of its bucket": "another image from its bucket",
    r"\blet in\b": "accepted",
    r"stands? for (?:it|them)\b": "replaces it",
    r"\bin first place\b": "as the first entry",
    r"\bstrictly falling\b|\bfalls? strictly\b": "strictly decreasing",
    r"\btakes? the \w+ for\b": "estimates",
    r"\btells? (?:no|nothing)\b": "does not determine",
    r"\bcomes in by\b": "the incoming gradient of",
    r"\bbit by bit\b": "bit for bit",
    r"\bnever holds? (?:the|its|a)\b": "never materialises",
    r"\bof no special kind\b": "arbitrary",
    r"\blayer but one\b": "penultimate",
}


@pytest.mark.parametrize("pattern", FORBIDDEN, ids=FORBIDDEN.get)
def test_no_text_says(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        if path != Path(__file__) and path.is_file()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert not found, f"say it otherwise ({FORBIDDEN[pattern]}):\n" + "\n".join(found)
