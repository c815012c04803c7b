"""Each match against packets that do and do not fit, certain or not."""

from typing import Any

import pytest
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import CtState, Protocol, TcpFlags
from tasks.skoop.model.state import ConntrackEntry, Missing, NetNS, Section, Tuple
from tasks.skoop.model.xtables import Match
from tasks.skoop.netstack.xtables.api import ConnectionView, Hook, TableResult, Verdict
from tasks.skoop.netstack.xtables.matches import Scope
from tasks.skoop.netstack.xtables.view import PacketView
from tests.unit.xtables.scene import NODE, Field, FixedFacts, context, ipset, table_of

YES, NO, OPEN, UNKNOWN = "yes", "no", "open", "unknown"

SETS = (
    ipset("pods", "hash:net", "10.1.0.0/16", "10.1.9.0/24 nomatch", "10.1.9.7 nomatch"),
    ipset("clients", "hash:ip", "10.1.0.2"),
    ipset("services", "hash:ip,port", "10.2.0.2,tcp:80", "10.2.0.3,udp:53", "10.2.0.2,icmp:8/0"),
    ipset("loops", "hash:ip,port,ip", "10.2.0.2,tcp:80,10.1.0.2"),
    ipset("peers", "hash:ip,port,net", "10.2.0.2,tcp:80,10.1.0.0/24", "10.2.0.2,tcp:80,10.1.0.2 nomatch"),
    ipset("ports", "bitmap:port", "80", "8080", family=0),
    ipset("netport", "hash:net,port", "10.2.0.0/16,tcp:80", "10.2.0.0/24,tcp:443"),
    ipset("netnet", "hash:net,net", "10.1.0.0/16,10.2.0.0/16"),
    ipset("netiface", "hash:net,iface", "10.1.0.0/24,rc", "10.2.0.0/24,physdev:rc"),
    ipset("macs", "hash:mac", "02:00:00:00:00:01", family=0),
    ipset("ipmac", "bitmap:ip,mac", "10.1.0.2", "10.1.0.3,02:00:00:00:00:03"),
    ipset("ipmark", "hash:ip,mark", "10.1.0.2,0x00000010"),
    replace(ipset("masked", "hash:ip", "10.1.0.0"), netmask="24"),
    replace(ipset("lowest", "hash:ip,port", "0.0.0.2,tcp:80"), netmask="0.0.0.255"),
    replace(ipset("oddmask", "hash:ip", "10.1.0.0"), netmask="x"),
    replace(ipset("lowmark", "hash:ip,mark", "10.1.0.2,0x10"), markmask=0xFF),
    ipset("begins", "hash:net,iface", "10.1.0.0/24,r wildcard", "10.2.0.0/24,x wildcard"),
    ipset("torn", "hash:net,iface", "10.1.0.0/24,r wildcard", "10.1.0.0/24,rc nomatch"),
    ipset("list", "list:set", "clients", "ports", family=0),
    ipset("badlist", "list:set", "gone", family=0),
    ipset("broken", "hash:ip", "10.9.9.9", "garbage"),
    ipset("six", "hash:net", "fd00:1::/64", family=6),
)

NATTED = {
    "connection": ConnectionView(
        original=Tuple(Ip("10.1.0.2"), Ip("10.96.0.1"), 40000, 443),
        reply=Tuple(Ip("10.2.0.2"), Ip("10.1.0.2"), 80, 40000),
        status=frozenset(("DNAT", "CONFIRMED")),
        mark=0x80,
    )
}
ICMP = {"protocol": Protocol.ICMP, "icmp_type": 8, "icmp_code": 0, "sport": 7, "dport": 0, "tcp_flags": TcpFlags.NONE}
UDP = {"protocol": Protocol.UDP, "tcp_flags": TcpFlags.NONE}


def _outcome(results: tuple[TableResult, ...]) -> str:
    if len(results) == 1:
        return YES if results[0].verdict == Verdict.DROP else NO
    assert sum(result.probability for result in results) == pytest.approx(1.0)
    assert {result.verdict for result in results} == {Verdict.DROP, Verdict.ACCEPT}
    return UNKNOWN if all(result.missing for result in results) else OPEN


