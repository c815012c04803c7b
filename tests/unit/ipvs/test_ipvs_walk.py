"""A node with IPVS: what comes in by a pod's veth or is sent by the node itself, and what leaves it."""

import pytest
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Frame, Packet, Protocol, TcpFlags
from tasks.skoop.model.state import (
    Address,
    ConntrackEntry,
    Interface,
    IpvsConnection,
    IpvsDestination,
    IpvsService,
    Missing,
    Neighbour,
    NeighbourState,
    NetNS,
    NextHop,
    Route,
    Section,
    Socket,
    Tuple,
)
from tasks.skoop.model.trace import Outcome, Reason, Stage
from tasks.skoop.model.xtables import Backend, XTable
from tasks.skoop.netstack import stack
from tasks.skoop.netstack.conntrack import Flow
from tasks.skoop.netstack.ipvs import find_service
from tasks.skoop.netstack.namespace import Answers, Namespace
from tasks.skoop.netstack.skb import Exit, steps_of
from tasks.skoop.parse.iptables import parse_iptables_save

NODE = NetnsId("node/n1")
VIP, POD, SERVER, UPLINK = Ip("10.96.0.1"), Ip("10.244.1.2"), Ip("10.244.2.2"), Ip("172.18.0.11")
MAC = {"pod0": Mac("02:00:00:00:00:01"), "eth0": Mac("02:00:00:00:00:02")}
FAR = Mac("02:00:00:00:00:99")
TRACKING = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
MASQUERADE = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n"


class NoWire:
    def resolve(self, *_: object) -> Answers:
        return Answers()

    def reaches(self, *_: object) -> bool:
        return False

    def vteps(self, *_: object) -> tuple[Ip, ...]:
        return ()

    def l3s_above(self, *_: object) -> None:
        return None


def rules(text: str) -> tuple[XTable, ...]:
    return parse_iptables_save(text, backend=Backend.LEGACY, family=4, source="test") if text else ()


def service(*servers: IpvsDestination, **more: object) -> IpvsService:
    return replace(IpvsService(ip=VIP, port=80, destinations=servers), **more)


FAR_SERVER = IpvsDestination(SERVER, 8080)


def node(
    *services: IpvsService, iptables: str = "", sysctls: dict[str, str] | None = None, **more: object
) -> Namespace:
    def link(index: int, name: str, *ips: str, **extra: object) -> Interface:
        own = tuple(Address(ip=Ip(ip), prefixlen=24 if name == "eth0" else 32) for ip in ips)
        return Interface(index=index, name=name, addresses=own, mac=MAC.get(name, Mac("")), **extra)

    def local(ip: str, dev: str) -> Route:
        return Route(
            dst=Net(f"{ip}/32"), table=255, type="local", nexthops=(NextHop(dev=dev),), prefsrc=Ip(ip), scope="host"
        )

    def unicast(dst: str, dev: str, via: str | None = None, src: str | None = None) -> Route:
        return Route(
            dst=Net(dst), nexthops=(NextHop(dev=dev, via=Ip(via) if via else None),), prefsrc=Ip(src) if src else None
        )

    state = NetNS(
        id=NODE,
        interfaces=(
            link(1, "lo", kind="loopback", mtu=65536),
            link(2, "eth0", UPLINK, kind="veth"),
            link(3, "pod0", kind="veth"),
            link(4, "kube-ipvs0", VIP, kind="dummy", up=False, noarp=True),
        ),
        routes=(
            Route(dst=Net("127.0.0.0/8"), table=255, type="local", nexthops=(NextHop(dev="lo"),), scope="host"),
            local(VIP, "kube-ipvs0"),
            local(UPLINK, "eth0"),
            unicast("172.18.0.0/24", "eth0", src=UPLINK),
            unicast("10.244.1.2/32", "pod0"),
            unicast("10.244.2.0/24", "eth0", "172.18.0.12"),
        ),
        neighbours=tuple(
            Neighbour(ip=Ip(ip), dev=dev, mac=FAR, state=NeighbourState.PERMANENT)
            for ip, dev in (("172.18.0.12", "eth0"), ("172.18.0.100", "eth0"), (POD, "pod0"))
        ),
        sysctls={"net/ipv4/ip_forward": "1", **(sysctls or {})},
        tables=rules(iptables),
        ipvs=services,
        sockets=(Socket(protocol=Protocol.TCP, ip=Ip("0.0.0.0"), port=10250, backlog=128),),
    )
    return Namespace(replace(state, **more), NoWire())


def syn(dport: int = 80, **more: object) -> Packet:
    return replace(Packet(src=POD, dst=VIP, sport=40000, dport=dport, tcp_flags=TcpFlags.SYN), **more)


