"""Random rulesets that a kernel loads: every match and target with a certain answer, in the places where it may stand."""

from random import Random

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import Packet, Protocol, TcpFlags
from tests.kernel.xtables.router_lab import C_MAC, MARKER, PORTS

Words = tuple[str, ...]

BASES = {
    "raw": ("PREROUTING",),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "POSTROUTING"),
    "nat": ("PREROUTING", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD"),
}
ADDRESSES = {
    4: ("10.1.0.2", "10.1.0.3", "10.2.0.2", "10.2.0.3", "10.1.0.1", "10.2.0.1"),
    6: ("fd00:1::2", "fd00:1::3", "fd00:2::2", "fd00:2::3", "fd00:1::1", "fd00:2::1"),
}
NETS = {
    4: (
        *(f"{ip}/32" for ip in ADDRESSES[4]),
        "10.1.0.0/24",
        "10.2.0.2/31",
        "10.0.0.0/8",
        "0.0.0.0/0",
        "10.0.0.2/255.0.0.255",
    ),
    6: (*(f"{ip}/128" for ip in ADDRESSES[6]), "fd00:1::/64", "fd00:2::2/127", "fd00::/16", "::/0"),
}
SETS = {
    4: """create ips4 hash:ip
add ips4 10.1.0.2
add ips4 10.2.0.3
create nets4 hash:net
add nets4 10.1.0.0/24
add nets4 10.1.0.3 nomatch
add nets4 10.2.0.2/31
create ports4 hash:ip,port
add ports4 10.2.0.2,tcp:80
add ports4 10.2.0.2,udp:53
add ports4 10.2.0.3,icmp:echo-request
create ifaces4 hash:net,iface
add ifaces4 10.1.0.0/24,rc
add ifaces4 10.2.0.0/24,rs
create triple4 hash:ip,port,net
add triple4 10.2.0.2,tcp:80,10.1.0.0/24
add triple4 10.2.0.2,tcp:80,10.1.0.3 nomatch
create masked4 hash:ip netmask 24
add masked4 10.1.0.0
create lowest4 hash:ip bitmask 0.0.0.255
add lowest4 0.0.0.3
create maskedport4 hash:ip,port netmask 30
add maskedport4 10.2.0.0,tcp:80
create begins4 hash:net,iface
add begins4 10.1.0.0/24,r wildcard
add begins4 10.2.0.0/24,rsx wildcard
add begins4 10.2.0.0/31,rs nomatch
create any4 bitmap:port range 0-1024
add any4 80
add any4 53
create all4 list:set
add all4 ips4
add all4 ports4
""",
    6: """create ips6 hash:ip family inet6
add ips6 fd00:1::2
create masked6 hash:ip family inet6 netmask 64
add masked6 fd00:1::
create nets6 hash:net family inet6
add nets6 fd00:1::/64
add nets6 fd00:1::3 nomatch
create ports6 hash:ip,port family inet6
add ports6 fd00:2::2,tcp:80
add ports6 fd00:2::2,udp:53
create all6 list:set
add all6 ips6
add all6 nets6
""",
}
"""Input of `ipset restore`."""

IN_SET = {
    4: ("ips4 {}", "nets4 {}", "ports4 {0},{1}", "ifaces4 {0},{1}", "triple4 dst,dst,src", "any4 {}", "all4 {0},{1}", "nets4 {} --return-nomatch",
        "masked4 {}", "lowest4 {}", "maskedport4 {0},{1}", "begins4 {0},{1}", "begins4 {0},{1}"),
    6: ("masked6 {}", "ips6 {}", "nets6 {}", "ports6 {0},{1}", "all6 {0},{1}"),
}  # fmt: skip
FLAG_LISTS = ("FIN,SYN,RST,ACK SYN", "SYN,ACK SYN,ACK", "ALL ACK", "RST RST", "FIN,PSH NONE")
STATES = ("NEW", "ESTABLISHED,RELATED", "INVALID", "UNTRACKED", "DNAT", "NEW,INVALID", "INVALID,UNTRACKED,SNAT,DNAT")
TYPES = {4: ("LOCAL", "UNICAST", "LOCAL,BROADCAST", "BROADCAST", "MULTICAST"), 6: ("LOCAL", "UNICAST", "MULTICAST")}


