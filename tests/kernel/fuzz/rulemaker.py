"""Random iptables rules that fit a lab's addresses, devices and ports, and random mutations of the rules that are there.

Only matches and targets with a certain answer: what counts packets over time (limit, nth, recent, quota) appears in the forms
that always or never fire. Shapes follow the files that kube-proxy, network plugins and firewalls write.
"""

from dataclasses import dataclass
from ipaddress import ip_address
from random import Random

from tests.kernel.fuzz.change import Edit

BASES = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
_WEIGHTS = {"raw": 2, "mangle": 3, "nat": 4, "filter": 6}
_TYPES = {
    4: ("LOCAL", "UNICAST", "BROADCAST", "LOCAL,BROADCAST"),
    6: ("LOCAL", "UNICAST", "MULTICAST", "LOCAL,UNREACHABLE"),
}
_STATES = ("NEW", "ESTABLISHED,RELATED", "INVALID", "UNTRACKED", "DNAT", "SNAT", "NEW,UNTRACKED", "RELATED")
_REJECTS = (
    "icmp-port-unreachable",
    "icmp-host-unreachable",
    "icmp-net-unreachable",
    "icmp-admin-prohibited",
    "icmp-proto-unreachable",
)
_REJECTS6 = (
    "icmp6-port-unreachable",
    "icmp6-addr-unreachable",
    "icmp6-no-route",
    "icmp6-adm-prohibited",
    "icmp6-policy-fail",
    "icmp6-reject-route",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What rules of one namespace can speak of."""

    netns: str
    devices: tuple[str, ...]
    addresses: tuple[str, ...]
    nets: tuple[str, ...]
    ports: tuple[int, ...]
    pods: tuple[str, ...]
    own: tuple[str, ...]
    sets: tuple[tuple[str, str], ...] = ()
    """(name, directions) of the ipsets that this scenario makes here."""
    family: int = 4


class RuleMaker:
    """Makes edits for one namespace."""

    def __init__(self, random: Random, words: Words) -> None:
        self.random = random
        self.words = words

    def insertions(self, backend: str, *, room: dict[tuple[str, str], int]) -> list[Edit]:
        """Return edits that insert random rules: in base chains, and in chains of their own that these call."""
        table = self.random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        base = self.random.choice(BASES[table])
        own = [f"fz-{base[:3].lower()}-{number}" for number in range(self.random.randrange(3))]
        edits = []
        names = [base, *own]
        for depth, name in reversed(list(enumerate(names))):
            for _ in range(self.random.choice((1, 1, 2, 3, 4))):
                target = self.target(table, base, names[depth + 1 :])
                at = self.random.randrange(room.get((table, name), 0) + 1) if self.random.random() < 0.4 else 0
                edits.append(self._insert(backend, table, name, at, self.rule(table, base, target)))
        return edits

    def _insert(self, backend: str, table: str, chain: str, at: int, rule: str) -> Edit:
        return Edit(netns=self.words.netns, backend=backend, op="insert", table=table, chain=chain, at=at, rule=rule)

    def mutation(self, backend: str, room: dict[tuple[str, str], int]) -> Edit:
        """Return a mutation of the rules that are there: delete, double, move, negate, or a base chain's policy."""
        (table, chain), count = self.random.choice([one for one in sorted(room.items()) if one[1]])
        op = self.random.choice(("delete", "delete", "double", "move", "negate", "policy"))
        if op == "policy":
            chain = self.random.choice(("INPUT", "FORWARD", "OUTPUT"))
            return Edit(netns=self.words.netns, backend=backend, op=op, table="filter", chain=chain, rule="DROP")
        return Edit(
            netns=self.words.netns,
            backend=backend,
            op=op,
            table=table,
            chain=chain,
            at=self.random.randrange(count),
            to=self.random.randrange(count),
        )

    # --- one rule ----------------------------------------------------------------------------------------------------

    def rule(self, table: str, base: str, target: str) -> str:
        """Return a rule: mostly one or two conditions, so that many are met."""
        parts: dict[str, str] = {}
        for _ in range(self.random.choice((0, 1, 1, 1, 2, 2, 3))):
            part = self.condition(table, base)
            words = part.removeprefix("! ").split(" ")
            parts.setdefault(words[1] if words[0] == "-m" else words[0], part)
        if "--to-ports" in target or "tcp-reset" in target or _has_port(target):
            parts = {key: part for key, part in parts.items() if key != "-p" and "! -p" not in part}
            parts["-p"] = "-p tcp" if "tcp-reset" in target or self.random.random() < 0.6 else "-p udp"
        if "-p" in parts:  # a protocol must stand before what needs it
            parts = {"-p": parts.pop("-p"), **parts}
        return " ".join((*parts.values(), target)).strip()

    def _not(self) -> str:
        return "! " if self.random.random() < 0.2 else ""

    def condition(self, table: str, base: str) -> str:
        """Return one condition that may stand in the chain."""
        pick, words, no = self.random.choice, self.words, self._not()
        roll = self.random.random()
        if roll < 0.3:
            address = pick((*words.addresses, *words.addresses, *words.nets))
            return f"{'' if address.endswith('/0') else no}{pick(('-s', '-d'))} {address}"
        if roll < 0.4:
            device = pick((*words.devices, "veth+", "eth+"))
            if base in ("PREROUTING", "INPUT"):
                return f"{no}-i {device}"
            if base in ("OUTPUT", "POSTROUTING"):
                return f"{no}-o {device}"
            return f"{no}{pick(('-i', '-o'))} {device}"
        if roll < 0.6:
            return self._protocol(no)
        return self._extension(table, base, no)

    def _protocol(self, no: str) -> str:
        pick, port = self.random.choice, self.random.choice(self.words.ports)
        return pick(
            (
                f"-p tcp -m tcp {no}--dport {port}",
                f"-p udp -m udp {no}--dport {port}",
                f"-p tcp -m tcp {no}--sport {pick((port, '1024:65535', ':1024'))}",
                f"-p tcp -m tcp {no}--tcp-flags {pick(('FIN,SYN,RST,ACK SYN', 'SYN,ACK SYN,ACK', 'RST RST', 'ALL ACK'))}",
                f"-p {pick(('tcp', 'udp'))} -m multiport {no}--{pick(('dports', 'ports', 'sports'))} {port},30000:31000",
                self._icmp(no),
                "-p tcp",
                "-p udp",
                "-p icmp" if self.words.family == 4 else "-p ipv6-icmp",
                "! -p tcp",
                "! -p udp",
            )
        )

    def _icmp(self, no: str) -> str:
        pick = self.random.choice
        if self.words.family == 4:
            return f"-p icmp -m icmp {no}--icmp-type {pick(('8', '0', '3', '3/3', 'any'))}"
        return f"-p ipv6-icmp -m icmp6 {no}--icmpv6-type {pick(('128', '129', '1', '1/4', '135', '136', '2'))}"

    def _extension(self, table: str, base: str, no: str) -> str:
        pick, words = self.random.choice, self.words
        one, other = pick(words.addresses), pick(words.addresses)
        ttl = "ttl" if words.family == 4 else "hl"
        low, high = sorted((one, other), key=lambda ip: int(ip_address(ip)))
        found = [
            f"-m mark {no}--mark {pick(('0x1', '0x2/0x2', '0x0/0x3', '0x4000/0x4000', '0x8000/0x8000'))}",
            f"-m connmark {no}--mark {pick(('0x1', '0x0/0x3', '0x4/0x4'))}",
            f"-m conntrack {no}--ctstate {pick(_STATES)}",
            f"-m conntrack {no}--ctstate {pick(_STATES)}",
            f"-m conntrack --ctdir {pick(('ORIGINAL', 'REPLY'))}",
            f"-m conntrack {no}--ctorigdst {one}",
            f"-m conntrack {no}--ctreplsrc {one}",
            f"-m conntrack {no}--ctorigsrc {one}",
            f"-m conntrack {no}--ctorigdstport {pick(words.ports)}",
            f"-m conntrack {no}--ctstatus {pick(('NONE', 'CONFIRMED', 'SEEN_REPLY', 'ASSURED'))}",
            f"-m addrtype {no}--{pick(('src', 'dst'))}-type {pick(_TYPES[words.family])}",
            f"-m iprange {no}--{pick(('src', 'dst'))}-range {low}-{high}",
            f"-m length {no}--length {pick(('60', '0:59', '61:', '84'))}",
            f"-m {ttl} {pick((no + f'--{ttl}-eq', f'--{ttl}-lt', f'--{ttl}-gt'))} {pick((63, 64, 62))}",
            f"-m statistic --mode random --probability {pick(('0.00000000000', '1.00000000000'))}",
            "-m statistic --mode nth --every 1 --packet 0",
            "-m limit --limit 10000/sec --limit-burst 5000",
            "-m comment --comment fz",
            f"-m tos {no}--tos {pick(('0x10/0xff', '0x00/0x3f'))}",
            f"-m dscp {no}--dscp {pick(('0x00', '0x2e'))}",
        ]
        if base in ("PREROUTING", "INPUT", "FORWARD"):
            found.append(f"-m pkttype {no}--pkt-type {pick(('unicast', 'broadcast'))}")
            found.append(
                "-m physdev --physdev-is-in"
                if self.random.random() < 0.5
                else f"-m physdev {no}--physdev-in {pick(words.devices)}"
            )
        if base in ("FORWARD", "POSTROUTING"):
            found.append(f"-m physdev {no}--physdev-is-bridged")
        if base == "PREROUTING" and table in ("raw", "mangle"):
            found += [f"-m rpfilter {pick(('--loose', '--invert', '--validmark', '--loose --invert'))}"] * 2
        if base in ("OUTPUT", "POSTROUTING"):
            found.append(f"-m owner {no}--uid-owner {pick((0, 1000))}")
        found += [f"-m set {no}--match-set {name} {directions}" for name, directions in words.sets] * 3
        return pick(found)

    # --- one target --------------------------------------------------------------------------------------------------

    def target(self, table: str, base: str, further: list[str]) -> str:
        """Return a target that may stand in the chain, or "" for a rule that only counts."""
        pick, words = self.random.choice, self.words
        found = ["-j ACCEPT", "-j RETURN", "", *self._marks(table)]
        found += [f"{pick(('-j', '-j', '-g'))} {name}" for name in further for _ in range(4)]
        if table == "raw":
            found += ["-j CT --notrack"] * 2
        if table in ("raw", "mangle"):
            found += ["-j DROP"]
        ttl = "TTL" if words.family == 4 else "HL"
        if table == "mangle":
            found += [
                f"-j {ttl} --{ttl.lower()}-dec 1",
                *(
                    (f"-j {ttl} --{ttl.lower()}-set 40",) if base == "OUTPUT" else ()
                ),  # elsewhere a loop would never end
                "-j TOS --set-tos 0x10/0x3f",
                "-j DSCP --set-dscp 0x2e",
            ]
            found += ["-j MARK --set-xmark 0x1/0xffffffff"] * 2
        if table == "filter":
            found += [
                "-j DROP",
                "-j DROP",
                *(
                    f"-j REJECT --reject-with {pick((*(_REJECTS if words.family == 4 else _REJECTS6), 'tcp-reset'))}"
                    for _ in range(3)
                ),
            ]
        if table == "nat":
            found += self._nat(base) * 2
        return pick(found)

    def _marks(self, table: str) -> list[str]:
        pick = self.random.choice
        masks = ("0x1/0x1", "0x2/0x0", "0x4000/0x4000", "0x8000/0x8000", "0x0/0x4000")
        found = [f"-j MARK --set-xmark {pick(masks)}"]
        if table != "raw":
            found.append(
                pick(
                    (
                        "-j CONNMARK --set-xmark 0x1/0x1",
                        "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
                        "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
                    )
                )
            )
        return found

    def _nat(self, base: str) -> list[str]:
        pick, words = self.random.choice, self.words
        pod, other = pick(words.pods), pick(words.addresses)
        if base in ("PREROUTING", "OUTPUT"):
            return [
                f"-j DNAT --to-destination {_ended(pod, 8080)}",
                f"-j DNAT --to-destination {pod}",
                f"-j DNAT --to-destination {other}",
                f"-j DNAT --to-destination {_ended('127.0.0.1' if words.family == 4 else '::1', pick(words.ports))}",
                f"-j REDIRECT --to-ports {pick(words.ports)}",
            ]
        if base == "INPUT":
            return [f"-j SNAT --to-source {other}"]
        return [
            "-j MASQUERADE",
            "-j MASQUERADE --random-fully",
            "-j MASQUERADE",
            f"-j SNAT --to-source {pick((*words.own, other))}",
        ]


def _ended(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _has_port(target: str) -> bool:
    where = target.partition("--to-destination ")[2]
    return "]:" in where or where.count(":") == 1