def from_pod(ns: Namespace, packet: Packet, flow: Flow | None = None) -> tuple[Exit, ...]:
    return stack.receive(ns, "pod0", Frame(packet, FAR, MAC["pod0"]), flow or {})


def only(exits: tuple[Exit, ...]) -> Exit:
    (one,) = exits
    return one


def answer_to(sent: Exit, ns: Namespace, dev: str = "eth0", **more: object) -> Exit:
    assert sent.emit is not None
    asked = sent.emit.frame.packet
    packet = Packet(
        src=asked.dst,
        dst=asked.src,
        sport=asked.dport,
        dport=asked.sport,
        tcp_flags=TcpFlags.SYN_ACK,
        protocol=asked.protocol,
    )
    return only(stack.receive(ns, dev, Frame(replace(packet, **more), FAR, MAC[dev]), sent.flow, answer=True))


def hooks(way: Exit) -> list[str]:
    return [step.place.hook for step in steps_of(way.trail) if step.place.hook]


def test_a_request_is_sent_on_and_its_answer_gets_the_virtual_address() -> None:
    ns = node(service(FAR_SERVER))
    sent = only(from_pod(ns, syn()))
    assert sent.emit is not None
    packet = sent.emit.frame.packet
    assert (sent.emit.dev, packet.src, packet.dst, packet.dport, packet.ttl) == ("eth0", POD, SERVER, 8080, 63)
    back = answer_to(sent, ns)
    assert back.emit is not None
    assert (back.emit.dev, back.emit.frame.packet.src, back.emit.frame.packet.sport) == ("pod0", VIP, 80)


def test_a_request_passes_input_and_output_but_not_forward() -> None:
    drop = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
    ns = node(service(FAR_SERVER), iptables=drop)
    sent = only(from_pod(ns, syn()))
    assert sent.emit is not None
    back = answer_to(sent, ns)
    assert back.end is not None
    assert (back.end.reason, back.end.place and back.end.place.chain) == (Reason.NETFILTER_DROP, "FORWARD")


@pytest.mark.parametrize(
    ("rule", "dropped"),
    [
        pytest.param(f"-A INPUT -d {VIP} -j DROP", True, id="INPUT sees the virtual address"),
        pytest.param(f"-A INPUT -d {SERVER} -j DROP", False, id="INPUT does not see the server"),
        pytest.param(f"-A OUTPUT -d {SERVER} -j DROP", True, id="OUTPUT sees the server"),
        pytest.param(f"-A OUTPUT -d {VIP} -j DROP", False, id="OUTPUT does not see the virtual address"),
    ],
)
def test_what_the_filter_sees(rule: str, dropped: bool) -> None:
    ns = node(service(FAR_SERVER), iptables=f"*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rule}\nCOMMIT\n")
    assert (only(from_pod(ns, syn())).emit is None) is dropped


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize(
    "servers",
    [pytest.param((), id="none"), pytest.param((IpvsDestination(SERVER, 8080, "masq", 0),), id="weight 0")],
)
def test_without_real_server_the_client_is_told_by_icmp(
    servers: tuple[IpvsDestination, ...], protocol: Protocol
) -> None:
    flags = TcpFlags.SYN if protocol == Protocol.TCP else TcpFlags.NONE
    end = only(from_pod(node(service(*servers, protocol=protocol)), syn(protocol=protocol, tcp_flags=flags))).end
    assert end is not None
    assert end.response is not None
    told = end.response.packet
    assert (end.outcome, end.reason) == (Outcome.REFUSED, Reason.NO_REAL_SERVER)
    assert (told.src, told.dst, told.icmp_type, told.icmp_code) == (VIP, POD, 3, 3)


def test_a_port_without_service_is_the_hosts_own() -> None:
    end = only(from_pod(node(service(FAR_SERVER)), syn(81))).end
    assert end is not None
    assert end.reason == Reason.NO_SOCKET


def test_a_segment_that_begins_nothing_is_left_to_the_host() -> None:
    end = only(from_pod(node(service(FAR_SERVER)), syn(tcp_flags=TcpFlags.ACK))).end
    assert end is not None
    assert end.reason == Reason.NO_SOCKET


def test_two_servers_are_two_ways() -> None:
    other = IpvsDestination(Ip("10.244.2.3"), 8080)
    ways = from_pod(node(service(FAR_SERVER, other)), syn())
    assert {(way.emit.frame.packet.dst, way.probability) for way in ways if way.emit} == {
        (SERVER, 0.5),
        (other.ip, 0.5),
    }


