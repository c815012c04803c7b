"""What is read from the kernel is what its tools print: netlink and `ip -j`, through the two readers, on one namespace."""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from tasks.skoop.collect.ctdump import dump_conntrack
from tasks.skoop.collect.topology import collect_topology
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import node_netns, pod_netns
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import ConntrackEntry, Interface, NetNS, Section, Socket
from tasks.skoop.model.xtables import Backend
from tasks.skoop.parse.conntrack import parse_conntrack
from tasks.skoop.parse.ipset import parse_ipset_save
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.parse.links import combine, parse_addresses, parse_links
from tasks.skoop.parse.neighbours import parse_fdb, parse_neighbours
from tasks.skoop.parse.nft import parse_nft, without_iptables
from tasks.skoop.parse.routes import parse_routes, parse_rules
from tasks.skoop.parse.sockets import parse_sockets
from tasks.skoop.parse.sysctl import parse_sysctl
from tests.kernel.collect.spaces import Space, spaces, write_topology

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

LINKS = """
sysctl -qw net.ipv6.conf.default.addr_gen_mode=1 net.ipv6.conf.default.accept_dad=0
ip link add eth0 type veth peer name eth9 netns {pod}
nsenter --net={pod} sh -c 'ip link set lo up; ip link set eth9 up; ip addr add 10.0.0.2/24 dev eth9'
ip link set eth0 mtu 1400 group 7
ip addr add 10.0.0.1/24 dev eth0
ip addr add 10.0.0.77/24 dev eth0
ip addr add 10.1.0.1 peer 10.1.0.2/32 dev eth0 noprefixroute
ip addr add fd00::1/64 dev eth0 nodad
ip link set eth0 up
ip link add br0 type bridge nf_call_iptables 1 stp_state 0
ip link add veth1 type veth peer name veth2
ip link set veth1 master br0
bridge link set dev veth1 hairpin on isolated on learning off flood off
ip link set br0 up
ip link set veth1 up
ip link set veth2 up promisc on
ip link add flannel.1 type vxlan id 1 dstport 8472 local 10.0.0.1 dev eth0 nolearning df set
ip link add vx6 type vxlan id 9 dstport 4789 local fd00::1 group ff05::9 dev eth0 ttl 5
ip link add vxmd type vxlan external dstport 4790
ip link set flannel.1 up
ip link add mac0 link eth0 type macvlan mode bridge
ip link set veth2 arp off
for link in eth0 br0 veth1; do until ip link show $link | grep -q 'state UP'; do :; done; done
"""
ROUTES = """
ip route add default via 10.0.0.2
ip route add 10.5.0.0/16 nexthop via 10.0.0.2 weight 3 nexthop via 10.0.0.3
ip route add 10.6.0.0/16 via 10.0.0.2 src 10.0.0.77 mtu 1300 table 1234 proto 17 metric 5
ip route add 10.6.1.0/24 via 10.0.0.2 mtu lock 1300
ip route add 10.6.2.0/24 tos 0x10 via 10.0.0.2 proto bird
ip route add blackhole 10.7.0.0/16
ip route add prohibit 10.7.1.0/24
ip route add throw 10.7.2.0/24 table 77
ip route add unreachable fd07::/64
ip route add fd08::/64 nexthop via fd00::2 nexthop via fd00::3 weight 2
ip route add 10.8.0.0/16 via inet6 fd00::2 dev eth0
ip route add 10.44.0.0/24 via 10.44.0.0 dev flannel.1 onlink
ip nexthop add id 1 via 10.0.0.2 dev eth0
ip nexthop add id 2 via 10.0.0.3 dev eth0
ip nexthop add id 10 group 1/2,5
ip route add 10.98.0.0/16 nhid 1
ip route add 10.99.0.0/16 nhid 10
ip rule add pref 100 not fwmark 0x10/0xf0 iif eth0 table 200
ip rule add pref 101 to 1.2.3.0/24 ipproto tcp dport 80-90 uidrange 0-10 prohibit
ip rule add pref 102 goto 32766
ip rule add pref 103 table main suppress_prefixlength 0
ip rule add pref 104 from 10.9.0.0/16 fwmark 0x1 tos 0x8 sport 53 table 300
ip rule add pref 105 blackhole
ip -6 rule add pref 103 from fd00::/64 oif eth0 table 77
ip neigh add 10.0.0.5 lladdr 02:00:00:00:00:05 dev eth0 nud permanent
ip neigh add 10.0.0.6 lladdr 02:00:00:00:00:06 dev eth0 nud noarp
ip neigh add proxy 10.0.0.7 dev eth0
ip -6 neigh add proxy fd00::7 dev eth0
ip -6 neigh add fd00::8 lladdr 02:00:00:00:00:08 dev eth0 nud permanent router
bridge fdb append 00:11:22:33:44:55 dev flannel.1 dst 10.0.0.9 port 4789 vni 3 self permanent
bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 10.0.0.8 self permanent
bridge fdb add 02:00:00:00:00:aa dev veth1 master static sticky
"""
FILTER = """
iptables-legacy -t nat -A POSTROUTING -s 10.0.0.0/24 -m comment --comment "a b" -j MASQUERADE
ip6tables-legacy -A FORWARD -p tcp -m tcp --dport 80 -j DROP
iptables-nft -A FORWARD -m conntrack --ctstate NEW -j ACCEPT
ip6tables-nft -t mangle -A PREROUTING -j MARK --set-mark 1
nft add table inet q
nft add chain inet q c '{ type filter hook forward priority 5; policy drop; }'
nft add set inet q s '{ type ipv4_addr; elements = { 10.0.0.1, 10.0.0.2 }; }'
nft add rule inet q c ip saddr 1.2.3.0/24 tcp dport {80,443} counter accept
ipset create pods hash:net
ipset add pods 10.0.0.0/8 nomatch
ipset create ports bitmap:port range 1-100
"""