def _ask(
    rule: str, *, hook: Hook = Hook.FORWARD, family: int = 4, netns: dict[str, Any] | None = None, **scene: Field
) -> str:
    table = table_of(f"-A {hook} {rule} -j DROP", chain=hook, family=family, **{"ipsets": SETS, **(netns or {})})
    return _outcome(table.evaluate(context(hook, family=family, **scene)))


Case = tuple[str, str, dict[str, Any]]
"""A rule, what it answers, and what is special about packet and place."""

HEADERS: list[Case] = [
    ("", YES, {}),
    ("-s 10.1.0.0/24", YES, {}),
    ("-s 10.1.1.0/24", NO, {}),
    ("! -s 10.1.0.0/24", NO, {}),
    ("! -d 10.1.0.0/24", YES, {}),
    ("-d 10.2.0.2", YES, {}),
    ("-s 10.0.0.2/255.0.255.255", YES, {}),
    ("-s 10.0.1.2/255.0.255.255", NO, {}),
    ("-s 0.0.0.0/0", YES, {}),
    ("-i rc -o rs", YES, {}),
    ("-i r+", YES, {}),
    ("-i rc+", YES, {}),
    ("-i +", YES, {}),
    ("-i rcx+", NO, {}),
    ("! -i rc", NO, {}),
    ("! -o r+", NO, {}),
    ("-i RC", NO, {}),
    ("-p tcp", YES, {}),
    ("-p 6", YES, {}),
    ("-p all", YES, {}),
    ("! -p tcp", NO, {}),
    ("! -p udp", YES, {}),
    ("-p icmp", NO, {}),
    ("-p icmp", YES, ICMP),
    ("-p igmp", NO, {}),
    ("-p gre", YES, {"protocol": Protocol.GRE}),
    ("-p igmp", UNKNOWN, {"protocol": Protocol.OTHER}),
    ("-p tcp", NO, {"protocol": Protocol.OTHER}),
    ("-p nonsense", UNKNOWN, {}),
    ("-f", NO, {}),
    ("! -f", YES, {}),
    ("-p tcp -m tcp --dport 80", YES, {}),
    ("-p tcp -m tcp --dport 81", NO, {}),
    ("-p tcp -m tcp ! --dport 80", NO, {}),
    ("-p tcp -m tcp --dport 79:81", YES, {}),
    ("-p tcp -m tcp --dport 81:", NO, {}),
    ("-p tcp -m tcp --dport :80", YES, {}),
    ("-p tcp -m tcp ! --dport 79:81", NO, {}),
    ("-p tcp -m tcp --sport 1024:65535 --dport 80", YES, {}),
    ("-p tcp -m tcp --sport 1:1023 --dport 80", NO, {}),
    ("-p tcp -m tcp --dport ssh", UNKNOWN, {}),
    ("-p udp -m udp --dport 80", NO, {}),
    ("-p udp -m udp --dport 80", YES, UDP),
    ("-p sctp -m sctp --dport 80", YES, {"protocol": Protocol.SCTP}),
    ("-p sctp -m sctp --dport 80 --chunk-types any INIT", UNKNOWN, {"protocol": Protocol.SCTP}),
    ("-p tcp -m tcp --syn", YES, {}),
    ("-p tcp -m tcp ! --syn", NO, {}),
    ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", YES, {}),
    ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", NO, {"tcp_flags": TcpFlags.SYN_ACK}),
    ("-p tcp -m tcp --tcp-flags SYN,RST SYN", YES, {"tcp_flags": TcpFlags.SYN_ACK}),
    ("-p tcp -m tcp --tcp-flags ALL NONE", NO, {}),
    ("-p tcp -m tcp ! --tcp-flags ALL ACK,PSH", NO, {"tcp_flags": TcpFlags.PSH_ACK}),
    ("-p tcp -m tcp --tcp-flags SYN SYN", UNKNOWN, {"tcp_flags": TcpFlags.NONE}),
    ("-p tcp -m tcp --tcp-option 5", UNKNOWN, {}),
    ("-p icmp -m icmp --icmp-type 8", YES, ICMP),
    ("-p icmp -m icmp --icmp-type echo-request", YES, ICMP),
    ("-p icmp -m icmp --icmp-type 8/1", NO, ICMP),
    ("-p icmp -m icmp ! --icmp-type 8", NO, ICMP),
    ("-p icmp -m icmp --icmp-type any", YES, ICMP),
    ("-p icmp -m icmp --icmp-type 3/4", YES, {**ICMP, "icmp_type": 3, "icmp_code": 4}),
    ("-p icmp -m icmp --icmp-type 3", YES, {**ICMP, "icmp_type": 3, "icmp_code": 4}),
    ("-p icmp -m icmp --icmp-type 8", UNKNOWN, {**ICMP, "icmp_type": -1}),
    ("-p tcp -m multiport --dports 22,80:90", YES, {}),
    ("-p tcp -m multiport --dports 22,81:90", NO, {}),
    ("-p tcp -m multiport ! --dports 80", NO, {}),
    ("-p tcp -m multiport --ports 40000", YES, {}),
    ("-p tcp -m multiport --sports 80", NO, {}),
    ("-p tcp -m multiport ! --ports 443", YES, {}),
    ("-m iprange --src-range 10.1.0.1-10.1.0.5", YES, {}),
    ("-m iprange --dst-range 10.2.0.3-10.2.0.5", NO, {}),
    ("-m iprange ! --src-range 10.1.0.1-10.1.0.5", NO, {}),
    ("-m iprange --src-range 10.1.0.2 --dst-range 10.2.0.2-10.2.0.9", YES, {}),
    ("-m length --length 60", YES, {}),
    ("-m length --length 0:59", NO, {}),
    ("-m length ! --length 0:59", YES, {}),
    ("-m ttl --ttl-eq 63", YES, {}),
    ("-m ttl --ttl-lt 63", NO, {}),
    ("-m ttl --ttl-gt 62", YES, {}),
    ("-m ttl ! --ttl-eq 63", NO, {}),
    ("-m tos --tos 0x00/0x3f", YES, {}),
    ("-m tos --tos Minimize-Delay", YES, {"tos": 0x10}),
    ("-m tos ! --tos 0x10", YES, {}),
    ("-m dscp --dscp 0x2e", YES, {"tos": 0xB8}),
    ("-m dscp --dscp-class EF", YES, {"tos": 0xB8}),
    ("-m dscp --dscp-class AF41", NO, {"tos": 0xB8}),
    ("-m ecn --ecn-ip-ect 2", YES, {"tos": 2}),
    ("-p tcp -m ecn --ecn-tcp-ece", UNKNOWN, {}),
    ("-p esp -m esp --espspi 5", UNKNOWN, {"protocol": Protocol.ESP}),
    ("-p esp -m esp --espspi 5", NO, {}),
    ('-m comment --comment "-j ACCEPT"', YES, {}),
    ("-m nfacct --nfacct-name x", YES, {}),
]