def test_the_second_packet_goes_to_the_server_of_the_first() -> None:
    other = IpvsDestination(Ip("10.244.2.3"), 8080)
    ns = node(service(FAR_SERVER, other))
    for first in from_pod(ns, syn()):
        second = only(from_pod(ns, syn(tcp_flags=TcpFlags.ACK), first.flow))
        assert first.emit is not None
        assert second.emit is not None
        assert second.emit.frame.packet.dst == first.emit.frame.packet.dst


def test_the_nodes_own_request_carries_the_virtual_address_as_source() -> None:
    sent = only(stack.send(node(service(FAR_SERVER)), syn(src=Ip("0.0.0.0")), {}))
    assert sent.emit is not None
    assert (sent.emit.frame.packet.src, sent.emit.frame.packet.dst) == (VIP, SERVER)


@pytest.mark.parametrize(
    ("vs_conntrack", "source"),
    [pytest.param("1", UPLINK, id="tracked: masqueraded"), pytest.param("0", POD, id="not tracked: no nat at all")],
)
def test_nat_sees_the_flow_only_with_vs_conntrack(vs_conntrack: str, source: Ip) -> None:
    ns = node(service(FAR_SERVER), iptables=MASQUERADE, sysctls={"net/ipv4/vs/conntrack": vs_conntrack})
    sent = only(from_pod(ns, syn()))
    assert sent.emit is not None
    assert sent.emit.frame.packet.src == source
    back = answer_to(sent, ns)
    assert back.emit is not None
    assert (back.emit.dev, back.emit.frame.packet.src, back.emit.frame.packet.dst) == ("pod0", VIP, POD)


@pytest.mark.parametrize(("vs_conntrack", "passes"), [("1", True), ("0", False)])
def test_an_answer_is_invalid_to_conntrack_unless_the_request_stayed_tracked(vs_conntrack: str, passes: bool) -> None:
    ns = node(service(FAR_SERVER), iptables=TRACKING, sysctls={"net/ipv4/vs/conntrack": vs_conntrack})
    back = answer_to(only(from_pod(ns, syn())), ns)
    assert (back.emit is not None) is passes


def test_a_real_server_on_this_host_takes_the_packet_where_it_is() -> None:
    here = IpvsDestination(UPLINK, 10250)
    got = only(from_pod(node(service(here)), syn()))
    assert got.end is not None
    assert (got.end.outcome, got.packet.dst, got.packet.dport) == (Outcome.DELIVERED, UPLINK, 10250)


def test_loopback_is_no_real_server_for_packets_from_outside() -> None:
    end = only(from_pod(node(service(IpvsDestination(Ip("127.0.0.1"), 10250))), syn())).end
    assert end is not None
    assert end.reason == Reason.IP_LOCALNET


def test_direct_routing_leaves_the_address_alone() -> None:
    sent = only(from_pod(node(service(IpvsDestination(SERVER, 80, "route"))), syn()))
    assert sent.emit is not None
    assert (sent.emit.frame.packet.dst, sent.emit.next_hop) == (VIP, "172.18.0.12")


def test_a_tunnel_wraps_the_packet_as_it_is() -> None:
    sent = only(from_pod(node(service(IpvsDestination(SERVER, 80, "tunnel"))), syn()))
    assert sent.emit is not None
    outer = sent.emit.frame.packet
    assert (outer.src, outer.dst, outer.protocol, outer.length) == (UPLINK, SERVER, Protocol.IPIP, 80)
    assert outer.encap is not None
    assert (outer.encap.src, outer.encap.dst) == (POD, VIP)


def test_an_unknown_encapsulation_is_unknown() -> None:
    end = only(from_pod(node(service(IpvsDestination(SERVER, 80, "tunnel", 1, "gue"))), syn()))
    assert end.end is not None
    assert end.end.outcome == Outcome.UNKNOWN
    assert end.missing


def test_an_error_about_a_request_seems_to_come_from_the_virtual_address() -> None:
    ns = node(service(FAR_SERVER))
    sent = only(from_pod(ns, syn()))
    assert sent.emit is not None
    error = Packet(
        src=Ip("172.18.0.12"),
        dst=POD,
        protocol=Protocol.ICMP,
        icmp_type=3,
        icmp_code=1,
        inner=sent.emit.frame.packet,
    )
    back = only(stack.receive(ns, "eth0", Frame(error, FAR, MAC["eth0"]), sent.flow, answer=True))
    assert back.emit is not None
    told = back.emit.frame.packet
    assert told.inner is not None
    assert (told.src, told.inner.dst, told.inner.dport) == (VIP, VIP, 80)


