"""Does a node know the way to the pods of another node: route, neighbour entry and forwarding entry?"""

from collections.abc import Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.model.addr import Mac
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NodeName, node_netns
from tasks.skoop.model.state import FdbEntry, NeighbourState, NetNS, NextHop, Route, Section
from tasks.skoop.model.suspicion import SetFdb, SetNeighbour, Suspicion
from tasks.skoop.model.trace import Place, Stage
from tasks.skoop.netstack.fib import Router
from tasks.skoop.plugins.flannel_config import FlannelConfig, FlannelNode, same_subnet, underlay_device
from tasks.skoop.plugins.podroute import route_suspicions

USABLE = frozenset(
    (
        NeighbourState.PERMANENT,
        NeighbourState.NOARP,
        NeighbourState.REACHABLE,
        NeighbourState.STALE,
        NeighbourState.DELAY,
        NeighbourState.PROBE,
    )
)
FLOOD = Mac("00:00:00:00:00:00")


def real_mac(netns: NetNS | None, config: FlannelConfig, node: FlannelNode) -> Mac | None:
    """Return the MAC of a node's vxlan device as collected, else as announced."""
    link = netns.interface(config.device(node.vni)) if netns is not None else None
    return link.mac if link is not None and link.mac else node.vtep_mac


def expected_route(config: FlannelConfig, netns: NetNS, ours: FlannelNode, peer: FlannelNode) -> Route | None:
    """Return the route that flanneld sets on `ours` for the pods of `peer`, None where an address is not known."""
    if not peer.pod_cidrs or peer.public_ip is None or ours.public_ip is None:
        return None
    near = same_subnet(netns, ours.public_ip, peer.public_ip)
    if config.backend == "host-gw" or (config.direct_routing and near):
        under = underlay_device(netns, ours.public_ip)
        hop = NextHop(dev=under.name if under else None, via=peer.public_ip)
    else:
        hop = NextHop(dev=config.device(ours.vni), via=peer.gateway, onlink=True)
    return Route(dst=peer.pod_cidrs[0], nexthops=(hop,))


class PeerCheck:
    """The way from one node to the pods of another, in one IP family."""

    def __init__(
        self,
        state: ClusterState,
        config: FlannelConfig,
        netns: NetNS,
        source: NodeName,
        target: NodeName,
        router: Router,
    ) -> None:
        self._config = config
        self._netns = netns
        self._ours = config.nodes[source]
        self._peer = config.nodes[target]
        self._peer_netns = state.netns.get(node_netns(target))
        self._router = router

    def run(self) -> tuple[Suspicion, ...]:
        """Return what is missing or wrong."""
        if not self._peer.pod_cidrs or self._peer.public_ip is None or self._ours.public_ip is None:
            return ()
        return tuple(self._checked())

    def _checked(self) -> Iterator[Suspicion]:
        wanted = expected_route(self._config, self._netns, self._ours, self._peer)
        assert wanted is not None, "run has looked"
        dev = wanted.nexthops[0].dev
        if dev is None or self._netns.interface(dev) is None:
            return  # the missing device is reported by itself
        direct = wanted.nexthops[0].via == self._peer.public_ip
        if self._config.backend == "host-gw" and not self._near:
            yield suspect(
                "KP-FLANNEL-004",
                f"{self._peer.name} ({self._peer.public_ip}) is not on a link of {self._ours.name}",
                subject=self._netns.id,
            )
            return
        source = self._ours.pod_cidrs[0] if self._ours.pod_cidrs else None
        yield from route_suspicions(self._netns, self._router, wanted, source=source, peer=self._peer.name)
        link = self._netns.interface(dev)
        if not direct and link is not None and link.up:
            yield from self._neighbour(dev)
            yield from self._forwarding(dev)

    @property
    def _near(self) -> bool:
        assert self._ours.public_ip is not None and self._peer.public_ip is not None, "run has looked"
        return same_subnet(self._netns, self._ours.public_ip, self._peer.public_ip)

    @property
    def _mac(self) -> Mac | None:
        return real_mac(self._peer_netns, self._config, self._peer)

    def _neighbour(self, dev: str) -> Iterator[Suspicion]:
        gateway, mac = self._peer.gateway, self._mac
        if gateway is None or mac is None or self._netns.lacks(Section.NEIGHBOURS) is not None:
            return
        entry = next((known for known in self._netns.neighbours if (known.ip, known.dev) == (gateway, dev)), None)
        if entry is not None and entry.mac == mac and entry.state in USABLE:
            return
        change = SetNeighbour(netns=self._netns.id, ip=gateway, dev=dev, mac=mac)
        seen = f"{gateway} lladdr {entry.mac} {entry.state}" if entry else "no entry"
        yield suspect(
            "KP-VXLAN-009",
            f"{self._ours.name} has {'a wrong' if entry else 'no'} neighbour entry for {self._peer.name} ({gateway} on {dev})",
            subject=self._netns.id,
            place=Place(netns=self._netns.id, stage=Stage.NEIGHBOUR, dev=dev, key=gateway),
            seen=seen,
            expected=f"{gateway} lladdr {mac} PERMANENT",
            changes=(change,),
        )

    def _forwarding(self, dev: str) -> Iterator[Suspicion]:
        mac, target = self._mac, self._peer.public_ip
        if mac is None or self._netns.lacks(Section.FDB) is not None:
            return
        entries = [entry for entry in self._netns.fdb if entry.dev == dev and entry.master is None]
        exact = [entry for entry in entries if entry.mac == mac]
        flood = [entry for entry in entries if entry.mac == FLOOD and entry.dst == target]
        if any(entry.dst == target for entry in exact) or (not exact and flood):
            return
        wanted = FdbEntry(mac=mac, dev=dev, dst=target, permanent=True)
        wrong = exact[0].dst if exact else None
        yield suspect(
            "KP-VXLAN-008",
            f"{self._ours.name} has {'a wrong' if exact else 'no'} forwarding entry for {self._peer.name} ({mac} on {dev})",
            subject=self._netns.id,
            place=Place(netns=self._netns.id, stage=Stage.TUNNEL, dev=dev, key=mac),
            seen=f"{mac} dst {wrong}" if exact else "no entry",
            expected=f"{mac} dst {target} self permanent",
            changes=(SetFdb(netns=self._netns.id, entry=wanted),),
        )
