"""Which scenario has which number: a pure function of the campaign's seed, the number and the lab's plan and rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from lab.plan import Backend, ClusterPlan, Kind, Machine, NodePlan, make_plan
from lab.prober import Ask
from tests.kernel.fuzz.change import Change, Edit, Rules, Scenario
from tests.kernel.fuzz.mutations import Mutator
from tests.kernel.fuzz.rulemaker import RuleMaker, Words

BLOCK = 100
"""Scenarios that share one lab."""
PROBES = 30
_NETS = {
    4: ("10.244.0.0/16", "10.244.1.0/24", "10.96.0.0/12", "172.18.0.0/24", "0.0.0.0/0", "10.244.0.2/255.255.0.255"),
    6: (
        *("fd00:10:244::/48", "fd00:10:244:1::/64", "fd00:10:96::/112", "fd00:172:18::/64", "::/0", "fe80::/10"),
        "fd00:10:244::2/ffff:ffff:ffff:0:ffff:ffff:ffff:ffff",
    ),
}
PAYLOAD_BYTES = {"udp": 100, "icmp": 56, "tcp": 200}
"""So that requests and answers of a protocol have the same length, in the lab as in the simulator."""
_LABS = (
    (Kind.FLANNEL_VXLAN, Backend.LEGACY),
    (Kind.FLANNEL_VXLAN, Backend.LEGACY),
    (Kind.FLANNEL_HOST_GW, Backend.LEGACY),
    (Kind.BRIDGE, Backend.LEGACY),
    (Kind.FLANNEL_VXLAN, Backend.NFT),
    (Kind.BRIDGE, Backend.NFT),
)


_FAMILIES = ((4,), (4,), (4, 6), (6,))


@dataclass(frozen=True, slots=True)
class LabKind:
    """Which lab: kind, back end of its iptables, number of nodes, address families."""

    kind: Kind
    backend: Backend
    nodes: int
    families: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.backend} nodes={self.nodes} families={','.join(map(str, self.families))}"

    def plan(self, family: int) -> ClusterPlan:
        """Return the plan as if the lab had this family alone; names and addresses are those of the whole."""
        return make_plan(self.kind, nodes=self.nodes, backend=self.backend, families=(family,))


def lab_of(seed: int, number: int) -> LabKind:
    """Return the lab in which a scenario is played."""
    random = Random(f"{seed} lab {number // BLOCK}")
    kind, backend = random.choice(_LABS)
    return LabKind(kind, backend, random.choice((2, 2, 3)), random.choice(_FAMILIES))


class Generator:
    """Makes the scenarios of one lab. `rules` holds the rules that each node has: netns → back end → iptables-save."""

    def __init__(self, seed: int, lab: LabKind, rules: Mapping[str, Mapping[str, str]]) -> None:
        self.seed = seed
        self.lab = lab
        self.rules = rules
        self._room: dict[tuple[str, str], dict[tuple[str, str], int]] = {}
        self._asks_of: dict[int, dict[str, tuple[Ask, ...]]] = {}
        self.plan = self._turn_to(lab.families[0])

    def _turn_to(self, family: int) -> ClusterPlan:
        """Make what follows for one family."""
        self.plan = self.lab.plan(family)
        if family not in self._asks_of:
            asks = self._asks_of[family] = {}
            for ask in all_asks(self.plan):
                asks[ask.src] = (*asks.get(ask.src, ()), ask)
        self.asks = self._asks_of[family]
        return self.plan

    def scenario(self, number: int) -> Scenario:
        """Return the scenario of that number. It is about one address family."""
        random = Random(f"{self.seed} {number}")
        self._turn_to(random.choice(self.lab.families))
        mutator = Mutator(random, self.plan)
        changes: list[Change | Edit] = []
        for _ in range(random.choice((1, 2, 3, 4, 5, 7))):
            roll = random.random()
            if roll < 0.55:
                changes.append(mutator.change())
            else:
                changes += self._edits(random, mutator, mutation=roll > 0.85)
        return Scenario(number=number, changes=tuple(changes), asks=self._asks(random, changes))

    def _edits(self, random: Random, mutator: Mutator, *, mutation: bool) -> list[Change | Edit]:
        machine = mutator.node() if mutation else mutator.place()
        backend = str(self.plan.backend)
        if not mutation and random.random() < 0.15:
            backend = "nft" if backend == "legacy" else "legacy"
        backend += "" if mutator.family == 4 else "6"
        room = self._room_of(machine.netns, backend)
        maker = RuleMaker(random, self._words(machine, mutator))
        if mutation and room:
            return [maker.mutation(backend, room)]
        return list(maker.insertions(backend, room=room))

    def _room_of(self, netns: str, backend: str) -> dict[tuple[str, str], int]:
        slot = (netns, backend)
        if slot not in self._room:
            chains = Rules(self.rules.get(netns, {}).get(backend, "")).chains
            self._room[slot] = {
                (table, chain): len(rules) for table in chains for chain, rules in chains[table].items()
            }
        return self._room[slot]

    def _words(self, machine: Machine, mutator: Mutator) -> Words:
        plan = self.plan
        pods = tuple(pod.ips[0] for pod in plan.pods)
        services = tuple(one.cluster_ips(plan.families)[0] for one in plan.services if one.number)
        nodes = tuple(node.ips[0] for node in plan.nodes)
        return Words(
            netns=machine.netns,
            devices=mutator.devices(machine),
            addresses=(*pods, *pods, *nodes, *services, plan.hosts[-1].ips[0]),
            nets=_NETS[mutator.family],
            family=mutator.family,
            ports=(8080, 8080, 80, 53, 30080, 10250, 9090, 8088),
            pods=pods,
            own=(*machine.ips[:1], *(machine.gateways[:1] if isinstance(machine, NodePlan) else ())),
            sets=tuple(mutator.sets.get(machine.netns, ())),
        )

    def _asks(self, random: Random, changes: Sequence[Change | Edit]) -> tuple[Ask, ...]:
        """Choose what to try: half of it where something changed."""
        places = {change.netns for change in changes}
        near = [name for name in self.asks if name in places or any(self._is_home(name, place) for place in places)]
        chosen: dict[Ask, None] = {}
        while len(chosen) < PROBES:
            source = random.choice(near if near and random.random() < 0.6 else list(self.asks))
            ask = random.choice(self.asks[source])
            if ask.protocol == "tcp" and random.random() < 0.1:
                ask = Ask(src=ask.src, dst=ask.dst, dport=ask.dport, protocol="tcp", payload=3000)
            chosen[ask] = None
        return tuple(chosen)

    def _is_home(self, name: str, place: str) -> bool:
        return any(pod.netns == name and f"node/{pod.node}" == place for pod in self.plan.pods)


def all_asks(plan: ClusterPlan) -> list[Ask]:
    """Return every connection worth trying in a lab, by the plan's one address family."""
    (family,) = plan.families
    clients = [thing.netns for thing in (*plan.pods, *plan.nodes)] + [plan.hosts[-1].netns]
    targets: list[tuple[str, int, str]] = []
    for pod in plan.pods:
        ip = pod.ips[0]
        targets += [(ip, 0, "icmp"), (ip, 4, "tcp"), (ip, 4, "udp")]
        targets += [(ip, listener.port, listener.protocol) for listener in pod.listeners]
        if pod.host_port:
            targets.append((plan.node(pod.node).ips[0], pod.host_port, "tcp"))
    for service in plan.services:
        if not service.number:
            continue
        for port in service.ports:
            targets.append((service.cluster_ips(plan.families)[0], port.port, port.protocol.lower()))
            targets += [(node.ips[0], port.node_port, port.protocol.lower()) for node in plan.nodes if port.node_port]
        targets += [(ip, service.ports[0].port, "tcp") for ip in (*service.external_ips, *service.lb_ips)]
    for node in plan.nodes:
        for ip in (node.ips[0], node.gateways[0]):
            targets += [(ip, 0, "icmp"), (ip, 10250, "tcp"), (ip, 9, "udp"), (ip, 22, "tcp")]
    ext = plan.hosts[-1]
    targets += [
        (ext.ips[0], 8080, "tcp"),
        (ext.ips[0], 8080, "udp"),
        (ext.ips[0], 0, "icmp"),
        ("203.0.113.9" if family == 4 else "2001:db8::9", 80, "tcp"),
    ]
    return [
        Ask(src=src, dst=dst, dport=dport, protocol=protocol, payload=PAYLOAD_BYTES[protocol])
        for src in clients
        for dst, dport, protocol in dict.fromkeys(targets)
    ]
