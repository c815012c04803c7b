"""Laws of the readers: what is written as the tools print it reads back as it was, for whatever state."""

import json
import string
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.packet import PROTOCOL_NUMBERS, Protocol
from tasks.skoop.model.state import (
    Address,
    Bridge,
    BridgePort,
    ConntrackEntry,
    FdbEntry,
    Interface,
    IpSet,
    IpSetEntry,
    IpvsConnection,
    IpvsDestination,
    IpvsService,
    Neighbour,
    NeighbourState,
    NextHop,
    NextHopObject,
    NftTable,
    PolicyRule,
    PortVlan,
    Route,
    RouteException,
    Socket,
    Tunnel,
    Tuple,
    Vxlan,
    WireGuard,
    WireGuardPeer,
)
from tasks.skoop.parse.conntrack import parse_conntrack
from tasks.skoop.parse.ipset import parse_ipset_save
from tasks.skoop.parse.ipvs import parse_ip_vs, parse_ip_vs_conn, parse_ipvsadm
from tasks.skoop.parse.links import parse_addresses, parse_links, parse_ports, parse_vlans
from tasks.skoop.parse.neighbours import parse_fdb, parse_neighbours
from tasks.skoop.parse.nexthops import parse_nexthops
from tasks.skoop.parse.nft import parse_nft
from tasks.skoop.parse.routes import parse_exceptions, parse_routes, parse_rules
from tasks.skoop.parse.rtnames import PROTOCOLS
from tasks.skoop.parse.sockets import parse_sockets
from tasks.skoop.parse.sysctl import PER_DEVICE, SINGLE, parse_sysctl
from tasks.skoop.parse.wireguard import parse_wireguard
from tests.unit.parse import rendering
from tests.unit.parse.conftest import member

T = TypeVar("T")
ALPHABET = string.ascii_letters + string.digits
IP4 = st.ip_addresses(v=4).map(lambda ip: Ip(str(ip)))
IP6 = st.ip_addresses(v=6).map(lambda ip: Ip(str(ip))).filter(lambda ip: not ip.startswith("::ffff:"))
IP = IP4 | IP6
DEV = st.text(ALPHABET + "._-", min_size=1, max_size=15).filter(lambda name: not name.startswith((".", "-")))
MAC = st.binary(min_size=6, max_size=6).map(lambda raw: Mac(raw.hex(":")))
PORT = st.integers(0, 65535)
MARK = st.integers(0, 0xFFFFFFFF)
SMALL = st.integers(0, 1 << 20)
YES = st.booleans()
KEY = st.text(ALPHABET + "+/=", min_size=1, max_size=44)


def _net(version: int) -> st.SearchStrategy[Net]:
    bits = 32 if version == 4 else 128
    return st.builds(
        lambda ip, length: Net(str(ip_network(f"{ip}/{length}", strict=False))), st.ip_addresses(v=version), st.integers(0, bits)  # type: ignore[arg-type]
    )  # fmt: skip


NETS = {version: _net(version) for version in (4, 6)}
IPS = {4: IP4, 6: IP6}


def some(of: st.SearchStrategy[T], most: int = 3) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(of, max_size=most).map(tuple)


def named(of: st.SearchStrategy[T]) -> st.SearchStrategy[dict[str, T]]:
    return st.dictionaries(DEV, of, max_size=3)


@st.composite
def hops(draw: st.DrawFn, *, weighted: bool) -> NextHop:
    dev, via = draw(DEV | st.none()), draw(IP | st.none())
    return NextHop(
        dev=dev if dev or via else "eth0",
        via=via,
        weight=draw(st.integers(1, 256)) if weighted else 1,
        onlink=draw(YES),
        dead=draw(YES),
        linkdown=draw(YES),
    )


@st.composite
def routes(draw: st.DrawFn) -> Route:
    version = draw(st.sampled_from([4, 6]))
    legs = draw(st.sampled_from([0, 1, 1, 2, 3]))
    return Route(
        dst=draw(NETS[version]),
        table=draw(st.integers(1, 0xFFFFFFFF)),
        type=draw(st.sampled_from(["unicast", "local", "broadcast", "blackhole", "unreachable", "prohibit", "throw"])),
        nexthops=tuple(draw(hops(weighted=legs > 1)) for _ in range(legs)),
        prefsrc=draw(IPS[version] | st.none()),
        src=draw(NETS[version] | st.none()),
        scope=draw(st.sampled_from(["global", "site", "link", "host", "nowhere"])),
        protocol=draw(st.sampled_from(sorted(PROTOCOLS.values()))),
        metric=draw(SMALL),
        tos=draw(st.integers(0, 255)),
        mtu=draw(st.sampled_from([0, 1280, 1500])),
        nhid=draw(st.integers(0, 99)),
    )


