"""Random changes to everything but iptables rules: settings, routes, policy rules, neighbours, links, ipsets, sockets, nft.

Each kind is one function from a place to a Change; all choices come from the generator's Random, so that a seed is a scenario.
"""

from collections.abc import Callable
from importlib.util import find_spec
from ipaddress import ip_network
from random import Random

from lab.build import VTEP_NAME, vtep_address
from lab.plan import POD_NETS, SERVICE_NETS, UNDERLAY_NETS, ClusterPlan, Kind, Machine, NodePlan, PodPlan
from tests.kernel.fuzz.change import LINKS, NEIGHBOURS, PORTS, ROUTES, SETS, SOCKETS, SYSCTLS, TABLES, Change

NATIVE_NFT = find_spec("tasks.skoop.netstack.nftables") is not None
"""Native nftables rules are tried once they are evaluated; before that they are `unknown`, which would teach nothing."""

_PER_DEVICE = (
    ("rp_filter", (0, 1, 1, 2)),
    ("accept_local", (0, 1)),
    ("route_localnet", (0, 1)),
    ("forwarding", (0, 1)),
    ("arp_ignore", (0, 1, 2, 8)),
    ("arp_announce", (0, 1, 2)),
    ("arp_filter", (0, 1)),
    ("proxy_arp", (0, 1)),
    ("src_valid_mark", (0, 1)),
    ("ignore_routes_with_linkdown", (0, 1)),
)
_PER_DEVICE6 = (
    ("forwarding", (0, 0, 1)),
    ("proxy_ndp", (0, 1)),
    ("ignore_routes_with_linkdown", (0, 1)),
    ("accept_ra", (0, 2)),
    ("hop_limit", (64, 3)),
    ("use_oif_addrs_only", (0, 1)),
)
_PLAIN6 = (
    ("net/ipv6/conf/all/forwarding", (0, 0, 1)),
    ("net/ipv6/icmp/echo_ignore_all", (1,)),
    ("net/ipv6/ip_nonlocal_bind", (0, 1)),
    ("net/ipv6/fib_multipath_hash_policy", (0, 1)),
    ("net/ipv6/bindv6only", (0, 1)),
)
_PLAIN = (
    ("net/ipv4/ip_forward", (0, 0, 1)),
    ("net/ipv4/icmp_echo_ignore_all", (1,)),
    ("net/ipv4/ip_nonlocal_bind", (0, 1)),
    ("net/ipv4/tcp_l3mdev_accept", (0, 1)),
    ("net/ipv4/fib_multipath_hash_policy", (0, 1)),
)
_BRIDGE = (
    ("net/bridge/bridge-nf-call-{ip}tables", (0, 0, 1)),
    ("net/bridge/bridge-nf-call-arptables", (0, 1)),
)