class World:
    """A node with a bit of everything and a pod, collected once."""

    def __init__(self, node: Space, pod: Space, state: ClusterState) -> None:
        self.node = node
        self.pod = pod
        self.state = state
        self.netns = state.netns[node_netns("n1")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with spaces(2) as (node, pod), ExitStack() as open_sockets:
        node.sh(LINKS.replace("{pod}", pod.path) + ROUTES + FILTER)
        for one in node.call(sockets_of_all_kinds):
            open_sockets.enter_context(one)
        folder = tmp_path_factory.mktemp("world")
        file = write_topology(
            folder, nodes={"n1": {"netns": node.path}}, pods={"shop/web": {"netns": pod.path, "node": "n1"}}
        )
        yield World(node, pod, collect_topology(file, workers=2))


def sockets_of_all_kinds() -> list[socket.socket]:
    tcp = socket.create_server(("0.0.0.0", 80), backlog=7)
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
    bound.bind(("10.0.0.1", 81))
    bound.listen(3)
    six = socket.create_server(("::", 82), family=socket.AF_INET6, dualstack_ipv6=True)
    six_only = socket.create_server(("::", 83), family=socket.AF_INET6)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("10.0.0.1", 53))
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.connect(("10.0.0.1", 53))
    peer.send(b"x")
    waiting = [socket.create_connection(("127.0.0.1", 80)) for _ in range(3)]
    udp6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    udp6.bind(("fd00::1", 54))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 47)
    return [tcp, bound, six, six_only, udp, peer, *waiting, udp6, raw]


def test_nothing_is_missing(world: World) -> None:
    assert world.netns.missing == ()
    assert world.state.uncollected == {}
    assert {"linux", "ip", "nft", "ipset", "conntrack", "iptables-legacy-save"} <= set(world.state.tools)


def unresolved(link: Interface) -> Interface:
    return replace(link, peer=None)


