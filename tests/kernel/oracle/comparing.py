"""Does the simulator's account of a connection agree with what the kernel did, device by device? Pure.

Compared are, in order, the devices that the request, then its answer crossed, with the addresses, ports and TTL the packet
had there and the tunnel's outer addresses, and where and why it was thrown away. Ports that the kernel draws are free, but one
that is drawn stays the same all along. Of the simulator's possible outcomes one must agree.
"""

from collections.abc import Collection, Iterable, Iterator

from msgspec import Struct

from lab.prober import Attempt
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.diagnosis import Diagnosis, FlowOutcome
from tasks.skoop.model.packet import PROTOCOL_NUMBERS, Packet, Protocol
from tasks.skoop.model.trace import Outcome, Reason, View, Walk
from tasks.skoop.netstack.conntrack import Flow
from tests.kernel.oracle.paths import Hop, Leg, Story
from tests.kernel.oracle.reasons import meanings

Wires = Collection[tuple[str, str]]

_UNSEEN = {Reason.LISTEN_OVERFLOW, Reason.ECHO_IGNORED}
"""The kernel throws these away without telling."""
_BEYOND = {Reason.LINK_DOWN, Reason.PEER_MTU}
"""The simulator lets the packet arrive at the link's other end to be dropped there; the kernel drops it where it is sent."""
_FLOODED = (Reason.NO_TX_TARGET, "OTHERHOST")
"""A frame that a bridge does not know: to the simulator it has no target, the kernel shows it to all, and all throw it away."""
_ECHO = (Protocol.ICMP, Protocol.ICMPV6)


class Comparison(Struct, frozen=True, kw_only=True):
    """How they differ: `path` (devices and addresses), `place` (where and why it ended). `places`: drops that were judged."""

    path: tuple[str, ...] = ()
    place: tuple[str, ...] = ()
    places: int = 0

    @property
    def said(self) -> list[str]:
        """All differences as lines."""
        return [*self.path, *self.place]


def wires_of(state: ClusterState) -> Wires:
    """Return (namespace, device) of those ends of links at which the simulator tells of a packet: not bridges, tunnels, lo."""
    return frozenset(
        (name, link.name)
        for name, netns in state.netns.items()
        for link in netns.interfaces
        if link.kind in ("", "veth") and link.name != "lo"
    )


def compare(diagnosis: Diagnosis, story: Story, attempt: Attempt, wires: Wires) -> Comparison:
    """Return how the nearest of the simulator's outcomes differs from what the kernel did.

    Outcomes with the view that the client had come first; if none has it, all are looked at. `unknown` ones are not judged.
    """
    likely = [one for one in diagnosis.outcomes if one.client_sees == attempt.view] or list(diagnosis.outcomes)
    if not likely or any(one.client_sees == View.UNKNOWN for one in diagnosis.outcomes):
        return Comparison()
    return min((_against(one, story, attempt, wires) for one in likely), key=lambda found: len(found.said))


def courses_of(
    courses: Iterable[tuple[FlowOutcome, Flow]], story: Story, attempt: Attempt, wires: Wires
) -> list[tuple[FlowOutcome, Flow]]:
    """Return those of Diagnostor.connections that went the kernel's way and end as the client saw it."""
    return [
        (one, flow)
        for one, flow in courses
        if one.client_sees == attempt.view and not _against(one, story, attempt, wires).said
    ]


def _against(foretold: FlowOutcome, story: Story, attempt: Attempt, wires: Wires) -> Comparison:
    ports = _Ports(attempt)
    path: list[str] = []
    place: list[str] = []
    judged = 0
    for name, walk, leg in _legs(foretold, story):
        back = name == "reply" or (name == "data" and bool(leg.hops) and leg.hops[0].netns != attempt.ask.src)
        path += (f"{name}: {said}" for said in _ways(walk, leg, wires, ports, back=back))
        told, counted = _end(walk, leg)
        judged += counted
        if told:
            place.append(f"{name}: {told}")
    return Comparison(path=tuple(path), place=tuple(place), places=judged)


def _legs(foretold: FlowOutcome, story: Story) -> Iterator[tuple[str, Walk, Leg]]:
    yield "forward", foretold.forward, story.forward
    if foretold.reply is not None:
        yield "reply", foretold.reply, story.reply
    elif story.reply.hops and foretold.forward.error is None:
        yield "reply", Walk(outcome=Outcome.UNKNOWN, detail="no answer"), story.reply
    if foretold.data is not None and foretold.stalls and _starts_alike(foretold.data, story.data):
        yield "data", foretold.data, story.data