def _consistent(rule: PolicyRule) -> PolicyRule:
    """Drop what a rule of its action does not have."""
    leads = rule.action in ("goto", "nop")
    return replace(
        rule,
        table=0 if leads else rule.table,
        goto=rule.goto if rule.action == "goto" else 0,
        fwmark=rule.fwmark if rule.fwmask else 0,
    )


RULES4 = st.builds(
    PolicyRule,
    family=st.just(4),
    priority=st.integers(0, 0xFFFFFFFF),
    table=st.integers(1, 0xFFFFFFFF),
    action=st.sampled_from(["lookup", "blackhole", "unreachable", "prohibit", "goto", "nop"]),
    goto=st.integers(1, 32766),
    invert=YES,
    src=NETS[4] | st.none(),
    dst=NETS[4] | st.none(),
    iif=DEV | st.none(),
    oif=DEV | st.none(),
    fwmark=MARK,
    fwmask=MARK,
    tos=st.integers(0, 255),
    protocol=st.none() | st.sampled_from(sorted(Protocol)),
    sports=st.none() | st.tuples(PORT, PORT),
    dports=st.none() | st.tuples(PORT, PORT),
    uids=st.none() | st.tuples(SMALL, SMALL),
    l3mdev=YES,
    suppress_prefixlength=st.integers(-1, 32),
    suppress_ifgroup=st.integers(-1, 9),
).map(_consistent)


EXCEPTIONS = st.builds(
    RouteException, dst=IP, dev=DEV | st.none(), via=IP | st.none(), mtu=st.integers(0, 1500), expires_s=SMALL
)
GROUPS = st.lists(st.tuples(st.integers(1, 99), st.integers(1, 256)), min_size=1, max_size=3).map(tuple)
NEXTHOPS = st.one_of(
    st.builds(NextHopObject, id=SMALL, nexthop=hops(weighted=False), fdb=YES),
    st.builds(NextHopObject, id=SMALL, group=GROUPS, fdb=YES),
    st.builds(NextHopObject, id=SMALL, blackhole=st.just(True)),
)
NEIGHBOURS = st.builds(
    Neighbour, ip=IP, dev=DEV, mac=MAC | st.none(), state=st.sampled_from(list(NeighbourState)), proxy=YES, router=YES
)
FDB = st.builds(
    lambda kind, **more: FdbEntry(permanent=kind == "permanent", static=kind == "static", **more),
    st.sampled_from(["", "permanent", "static"]),
    mac=MAC,
    dev=DEV,
    master=DEV | st.none(),
    dst=IP | st.none(),
    port=PORT | st.none(),
    vni=SMALL | st.none(),
    vlan=st.integers(1, 4094) | st.none(),
    sticky=YES,
    nhid=st.integers(0, 9),
)
ADDRESSES = st.builds(
    Address,
    ip=IP,
    prefixlen=st.integers(0, 128),
    scope=st.sampled_from(["global", "site", "link", "host"]),
    peer=IP | st.none(),
    broadcast=IP | st.none(),
    secondary=YES,
    deprecated=YES,
    tentative=YES,
    dadfailed=YES,
    noprefixroute=YES,
)
PORTS = st.builds(
    BridgePort,
    state=st.sampled_from(["disabled", "listening", "learning", "forwarding", "blocking"]),
    **dict.fromkeys(("hairpin", "isolated", "learning", "flood", "bcast_flood", "mcast_flood", "locked"), YES),
)
VLANS = some(st.builds(PortVlan, vid=st.integers(1, 4094), pvid=YES, untagged=YES))
REAL_IP = IP.filter(lambda ip: ip not in ("0.0.0.0", "::"))
VXLANS = st.builds(
    Vxlan,
    vni=st.integers(0, (1 << 24) - 1),
    local=REAL_IP | st.none(),
    group=REAL_IP | st.none(),
    link=DEV | st.none(),
    port=PORT,
    learning=YES,
    ttl=st.integers(0, 255),
    df=st.sampled_from(["unset", "set", "inherit"]),
    external=YES,
    udp_csum=YES,
)
BRIDGES = st.builds(
    Bridge,
    **dict.fromkeys(("stp", "vlan_filtering", "nf_call_iptables", "nf_call_ip6tables", "nf_call_arptables"), YES),
)
TUNNELS = st.builds(
    Tunnel,
    ttl=st.integers(0, 255),
    pmtudisc=YES,
    ignore_df=YES,
    link=DEV | st.none(),
    ikey=MARK | st.none(),
    okey=MARK | st.none(),
    icsum=YES,
    ocsum=YES,
    oseq=YES,
    encap_limit=st.integers(-1, 255),
    fwmark=MARK,
    external=YES,
    encap=st.sampled_from(["none", "fou", "gue"]),
    df=st.sampled_from(["unset", "set"]),
)