def test_links_and_addresses(world: World) -> None:
    printed = parse_links(world.node.sh("ip -j -d link"))
    addresses = parse_addresses(world.node.sh("ip -j addr"))
    assert tuple(map(unresolved, world.netns.interfaces)) == combine(printed, addresses, {})
    kinds = {link.kind for link in world.netns.interfaces}
    assert {"loopback", "veth", "bridge", "vxlan", "macvlan"} <= kinds


def test_routes(world: World) -> None:
    printed = [
        route
        for family in (4, 6)
        for route in parse_routes(world.node.sh(f"ip -j -{family} route show table all"), family=family)
    ]
    unlocked = [replace(route, mtu_locked=False) for route in world.netns.routes]
    assert unlocked == printed
    locked = [route.dst for route in world.netns.routes if route.mtu_locked]
    assert locked == ["10.6.1.0/24"]


def test_routes_through_nexthop_objects_have_their_legs(world: World) -> None:
    legs = {str(route.dst): [(hop.via, hop.weight) for hop in route.nexthops] for route in world.netns.routes}
    assert legs["10.98.0.0/16"] == [("10.0.0.2", 1)]
    assert legs["10.99.0.0/16"] == [("10.0.0.2", 1), ("10.0.0.3", 5)]


def test_rules(world: World) -> None:
    printed = [rule for family in (4, 6) for rule in parse_rules(world.node.sh(f"ip -j -{family} rule"), family=family)]
    assert list(world.netns.rules) == printed


def test_neighbours(world: World) -> None:
    printed = (
        *parse_neighbours(world.node.sh("ip -j neigh show")),
        *parse_neighbours(world.node.sh("ip -j neigh show nud noarp dev eth0")),
        *(replace(entry, proxy=True) for entry in parse_neighbours(world.node.sh("ip -j neigh show proxy"))),
    )
    made_up = {entry.ip for entry in printed if entry.mac and int(entry.mac[:2], 16) & 1}
    seen = {(entry.ip, entry.dev, entry.mac, entry.proxy, entry.router) for entry in world.netns.neighbours}
    wanted = {(one.ip, one.dev or "eth0", one.mac, one.proxy, one.router) for one in printed if one.ip not in made_up}
    # A neighbour that answers while the test runs may come or go between two looks; those that were set stay.
    assert {
        one for one in seen ^ wanted if one[0] in ("10.0.0.5", "10.0.0.6", "10.0.0.7", "fd00::7", "fd00::8")
    } == set()
    assert {"10.0.0.5", "10.0.0.6", "10.0.0.7", "fd00::7", "fd00::8"} <= {one[0] for one in seen}
    assert not made_up & {one[0] for one in seen}


def test_fdb(world: World) -> None:
    printed = parse_fdb(world.node.sh("bridge -j -d fdb"))
    assert set(world.netns.fdb) == set(printed)
    assert any(entry.sticky for entry in printed)
    assert any(entry.vni == 3 and entry.port == 4789 for entry in printed)


def test_sockets(world: World) -> None:
    printed = parse_sockets(world.node.sh("ss -H -n -l -t -u -w -e"))
    mine = {replace(one, process="") for one in world.netns.sockets if one.peer is None}
    assert mine == {replace(one, process="") for one in printed}


def by_port(found: Iterable[Socket], port: int) -> Socket:
    return next(one for one in found if one.port == port)


def test_what_a_listener_says_of_itself(world: World) -> None:
    found = world.netns.sockets
    assert (by_port(found, 80).recv_queue, by_port(found, 80).backlog) == (3, 7)
    assert (by_port(found, 81).dev, by_port(found, 81).ip) == ("eth0", "10.0.0.1")
    assert (by_port(found, 82).v6only, by_port(found, 83).v6only, by_port(found, 54).v6only) == (False, True, True)
    connected = next(one for one in found if one.peer == "10.0.0.1")
    assert (connected.peer_port, connected.state) == (53, "ESTAB")
    # The sockets belong to this very process, which lives in another network namespace: nobody claims them.
    assert {one.process for one in found} == {""}