def _starts_alike(walk: Walk, leg: Leg) -> bool:
    """Say whether it is the same end's data: the simulator tells of one direction, and both may be lost."""
    return bool(leg.hops) and any(step.place.netns == leg.hops[0].netns for step in walk.steps[:1])


class _Ports:
    """Which of the kernel's ports stands for which of the simulator's, where they are drawn."""

    def __init__(self, attempt: Attempt) -> None:
        self._drawn: dict[int, int] = {}
        self._own = attempt.sport

    def same(self, foretold: int, real: int) -> bool:
        """Say whether a client's port can be the real one."""
        return self._drawn.setdefault(foretold, real) == real


def _ways(walk: Walk, leg: Leg, wires: Wires, ports: _Ports, *, back: bool) -> Iterator[str]:
    """Yield the first difference of two ways."""
    if walk.outcome == Outcome.UNKNOWN:
        yield f"kernel has {leg.hops[0]}, simulator {walk.detail}"
        return
    foretold = [
        (step.place.netns, step.place.dev, "out" if step.action == "send" else "in", step.packet)
        for step in walk.steps
        if step.action in ("send", "recv") and (step.place.netns, step.place.dev) in wires
    ]
    if foretold and walk.reason in _BEYOND and foretold[-1][2] == "in":
        foretold.pop()
    real = [hop for hop in leg.hops if (hop.netns, hop.dev) in wires]
    for number, ((netns, dev, way, packet), hop) in enumerate(zip(foretold, real, strict=False), 1):
        said = f"{netns} {dev} {way}"
        if (netns, dev, way) != (hop.netns, hop.dev, hop.way):
            yield f"hop {number}: kernel {hop}, simulator {said} {packet}"
            return
        if packet is not None and (wrong := _headers(packet, hop, ports, back=back)):
            yield f"hop {number}: {wrong}: kernel {hop}, simulator {said} {packet} ttl {packet.ttl}"
            return
    if len(foretold) > len(real):
        netns, dev, way, packet = foretold[len(real)]
        yield f"kernel's way ends after {len(real)} hops ({leg.drop}), simulator goes on to {netns} {dev} {way} {packet}"
    elif len(real) > len(foretold) and walk.reason not in _BEYOND and not _flooded(walk, leg):
        yield f"simulator's way ends after {len(foretold)} hops ({walk.place} {walk.reason}), kernel goes on to {real[len(foretold)]}"


def _headers(packet: Packet, hop: Hop, ports: _Ports, *, back: bool) -> str:
    """Return which field differs, or ""."""
    inner = packet
    if packet.encap is not None:
        if hop.outer != (packet.src, packet.dst):
            return "outer addresses"
        inner = packet.encap
    elif hop.outer[0]:
        return "tunnel"
    if PROTOCOL_NUMBERS.get(inner.protocol) != hop.protocol:
        return "protocol"
    if (inner.src, inner.dst) != (hop.src, hop.dst):
        return "addresses"
    if inner.ttl != hop.ttl:
        return "ttl"
    if inner.protocol in _ECHO:
        return ""
    mine, server = (
        ((inner.dport, hop.dport), (inner.sport, hop.sport))
        if back
        else ((inner.sport, hop.sport), (inner.dport, hop.dport))
    )
    if server[0] != server[1]:
        return "server's port"
    return "" if ports.same(*mine) else "client's port"


def _flooded(walk: Walk, leg: Leg) -> bool:
    return leg.drop is not None and (walk.reason, leg.drop.reason) == _FLOODED


def _end(walk: Walk, leg: Leg) -> tuple[str, int]:
    """Return how the ends differ ("" if they do not), and whether there was a drop to judge (0 or 1)."""
    stopped = walk.reason != Reason.NONE and walk.outcome not in (Outcome.DELIVERED, Outcome.UNKNOWN)
    drop = leg.drop
    ours = f"{walk.place} {walk.reason}"
    if drop is None:
        if not stopped or walk.reason in _UNSEEN or not leg.hops:
            return "", 0
        return f"kernel dropped nothing (last seen {leg.hops[-1]}), simulator {ours}", 1
    if not stopped:
        return f"kernel {drop}, simulator {walk.outcome}", 1
    if _flooded(walk, leg):
        return "", 1
    if walk.place is not None and walk.place.netns != drop.netns and walk.reason not in _BEYOND:
        return f"kernel {drop}, simulator {ours}", 1
    known = meanings(drop)
    if known and walk.reason not in known:
        return f"kernel {drop}, simulator {ours}", 1
    return "", 1