class Mutator:
    """Makes changes of one plan's machines, in one address family: the plan's."""

    def __init__(self, random: Random, plan: ClusterPlan) -> None:
        self.random = random
        self.plan = plan
        (self.family,) = plan.families
        self.host_length = 32 if self.family == 4 else 128
        self.tunnel = VTEP_NAME[self.family]
        self.far = "172.18.0.77" if self.family == 4 else "fd00:172:18::77"
        self.sets: dict[str, list[tuple[str, str]]] = {}
        self.kinds: tuple[tuple[int, Callable[[], Change | None]], ...] = (
            (12, self.setting),
            (8, self.route),
            (5, self.deleted_route),
            (6, self.policy),
            (3, self.multipath),
            (4, self.neighbour),
            (2, self.proxy_neighbour),
            (3, self.fdb),
            (3, self.link),
            (5, self.port_flag),
            (2, self.mtu),
            (3, self.ipset),
            (4, self.server),
            (2, self.address),
            (2, self.bridge_own),
            (3 if NATIVE_NFT else 0, self.native),
        )

    def change(self) -> Change:
        """Return one random change."""
        while True:
            make = self.random.choices([one for _, one in self.kinds], [weight for weight, _ in self.kinds])[0]
            if (made := make()) is not None:
                return made

    # --- places and names --------------------------------------------------------------------------------------------

    def node(self) -> NodePlan:
        """Return a random node."""
        return self.random.choice(self.plan.nodes)

    def place(self) -> Machine:
        """Return a node mostly, sometimes a pod."""
        return self.random.choice((*self.plan.nodes, *self.plan.nodes, self.random.choice(self.plan.pods)))

    def devices(self, machine: Machine) -> tuple[str, ...]:
        """Return the names of a machine's devices."""
        if not isinstance(machine, NodePlan):
            return ("eth0",)
        tunnel = (self.tunnel,) if self.plan.kind is Kind.FLANNEL_VXLAN else ()
        return ("eth0", self.plan.bridge, *tunnel, *(pod.veth for pod in self.plan.pods_on(machine.name)))

    def device(self, machine: Machine) -> str:
        """Return a device, rather one that routes than a bridge's port."""
        names = self.devices(machine)
        return self.random.choice((*names[:3], *names[:3], *names))

    def peer(self, node: NodePlan) -> NodePlan:
        """Return another node."""
        return self.random.choice([one for one in self.plan.nodes if one is not node])

    def prefix(self, machine: Machine) -> str:
        """Return a destination that traffic has."""
        pick = self.random.choice
        pod = pick(self.plan.pods)
        service = pick([one for one in self.plan.services if one.number])
        node = pick(self.plan.nodes)
        ext = self.plan.hosts[-1]
        return pick(
            (
                f"{pod.ips[0]}/{self.host_length}",
                f"{pod.ips[0]}/{self.host_length}",
                str(ip_network(f"{pod.ips[0]}/{self.host_length - 4}", strict=False)),
                pick(self.plan.nodes).pod_cidrs[0],
                f"{service.cluster_ips(self.plan.families)[0]}/{self.host_length}",
                SERVICE_NETS[self.family],
                f"{node.ips[0]}/{self.host_length}",
                f"{ext.ips[0]}/{self.host_length}",
                "0.0.0.0/1" if self.family == 4 else "8000::/1",
                "172.18.0.0/25" if self.family == 4 else "fd00:172:18::/121",
            )
        )

    def _gateways(self, machine: Machine) -> list[str]:
        if isinstance(machine, PodPlan):
            node = self.plan.node(machine.node)
            return [f"via {node.gateways[0]} dev eth0", "dev eth0"]
        if not isinstance(machine, NodePlan):
            return ["dev eth0"]
        peer = self.peer(machine)
        found = [
            f"via {peer.ips[0]} dev eth0",
            f"via {self.plan.hosts[0].ips[0]} dev eth0",
            f"via {self.plan.hosts[-1].ips[0]} dev eth0",
            "dev eth0",
            f"dev {self.plan.bridge}",
            "dev lo",
        ]
        pods = self.plan.pods_on(machine.name)
        found.append(f"via {self.random.choice(pods).ips[0]} dev {self.plan.bridge}")
        if self.plan.kind is Kind.FLANNEL_VXLAN:
            found += [f"via {vtep_address(peer, self.family)} dev {self.tunnel} onlink", "dev {self.tunnel}"]
        return found

    # --- settings ----------------------------------------------------------------------------------------------------

    def setting(self) -> Change:
        """Write a sysctl; all of the namespace's come back together."""
        machine = self.place()
        roll = self.random.random()
        if roll < 0.25:
            key, values = self.random.choice(_PLAIN if self.family == 4 else _PLAIN6)
        elif roll < 0.45 and isinstance(machine, NodePlan):
            key, values = self.random.choice(_BRIDGE)
            key = key.format(ip="ip" if self.family == 4 else "ip6")
        else:
            name, values = self.random.choice(_PER_DEVICE if self.family == 4 else _PER_DEVICE6)
            key = f"net/ipv{self.family}/conf/{self.random.choice(('all', self.device(machine), self.device(machine)))}/{name}"
        value = self.random.choice(values)
        kind = f"sysctl: {key.rpartition('/')[2]}"
        return Change(netns=machine.netns, kind=kind, do=(f"sysctl {key}={value}",), touches=frozenset((SYSCTLS,)))

    # --- routes ------------------------------------------------------------------------------------------------------

    def route(self) -> Change:
        """Add a route: unicast, or of a type that refuses; in the main table or in 100, which rules may name."""
        machine, pick = self.place(), self.random.choice
        prefix = self.prefix(machine)
        kind = pick(("unicast", "unicast", "unicast", "unreachable", "blackhole", "prohibit", "throw", "local"))
        if kind == "local" and prefix.endswith(
            "/1"
        ):  # it hangs on whether this kernel ever had a rule here (fib_unmerge)
            kind = "throw"
        way = pick(self._gateways(machine)) if kind == "unicast" else "dev lo" if kind == "local" else ""
        words = f"{kind} {prefix} {way}" if kind != "unicast" else f"{prefix} {way}"
        tail = pick(("", "", "", "metric 5", "metric 500", "table 100", "table 100", "mtu 1300"))
        own = machine.ips[0]
        if kind == "unicast" and self.random.random() < 0.2:
            tail += f" src {pick((own, *getattr(machine, 'gateways', ())))}"
        text = f"{words} {tail}".strip()
        return self._ip(machine, f"route: {kind}", (f"route add {text}",), (f"route del {text}",))

    def deleted_route(self) -> Change:
        """Take a route away that the lab needs; it is put back from what was there before."""
        machine, pick = self.place(), self.random.choice
        choices = ["default"]
        if isinstance(machine, NodePlan):
            choices += [self.peer(machine).pod_cidrs[0], machine.pod_cidrs[0], UNDERLAY_NETS[self.family]]
        else:
            choices += [POD_NETS[self.family]]
        prefix = pick(choices)
        undo: tuple[str, ...] = ()
        like = "scope link src {}" if self.family == 4 else "metric 256"
        if isinstance(machine, NodePlan) and prefix == machine.pod_cidrs[0]:
            undo = (f"route add {prefix} dev {self.plan.bridge} proto kernel {like.format(machine.gateways[0])}",)
        elif prefix == UNDERLAY_NETS[self.family] and isinstance(machine, NodePlan):
            undo = (f"route add {prefix} dev eth0 proto kernel {like.format(machine.ips[0])}",)
        return self._ip(machine, "route: deleted", (f"route del {prefix}",), undo)

    def multipath(self) -> Change | None:
        """Add a route with two legs of different weight."""
        node = self.node()
        legs = [way for way in self._gateways(node) if way != "dev lo"]
        one, two = self.random.sample(legs, 2)
        weights = self.random.choice(((1, 1), (1, 9), (3, 2)))
        text = f"{self.prefix(node)} nexthop {one} weight {weights[0]} nexthop {two} weight {weights[1]}"
        return self._ip(node, "route: multipath", (f"route add {text}",), (f"route del {text}",))

    def policy(self) -> Change:
        """Add a policy rule, mostly with a table of its own that holds a route or two."""
        machine, pick = self.place(), self.random.choice
        selectors = [
            f"from {self.prefix(machine)}",
            f"to {self.prefix(machine)}",
            f"fwmark {pick(('0x1', '0x1/0x1', '0x4000/0x4000', '0x2/0x3'))}",
            f"iif {pick((*self.devices(machine), 'lo'))}",
            f"oif {self.device(machine)}",
            f"ipproto {pick(('tcp', 'udp', 'icmp' if self.family == 4 else 'ipv6-icmp'))}",
            f"ipproto tcp dport {pick((80, 8080, '8000-9000', 30080))}",
            "ipproto tcp sport 1024-65000",
            "tos 0x10",
        ]
        chosen = self.random.sample(selectors, pick((1, 1, 2)))
        if sum("ipproto" in one for one in chosen) > 1:
            chosen = chosen[:1]
        action = pick(
            (
                "lookup 100",
                "lookup 100",
                "lookup 100",
                "unreachable",
                "blackhole",
                "prohibit",
                "lookup main suppress_prefixlength 0",
                "lookup 101",
            )
        )
        no = "not " if self.random.random() < 0.15 else ""
        priority = pick((10, 100, 32000, 32766, 40000))
        rule = f"{no}{' '.join(chosen)} priority {priority} {action}"
        do, undo = [f"rule add {rule}"], [f"rule del {rule}"]
        if action == "lookup 100":
            prefix = pick(("default", "default", self.prefix(machine)))
            way = pick((*self._gateways(machine), *self._gateways(machine), "unreachable", "throw", "blackhole"))
            text = f"{prefix} {way}" if " " in way else f"{way} {prefix}"
            do.append(f"route add {text} table 100")
            undo.insert(0, f"route del {text} table 100")
        return self._ip(machine, f"rule: {chosen[0].split(' ')[0]}", tuple(do), tuple(undo))

    def _ip(
        self, machine: Machine, kind: str, do: tuple[str, ...], undo: tuple[str, ...], touches: str = ROUTES
    ) -> Change:
        return Change(
            netns=machine.netns,
            kind=kind,
            do=tuple(f"ip{self.family} {line}" for line in do),
            undo=tuple(f"ip{self.family} {line}" for line in undo),
            touches=frozenset((touches,)),
        )

    def address(self) -> Change:
        """Give a machine one more address: another's, or one that nobody had."""
        machine, pick = self.place(), self.random.choice
        ip = pick(
            (
                pick(self.plan.pods).ips[0],
                pick(self.plan.nodes).ips[0],
                self.far,
                "10.244.1.77" if self.family == 4 else "fd00:10:244:1::77",
                "10.96.10.1" if self.family == 4 else "fd00:10:96::a01",
            )
        )
        text = f"{ip}/{self.host_length} dev {pick(('lo', self.devices(machine)[0]))}"
        settled = "" if self.family == 4 else " nodad"
        return self._ip(machine, "address: added", (f"addr add {text}{settled}",), (f"addr del {text}",), PORTS)

    # --- neighbours and forwarding entries ---------------------------------------------------------------------------

    def neighbour(self) -> Change:
        """Fix a neighbour's link-layer address: the right one or a wrong one."""
        machine, pick = self.place(), self.random.choice
        if isinstance(machine, NodePlan):
            pod, peer = pick(self.plan.pods_on(machine.name)), self.peer(machine)
            ip, mac, dev = pick(
                (
                    (pod.ips[0], pod.mac, self.plan.bridge),
                    (peer.ips[0], peer.mac, "eth0"),
                    (self.plan.hosts[-1].ips[0], self.plan.hosts[-1].mac, "eth0"),
                )
            )
        else:
            node = self.plan.node(machine.node) if isinstance(machine, PodPlan) else self.plan.nodes[0]
            ip, mac, dev = node.gateways[0], node.bridge_mac, "eth0"
        if self.random.random() < 0.6:
            mac = pick(("02:00:00:00:00:99", self.node().mac, pick(self.plan.pods).mac))
        return self._ip(
            machine,
            "neighbour: permanent",
            (f"neigh replace {ip} lladdr {mac} dev {dev} nud permanent",),
            (f"neigh del {ip} dev {dev}",),
            NEIGHBOURS,
        )

    def proxy_neighbour(self) -> Change:
        """Answer ARP for an address."""
        node, pick = self.node(), self.random.choice
        ip = pick((pick(self.plan.pods).ips[0], self.far, self.peer(node).ips[0]))
        text = f"{ip} dev {pick(('eth0', self.plan.bridge))}"
        return self._ip(
            node, "neighbour: proxy", (f"neigh add proxy {text}",), (f"neigh del proxy {text}",), NEIGHBOURS
        )

    def fdb(self) -> Change | None:
        """Take away or add a forwarding entry or neighbour of the tunnel, or a bridge's."""
        node, pick = self.node(), self.random.choice
        peer = self.peer(node)
        mac = peer.vtep_macs[self.family]
        tunnel = self.plan.kind is Kind.FLANNEL_VXLAN
        if tunnel and self.random.random() < 0.7:
            lines = pick(
                (
                    (
                        f"bridge fdb del {mac} dev {self.tunnel} dst {peer.ips[0]} self",
                        f"bridge fdb append {mac} dev {self.tunnel} dst {peer.ips[0]} self permanent",
                    ),
                    (
                        f"ip neigh del {vtep_address(peer, self.family)} dev {self.tunnel}",
                        f"ip neigh replace {vtep_address(peer, self.family)} lladdr {mac} dev {self.tunnel} nud permanent",
                    ),
                    (
                        f"bridge fdb append 00:00:00:00:00:00 dev {self.tunnel} dst {self.plan.hosts[-1].ips[0]} self permanent",
                        f"bridge fdb del 00:00:00:00:00:00 dev {self.tunnel} dst {self.plan.hosts[-1].ips[0]} self",
                    ),
                    (
                        f"ip neigh replace {vtep_address(peer, self.family)} lladdr 02:00:00:00:00:98 dev {self.tunnel} nud permanent",
                        f"ip neigh replace {vtep_address(peer, self.family)} lladdr {mac} dev {self.tunnel} nud permanent",
                    ),
                )
            )
        else:
            pods = self.plan.pods_on(node.name)
            one, two = pick(pods), pick(pods)
            entry = f"{one.mac} dev {two.veth} master static"
            lines = (f"bridge fdb replace {entry}", f"bridge fdb del {one.mac} dev {two.veth} master")
        return Change(netns=node.netns, kind="fdb", do=(lines[0],), undo=(lines[1],), touches=frozenset((NEIGHBOURS,)))

    # --- links -------------------------------------------------------------------------------------------------------

    def link(self) -> Change:
        """Take a device down, or out of its bridge."""
        node, pick = self.node(), self.random.choice
        pod = pick(self.plan.pods_on(node.name))
        down = [(node, name) for name in ("eth0", self.plan.bridge, pod.veth)] + [(pod, "eth0")]
        if self.plan.kind is Kind.FLANNEL_VXLAN:
            down.append((node, self.tunnel))
        if self.random.random() < 0.3:
            return self._link(
                node,
                "link: nomaster",
                f"ip link set {pod.veth} nomaster",
                f"ip link set {pod.veth} master {self.plan.bridge}",
                f"bridge link set dev {pod.veth} hairpin on",
            )
        machine, name = pick(down)
        return self._link(machine, "link: down", f"ip link set {name} down", f"ip link set {name} up")

    def port_flag(self) -> Change:
        """Set a flag of a bridge's port."""
        node, pick = self.node(), self.random.choice
        pod = pick(self.plan.pods_on(node.name))
        flag, value, before = pick(
            (
                ("hairpin", "off", "on"),
                ("hairpin", "off", "on"),
                ("isolated", "on", "off"),
                ("flood", "off", "on"),
                ("learning", "off", "on"),
            )
        )
        other = pick(self.plan.pods_on(node.name))
        do = [f"bridge link set dev {pod.veth} {flag} {value}"]
        undo = [f"bridge link set dev {pod.veth} {flag} {before}"]
        if flag == "isolated" and other is not pod:
            do.append(f"bridge link set dev {other.veth} isolated on")
            undo.append(f"bridge link set dev {other.veth} isolated off")
        return Change(
            netns=node.netns, kind=f"port: {flag}", do=tuple(do), undo=tuple(undo), touches=frozenset((PORTS,))
        )

    def bridge_own(self) -> Change:
        """Let the bridge itself call iptables, or change its address."""
        node = self.node()
        name = self.plan.bridge
        tables = "iptables" if self.family == 4 else "ip6tables"
        return Change(
            netns=node.netns,
            kind=f"bridge: nf_call_{tables}",
            do=(f"sysctl net/bridge/bridge-nf-call-{tables}=0", f"ip link set {name} type bridge nf_call_{tables} 1"),
            undo=(f"ip link set {name} type bridge nf_call_{tables} 0",),
            touches=frozenset((PORTS, SYSCTLS)),
        )

    def mtu(self) -> Change:
        """Make a device's MTU small."""
        node, pick = self.node(), self.random.choice
        pod = pick(self.plan.pods_on(node.name))
        whole = self.plan.kind.pod_mtu_bytes
        choices: list[tuple[Machine, str, int]] = [
            (pod, "eth0", whole),
            (node, pod.veth, whole),
            (node, self.plan.bridge, whole),
            (node, "eth0", 1500),
        ]
        if self.plan.kind is Kind.FLANNEL_VXLAN:
            choices.append((node, self.tunnel, 1450 if self.family == 4 else 1430))
        machine, name, before = pick(choices)
        return self._link(
            machine, "link: mtu", f"ip link set {name} mtu {pick((1300, 1400))}", f"ip link set {name} mtu {before}"
        )

    def _link(self, machine: Machine, kind: str, do: str, *undo: str) -> Change:
        return Change(netns=machine.netns, kind=kind, do=(do,), undo=undo, touches=frozenset((LINKS,)))

    # --- sets, sockets, nft ------------------------------------------------------------------------------------------

    def ipset(self) -> Change:
        """Make an ipset; later rules of the scenario may ask it."""
        machine, pick = self.place(), self.random.choice
        sets = self.sets.setdefault(machine.netns, [])
        name = f"fz{len(sets)}"
        pods = self.random.sample(self.plan.pods, 3)
        kind, directions = pick(
            (
                ("hash:ip", "{0}"),
                ("hash:net", "{0}"),
                ("hash:ip,port", "{0},dst"),
                ("hash:net,iface", "{0},{0}"),
                ("bitmap:port range 0-40000", "dst"),
            )
        )
        entries = {
            "hash:ip": [pod.ips[0] for pod in pods],
            "hash:net": [self.plan.nodes[0].pod_cidrs[0], f"{pods[0].ips[0]} nomatch", UNDERLAY_NETS[self.family]],
            "hash:ip,port": [
                *(f"{pod.ips[0]},{protocol}:8080" for pod in pods for protocol in ("tcp", "udp")),
                f"{pods[0].ips[0]},{'icmp:8/0' if self.family == 4 else 'icmpv6:128/0'}",
            ],
            "hash:net,iface": [
                f"{POD_NETS[self.family]},{self.device(machine)}",
                f"{UNDERLAY_NETS[self.family]},{self.devices(machine)[0]}",
            ],
            "bitmap:port range 0-40000": ["8080", "30080", "53"],
        }[kind]
        family = "" if self.family == 4 or kind.startswith("bitmap") else " family inet6"
        lines = [f"create {name} {kind}{family}", *(f"add {name} {entry}" for entry in dict.fromkeys(entries))]
        direction = pick(("src", "dst"))
        sets.append((name, directions.format(direction)))
        return Change(
            netns=machine.netns,
            kind=f"ipset: {kind.split(' ')[0]}",
            do=("ipset " + " | ".join(lines),),
            touches=frozenset((SETS,)),
        )

    def server(self) -> Change:
        """Close a server, or bind it to the loopback address only."""
        pod, pick = self.random.choice(self.plan.pods), self.random.choice
        listener = pick(pod.listeners)
        what = f"{listener.protocol} {listener.port}"
        address = pick(("", "127.0.0.1" if self.family == 4 else "::1", pod.ips[0]))
        do = (f"close {what}", f"listen {what} {address}") if address else (f"close {what}",)
        undo = (f"close {what}", f"listen {what}")
        kind = "socket: bound" if address else "socket: closed"
        return Change(netns=pod.netns, kind=kind, do=do, undo=undo, touches=frozenset((SOCKETS,)))

    def native(self) -> Change:
        """Add a table of nftables with a rule or two."""
        node, pick = self.node(), self.random.choice
        pod = pick(self.plan.pods)
        hook = pick(("prerouting", "input", "forward", "output", "postrouting"))
        ip, net = ("ip", "10.244.1.0/30") if self.family == 4 else ("ip6", "fd00:10:244:1::/126")
        rules = (
            f"{ip} daddr {pod.ips[0]} drop",
            f"{ip} saddr {pod.ips[0]} tcp dport 8080 reject with tcp reset",
            f"{ip} daddr {{ {self.peer(node).ips[0]}, {net} }} counter drop",
            "tcp dport vmap { 8080 : drop, 53 : accept }",
            "ct state invalid drop",
            "meta mark and 0x1 == 0x1 drop",
            f"{ip} saddr . tcp dport {{ {pod.ips[0]} . 8080 }} drop",
            "fib daddr type local accept",
            "udp dport 8080 reject",
        )
        chosen = " ; ".join(self.random.sample(rules, pick((1, 2))))
        policy = pick(("accept", "accept", "accept", "drop"))
        text = f"table {ip} fz {{ chain c {{ type filter hook {hook} priority {pick((-300, -150, -10, 0, 50))} ; policy {policy} ; {chosen} ; }} ; }}"
        return Change(
            netns=node.netns,
            kind="nft: native",
            do=(f"nft {text}",),
            undo=(f"nft delete table {ip} fz",),
            touches=frozenset((TABLES,)),
        )
