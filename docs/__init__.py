"""The documentation; a package so that `docs.ext` is found here, and not in some other `docs` that is installed."""
