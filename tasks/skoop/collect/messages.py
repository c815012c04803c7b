"""What the collecting process and its parent say to each other: MessagePack, each message after its length in 4 bytes.

The parent sends one `Request` per namespace; for each the child answers one `Answer`. The first message of the child is
its `Hello`.
"""

from typing import BinaryIO

import msgspec

from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import NetNS

MESSAGE_BYTES = 1 << 30


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A network namespace: its id, and the file by which it is entered."""

    id: NetnsId
    path: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Collect one namespace. `others` are where the far ends of its veths may be, the likeliest first."""

    place: Place
    others: tuple[Place, ...] = ()


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of the namespace, or why there is none."""

    id: NetnsId
    netns: NetNS | None = None
    error: str = ""


class Hello(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the child can work with; `error` if it cannot work at all."""

    tools: dict[str, str] = {}
    error: str = ""


def write_message(stream: BinaryIO, message: object) -> None:
    """Send one message. Raises OSError."""
    data = msgspec.msgpack.encode(message)
    stream.write(len(data).to_bytes(4, "little") + data)
    stream.flush()


def read_message(stream: BinaryIO) -> bytes | None:
    """Return one message undecoded, or None at the end of the stream. Raises EOFError for half a message."""
    head = stream.read(4)
    if not head:
        return None
    size = int.from_bytes(head, "little")
    data = stream.read(size) if len(head) == 4 and size <= MESSAGE_BYTES else b""
    if len(data) != size:
        raise EOFError
    return data
