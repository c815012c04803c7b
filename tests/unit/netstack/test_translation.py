"""NAT there and back: whatever a connection was translated to, its answers and the errors about it arrive as if it had not been."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.ids import node_netns
from tasks.skoop.model.packet import CtState, Packet, Protocol, TcpFlags
from tasks.skoop.model.state import ConntrackEntry, NetNS, Tuple
from tasks.skoop.netstack import conntrack
from tasks.skoop.netstack.conntrack import Conn

CLIENT, SERVICE, BACKEND, NODE, ROUTER = (Ip(f"10.{number}.0.1") for number in range(1, 6))
PORTS = st.integers(1, 65535)
PROTOCOLS = st.sampled_from((Protocol.TCP, Protocol.UDP, Protocol.ICMP))


@st.composite
def connections(draw: st.DrawFn) -> tuple[Packet, Conn]:
    """A first packet and its connection, with any combination of source and destination NAT."""
    protocol = draw(PROTOCOLS)
    icmp = protocol == Protocol.ICMP
    packet = Packet(
        src=CLIENT,
        dst=SERVICE,
        protocol=protocol,
        sport=draw(PORTS),
        dport=0 if icmp else draw(PORTS),
        tcp_flags=TcpFlags.SYN if protocol == Protocol.TCP else TcpFlags.NONE,
        icmp_type=8 if icmp else -1,
    )
    conn = conntrack.new_conn(packet, 0)
    if draw(st.booleans()):
        conn = conntrack.set_up_destination(conn, BACKEND, conn.reply.sport if icmp else draw(PORTS))
    if draw(st.booleans()):
        conn = conntrack.set_up_source(conn, NODE, conn.reply.dport if icmp else draw(PORTS))
    return packet, conn


def through(packet: Packet, conn: Conn, *, is_reply: bool) -> Packet:
    """The packet after a node's PREROUTING and POSTROUTING."""
    packet = conntrack.translate(packet, conn, is_reply, source=False)
    return conntrack.translate(packet, conn, is_reply, source=True)


def error_through(packet: Packet, conn: Conn, *, is_reply: bool) -> Packet:
    packet = conntrack.translate_error(packet, conn, is_reply, source=False)
    return conntrack.translate_error(packet, conn, is_reply, source=True)


def answer_to(packet: Packet) -> Packet:
    icmp = packet.protocol == Protocol.ICMP
    return packet.with_(
        src=packet.dst,
        dst=packet.src,
        sport=packet.sport if icmp else packet.dport,
        dport=0 if icmp else packet.sport,
        icmp_type=0 if icmp else -1,
        tcp_flags=TcpFlags.SYN_ACK if packet.protocol == Protocol.TCP else TcpFlags.NONE,
    )


def error_about(packet: Packet) -> Packet:
    return Packet(src=ROUTER, dst=packet.src, protocol=Protocol.ICMP, icmp_type=3, icmp_code=1, inner=packet)


@given(connections())
def test_the_answer_comes_from_where_the_client_called(case: tuple[Packet, Conn]) -> None:
    packet, conn = case
    answer = answer_to(through(packet, conn, is_reply=False))
    assert conntrack.direction(conn, answer) is True
    assert through(answer, conn, is_reply=True) == answer_to(packet)


@given(connections())
def test_later_packets_are_translated_as_the_first(case: tuple[Packet, Conn]) -> None:
    packet, conn = case
    assert conntrack.direction(conn, packet) is False
    assert through(packet, conn, is_reply=False) == through(packet, conn, is_reply=False)
    both = conntrack.translate(conntrack.translate(packet, conn, False, source=True), conn, False, source=False)
    assert both == through(packet, conn, is_reply=False)


@given(connections())
def test_an_error_about_the_request_quotes_what_the_client_sent(case: tuple[Packet, Conn]) -> None:
    packet, conn = case
    error = error_about(through(packet, conn, is_reply=False))
    assert error.inner is not None
    found = conntrack.find_quoted({"gw": (conn,)}, "gw", error.inner)
    assert found == (0, True)
    told = error_through(error, conn, is_reply=True)
    assert told.dst == CLIENT
    assert told.inner == packet


@given(connections())
def test_an_error_about_the_answer_quotes_what_the_server_sent(case: tuple[Packet, Conn]) -> None:
    packet, conn = case
    sent = answer_to(through(packet, conn, is_reply=False))
    error = error_about(through(sent, conn, is_reply=True))
    assert error.inner is not None
    if conntrack.tuple_of(packet) == conntrack.inverted(conntrack.tuple_of(packet)):
        return
    found = conntrack.find_quoted({"gw": (conn,)}, "gw", error.inner)
    assert found == (0, False)
    told = error_through(error, conn, is_reply=False)
    assert told.dst == sent.src
    assert told.inner == sent


@given(connections())
def test_an_old_entry_translates_as_the_connection_did(case: tuple[Packet, Conn]) -> None:
    packet, conn = case
    entry = ConntrackEntry(protocol=conn.protocol, original=conn.original, reply=conn.reply)
    known = conntrack.Known(NetNS(id=node_netns("gw"), conntrack=(entry,)))
    answer = answer_to(through(packet, conn, is_reply=False))
    for seen, is_reply in ((packet, False), (answer, True)):
        remembered = known.find(seen)
        assert remembered is not None
        assert through(seen, remembered, is_reply=is_reply) == through(seen, conn, is_reply=is_reply)


@given(connections(), connections())
def test_a_packet_belongs_to_its_own_connection_only(one: tuple[Packet, Conn], other: tuple[Packet, Conn]) -> None:
    packet, conn = one
    _, stranger = other
    if conn.original == stranger.original or stranger.reply == conn.original or conn.protocol == stranger.protocol:
        return
    assert conntrack.direction(stranger, packet) is None


def test_without_translation_nothing_changes() -> None:
    packet = Packet(src=CLIENT, dst=SERVICE, sport=1, dport=2, tcp_flags=TcpFlags.SYN)
    conn = conntrack.new_conn(packet, 0)
    assert conn.reply == Tuple(SERVICE, CLIENT, 2, 1)
    assert through(packet, conn, is_reply=False) == packet
    assert conntrack.state_of(conn, False) == CtState.NEW
