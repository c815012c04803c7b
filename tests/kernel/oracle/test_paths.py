"""Sorting the kernel's events into ways: what is told of several tries at once, of copies, and of addresses used again."""

from lab.prober import Ask, Attempt
from tasks.skoop.model.trace import View
from tests.kernel.oracle.events import RST, SYN, TCP, Event, Form, Kind
from tests.kernel.oracle.paths import Sorter, paths

CLIENT, VIP, BACKEND, NODE = ("10.0.1.2", 40000), ("10.96.0.1", 80), ("10.0.2.2", 8080), ("192.0.2.1", 50000)


def told(
    kind: Kind,
    netns: str,
    dev: str,
    src: tuple[str, int],
    dst: tuple[str, int],
    *,
    skb: int = 1,
    flags: int = SYN,
    sock: tuple[str, int] = ("", 0),
    reason: str = "",
    at_ns: int = 0,
) -> Event:
    """Return one event of a TCP segment."""
    return Event(
        at_ns=at_ns,
        kind=kind,
        netns=netns,
        dev=dev,
        ifindex=2,
        skb=skb,
        protocol=TCP,
        src=src[0],
        sport=src[1],
        dst=dst[0],
        dport=dst[1],
        ttl=64,
        length=60,
        mark=0,
        flags=flags,
        seq=1,
        ack=0,
        icmp_type=0,
        icmp_code=0,
        fragment=False,
        form=Form.PLAIN,
        other_protocol=0,
        other_src="",
        other_sport=0,
        other_dst="",
        other_dport=0,
        vni=0,
        sock_netns=sock[0],
        sock_port=sock[1],
        reason=reason,
        function="",
    )


def tried(src: str, local: tuple[str, int], dst: tuple[str, int]) -> Attempt:
    """Return a try of which nothing has been heard yet."""
    ask = Ask(src=src, dst=dst[0], dport=dst[1])
    return Attempt(ask=ask, view=View.UNKNOWN, local_ip=local[0], sport=local[1])


def test_translated_addresses_are_followed_both_ways() -> None:
    events = [
        told(Kind.TX, "pod/a", "eth0", CLIENT, VIP),
        told(Kind.RX, "node/n1", "veth1", CLIENT, VIP),
        told(Kind.TX, "node/n1", "eth0", NODE, BACKEND),
        told(Kind.RX, "pod/b", "eth0", NODE, BACKEND),
        told(Kind.TX, "pod/b", "eth0", BACKEND, NODE, skb=2, flags=SYN | 16),
        told(Kind.RX, "node/n1", "eth0", BACKEND, NODE, skb=2, flags=SYN | 16),
        told(Kind.TX, "node/n1", "veth1", VIP, CLIENT, skb=2, flags=SYN | 16),
        told(Kind.RX, "pod/a", "eth0", VIP, CLIENT, skb=2, flags=SYN | 16),
    ]
    (story,) = paths(events, [tried("pod/a", CLIENT, VIP)])
    assert [(hop.netns, hop.way, hop.src) for hop in story.forward.hops] == [
        ("pod/a", "out", CLIENT[0]),
        ("node/n1", "in", CLIENT[0]),
        ("node/n1", "out", NODE[0]),
        ("pod/b", "in", NODE[0]),
    ]
    assert len(story.reply.hops) == 4
    assert story.forward.drop is story.reply.drop is None


def test_an_address_of_the_kernel_used_again_is_another_packet() -> None:
    first = told(Kind.TX, "pod/a", "eth0", CLIENT, VIP)
    fresh = told(Kind.TX, "node/n1", "eth0", NODE, BACKEND, sock=("node/n1", 41000))
    one, other = paths([first, fresh], [tried("pod/a", CLIENT, VIP), tried("node/n1", ("192.0.2.1", 41000), VIP)])
    assert [hop.netns for hop in one.forward.hops] == ["pod/a"]
    assert [hop.netns for hop in other.forward.hops] == ["node/n1"]