def test_settings(world: World) -> None:
    printed = parse_sysctl(world.node.sh("sysctl -a 2>/dev/null || true"))
    changing = "net/netfilter/nf_conntrack_count"
    assert {key: value for key, value in world.netns.sysctls.items() if key != changing} == {
        key: value for key, value in printed.items() if key != changing
    }
    assert world.netns.sysctls["net/ipv4/conf/flannel.1/rp_filter"] in "012"


def test_iptables_of_both_back_ends_and_families(world: World) -> None:
    printed = [
        table
        for family, name in ((4, "iptables"), (6, "ip6tables"))
        for backend in Backend
        for table in parse_iptables_save(world.node.sh(f"{name}-{backend}-save"), backend=backend, family=family)
    ]
    key = {(table.backend, table.family, table.name): table for table in printed}
    assert {(table.backend, table.family, table.name): table for table in world.netns.tables} == key
    assert {(table.backend, table.family, table.name) for table in world.netns.tables} >= {
        (Backend.LEGACY, 4, "nat"),
        (Backend.LEGACY, 6, "filter"),
        (Backend.NFT, 4, "filter"),
        (Backend.NFT, 6, "mangle"),
    }


def test_nftables_without_what_iptables_owns(world: World) -> None:
    printed = without_iptables(parse_nft(world.node.sh("nft -s -j list ruleset")), world.netns.tables)
    assert set(world.netns.nft) == set(printed)
    assert [(table.family, table.name) for table in world.netns.nft] == [("inet", "q")]


def test_ipsets(world: World) -> None:
    assert world.netns.ipsets == parse_ipset_save(world.node.sh("ipset save"))
    assert {one.name for one in world.netns.ipsets} == {"pods", "ports"}


def timeless(entries: Iterable[ConntrackEntry]) -> set[ConntrackEntry]:
    return {replace(entry, timeout_s=0) for entry in entries}


def test_connections_by_both_ways(world: World) -> None:
    printed = parse_conntrack(world.node.sh("conntrack -L -f ipv4; conntrack -L -f ipv6"))
    assert timeless(world.node.call(dump_conntrack)) == timeless(printed)
    tcp = {entry for entry in timeless(world.netns.conntrack) if entry.protocol == Protocol.TCP}
    assert len(tcp) == 3
    assert tcp == {entry for entry in timeless(printed) if entry.protocol == Protocol.TCP}


def test_both_ends_of_a_veth_know_each_other(world: World) -> None:
    def peer(netns: NetNS, name: str) -> object:
        link = netns.interface(name)
        return link and link.peer

    n1, web = node_netns("n1"), pod_netns("shop/web")
    assert peer(world.netns, "eth0") == (web, "eth9")
    assert peer(world.state.netns[web], "eth9") == (n1, "eth0")
    assert peer(world.netns, "veth1") == (n1, "veth2")


def test_a_pod_kubernetes_does_not_know_is_made_up_from_what_is_seen(world: World) -> None:
    pod = world.state.objects.pods[0]
    assert (pod.key, pod.node_name, pod.ips) == ("shop/web", "n1", ("10.0.0.2",))
    assert world.state.objects.nodes[0].ips == ("10.0.0.1", "10.1.0.1", "10.0.0.77", "fd00::1")


def test_no_section_is_empty(world: World) -> None:
    """So that none of the comparisons above compared nothing with nothing."""
    filled = {
        Section.LINKS: world.netns.interfaces,
        Section.ROUTES: world.netns.routes,
        Section.RULES: world.netns.rules,
        Section.NEIGHBOURS: world.netns.neighbours,
        Section.FDB: world.netns.fdb,
        Section.SOCKETS: world.netns.sockets,
        Section.CONNTRACK: world.netns.conntrack,
    }
    assert [section for section, found in filled.items() if not found] == []
    assert Path(world.node.path).exists()
