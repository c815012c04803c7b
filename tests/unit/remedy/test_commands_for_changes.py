import pytest

from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import Address, FdbEntry, NeighbourState, NextHop, Route, Socket
from tasks.skoop.model.suspicion import (
    AddAddress,
    AddChain,
    AddRoute,
    AddSocket,
    Change,
    DeletePolicyRule,
    DeleteRoute,
    DeleteRule,
    FlushConntrack,
    ForgetPathMtu,
    InsertRule,
    SetFdb,
    SetLink,
    SetNeighbour,
    SetPolicy,
    SetSysctl,
)
from tasks.skoop.remedy import commands_for

N1 = NetnsId("node/n1")
POD = NetnsId("pod/shop/web-1")
ONLINK = Route(dst=Net("10.244.1.0/24"), nexthops=(NextHop(dev="flannel.1", via=Ip("10.244.1.0"), onlink=True),))
FULL = Route(
    dst=Net("10.5.0.0/16"),
    table=100,
    metric=20,
    mtu=1400,
    prefsrc=Ip("10.0.0.1"),
    nexthops=(NextHop(dev="eth0", via=Ip("10.0.0.2")), NextHop(dev="eth1", weight=2)),
)


def _rule(kind: type[DeleteRule] | type[InsertRule], rule: int, family: int = 4) -> Change:
    raw = '-s 10.0.0.0/8 -m comment --comment "two words" -j ACCEPT'
    return kind(netns=N1, backend="legacy", family=family, table="filter", chain="FORWARD", rule=rule, raw=raw)


@pytest.mark.parametrize(
    ("change", "command"),
    [
        pytest.param(
            SetSysctl(netns=N1, key="net/ipv4/ip_forward", value="1"), "sysctl -w net.ipv4.ip_forward=1", id="sysctl"
        ),
        pytest.param(
            SetSysctl(netns=N1, key="net/ipv4/conf/flannel.1/rp_filter", value="0"),
            "sysctl -w net/ipv4/conf/flannel.1/rp_filter=0",
            id="sysctl of an interface with a dot in its name",
        ),
        pytest.param(
            _rule(DeleteRule, 3),
            'iptables-legacy -w -t filter -D FORWARD -s 10.0.0.0/8 -m comment --comment "two words" -j ACCEPT',
            id="delete rule",
        ),
        pytest.param(
            _rule(InsertRule, 3),
            'iptables-legacy -w -t filter -I FORWARD 3 -s 10.0.0.0/8 -m comment --comment "two words" -j ACCEPT',
            id="insert rule",
        ),
        pytest.param(
            _rule(InsertRule, 0, family=6),
            'ip6tables-legacy -w -t filter -A FORWARD -s 10.0.0.0/8 -m comment --comment "two words" -j ACCEPT',
            id="append rule, IPv6",
        ),
        pytest.param(
            AddChain(netns=N1, backend="nft", family=4, table="nat", chain="NEW"),
            "iptables-nft -w -t nat -N NEW",
            id="chain",
        ),
        pytest.param(
            SetPolicy(netns=N1, backend="nft", family=4, table="filter", chain="FORWARD", policy="ACCEPT"),
            "iptables-nft -w -t filter -P FORWARD ACCEPT",
            id="policy",
        ),
        pytest.param(
            AddRoute(netns=N1, route=ONLINK),
            "ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
            id="onlink route",
        ),
        pytest.param(
            AddRoute(netns=N1, route=FULL),
            "ip route replace 10.5.0.0/16 src 10.0.0.1 table 100 metric 20 mtu 1400 "
            "nexthop via 10.0.0.2 dev eth0 weight 1 nexthop dev eth1 weight 2",
            id="multipath route",
        ),
        pytest.param(
            AddRoute(netns=N1, route=Route(dst=Net("::/0"), nexthops=(NextHop(dev="eth0", via=Ip("fd00::1")),))),
            "ip -6 route replace default via fd00::1 dev eth0",
            id="IPv6 default route",
        ),
        pytest.param(
            DeleteRoute(netns=N1, route=Route(dst=Net("10.5.0.0/16"), type="blackhole")),
            "ip route del blackhole 10.5.0.0/16",
            id="blackhole",
        ),
        pytest.param(
            DeletePolicyRule(netns=N1, family=4, priority=100, table=7),
            "ip -4 rule del pref 100 lookup 7",
            id="ip rule",
        ),
        pytest.param(SetLink(netns=N1, dev="eth0", up=True), "ip link set eth0 up", id="link up"),
        pytest.param(SetLink(netns=N1, dev="eth0", mtu=1400), "ip link set eth0 mtu 1400", id="mtu"),
        pytest.param(SetLink(netns=N1, dev="v", master="cni0"), "ip link set v master cni0", id="master"),
        pytest.param(SetLink(netns=N1, dev="v", master=""), "ip link set v nomaster", id="no master"),
        pytest.param(SetLink(netns=N1, dev="v", hairpin=True), "bridge link set dev v hairpin on", id="hairpin"),
        pytest.param(SetLink(netns=N1, dev="v", isolated=False), "bridge link set dev v isolated off", id="isolated"),
        pytest.param(
            AddAddress(netns=N1, dev="cni0", address=Address(ip=Ip("10.0.1.1"), prefixlen=24)),
            "ip addr add 10.0.1.1/24 dev cni0",
            id="address",
        ),
        pytest.param(
            SetNeighbour(netns=N1, ip="10.244.1.0", dev="flannel.1", mac="02:00:00:00:00:01"),
            "ip neigh replace 10.244.1.0 lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent",
            id="neighbour",
        ),
        pytest.param(
            SetNeighbour(netns=N1, ip="10.244.1.0", dev="cni0", mac=None, state=NeighbourState.NONE),
            "ip neigh del 10.244.1.0 dev cni0",
            id="no neighbour",
        ),
        pytest.param(
            SetFdb(
                netns=N1,
                entry=FdbEntry(mac=Mac("02:00:00:00:00:01"), dev="flannel.1", dst=Ip("172.18.0.11"), permanent=True),
            ),
            "bridge fdb replace 02:00:00:00:00:01 dev flannel.1 dst 172.18.0.11 self permanent",
            id="fdb",
        ),
        pytest.param(
            FlushConntrack(netns=N1, dst="10.96.0.10", dport=53),
            "conntrack -D --orig-dst 10.96.0.10 --dport 53",
            id="conntrack",
        ),
        pytest.param(ForgetPathMtu(netns=N1), "ip route flush cache", id="path MTUs"),
    ],
)
def test_the_command_for(change: Change, command: str) -> None:
    assert commands_for(change) == (("n1", command),)


def test_a_change_in_a_pod_names_the_pods_namespace_as_the_place_to_type() -> None:
    change = AddRoute(netns=POD, route=Route(dst=Net("0.0.0.0/0"), nexthops=(NextHop(dev="eth0", via=Ip("10.0.0.1")),)))
    assert commands_for(change) == (("pod/shop/web-1", "ip route replace default via 10.0.0.1 dev eth0"),)


def test_no_command_makes_an_application_listen() -> None:
    listener = Socket(protocol=Protocol.TCP, ip=Ip("0.0.0.0"), port=80)
    assert commands_for(AddSocket(netns=POD, socket=listener)) == ()