CONNECTIONS: list[Case] = [
    ("-m mark --mark 0x0", YES, {}),
    ("-m mark --mark 0x0/0x4000", YES, {"mark": 0x8000}),
    ("-m mark --mark 0x4000/0x4000", YES, {"mark": 0xC000}),
    ("-m mark ! --mark 0x4000/0x4000", NO, {"mark": 0xC000}),
    ("-m mark --mark 0x4000", NO, {"mark": 0xC000}),
    ("-m connmark --mark 0x80/0x80", YES, {"at": NATTED}),
    ("-m connmark ! --mark 0x80/0x80", NO, {"at": NATTED}),
    ("-m connmark ! --mark 0x80/0x80", NO, {"ct_state": CtState.UNTRACKED}),
    ("-m conntrack --ctstate NEW", YES, {}),
    ("-m conntrack --ctstate RELATED,ESTABLISHED", NO, {}),
    ("-m conntrack ! --ctstate RELATED,ESTABLISHED", YES, {}),
    ("-m conntrack --ctstate INVALID", YES, {"ct_state": CtState.INVALID}),
    ("-m conntrack --ctstate INVALID", YES, {"ct_state": CtState.NONE}),
    ("-m conntrack --ctstate INVALID", NO, {"ct_state": CtState.UNTRACKED}),
    ("-m conntrack --ctstate UNTRACKED", YES, {"ct_state": CtState.UNTRACKED}),
    ("-m conntrack --ctstate DNAT", YES, {"at": NATTED}),
    ("-m conntrack --ctstate SNAT", NO, {"at": NATTED}),
    ("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT", NO, {"at": NATTED}),
    ("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT", YES, {}),
    ("-m conntrack --ctstate DNAT", NO, {"at": NATTED, "ct_state": CtState.UNTRACKED}),
    ("-m conntrack --ctproto 6", YES, {"at": NATTED}),
    ("-m conntrack ! --ctproto tcp", NO, {"at": NATTED}),
    ("-m conntrack --ctorigdst 10.96.0.0/16", YES, {"at": NATTED}),
    ("-m conntrack --ctorigdst 10.96.9.9/16", YES, {"at": NATTED}),
    ("-m conntrack ! --ctorigdst 10.96.0.1", NO, {"at": NATTED}),
    ("-m conntrack --ctorigdstport 443 --ctorigsrc 10.1.0.2", YES, {"at": NATTED}),
    ("-m conntrack --ctorigdstport 80", NO, {"at": NATTED}),
    ("-m conntrack --ctorigsrcport 40000:40001", YES, {"at": NATTED}),
    ("-m conntrack --ctreplsrc 10.2.0.2 --ctreplsrcport 80", YES, {"at": NATTED}),
    ("-m conntrack --ctrepldst 10.2.0.2", NO, {"at": NATTED}),
    ("-m conntrack --ctrepldstport 40000", YES, {"at": NATTED}),
    ("-m conntrack --ctorigdst 10.96.0.1", UNKNOWN, {}),
    ("-m conntrack --ctorigdst 10.96.0.1", NO, {"at": NATTED, "ct_state": CtState.INVALID}),
    ("-m conntrack --ctstate INVALID --ctorigdst 10.3.3.3", YES, {"at": NATTED, "ct_state": CtState.INVALID}),
    ("-m conntrack --ctstate NEW --ctorigdst 10.3.3.3", NO, {"at": NATTED}),
    ("-m conntrack --ctdir ORIGINAL", YES, {}),
    ("-m conntrack --ctdir REPLY", NO, {}),
    ("-m conntrack --ctdir REPLY", YES, {"at": {"connection": ConnectionView(is_reply=True)}}),
    ("-m conntrack --ctstatus CONFIRMED", YES, {"at": NATTED}),
    ("-m conntrack --ctstatus ASSURED,SEEN_REPLY", NO, {"at": NATTED}),
    ("-m conntrack --ctstatus NONE", NO, {}),
    ("-m conntrack --ctexpire 1:9", UNKNOWN, {}),
    ("-m conntrack --ctnonsense 1", UNKNOWN, {}),
    ("-m state --state NEW", YES, {}),
    ("-m state ! --state NEW,ESTABLISHED", NO, {}),
    ("-m state --state INVALID", YES, {"ct_state": CtState.NONE}),
    ("-m helper --helper ftp", NO, {}),
]

