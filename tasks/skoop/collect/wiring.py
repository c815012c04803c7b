"""Which veth is plugged into which: pairs the ends that were collected apart, from what each kernel tells of its own.

A veth tells the ifindex of its peer and the number that its namespace has for the peer's (netnsid), which means nothing
elsewhere. Two ends are a pair if each names the other's ifindex. Indexes repeat from namespace to namespace, so what else is
known decides, the surest first:

1. Both ends are in one namespace: the kernel gives no netnsid then.
2. A pod's end is in its own node, where that node was collected.
3. What is left is between nodes, hosts and pods of unknown home: by elimination. An end is in one pair only; a netnsid means
   one namespace, for every end that uses it; a node of which not every pod was collected is paired with hosts only, as its
   other ends may belong to those pods.

What then still fits twice stays open (`peer` None), as does an end whose namespace was not collected. Peers that a collector
resolved itself are kept.
"""

from collections import defaultdict

from msgspec.structs import replace

from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId, node_netns
from tasks.skoop.model.state import Interface

End = tuple[NetnsId, int]
"""One end of a veth: its namespace and its ifindex there."""

CROWD = 64
"""How many ends may name the same pair of indexes before elimination is not tried: no candidate would stay alone."""


def wire(state: ClusterState) -> ClusterState:
    """Return the state with `Interface.peer` of every veth whose other end is certain."""
    wiring = _Wiring(state)
    found = wiring.solve()
    names = {(key, link.index): link.name for key, netns in state.netns.items() for link in netns.interfaces}
    wired = {
        key: replace(netns, interfaces=tuple(_plugged(key, link, found, names) for link in netns.interfaces))
        if any((key, link.index) in found for link in netns.interfaces)
        else netns
        for key, netns in state.netns.items()
    }
    return _stacked(replace(state, netns=wired), wiring)


def _stacked(state: ClusterState, wiring: "_Wiring") -> ClusterState:
    """Return the state with `lower_at` of macvlans and the like whose lower device is in another namespace that is certain.

    That is the one which its netnsid was found to mean, or else a pod's own node.
    """

    def below(key: NetnsId, link: Interface) -> Interface:
        if link.lower_index is None or link.lower_nsid is None or link.lower_at is not None:
            return link
        there = wiring.means.get((key, link.lower_nsid)) or wiring.home.get(key)
        netns = state.netns.get(there) if there else None
        lower = next((one for one in netns.interfaces if one.index == link.lower_index), None) if netns else None
        return replace(link, lower_at=(there, lower.name)) if there and lower else link

    stacked = {
        key: replace(netns, interfaces=tuple(below(key, link) for link in netns.interfaces))
        if any(link.lower_index is not None for link in netns.interfaces)
        else netns
        for key, netns in state.netns.items()
    }
    return replace(state, netns=stacked)


def _plugged(key: NetnsId, link: Interface, found: dict[End, End], names: dict[End, str]) -> Interface:
    other = found.get((key, link.index))
    if other is None or link.peer is not None:
        return link
    return replace(link, peer=(other[0], names[other]))


