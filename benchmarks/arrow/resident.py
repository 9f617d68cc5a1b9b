"""Memory of this process."""


def resident(line: str = "VmRSS") -> int:
    """Bytes in memory: `VmRSS` with the pages of mapped files, `RssAnon` without any file's."""
    with open("/proc/self/status") as file:
        return next(1024 * int(text.split()[1]) for text in file if text.startswith(line))
