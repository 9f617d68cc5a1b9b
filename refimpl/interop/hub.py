"""A folder put on a Hugging Face hub, or on another server that speaks its API, through huggingface_hub."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from refimpl.errors import InputError
from refimpl.packages import install_line

PART = r"(?!-|\.)[A-Za-z0-9_.-]{1,96}(?<!-|\.)"  # as huggingface_hub takes user and name
REPO = re.compile(rf"{PART}/{PART}")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as hubs spell licences: openrail++, apache-2.0
SILENCE = 120.0  # seconds without a byte after which a hub is no longer waited for
NETWORK = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "requests",
    "urllib3",
    "hf_xet",
)  # whose errors mean: not reached


def check_repo(repo: str) -> None:
    """Raises InputError unless `repo` is user/name with letters, digits, `-`, `_` and `.`, as hubs take them."""
    if not REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise InputError(f"{repo!r} is not the name of a repository; give USER/NAME, as in alice/my-model")


def check_license(license: str) -> None:
    """Raises InputError unless a licence is spelt as hubs do."""
    if license and not LICENSE.fullmatch(license):
        raise InputError(
            f"--license {license!r} is not spelt as hubs do; give one as in openrail++ or apache-2.0"
        )


def check_endpoint(endpoint: str) -> None:
    """Raises InputError unless a hub's address, where one is given, is that of a web server."""
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or too large
        is_address = False
    if not is_address:
        raise InputError(f"--endpoint {endpoint!r} is not an address; give one as in https://huggingface.co")


def hub_library() -> ModuleType:
    """The package huggingface_hub. Raises InputError with the line that installs it where it is absent."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f"pushing needs huggingface_hub: {install_line('huggingface_hub')}") from error
    return huggingface_hub


def find_token() -> str:
    """The token that huggingface_hub finds: HF_TOKEN, or that of `hf auth login`; it is never printed.

    Raises InputError where there is none.
    """
    token = hub_library().get_token()
    if not token:
        raise InputError(
            "no token for the hub: call `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    return token


def upload(
    folder: Path, repo: str, token: str, message: str, public: bool = False, endpoint: str = ""
) -> str:
    """Uploads everything in a folder as one commit, and makes the repository first where there is none.

    public    make the repository public; one that exists is left as it is, but a public one must be asked for
    endpoint  address of the hub; empty for huggingface_hub's own (HF_ENDPOINT, or huggingface.co)
    returns   the model's address
    Raises InputError when the hub can't be reached or refuses, or the repository is public and `public` is false.
    """
    library = hub_library()
    api = library.HfApi(endpoint=endpoint or None, token=token)
    library.utils.get_session().timeout = SILENCE  # by default it waits for ever
    if not sys.stderr.isatty():
        library.utils.disable_progress_bars()
    try:
        if not _is_there(api, repo, public):
            api.create_repo(repo, private=not public)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            _told(error, repo, api.endpoint, token)
        ) from None  # its traceback may hold the token
    return f"{api.endpoint}/{repo}"


def _is_there(api: Any, repo: str, public: bool) -> bool:
    """Whether the hub has the repository. Raises InputError for a public one that was not asked for."""
    try:
        found = api.repo_info(repo)
    except Exception as error:
        if _status(error) == 404:
            return False
        raise
    if not public and found.private is False:
        raise InputError(f"{repo} exists and is public; say --public, or name another repository")
    return True


def _status(error: Exception) -> int | None:
    """The status that a hub answered with; None where it was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _told(error: Exception, repo: str, endpoint: str, token: str) -> str:
    """One line about what went wrong."""
    while type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what went wrong with one of several files
    reason = " ".join(re.sub(r"For more information check: \S+", "", str(error)).split())
    reason, status = reason.replace(token, "…")[:300], _status(error)
    if status in (401, 403):
        return f"{endpoint} refuses the token for {repo} ({status}); use one that may write there: `hf auth login`"
    if status is not None:
        later = "; call again later" if status == 429 or status >= 500 else ""
        return f"{endpoint} refuses {repo} ({status}): {reason}{later}"
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in NETWORK:
        return (
            f"can't reach {endpoint} ({type(error).__name__}: {reason}); look at the network and call again"
        )
    return (
        f"{repo} could not be uploaded ({type(error).__name__}: {reason}); is {endpoint} the address of a Hugging "
        "Face hub?"
    )