class _Wiring:
    """The search. `open` are the ends without a partner yet, `means` what each (namespace, netnsid) is known to be."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self.home = {
            pod.netns: node_netns(pod.node_name) for pod in state.objects.pods if pod.node_name and not pod.host_network
        }
        self.crowded = {self.home[netns] for netns in state.uncollected if netns in self.home}
        self.found: dict[End, End] = {}
        self.means: dict[tuple[NetnsId, int], NetnsId] = {}
        self.open: dict[End, Interface] = {
            (key, link.index): link
            for key, netns in state.netns.items()
            for link in netns.interfaces
            if link.kind == "veth" and link.peer_index is not None
        }

    def solve(self) -> dict[End, End]:
        """Return every certain pair, both ways."""
        self._keep_known()
        self._within_one_namespace()
        self._pods_at_home()
        self._eliminate()
        return self.found

    def _settle(self, one: End, two: End) -> None:
        for end, other in ((one, two), (two, one)):
            self.found[end] = other
            link = self.open.pop(end, None)
            if link is not None and link.peer_nsid is not None:
                self.means[end[0], link.peer_nsid] = other[0]

    def _names(self, end: End, other: End) -> bool:
        """Say whether two open ends name each other."""
        one, two = self.open.get(end), self.open.get(other)
        return one is not None and two is not None and one.peer_index == other[1] and two.peer_index == end[1]

    def _keep_known(self) -> None:
        for end, link in list(self.open.items()):
            netns = self.state.netns.get(link.peer[0]) if link.peer else None
            other = netns.interface(link.peer[1]) if netns and link.peer else None
            if link.peer and other:
                self._settle(end, (link.peer[0], other.index))

    def _within_one_namespace(self) -> None:
        for end, link in list(self.open.items()):
            if link.peer_nsid is None and link.peer_index is not None and end in self.open:
                other = (end[0], link.peer_index)
                if other != end and self._names(end, other) and self.open[other].peer_nsid is None:
                    self._settle(end, other)

    def _pods_at_home(self) -> None:
        claims: dict[End, list[End]] = defaultdict(list)
        for end, link in self.open.items():
            node = self.home.get(end[0])
            if node in self.state.netns and node is not None and link.peer_index is not None:
                other = (node, link.peer_index)
                if self._names(end, other):
                    claims[other].append(end)
        for other, ends in claims.items():
            if len(ends) == 1:
                self._settle(ends[0], other)

    def _eliminate(self) -> None:
        buckets: dict[tuple[int, int], list[End]] = defaultdict(list)
        for end, link in self.open.items():
            if self.home.get(end[0]) not in self.state.netns:
                buckets[end[1], link.peer_index or 0].append(end)
        may = {
            end: {other for other in buckets.get((index, own), ()) if self._may_pair(end, other)}
            for (own, index), ends in buckets.items()
            if len(ends) <= CROWD
            for end in ends
        }
        while self._narrow(may) or self._take_single(may):
            pass

    def _may_pair(self, one: End, two: End) -> bool:
        if one[0] == two[0]:
            return False
        return all(
            here not in self.crowded or there.startswith("host/")
            for here, there in ((one[0], two[0]), (two[0], one[0]))
        )

    def _take_single(self, may: dict[End, set[End]]) -> bool:
        """Settle the ends that have one candidate each, each other; say whether there were any."""
        pairs = [(end, other) for end, options in may.items() for other in options if options == {other}]
        mutual = [(end, other) for end, other in pairs if may.get(other) == {end} and end < other]
        for end, other in mutual:
            self._settle(end, other)
            may.pop(end)
            may.pop(other)
        return bool(mutual)

    def _narrow(self, may: dict[End, set[End]]) -> bool:
        """Drop the candidates that cannot be; say whether any was dropped."""
        allowed = self._meanings(may)
        moved = False
        for end, options in may.items():
            nsid = self.open[end].peer_nsid
            keep = {
                other
                for other in options
                if end in may.get(other, ()) and (nsid is None or other[0] in allowed[end[0], nsid])
            }
            moved |= len(keep) < len(options)
            may[end] = keep
        return moved

    def _meanings(self, may: dict[End, set[End]]) -> dict[tuple[NetnsId, int], set[NetnsId]]:
        """Return the namespaces that each netnsid may be: where all the ends that use it find a candidate."""
        taken: dict[NetnsId, set[NetnsId]] = defaultdict(set)
        for (here, _), there in self.means.items():
            taken[here].add(there)
        allowed: dict[tuple[NetnsId, int], set[NetnsId]] = {key: {there} for key, there in self.means.items()}
        for end, options in may.items():
            nsid = self.open[end].peer_nsid
            if nsid is None:
                continue
            key = (end[0], nsid)
            fits = {other[0] for other in options}
            if key not in self.means:
                fits -= taken[end[0]]
            allowed[key] = allowed[key] & fits if key in allowed else fits
        return allowed