HOSTS: list[Case] = [
    ("-m addrtype --dst-type LOCAL", NO, {}),
    ("-m addrtype --dst-type LOCAL", YES, {"dst": "10.2.0.1"}),
    ("-m addrtype --src-type LOCAL", NO, {"dst": "10.2.0.1"}),
    ("-m addrtype ! --dst-type LOCAL", YES, {}),
    ("-m addrtype --dst-type LOCAL,UNICAST", YES, {}),
    ("-m addrtype --dst-type BROADCAST", YES, {"dst": "10.1.0.255"}),
    ("-m addrtype --dst-type MULTICAST", YES, {"dst": "224.0.0.5"}),
    ("-m addrtype --dst-type LOCAL --limit-iface-in", YES, {"dst": "10.1.0.1"}),
    ("-m addrtype --dst-type LOCAL --limit-iface-in", NO, {"dst": "10.2.0.1"}),
    ("-m addrtype --dst-type LOCAL --limit-iface-out", YES, {"dst": "10.2.0.1"}),
    ("-m addrtype ! --src-type LOCAL --dst-type UNICAST", YES, {}),
    ("-m physdev --physdev-is-bridged", NO, {}),
    ("-m physdev ! --physdev-is-bridged", YES, {}),
    ("-m physdev --physdev-is-bridged", YES, {"at": {"phys_in": "veth1", "phys_out": "veth2"}}),
    ("-m physdev --physdev-in veth+ --physdev-out veth2", YES, {"at": {"phys_in": "veth1", "phys_out": "veth2"}}),
    ("-m physdev --physdev-in veth1", NO, {"at": {"phys_in": "veth2", "phys_out": "veth1"}}),
    ("-m physdev ! --physdev-in veth1", YES, {}),
    ("-m physdev --physdev-is-in ! --physdev-is-out", YES, {"at": {"phys_in": "veth1"}}),
    ("-m mac --mac-source 02:00:00:00:00:01", YES, {"at": {"mac": "02:00:00:00:00:01"}}),
    ("-m mac ! --mac-source 02:00:00:00:00:01", NO, {"at": {"mac": "02:00:00:00:00:01"}}),
    ("-m mac ! --mac-source 02:00:00:00:00:01", NO, {}),
    ("-m pkttype --pkt-type unicast", YES, {}),
    ("-m pkttype --pkt-type broadcast", YES, {"dst": "10.1.0.255"}),
    ("-m pkttype ! --pkt-type multicast", NO, {"dst": "224.0.0.5"}),
    ("-m policy --dir in --pol none", YES, {}),
    ("-m policy --dir in --pol ipsec", NO, {}),
    ("-m cgroup --cgroup 5", NO, {}),
    ("-m socket", UNKNOWN, {}),
    ("-m socket --nowildcard", YES, {"facts": FixedFacts(socket=True)}),
    ("-m socket", NO, {"facts": FixedFacts(socket=False)}),
    ("-m socket --transparent --restore-skmark", UNKNOWN, {"facts": FixedFacts(socket=True)}),
    ("-m ipvs --ipvs", NO, {}),
    ("-m ipvs ! --ipvs", YES, {}),
    ("-m ipvs --vaddr 10.0.0.1", NO, {}),
]

