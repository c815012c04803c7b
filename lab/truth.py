"""Where did the kernel stop it? What a real try showed, boiled down to one place and one reason.

The client's view is what the prober saw. The place comes from what moved meanwhile (`watch`): the rule whose counter rose,
the last interface on which the packet was seen, the kernel's own counters, neighbours that were asked and did not answer.
It knows nothing of the simulator, so that the two can be compared. Where the traces allow more than one reading the place
says only the namespace and the last interface, with an empty reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lab.flow import Flow, split
from lab.plan import ClusterPlan
from lab.prober import Attempt, Icmp
from lab.watch import Evidence, RuleHit, Seen
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.trace import Place, Reason, Stage, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """One try: what the client saw, and where and why the kernel stopped the packet (None: it did not)."""

    attempt: Attempt
    place: Place | None = None
    reason: Reason = Reason.NONE
    direction: str = "forward"
    """forward, reply, or data (the connection stands, large packets are lost)."""
    evidence: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    """Interfaces on which the packet, then its answer, was seen: `pod/shop/web-1 eth0 in`."""

    @property
    def view(self) -> View:
        """What the client's program saw."""
        return self.attempt.view

    @property
    def errno(self) -> str:
        """Name of the error the client's program got, or ""."""
        return self.attempt.errno

    @property
    def icmp(self) -> Icmp | None:
        """The ICMP error behind it."""
        return self.attempt.icmp

    @property
    def server(self) -> str:
        """Namespace id of what answered."""
        return self.attempt.server

    @property
    def seen_src(self) -> str:
        """The source address which that saw."""
        return self.attempt.seen_src

    @property
    def answered(self) -> bool:
        """Whether the client got its whole answer."""
        return self.attempt.view == View.CONNECTED and self.attempt.answer == "ok"


def find(attempt: Attempt, evidence: Evidence, plan: ClusterPlan) -> Truth:
    """Return the truth about one try from what moved during it."""
    flow = split(attempt, evidence)
    path = tuple(f"{seen.netns} {seen.dev} {seen.way}" for seen in (*flow.forward, *flow.reply))
    if attempt.view == View.CONNECTED and attempt.answer == "ok":
        return Truth(attempt=attempt, path=path)
    found = _Finder(attempt, evidence, plan, flow).find()
    return Truth(
        attempt=attempt,
        place=found.place,
        reason=found.reason,
        direction=found.direction,
        evidence=(*found.why, *_notes(evidence)),
        path=path,
    )


def _notes(evidence: Evidence) -> tuple[str, ...]:
    rules = tuple(f"{hit.netns}: +{hit.packets} {hit.table} {hit.text}" for hit in evidence.rules if hit.stops)
    telling = ("NoRoutes", "AddrErrors", "ReversePath", "NoPorts", "ListenDrops", "FragFails", "HdrErrors", "_dropped")
    counters = tuple(
        f"{netns}: {name} +{rose}"
        for netns, counts in evidence.counters.items()
        for name, rose in counts.items()
        if any(word in name for word in telling)
    )
    return rules + counters


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    place: Place | None
    reason: Reason
    why: tuple[str, ...] = ()
    direction: str = "forward"


_LOCAL_ROUTE_ERRORS = {
    "ENETUNREACH": Reason.IP_INNOROUTES,
    "EHOSTUNREACH": Reason.ROUTE_UNREACHABLE,
    "EACCES": Reason.ROUTE_PROHIBIT,
    "EINVAL": Reason.ROUTE_BLACKHOLE,
}