def test_too_large_for_the_way_to_the_server() -> None:
    ns = node(service(FAR_SERVER))
    end = only(from_pod(ns, syn(length=1400, df=True)))
    assert end.emit is not None
    small = replace(
        ns.state,
        interfaces=tuple(replace(link, mtu=1000) if link.name == "eth0" else link for link in ns.state.interfaces),
    )
    told = only(from_pod(Namespace(small, NoWire()), syn(length=1400, df=True))).end
    assert told is not None
    assert told.response is not None
    assert (told.reason, told.response.packet.icmp_mtu) == (Reason.PKT_TOO_BIG, 1000)


MARKED = replace(IpvsService(fwmark=7, destinations=(FAR_SERVER,)))


@pytest.mark.parametrize(
    ("services", "packet", "found"),
    [
        pytest.param((service(),), syn(), 0, id="address and port"),
        pytest.param((service(protocol=Protocol.UDP),), syn(), None, id="another protocol"),
        pytest.param((service(), MARKED), syn(mark=7), 1, id="a mark goes before the address"),
        pytest.param((service(), replace(MARKED, family=6)), syn(mark=7), 0, id="a mark of the other family"),
        pytest.param((service(port=0, persistent_s=300),), syn(8443), 0, id="any port"),
        pytest.param((service(port=0), service()), syn(), 1, id="the port goes before any port"),
    ],
)
def test_find_service(services: tuple[IpvsService, ...], packet: Packet, found: int | None) -> None:
    assert find_service(services, packet) == (None if found is None else services[found])


def test_a_template_binds_a_client_to_its_server() -> None:
    other = IpvsDestination(Ip("10.244.2.3"), 8080)
    bound = IpvsConnection(
        protocol=Protocol.TCP, client=POD, client_port=0, virtual=VIP, virtual_port=80, ip=other.ip, port=other.port
    )
    ns = node(service(FAR_SERVER, other, persistent_s=600), ipvs_connections=(bound,))
    sent = only(from_pod(ns, syn()))
    assert sent.emit is not None
    assert sent.emit.frame.packet.dst == other.ip
    assert len(from_pod(ns, syn(src=Ip("10.244.1.3")))) == 2


@pytest.mark.parametrize(("expire", "lost"), [("0", True), ("1", False)])
def test_an_old_connection_to_a_server_that_is_gone(expire: str, lost: bool) -> None:
    old = IpvsConnection(
        protocol=Protocol.TCP,
        client=POD,
        client_port=40000,
        virtual=VIP,
        virtual_port=80,
        ip=Ip("10.244.2.77"),
        port=8080,
        state="ESTABLISHED",
    )
    ns = node(service(FAR_SERVER), sysctls={"net/ipv4/vs/expire_nodest_conn": expire}, ipvs_connections=(old,))
    got = only(from_pod(ns, syn()))
    assert (got.end is not None and got.end.reason == Reason.IPVS_DROP) is lost


def test_a_conntrack_entry_that_ipvs_wrote_is_no_dnat() -> None:
    old = IpvsConnection(
        protocol=Protocol.TCP, client=POD, client_port=40000, virtual=VIP, virtual_port=80, ip=SERVER, port=8080
    )
    entry = ConntrackEntry(
        protocol=Protocol.TCP,
        original=Tuple(POD, VIP, 40000, 80),
        reply=Tuple(SERVER, UPLINK, 8080, 40000),
        state="ESTABLISHED",
        assured=True,
    )
    ns = node(
        service(FAR_SERVER),
        iptables=MASQUERADE,
        sysctls={"net/ipv4/vs/conntrack": "1"},
        ipvs_connections=(old,),
        conntrack=(entry,),
    )
    sent = only(from_pod(ns, syn(tcp_flags=TcpFlags.PSH_ACK)))
    assert sent.emit is not None
    assert (sent.emit.frame.packet.src, sent.emit.frame.packet.dst) == (UPLINK, SERVER)
    assert "FORWARD" not in hooks(sent)
    assert any(step.place.stage == Stage.IPVS for step in steps_of(sent.trail))


def test_virtual_servers_that_were_not_collected_are_unknown() -> None:
    gap = (Missing(section=Section.IPVS, reason="ipvsadm: not found"),)
    got = only(from_pod(node(missing=gap), syn()))
    assert got.end is not None
    assert got.end.outcome == Outcome.UNKNOWN
    assert got.missing == ("node/n1: virtual servers (ipvsadm: not found)",)
    own = only(from_pod(node(missing=gap), syn(10250, dst=UPLINK)))
    assert own.end is not None
    assert own.end.outcome == Outcome.DELIVERED
