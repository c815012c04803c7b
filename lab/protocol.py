"""What the commands say to a running lab, and what it answers: one JSON line each way over a unix socket."""

import os
import socket
from pathlib import Path
from typing import Any

import msgspec

from lab.errors import LabFailed

CONTROL = "control"
_LIMIT = 64 << 20


def address_of(folder: Path) -> tuple[str, int]:
    """Return an address of the control socket short enough for AF_UNIX, and the descriptor that it needs while in use."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{fd}/{CONTROL}", fd


def ask(folder: Path, request: dict[str, Any], timeout_s: float) -> Any:  # noqa: ANN401  (JSON)
    """Send one request to the lab in `folder` and return its answer's `ok`.

    Raises LabFailed with what the lab said, ConnectionError or FileNotFoundError where none listens.
    """
    path, fd = address_of(folder)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(path)
            sock.sendall(msgspec.json.encode(request) + b"\n")
            answer = msgspec.json.decode(_line(sock))
    except TimeoutError as error:
        raise LabFailed(str(request.get("op")), f"the lab did not answer within {timeout_s:g} s") from error
    finally:
        os.close(fd)
    if "failed" in answer:
        raise LabFailed(str(request.get("op")), answer["failed"])
    return answer["ok"]


def _line(sock: socket.socket) -> bytes:
    came = bytearray()
    while not came.endswith(b"\n"):
        data = sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the lab closed the connection")
        came += data
        if len(came) > _LIMIT:
            raise LabFailed("asking the lab", "its answer is longer than 64 MiB")
    return bytes(came)