@dataclass(slots=True)
class _Finder:
    attempt: Attempt
    evidence: Evidence
    plan: ClusterPlan
    flow: Flow

    def find(self) -> _Found:
        flow, attempt = self.flow, self.attempt
        if attempt.view == View.CONNECTED:
            return self._lost(flow.large, "data")
        if not flow.reply:
            return self._lost(flow.forward, "forward")
        last = flow.reply[-1]
        if attempt.view == View.REFUSED and "R" in last.flags:
            return self._no_socket()
        if last.netns == attempt.ask.src and last.way != "out":
            return self._unexpected(last)
        return self._lost(flow.reply, "reply")

    def _lost(self, packets: Sequence[Seen], direction: str) -> _Found:
        """The last place where these packets were seen, and what the kernel counted there."""
        last = packets[-1] if packets else None
        netns = last.netns if last else self.attempt.ask.src
        for finder in (self._stopped_by_rule, self._by_counter, self._by_neighbour, self._by_device, self._by_address):
            found = finder(netns, last)
            if found:
                return _Found(place=found.place, reason=found.reason, why=found.why, direction=direction)
        if last is None and (reason := _LOCAL_ROUTE_ERRORS.get(self.attempt.errno)):
            return self._at(netns, Stage.ROUTE, reason, key=self.attempt.ask.dst)
        where = f"last seen: {netns} {last.dev} {last.way}" if last else f"never left {netns}"
        place = Place(netns=NetnsId(netns), stage=Stage.LINK, dev=last.dev if last else "")
        return _Found(place=place, reason=Reason.NONE, why=(where,), direction=direction)

    @staticmethod
    def _at(netns: str, stage: Stage, reason: Reason, *, dev: str = "", key: str = "", why: str = "") -> _Found:
        place = Place(netns=NetnsId(netns), stage=stage, dev=dev, key=key)
        return _Found(place=place, reason=reason, why=(why,) if why else ())

    def _origin(self, netns: str) -> str:
        """The namespace that sent an ICMP error, if one was seen."""
        return next((seen.netns for seen in self.flow.errors if seen.way == "out"), netns)

    def _stopped_by_rule(self, netns: str, _last: Seen | None) -> _Found | None:
        for place in (netns, self._origin(netns)):
            hits = [hit for hit in self.evidence.rules if hit.stops and hit.netns == place]
            if hits:
                return _rule(next((hit for hit in hits if "-j REJECT" in hit.text), hits[0]))
        return None

    def _by_counter(self, netns: str, last: Seen | None) -> _Found | None:
        dev = last.dev if last and last.way == "in" else ""
        for names, stage, reason, key in _COUNTERS:
            for place in (netns, self._origin(netns)):
                if self.evidence.rose(place, *names):
                    return self._at(place, stage, reason, dev=dev, key=key, why=f"{place}: {names[0]} rose")
        if self.evidence.rose(netns, "Udp.NoPorts", "Udp6NoPorts"):
            carried = bool(last and last.outer)
            return self._at(netns, Stage.TUNNEL if carried else Stage.SOCKET, Reason.NO_SOCKET, dev=dev)
        return None

    def _no_socket(self) -> _Found:
        """A reset came back and no rule made it: nobody listens where the request ended."""
        last = self.flow.forward[-1] if self.flow.forward else None
        netns = last.netns if last else self.attempt.ask.src
        found = self._stopped_by_rule(netns, last)
        return found or self._at(netns, Stage.SOCKET, Reason.NO_SOCKET, key=str(last.dport if last else ""))

    def _unexpected(self, last: Seen) -> _Found:
        found = self._stopped_by_rule(last.netns, last) or self._by_counter(last.netns, last)
        if found:
            return _Found(place=found.place, reason=found.reason, why=found.why, direction="reply")
        why = f"the answer came from {last.src}:{last.sport}, asked was {self.attempt.ask.dst}:{self.attempt.ask.dport}"
        place = Place(netns=NetnsId(last.netns), stage=Stage.SOCKET, dev=last.dev, key=f"{last.src}:{last.sport}")
        return _Found(place=place, reason=Reason.UNEXPECTED_REPLY, why=(why,), direction="reply")

    def _by_neighbour(self, netns: str, _last: Seen | None) -> _Found | None:
        for place in (netns, self._origin(netns)):
            there = [seen for seen in self.evidence.packets if seen.netns == place]
            told = {ip for seen in there if seen.kind == "tell" for ip in (seen.src, seen.dst)}
            silent = [seen for seen in there if seen.kind == "ask" and seen.way == "out" and seen.dst not in told]
            if silent:
                one = silent[-1]
                why = f"{one.dst} did not answer"
                return self._at(place, Stage.NEIGHBOUR, Reason.NEIGH_FAILED, dev=one.dev, key=one.dst, why=why)
        return None

    def _by_device(self, netns: str, last: Seen | None) -> _Found | None:
        if last is None:
            return None
        if last.way == "other":
            return self._at(netns, Stage.LINK, Reason.OTHERHOST, dev=last.dev, why="sent to another MAC")
        ports = self.evidence.ports.get(netns, {})
        if last.way == "in" and last.dev in ports:
            return self._by_bridge(netns, last.dev, ports)
        if last.way == "out" and ports and last.dev == self.plan.bridge:
            came = [
                seen.dev for seen in self.flow.forward + self.flow.reply if seen.netns == netns and seen.dev in ports
            ]
            return self._by_bridge(netns, came[-1] if came else last.dev, ports)
        return self._by_sender(netns, last) if last.way == "out" else None

    def _by_bridge(self, netns: str, dev: str, ports: dict[str, int]) -> _Found:
        reason = Reason.BRIDGE_FORWARD if ports.get(dev, 3) == 3 else Reason.BRIDGE_STATE
        return self._at(
            netns, Stage.BRIDGE, reason, dev=dev, why=f"{netns}: reached the bridge by {dev}, left it by no port"
        )

    def _by_sender(self, netns: str, last: Seen) -> _Found | None:
        if last.dev.startswith("flannel"):
            reason = Reason.NO_TX_TARGET if self.evidence.rose(netns, f"dev.{last.dev}.tx_dropped") else Reason.NONE
            return self._at(netns, Stage.TUNNEL, reason, dev=last.dev, why="entered the tunnel, did not leave the node")
        if self.evidence.rose(netns, f"dev.{last.dev}.tx_dropped"):
            large = last.length > 1280
            stage, reason = (Stage.MTU, Reason.PEER_MTU) if large else (Stage.LINK, Reason.LINK_DOWN)
            return self._at(netns, stage, reason, dev=last.dev, why="the other end of the link did not take it")
        return None

    def _by_address(self, netns: str, last: Seen | None) -> _Found | None:
        if last is None or last.way != "in":
            return None
        own = {ip for machine in self.plan.machines if machine.netns == netns for ip in machine.ips}
        if last.src in own:
            return self._at(netns, Stage.ROUTE, Reason.IP_LOCAL_SOURCE, dev=last.dev, key=last.src)
        if last.dst.startswith("127.") or last.src.startswith("127."):
            return self._at(netns, Stage.ROUTE, Reason.IP_LOCALNET, dev=last.dev, key=last.dst)
        return None


