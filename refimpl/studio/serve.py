"""The studio's process: its port, its token, and the server that answers until it is interrupted."""

import contextlib
import errno
import importlib.util
import secrets
import socket
import threading

from refimpl.errors import InputError
from refimpl.packages import install_line

HOST = "127.0.0.1"


def check_library() -> None:
    """Raises InputError where the server's packages are not installed."""
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"refimpl studio needs the {package} package: {install_line(package)}")


def listening(port: int) -> socket.socket:
    """A socket of this machine alone at a port, 0 for any that is free. Raises InputError when it is in use."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen(128)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} is in use; choose another with --port, or 0 for any") from error
        raise InputError(
            f"port {port}: {error.strerror}; choose another with --port, or 0 for any"
        ) from error
    return found


def serve(app: object, at: socket.socket) -> None:
    """Answers requests until SIGINT or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    with contextlib.suppress(KeyboardInterrupt), at:
        uvicorn.Server(config).run(sockets=[at])


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)


def in_background(what: object) -> None:
    """Calls a function without arguments in a thread that ends with the process."""
    assert callable(what)
    threading.Thread(target=what, daemon=True).start()