CHANCES: list[Case] = [
    ("-m statistic --mode random --probability 1.0", YES, {}),
    ("-m statistic --mode random --probability 0.0", NO, {}),
    ("-m statistic --mode random ! --probability 1.0", NO, {}),
    ("-m statistic --mode random --probability 0.5", OPEN, {}),
    ("-m statistic --mode nth --every 3 --packet 0", OPEN, {}),
    ("-m statistic --mode nth --every 1", YES, {}),
    ("-m statistic --mode other", UNKNOWN, {}),
    ("-m limit --limit 1/hour --limit-burst 1", YES, {}),
    ("-m hashlimit --hashlimit-upto 1/hour --hashlimit-name h", YES, {}),
    ("-m hashlimit --hashlimit-above 1/hour --hashlimit-name h", NO, {}),
    ("-m recent --set --name A --rsource", YES, {}),
    ("-m recent ! --set --name A --rsource", NO, {}),
    ("-m recent --rcheck --name A --rsource", OPEN, {}),
    ("-m recent ! --rcheck --name A --rsource", OPEN, {}),
    ("-m recent --update --seconds 9 --name A", OPEN, {}),
    ("-m time --timestart 01:00:00 --timestop 02:00:00", OPEN, {}),
    ("-m cpu --cpu 0", OPEN, {}),
    ("-m quota --quota 100", OPEN, {}),
    ("-m connlimit --connlimit-above 0", YES, {}),
    ("-m connlimit --connlimit-above 5 --connlimit-mask 32 --connlimit-saddr", NO, {}),
    ("-m connlimit --connlimit-upto 5 --connlimit-mask 32 --connlimit-saddr", YES, {}),
    ("-m string --algo bm --string x", UNKNOWN, {}),
    ("-m u32 --u32 0=0", UNKNOWN, {}),
    ("-m bpf --bytecode 1", UNKNOWN, {}),
    ("-m nosuchmatch --what ever", UNKNOWN, {}),
    ("-m string --algo bm --string x -d 10.9.9.9", NO, {}),
    ("-m nosuchmatch -p udp", NO, {}),
]