def _rule(hit: RuleHit) -> _Found:
    place = Place(
        netns=NetnsId(hit.netns),
        stage=Stage.NETFILTER,
        backend=hit.backend,
        family=hit.family,
        table=hit.table,
        chain=hit.chain,
        rule=hit.rule,
        text=hit.text,
    )
    reject = "-j REJECT" in hit.text or '"reject"' in hit.text
    return _Found(place=place, reason=Reason.NETFILTER_REJECT if reject else Reason.NETFILTER_DROP)


_COUNTERS: tuple[tuple[tuple[str, ...], Stage, Reason, str], ...] = (
    (("TcpExt.IPReversePathFilter",), Stage.SYSCTL, Reason.IP_RPFILTER, "rp_filter"),
    (("Ip.InAddrErrors", "Ip6InAddrErrors"), Stage.SYSCTL, Reason.IP_INADDRERRORS, "forwarding"),
    (("IpExt.InNoRoutes", "Ip6InNoRoutes", "Ip.OutNoRoutes", "Ip6OutNoRoutes"), Stage.ROUTE, Reason.IP_INNOROUTES, ""),
    (("Ip.InHdrErrors", "Ip6InHdrErrors"), Stage.ROUTE, Reason.TTL_EXPIRED, ""),
    (("Ip.FragFails", "Ip6FragFails", "Ip6InTooBigErrors"), Stage.MTU, Reason.PKT_TOO_BIG, ""),
    (("TcpExt.ListenOverflows", "TcpExt.ListenDrops"), Stage.SOCKET, Reason.LISTEN_OVERFLOW, ""),
)