@st.composite
def links(draw: st.DrawFn) -> Interface:
    kind = draw(st.sampled_from(["", "loopback", "veth", "bridge", "vxlan", "vlan", "macvlan", "ipvlan", "gre", "vrf"]))
    stacked = kind in ("vlan", "macvlan", "ipvlan")
    away = stacked and draw(YES)
    index, nsid = draw(st.integers(1, 999)), draw(st.integers(0, 9))
    port = draw(PORTS | st.none())
    return Interface(
        index=draw(st.integers(1, 999)),
        name=draw(DEV),
        kind=kind,
        up=draw(YES),
        carrier=draw(YES),
        mtu=draw(st.integers(68, 65536)),
        mac=draw(MAC) if kind not in ("gre",) else Mac(""),
        noarp=draw(YES),
        promisc=draw(YES),
        operstate=draw(st.sampled_from(["UP", "DOWN", "UNKNOWN"])),
        master=draw(DEV | st.none()),
        lower=draw(DEV) if stacked and not away else None,
        lower_index=index if away else None,
        lower_nsid=nsid if away else None,
        peer_index=index if kind == "veth" else None,
        peer_nsid=nsid if kind == "veth" and draw(YES) else None,
        addresses=draw(some(ADDRESSES)),
        vxlan=draw(VXLANS) if kind == "vxlan" else None,
        bridge=draw(BRIDGES) if kind == "bridge" else None,
        port=port,
        slave_active=port is not None or draw(YES),
        vlan_id=draw(st.integers(0, 4094)) if kind == "vlan" else None,
        vlan_protocol=draw(st.sampled_from(["802.1Q", "802.1ad"])) if kind == "vlan" else "802.1Q",
        mode=draw(st.sampled_from(["l2", "l3s"])) if kind == "ipvlan" else "",
        vrf_table=draw(st.integers(1, 999)) if kind == "vrf" else None,
        tunnel=draw(TUNNELS) if kind == "gre" else None,
        tunnel_local=draw(REAL_IP | st.none()) if kind == "gre" else None,
        tunnel_remote=draw(REAL_IP | st.none()) if kind == "gre" else None,
        group=draw(st.sampled_from(["default", "9"])),
    )


@st.composite
def entries(draw: st.DrawFn) -> ConntrackEntry:
    of = IPS[draw(st.sampled_from([4, 6]))]
    protocol = draw(st.sampled_from([Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP, Protocol.ICMPV6]))
    sport, dport = draw(PORT), draw(PORT)
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        dport = sport
    return ConntrackEntry(
        protocol=protocol,
        original=Tuple(draw(of), draw(of), sport, dport),
        reply=Tuple(draw(of), draw(of), dport, sport),
        state=draw(st.sampled_from(["ESTABLISHED", "SYN_SENT", "TIME_WAIT"])) if protocol == Protocol.TCP else "",
        replied=draw(YES),
        assured=draw(YES),
        mark=draw(MARK),
        zone=draw(st.integers(0, 65535)),
        timeout_s=draw(SMALL),
    )


@st.composite
def sockets(draw: st.DrawFn) -> Socket:
    protocol = draw(st.sampled_from([Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP, Protocol.ICMPV6]))
    state = draw(st.sampled_from(["LISTEN", "ESTAB", "UNCONN", "SYN-SENT"]))
    ip, peer = draw(IP | st.just(Ip("::"))), draw(IP | st.none())
    return Socket(
        protocol=protocol,
        ip=ip,
        port=draw(PORT) if protocol in rendering.SS_KINDS else 0,
        state=state,
        dev=draw(DEV | st.none()),
        v6only=ip == "::" and draw(YES),
        recv_queue=draw(SMALL),
        backlog=draw(SMALL) if state == "LISTEN" else 0,
        peer=peer,
        peer_port=draw(PORT) if peer else 0,
        process=",".join(draw(st.lists(st.text(ALPHABET + " -:.", min_size=1, max_size=8).map(str.strip).filter(bool), unique=True, max_size=2))),
    )  # fmt: skip