IN_SETS: list[Case] = [
    ("--match-set pods src", YES, {}),
    ("--match-set pods dst", NO, {}),
    ("--match-set pods src", NO, {"src": "10.1.9.8"}),
    ("--match-set pods src --return-nomatch", YES, {"src": "10.1.9.8"}),
    ("--match-set pods src --return-nomatch", NO, {}),
    ("--match-set clients src", YES, {}),
    ("--match-set services dst,dst", YES, {}),
    ("--match-set services dst,src", NO, {}),
    ("--match-set services dst", NO, {}),
    ("--match-set services dst,dst", YES, ICMP),
    ("--match-set services dst,dst", NO, {**UDP, "dst": "10.2.0.3", "dport": 80}),
    ("--match-set services dst,dst", YES, {**UDP, "dst": "10.2.0.3", "dport": 53}),
    ("--match-set loops dst,dst,src", YES, {}),
    ("--match-set loops dst,dst,dst", NO, {}),
    ("--match-set peers dst,dst,src", NO, {}),
    ("--match-set peers dst,dst,src", YES, {"src": "10.1.0.3"}),
    ("--match-set ports dst", YES, {}),
    ("--match-set ports src", NO, {}),
    ("--match-set ports dst", YES, UDP),
    ("--match-set ports dst", NO, ICMP),
    ("--match-set netport dst,dst", YES, {}),
    ("--match-set netport dst,dst", NO, {"dport": 443, "dst": "10.2.1.1"}),
    ("--match-set netnet src,dst", YES, {}),
    ("--match-set netnet dst,src", NO, {}),
    ("--match-set netiface src,src", YES, {}),
    ("--match-set netiface src,dst", NO, {}),
    ("--match-set netiface dst,src", NO, {}),
    ("--match-set macs src", YES, {"at": {"mac": "02:00:00:00:00:01"}}),
    ("--match-set macs src", NO, {}),
    ("--match-set macs dst", UNKNOWN, {}),
    ("--match-set ipmac src,src", YES, {"at": {"mac": "02:00:00:00:00:09"}}),
    ("--match-set ipmac src,src", NO, {"src": "10.1.0.3", "at": {"mac": "02:00:00:00:00:09"}}),
    ("--match-set ipmac src,src", YES, {"src": "10.1.0.3", "at": {"mac": "02:00:00:00:00:03"}}),
    ("--match-set ipmark src,src", YES, {"mark": 16}),
    ("--match-set ipmark src,src", NO, {"mark": 17}),
    ("--match-set masked src", YES, {}),
    ("--match-set masked src", YES, {"src": "10.1.0.200"}),
    ("--match-set masked dst", NO, {}),
    ("--match-set lowest dst,dst", YES, {}),
    ("--match-set lowest dst,dst", NO, {"dst": "10.2.0.3"}),
    ("--match-set oddmask src", UNKNOWN, {}),
    ("--match-set lowmark src,src", YES, {"mark": 0x310}),
    ("--match-set lowmark src,src", NO, {"mark": 0x311}),
    ("--match-set begins src,src", YES, {}),
    ("--match-set begins src,dst", YES, {}),
    ("--match-set begins dst,src", NO, {}),
    ("--match-set torn src,src", UNKNOWN, {}),
    ("--match-set torn src,dst", YES, {}),
    ("--match-set list src", YES, {}),
    ("--match-set list dst", YES, {}),
    ("--match-set list dst", NO, {"dport": 81}),
    ("--match-set badlist src", UNKNOWN, {}),
    ("--match-set broken src", UNKNOWN, {}),
    ("--match-set broken src", YES, {"src": "10.9.9.9"}),
    ("--match-set six src", NO, {}),
    ("--match-set nowhere src", UNKNOWN, {}),
    ("--match-set clients src --packets-gt 5", UNKNOWN, {}),
    ("--match-set clients src ! --update-counters", YES, {}),
]


@pytest.mark.parametrize(
    ("rule", "expected", "scene"),
    [
        pytest.param(*case, id=f"{case[0] or 'no condition'} {case[1]}")
        for case in HEADERS + CONNECTIONS + HOSTS + CHANCES
    ],
)
def test_match(rule: str, expected: str, scene: dict[str, Any]) -> None:
    assert _ask(rule, **scene) == expected


@pytest.mark.parametrize(
    ("flags", "expected", "scene"), [pytest.param(*case, id=f"{case[0]} {case[1]}") for case in IN_SETS]
)
def test_set(flags: str, expected: str, scene: dict[str, Any]) -> None:
    assert _ask(f"-m set {flags}", **scene) == expected


@pytest.mark.parametrize(
    ("flags", "expected", "scene"), [pytest.param(*case, id=f"{case[0]} {case[1]}") for case in IN_SETS]
)
def test_negated_set_says_the_opposite(flags: str, expected: str, scene: dict[str, Any]) -> None:
    opposite = {YES: NO, NO: YES}.get(expected, expected)
    assert _ask(f"-m set ! {flags}", **scene) == opposite


