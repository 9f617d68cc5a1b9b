"""A folder put on a Hugging Face hub, or on another server that speaks its API, through huggingface_hub."""

import re
from pathlib import Path
from types import ModuleType

from refimpl.errors import InputError
from refimpl.packages import install_line

REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
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
    if not REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise InputError(f"{repo!r} is not the name of a repository; give USER/NAME, as in alice/my-model")


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
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and api.repo_info(repo).private is False:
            raise InputError(f"{repo} exists and is public; say --public, or name another repository")
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            _told(error, repo, api.endpoint, token)
        ) from None  # its traceback may hold the token
    return f"{api.endpoint}/{repo}"


def _told(error: Exception, repo: str, endpoint: str, token: str) -> str:
    """One line about what went wrong."""
    reason = " ".join(str(error).split()).replace(token, "…")[:300]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{endpoint} refuses the token for {repo} ({status}); use one that may write there: `hf auth login`"
    if status is not None:
        return f"{endpoint} refuses {repo}: {reason}"
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in NETWORK:
        return (
            f"can't reach {endpoint} ({type(error).__name__}: {reason}); look at the network and call again"
        )
    return f"{repo} could not be uploaded ({type(error).__name__}: {reason})"