def test_what_is_made_where_another_packet_has_arrived_is_not_that_packet() -> None:
    first = [told(Kind.TX, "pod/a", "eth0", CLIENT, BACKEND), told(Kind.RX, "pod/b", "eth0", CLIENT, BACKEND)]
    fresh = [
        told(Kind.TX, "pod/b", "eth0", ("10.0.2.2", 9), ("10.0.1.9", 50), sock=("pod/b", 9)),
        told(Kind.DROP, "node/n2", "", ("10.0.9.9", 9), ("10.0.1.9", 51), sock=("node/n2", 9), reason="NETFILTER_DROP"),
    ]
    (story,) = paths(first + fresh, [tried("pod/a", CLIENT, BACKEND)])
    assert [hop.netns for hop in story.forward.hops] == ["pod/a", "pod/b"]
    assert story.forward.drop is None


def test_copies_flooded_to_others_are_left_out() -> None:
    events = [
        told(Kind.TX, "pod/a", "eth0", CLIENT, BACKEND),
        told(Kind.RX, "node/n1", "veth1", CLIENT, BACKEND),
        told(Kind.TX, "node/n1", "veth2", CLIENT, BACKEND, skb=7),
        told(Kind.TX, "node/n1", "veth3", CLIENT, BACKEND),
        told(Kind.RX, "pod/x", "eth0", CLIENT, BACKEND, skb=7),
        told(Kind.DROP, "pod/x", "eth0", CLIENT, BACKEND, skb=7, reason="OTHERHOST"),
        told(Kind.RX, "pod/b", "eth0", CLIENT, BACKEND),
    ]
    (story,) = paths(events, [tried("pod/a", CLIENT, BACKEND)])
    assert [hop.dev for hop in story.forward.hops] == ["eth0", "veth1", "veth3", "eth0"]
    assert story.forward.drop is None


def test_silence_is_certain_only_when_every_copy_is_gone() -> None:
    sorter = Sorter()
    sorter.expect(0, tried("pod/a", CLIENT, BACKEND))
    sorter.add([told(Kind.TX, "pod/a", "eth0", CLIENT, BACKEND), told(Kind.TX, "n", "p2", CLIENT, BACKEND, skb=7)])
    sorter.add([told(Kind.DROP, "pod/x", "eth0", CLIENT, BACKEND, skb=7, reason="OTHERHOST")])
    assert not sorter.is_silent(0)
    sorter.add([told(Kind.DROP, "n", "p3", CLIENT, BACKEND, reason="NETFILTER_DROP")])
    assert sorter.is_silent(0)


def test_a_reset_on_its_way_is_not_silence() -> None:
    sorter = Sorter()
    sorter.expect(0, tried("pod/a", CLIENT, BACKEND))
    sorter.add(
        [
            told(Kind.TX, "pod/a", "eth0", CLIENT, BACKEND),
            told(Kind.TX, "pod/b", "eth0", BACKEND, CLIENT, skb=2, flags=RST),
            told(Kind.DROP, "pod/b", "eth0", CLIENT, BACKEND, reason="NO_SOCKET"),
        ]
    )
    assert not sorter.is_silent(0)
    sorter.add([told(Kind.DROP, "node/n1", "eth0", BACKEND, CLIENT, skb=2, flags=RST, reason="NETFILTER_DROP")])
    assert sorter.is_silent(0)


def test_a_reset_sent_before_its_addresses_are_known_is_the_answer() -> None:
    events = [
        told(Kind.TX, "pod/a", "eth0", CLIENT, VIP, at_ns=1),
        told(Kind.RX, "node/n1", "veth1", CLIENT, VIP, at_ns=2),
        told(Kind.TX, "node/n1", "veth1", BACKEND, CLIENT, skb=2, flags=RST, at_ns=2),
        told(Kind.DROP, "node/n1", "veth1", CLIENT, BACKEND, reason="NETFILTER_DROP", at_ns=3),
        told(Kind.RX, "pod/a", "eth0", BACKEND, CLIENT, skb=2, flags=RST, at_ns=4),
    ]
    (story,) = paths(events, [tried("pod/a", CLIENT, VIP)])
    assert [hop.netns for hop in story.reply.hops] == ["node/n1", "pod/a"]
    assert story.forward.drop is not None
    assert story.forward.drop.reason == "NETFILTER_DROP"