def test_a_set_that_could_not_be_collected_is_unknown_and_says_why() -> None:
    table = table_of(
        "-A FORWARD -m set --match-set x src -j DROP",
        missing=(Missing(section=Section.IPSETS, reason="no ipset here"),),
    )
    assert "no ipset here" in table.evaluate(context())[0].missing[0]


SIX: list[Case] = [
    ("-s fd00:1::/64 -d fd00:2::2", YES, {}),
    ("! -s fd00:1::2/128", NO, {}),
    ("-p ipv6-icmp -m icmp6 --icmpv6-type 135", YES, {"protocol": Protocol.ICMPV6, "icmp_type": 135}),
    (
        "-p ipv6-icmp -m icmp6 --icmpv6-type neighbour-solicitation",
        YES,
        {"protocol": Protocol.ICMPV6, "icmp_type": 135},
    ),
    ("-m hl --hl-eq 63", YES, {}),
    ("-m rt --rt-type 0", NO, {}),
    ("-m addrtype --dst-type LOCAL", YES, {"dst": "fd00:2::1"}),
    ("-m addrtype --dst-type UNICAST", YES, {"dst": "fd00:2::1"}),
    ("-m addrtype --dst-type MULTICAST", YES, {"dst": "ff02::1"}),
    ("-m addrtype --dst-type LOCAL,UNICAST", NO, {}),
    ("-m conntrack --ctstate NEW", YES, {}),
    ("-m set --match-set six src", YES, {}),
    ("-m set --match-set pods src", NO, {}),
    ("-m iprange --src-range fd00:1::1-fd00:1::3", YES, {}),
]


@pytest.mark.parametrize(("rule", "expected", "scene"), [pytest.param(*case, id=case[0]) for case in SIX])
def test_match_in_ipv6(rule: str, expected: str, scene: dict[str, Any]) -> None:
    assert _ask(rule, family=6, **scene) == expected


@pytest.mark.parametrize(
    "match", [Match("frag", (("fragfirst", False, ()),)), Match("dst", (("dst-len", False, ("8",)),)), Match("dst")]
)
def test_ipv6_extension_header_that_shares_a_name_with_a_plain_condition(match: Match) -> None:
    condition = Scope(NetNS(id=NODE), 6).condition(match)
    assert condition(PacketView(context(family=6), 6)) is False


@pytest.mark.parametrize(
    ("rule", "uid", "expected"),
    [
        ("--uid-owner 0", 0, YES),
        ("--uid-owner 0", 1000, NO),
        ("! --uid-owner 0", 1000, YES),
        ("--uid-owner 1000-1999", 1500, YES),
        ("--uid-owner 0", None, UNKNOWN),
        ("--gid-owner 0", 0, UNKNOWN),
        ("--socket-exists", 0, YES),
    ],
)
def test_owner_of_a_local_packet(rule: str, uid: int | None, expected: str) -> None:
    assert _ask(f"-m owner {rule}", hook=Hook.OUTPUT, at={"local_uid": uid}) == expected


@pytest.mark.parametrize(
    ("invert", "reverse", "expected"), [("", True, YES), (" --invert", True, NO), (" --invert", False, YES)]
)
def test_rpfilter(invert: str, reverse: bool, expected: str) -> None:
    assert _ask(f"-m rpfilter --validmark{invert}", hook=Hook.PREROUTING, facts=FixedFacts(reverse=reverse)) == expected


def test_rpfilter_lets_loopback_pass() -> None:
    facts = FixedFacts(reverse=False)
    assert _ask("-m rpfilter", hook=Hook.PREROUTING, facts=facts, at={"in_dev": "lo"}) == YES


def test_connlimit_is_open_where_as_many_connections_were_collected() -> None:
    entry = ConntrackEntry(
        protocol=Protocol.TCP,
        original=Tuple(Ip("10.1.0.2"), Ip("10.2.0.2"), 1, 2),
        reply=Tuple(Ip("10.2.0.2"), Ip("10.1.0.2"), 2, 1),
    )
    rule = "-m connlimit --connlimit-above 1 --connlimit-mask 24 --connlimit-saddr"
    assert _ask(rule, netns={"conntrack": (entry,)}) == OPEN
    assert _ask(rule, netns={"conntrack": (entry,)}, src="10.3.0.1") == NO
    assert _ask(rule, netns={"missing": (Missing(section=Section.CONNTRACK, reason="x"),)}) == OPEN