SETTINGS = st.sampled_from(
    [f"{folder}/{name}" for folder, names in SINGLE.items() for name in names]
    + [f"{folder}/flannel.1/{name}" for folder, names in PER_DEVICE.items() for name in names]
)
VALUES = st.text(ALPHABET + " \t-", max_size=12).map(str.strip)
SET_ENTRIES = some(
    st.builds(IpSetEntry, st.sampled_from(["10.0.0.0/8", "fd00::1,tcp:80", "10.0.0.0/8,eth wildcard", "80"]), YES)
)
IPSETS = st.lists(
    st.builds(
        IpSet,
        name=st.text(ALPHABET + "-:_;^|}$[~?", min_size=1, max_size=31),
        type=st.sampled_from(["hash:net", "hash:ip,port", "hash:ip,mark", "hash:net,iface"]),
        family=st.sampled_from([4, 6]),
        entries=SET_ENTRIES,
        netmask=st.sampled_from(["", "24", "255.0.255.0"]),
        markmask=st.integers(0, 0xFFFFFFFE),
    )
    | st.builds(IpSet, name=DEV, type=st.sampled_from(["list:set", "bitmap:port", "hash:mac"]), family=st.just(0), entries=SET_ENTRIES),
    max_size=3,
    unique_by=lambda one: one.name,
).map(tuple)  # fmt: skip


def services(form: str) -> st.SearchStrategy[tuple[IpvsService, ...]]:
    """Virtual services, with what a form of them tells."""
    saved, proc = form == "saved", form == "proc"
    servers = st.builds(
        lambda ip, port, method, weight, kind: IpvsDestination(ip, port, method, weight, kind if method == "tunnel" else "ipip"),
        IP4, PORT, st.sampled_from(["masq", "route", "tunnel"]), SMALL, st.sampled_from(["ipip", "gue"] if saved else ["ipip"]),
    )  # fmt: skip
    more = {
        "scheduler": st.sampled_from(["rr", "wlc", "sh", "mh"]),
        "persistent_s": st.sampled_from([0, 300]) if proc else st.integers(0, 9999),
        "flags": st.sampled_from([(), ("ops",), ("sh-fallback",), ("ops", "sh-port")] if saved else [(), ("ops",)]),
        "destinations": some(servers),
        "ordered": st.just(proc),
    }
    by_address = st.builds(
        IpvsService, protocol=st.sampled_from([Protocol.TCP, Protocol.UDP, Protocol.SCTP]), ip=IP, port=PORT, **more
    )
    by_mark = st.builds(
        IpvsService, fwmark=st.integers(1, 999), family=st.sampled_from([0, 6]) if saved else st.just(0), **more
    )
    masked = (by_address | by_mark).flatmap(
        lambda one: st.sampled_from(["", "255.255.0.0"]).map(
            lambda mask: _masked(one, mask if one.persistent_s else "")
        )
    )
    key = lambda one: (one.protocol, one.ip, one.port, one.fwmark, one.family)  # noqa: E731
    return st.lists(masked, max_size=3, unique_by=key).map(tuple)


def _masked(one: IpvsService, mask: str) -> IpvsService:
    return replace(one, netmask=mask)


CONNECTIONS = some(
    st.builds(
        IpvsConnection,
        protocol=st.sampled_from([Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.OTHER]),
        client=IP,
        client_port=PORT,
        virtual=IP,
        virtual_port=PORT,
        ip=IP,
        port=PORT,
        state=st.sampled_from(["ESTABLISHED", "NONE"]),
        expires_s=SMALL,
    )
)
PEERS = st.builds(
    lambda key, end, port, nets, keep, shaken: WireGuardPeer(
        public_key=key, endpoint=end, endpoint_port=port if end else 0, allowed_ips=nets, keepalive_s=keep, handshake=shaken
    ),
    KEY, IP | st.none(), PORT, some(NETS[4] | NETS[6]), st.integers(0, 99), YES,
)  # fmt: skip
WIREGUARDS = named(st.builds(WireGuard, public_key=KEY, port=PORT, fwmark=MARK, peers=some(PEERS)))


