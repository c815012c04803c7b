"""What the steps of a diagnosis leave in the blob store beside the state: questions as they were asked, answers, suspicions."""

from collections.abc import Sequence

from msgspec import Struct
from pydantic import TypeAdapter

from tasks.skoop.context import Context
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.netnode import Link
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.specs import Pair


class Answered(Struct, frozen=True, kw_only=True):
    """The diagnosis of one question; `pair` is its pair's position in the list that was asked."""

    pair: int
    diagnosis: Diagnosis


class Answers(Struct, frozen=True, kw_only=True):
    """What a shard of questions gave, in order."""

    items: tuple[Answered, ...]


class Crossed(Struct, frozen=True, kw_only=True):
    """What may stop packets between two places; `link` is their source, destination, and the packet's address on the way."""

    link: tuple[str, str, Ip]
    suspicions: tuple[Suspicion, ...]

    @staticmethod
    def key(link: Link) -> tuple[str, str, Ip]:
        """Return what tells a link from others."""
        return link.source, link.destination, link.packet.dst


class Suspicions(Struct, frozen=True, kw_only=True):
    """What looks wrong in places (`items`) and between them (`crossed`)."""

    items: tuple[Suspicion, ...]
    crossed: tuple[Crossed, ...] = ()


def pairs_json(pairs: Sequence[Pair]) -> bytes:
    """Return the content of the blob that lists pairs."""
    return TypeAdapter(tuple[Pair, ...]).dump_json(tuple(pairs))


def load_pairs(digest: str, context: Context) -> tuple[Pair, ...]:
    """Return the pairs that a blob lists; this process remembers them."""

    def read() -> tuple[tuple[Pair, ...], int]:
        content = context.blobs.get(digest)
        return TypeAdapter(tuple[Pair, ...]).validate_json(content), len(content)

    return context.memory.recall(("pairs", digest), read)
