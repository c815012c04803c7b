"""From pairs, as people write them, to questions about endpoints; and which Services they are about."""

from collections.abc import Iterator

from tasks.skoop.errors import RequestError
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.packet import Protocol
from tasks.skoop.naming import NoAddressError, PortError
from tasks.skoop.specs import Pair


class PairError(RequestError):
    """One of several questions cannot be asked as it is written."""

    def __init__(self, position: int, pair: Pair, problem: str) -> None:
        self.position = position
        self.pair = pair
        self.problem = problem
        super().__init__(f"question {position + 1} ({pair.src} to {pair.dst}): {problem}")


def questions_of(ipcache: IPCache, pairs: tuple[Pair, ...], position: int) -> tuple[Question, ...]:
    """Return what the pair at that position asks: one question for each source and destination that its names mean.

    Raises RequestError; with several pairs it says which one.
    """
    pair = pairs[position]
    try:
        sources, destinations = _ends(ipcache, pair)
        return tuple(_question(pair, src, dst) for src in sources for dst in destinations)
    except RequestError as error:
        if len(pairs) == 1:
            raise
        raise PairError(position, pair, str(error)) from error


def services_asked(ipcache: IPCache, question: Question) -> Iterator[str]:
    """Yield the keys of the Services that a question is about: by one of their addresses, or by a node port."""
    dst = question.dst
    for service in ipcache.services_by_ip.get(dst.ip, ()):
        yield service.key
    if dst.port:
        for service in ipcache.state.objects.services:
            if any(port.node_port == dst.port for port in service.ports):
                yield service.key


def _ends(ipcache: IPCache, pair: Pair) -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...]]:
    """Return sources and destinations, all of one family: the pair's, else IPv4 where both ends have it, else IPv6."""
    refused: NoAddressError | None = None
    for family in (pair.family,) if pair.family else (4, 6):
        try:
            sources = ipcache.resolve(pair.src, family=family)
            return sources, ipcache.resolve(pair.dst, port=pair.dport or None, family=family)
        except NoAddressError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _question(pair: Pair, src: Endpoint, dst: Endpoint) -> Question:
    if pair.proto != "icmp" and not dst.port:
        raise PortError(pair.dst, f"{pair.proto} needs one and none was given; name it, as in {pair.dst}:80")
    return Question(
        src=src,
        dst=dst,
        protocol=Protocol(pair.proto),
        sport=pair.sport,
        payload_bytes=pair.payload_bytes,
        df=pair.df,
    )