@st.composite
def nft_tables(draw: st.DrawFn) -> tuple[NftTable, ...]:
    keys = draw(st.lists(st.tuples(st.sampled_from(["ip", "ip6", "inet", "bridge"]), DEV), max_size=3, unique=True))
    found = []
    for family, name in keys:
        objects, hooks = [{"table": {"family": family, "name": name, "handle": 1}}], []
        for chain in draw(st.lists(DEV, max_size=3)):
            row = {"family": family, "table": name, "name": chain, "handle": 2}
            if draw(YES):
                hooks.append(
                    (
                        chain,
                        "filter",
                        "forward",
                        draw(st.integers(-400, 400)),
                        draw(st.sampled_from(["accept", "drop"])),
                    )
                )
                row |= {"type": "filter", "hook": "forward", "prio": hooks[-1][3], "policy": hooks[-1][4]}
            objects.append({"chain": row})
            value = draw(st.text(max_size=9))
            objects.append(
                {
                    "rule": {
                        "family": family,
                        "table": name,
                        "chain": chain,
                        "comment": value,
                        "expr": [{"accept": None}],
                    }
                }
            )
        texts = tuple(json.dumps(each) for each in objects)
        found.append(NftTable(family=family, name=name, objects=texts, hooks=tuple(hooks)))
    return tuple(found)  # fmt: skip


LAWS: dict[str, tuple[st.SearchStrategy[Any], Callable[..., str], Callable[[str], object]]] = {
    "routes": (some(routes()), rendering.routes, parse_routes),
    "rules": (some(RULES4), rendering.rules, parse_rules),
    "exceptions": (some(EXCEPTIONS), rendering.exceptions, parse_exceptions),
    "nexthops": (some(NEXTHOPS), rendering.nexthops, parse_nexthops),
    "neighbours": (some(NEIGHBOURS), rendering.neighbours, parse_neighbours),
    "fdb": (some(FDB), rendering.fdb, parse_fdb),
    "links": (st.lists(links(), max_size=3, unique_by=lambda one: one.name).map(tuple), rendering.links, parse_links),
    "bridge ports": (named(PORTS), rendering.ports, parse_ports),
    "bridge VLANs": (named(VLANS), rendering.vlans, parse_vlans),
    "conntrack": (some(entries()), rendering.conntrack, parse_conntrack),
    "sockets": (some(sockets()), rendering.sockets, parse_sockets),
    "sysctl": (st.dictionaries(SETTINGS, VALUES, max_size=4), rendering.sysctl, parse_sysctl),
    "ipset save": (IPSETS, rendering.ipset_save, parse_ipset_save),
    "ipset list": (IPSETS, rendering.ipset_list, parse_ipset_save),
    "ipvsadm -Sn": (services("saved"), rendering.ipvsadm, parse_ipvsadm),
    "ipvsadm -Ln": (services("listed"), rendering.ipvsadm_list, parse_ipvsadm),
    "/proc/net/ip_vs": (services("proc"), rendering.ip_vs, parse_ip_vs),
    "/proc/net/ip_vs_conn": (CONNECTIONS, rendering.ip_vs_conn, parse_ip_vs_conn),
    "wireguard": (WIREGUARDS, rendering.wireguard, parse_wireguard),
    "nft": (nft_tables(), rendering.nft, parse_nft),
}
"""What is printed → how to make such a state, to print it, to read it. (iptables-save: test_parse_iptables_laws.py.)"""


@pytest.mark.parametrize("what", LAWS)
def test_what_is_printed_reads_back(what: str) -> None:
    states, render, parse = LAWS[what]

    @settings(max_examples=40, deadline=None)
    @given(states)
    def law(state: object) -> None:
        text = render(state)
        assert parse(text) == state, text

    law()


RECORDED = {
    "routes": "ip-route-all.json",
    "rules": "ip-rule.json",
    "exceptions": "ip-route-cache.json",
    "neighbours": "ip-neigh.json",
    "fdb": "bridge-fdb.json",
    "links": "ip-addr.json",
    "bridge ports": "bridge-link-d.json",
    "conntrack": "conntrack-L.txt",
    "sockets": "ss-tlnupH.txt",
    "sysctl": "sysctl-net.txt",
    "nft": "nft-ruleset.json",
}


@pytest.mark.parametrize("what", RECORDED)
@pytest.mark.parametrize("archive", ["il-healthy", "nf-healthy"])
def test_what_a_node_had_is_printed_so_that_it_reads_back(what: str, archive: str) -> None:
    _, render, parse = LAWS[what]
    state = parse(member(archive, f"nodes/n1/{RECORDED[what]}"))
    assert parse(render(state)) == state


def test_addresses_read_back() -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(links(), max_size=3, unique_by=lambda one: one.index))
    def law(state: list[Interface]) -> None:
        assert parse_addresses(rendering.links(state)) == {one.index: one.addresses for one in state}

    law()


def test_every_protocol_has_a_number_but_one() -> None:
    assert set(Protocol) - set(PROTOCOL_NUMBERS) == {Protocol.OTHER}