class RuleMaker:
    """Makes rulesets of one family from a seed."""

    def __init__(self, seed: int, family: int) -> None:
        self.random = Random(seed)
        self.family = family

    def ruleset(self) -> str:
        """Return input of iptables-restore: raw, mangle, nat, filter, each with its user chains."""
        return "".join(self._table(table, bases) for table, bases in BASES.items())

    def _table(self, table: str, bases: Words) -> str:
        chains = {base: [base, *(f"{base[:4]}-{n}" for n in range(3))] for base in bases}
        lines = [f"*{table}"]
        for base, names in chains.items():
            policy = "DROP" if table in ("filter", "mangle") and self.random.random() < 0.1 else "ACCEPT"
            lines += [f":{base} {policy} [0:0]", *(f":{name} - [0:0]" for name in names[1:])]
        for base, names in chains.items():
            lines.append(f"-A {base} -s {MARKER[self.family]} -j ACCEPT")
            busy = self.random.random() < (0.5 if table == "raw" else 0.8)
            for depth, name in enumerate(names):
                for _ in range(self.random.randrange(2, 8) if busy else 0):
                    target = self._target(table, base, names[depth + 1 :])
                    matches = self._matches(table, base, name == base, protocol=not target.startswith("-p"))
                    lines.append(f"-A {name} {matches} {target}")
        return "\n".join((*lines, "COMMIT", ""))

    def _matches(self, table: str, base: str, in_base: bool, *, protocol: bool) -> str:
        """Return mostly one condition, so that many rules are met, and now and then several."""
        pick = self.random.choice
        kinds = [lambda: pick(self._extensions(table, base, in_base))] * 4
        kinds += [lambda: self._address("-s"), lambda: self._address("-d")]
        if protocol:
            kinds += [lambda: pick(self._protocols())] * 2
        if base in ("PREROUTING", "INPUT", "FORWARD"):
            kinds.append(lambda: f"{self._not()}-i {pick(('rc', 'r+', 'rs', 'eth0'))}")
        if base in ("FORWARD", "POSTROUTING"):
            kinds.append(lambda: f"{self._not()}-o {pick(('rs', 'r+', 'rc'))}")
        chosen = self.random.sample(range(len(kinds)), pick((0, 1, 1, 1, 1, 2, 3)))
        distinct: dict[str, str] = {}
        for index in sorted(chosen, reverse=True):
            condition = kinds[index]()
            distinct.setdefault(condition.removeprefix("! ")[:2], condition)
        return " ".join(distinct.values())

    def _address(self, option: str) -> str:
        net = self.random.choice(NETS[self.family])
        return f"{'' if net.endswith('/0') else self._not()}{option} {net}"

    def _not(self) -> str:
        return "! " if self.random.random() < 0.2 else ""

    def _protocols(self) -> Words:
        pick, no = self.random.choice, self._not()
        ports = pick((*map(str, PORTS), "1:100", "80:", ":442"))
        icmp = ("-p icmp -m icmp {}--icmp-type {}", ("8", "13", "8/0", "any")) if self.family == 4 else (
            "-p ipv6-icmp -m icmp6 {}--icmpv6-type {}", ("128", "129", "128/0")
        )  # fmt: skip
        return (
            f"-p tcp -m tcp {no}--dport {ports}",
            f"-p udp -m udp {no}--dport {ports}",
            f"-p tcp -m tcp {no}--sport 20000:30000",
            f"-p tcp -m tcp {no}--tcp-flags {pick(FLAG_LISTS)}",
            f"-p tcp -m multiport {no}--{pick(('dports', 'ports', 'sports'))} 22,80:90",
            icmp[0].format(no, pick(icmp[1])),
            "-p udp",
            "! -p tcp",
        )

    def _extensions(self, table: str, base: str, in_base: bool) -> Words:
        family, pick, no = self.family, self.random.choice, self._not()
        a, b = ADDRESSES[family][:2]
        found = [
            f"-m mark {no}--mark {pick(('0x1', '0x2/0x2', '0x0/0x3'))}",
            f"-m connmark {no}--mark {pick(('0x1', '0x0/0x3'))}",
            f"-m conntrack {no}--ctstate {pick(STATES)}",
            f"-m conntrack --ctdir {pick(('ORIGINAL', 'REPLY'))}",
            f"-m conntrack {no}--ctproto {pick(('tcp', 'udp'))}",
            f"-m conntrack {no}--ctorigdst {pick(ADDRESSES[family])}",
            f"-m conntrack {no}--ctreplsrc {pick(ADDRESSES[family])}",
            f"-m conntrack {no}--ctorigdstport {pick(PORTS)}",
            f"-m conntrack --ctstate {pick(STATES)} {no}--ctorigdstport 1:100",
            f"-m conntrack {no}--ctstatus {pick(('NONE', 'CONFIRMED', 'SEEN_REPLY'))}",
            f"-m state --state {pick(('NEW', 'INVALID', 'ESTABLISHED,RELATED'))}",
            f"-m addrtype {no}--{pick(('src', 'dst'))}-type {pick(TYPES[family])}",
            f"-m set {no}--match-set {pick(IN_SET[family]).format(*(pick(('src', 'dst')) for _ in range(2)))}",
            f"-m iprange {no}--{pick(('src', 'dst'))}-range {a}-{b}",
            f"-m length {no}--length {pick(('60', '80:', '0:64'))}",
            f"-m tos {no}--tos {pick(('0x10/0xff', '0x00/0x3f'))}",
            f"-m dscp {no}--dscp {pick(('0x00', '0x2e', '0x04'))}",
            f"-m pkttype {no}--pkt-type {pick(('unicast', 'broadcast', 'multicast'))}",
            f"-m statistic --mode random --probability {pick(('0', '1'))}",
            "-m statistic --mode nth --every 1 --packet 0",
            "-m limit --limit 1/min --limit-burst 50",
            "-m recent --set --name lab --rsource",
            "-m physdev ! --physdev-is-bridged",
            "-m comment --comment \"a -j DROP\"",
            f"-m helper {no}--helper ftp",
            "-m policy --dir in --pol none" if base in ("PREROUTING", "INPUT", "FORWARD") else "-m policy --dir out --pol ipsec",
        ]  # fmt: skip
        if family == 6:
            found += [
                f"-m frag {no}--fragid 1",
                "-m frag --fragfirst",
                f"-m dst {no}--dst-len 8",
                f"-m hbh {no}--hbh-len 8",
            ]
            found += [f"-m rt {no}--rt-type 0"]
        hop = "ttl" if family == 4 else "hl"
        found.append(f"-m {hop} {pick((no + f'--{hop}-eq', f'--{hop}-lt', f'--{hop}-gt'))} {pick((63, 64, 40))}")
        if base in ("PREROUTING", "INPUT", "FORWARD"):
            found.append(f"-m mac {no}--mac-source {pick((C_MAC, '02:00:00:00:00:09'))}")
        if base == "PREROUTING" and table in ("raw", "mangle"):
            found.append(f"-m rpfilter {pick(('', '--loose', '--invert', '--loose --invert'))}")
        if in_base and base in ("PREROUTING", "INPUT", "FORWARD"):
            found.append(f"-m addrtype {no}--dst-type LOCAL --limit-iface-in")
        return tuple(found)

    def _target(self, table: str, base: str, further: list[str]) -> str:
        pick, family = self.random.choice, self.family
        marks = (
            f"-j MARK --set-xmark {pick(('0x1/0x1', '0x2/0x0', '0x3/0xffffffff', '0x0/0x1'))}",
            f"-j CONNMARK --set-xmark {pick(('0x1/0x1', '0x2/0x0'))}",
            "-j CONNMARK --save-mark",
            "-j CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x3",
        )
        found = ["-j ACCEPT", "-j RETURN", "", "", *marks, *marks]
        found += [f"{pick(('-j', '-j', '-j', '-g'))} {name}" for name in further for _ in range(3)]
        if table == "raw":
            found += ["-j CT --notrack"]
        if table == "mangle":
            hop = "TTL --ttl" if family == 4 else "HL --hl"
            found += [f"-j {hop}-set 40", f"-j {hop}-dec 1", "-j TOS --set-tos 0x10/0x3f", "-j DSCP --set-dscp 0x2e"]
        if table == "filter":
            found += ["-j DROP", "-j REJECT"]
        if table in ("raw", "mangle") and self.random.random() < 0.2:
            found += ["-j DROP"]
        if table == "nat":
            found += self._nat(base) * 2
        return pick(found)

    def _nat(self, base: str) -> list[str]:
        a, b = ADDRESSES[self.family][2:4]
        port = ("{}:8080" if self.family == 4 else "[{}]:8080").format(b)
        if base == "PREROUTING":
            return [
                f"-j DNAT --to-destination {a}",
                f"-j DNAT --to-destination {b}",
                f"-p tcp -j DNAT --to-destination {port}",
                "-p udp -j REDIRECT --to-ports 53",
            ]
        net = "10.2.0.50" if self.family == 4 else "fd00:2::50"
        return ["-j MASQUERADE", f"-j SNAT --to-source {net}"]

    def packet(self, number: int) -> Packet:
        """Return a packet; `number` makes its source port or identifier its own."""
        family, pick = self.family, self.random.choice
        own = ADDRESSES[family][4:]
        protocol = pick(
            (Protocol.TCP, Protocol.TCP, Protocol.UDP, Protocol.UDP, Protocol.ICMP if family == 4 else Protocol.ICMPV6)
        )
        dst = pick(ADDRESSES[family][2:4] * 3 + (own if protocol == Protocol.UDP else ()))
        icmp = protocol in (Protocol.ICMP, Protocol.ICMPV6)
        return Packet(
            src=Ip(pick(ADDRESSES[family][:2])),
            dst=Ip(dst),
            protocol=protocol,
            sport=1024 + number,
            dport=0 if icmp else pick(PORTS),
            ttl=64,
            tos=pick((0, 0, 0x10, 0xB8)),
            length=pick((60, 80, 100)) + (20 if family == 6 else 0),
            tcp_flags=pick((TcpFlags.SYN, TcpFlags.SYN, *(flags for flags in TcpFlags if flags))) if protocol == Protocol.TCP else TcpFlags.NONE,
            icmp_type=pick((8, 13, 0) if family == 4 else (128, 129)) if icmp else -1,
        )  # fmt: skip
