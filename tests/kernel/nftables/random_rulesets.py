"""Random native rulesets that a kernel loads: every expression and statement with a certain answer, with a counter in each rule."""

import re
from random import Random

from tests.kernel.xtables.random_rules import ADDRESSES, NETS
from tests.kernel.xtables.router_lab import C_MAC, MARKER, PORTS

HOOKS = {
    "prerouting": (-300, -150, -90, 10),
    "input": (-10, 10),
    "forward": (-150, 0, 5),
    "postrouting": (-150, 10),
}
"""Hooks → priorities at which a filter chain may stand."""
NAT_HOOKS = {"prerouting": -100, "postrouting": 100}
WORD = {4: "ip", 6: "ip6"}
PLAIN = {
    family: tuple(net for net in nets if "/255." not in net and not net.endswith("/0")) for family, nets in NETS.items()
}
TRANSPORT = re.compile(r"\b(tcp|udp|th|icmp|icmpv6|l4proto)\b|@(th|triple|boxes|dyn)")
NETWORK = re.compile(r"\b(ip|ip6|tcp|udp|reject|icmp)\b")
LINK = re.compile(r"\b(nfproto|iiftype|protocol|ether)\b")
STATES = (
    "new",
    "established",
    "invalid",
    "untracked",
    "{ new, untracked }",
    "{ invalid, established }",
    "established,related",
    "new,invalid",
)
TYPES = {4: ("local", "unicast", "{ local, broadcast }", "broadcast", "multicast"), 6: ("local", "multicast")}


ENDS = (
    "accept",
    "drop",
    "return",
    "continue",
    "jump",
    "goto",
    "reject",
    "snat",
    "dnat",
    "masquerade",
    "redirect",
    "notrack",
)


def _counted(statement: str) -> tuple[str, ...]:
    """Return a statement with the counter where it counts what the simulator calls a match.

    A statement that can fail after all (it looks into a map) is counted behind; one that ends the rule before, or not at all.
    """
    if " map " in statement and statement.startswith(ENDS):
        return (statement,)
    if " tcp dport 80 " in statement:
        first, rest = statement.split(" tcp dport 80 ")
        return first, "counter", "tcp dport 80", rest
    return ("counter", statement) if statement.startswith(ENDS) or " accept" in statement else (statement, "counter")


class RulesetMaker:
    """Makes rulesets for packets of one family from a seed; `tables` are (family, name) of what it made."""

    def __init__(self, seed: int, family: int) -> None:
        self.random = Random(seed)
        self.family = family
        self.ip = WORD[family]
        self.tables: list[tuple[str, str]] = []
        self._taken: set[tuple[str, int]] = set()
        self._base = 0
        self._early = False

    def ruleset(self) -> str:
        """Return input of `nft -f`: one or two tables with base chains at several hooks, user chains, sets and maps."""
        texts = []
        for number in range(self.random.choice((1, 2))):
            kind = self.random.choice((self.ip, "inet"))
            name = f"t{number}"
            self.tables.append((kind, name))
            texts.append(self._table(kind, name))
        return "".join(texts)

    def _table(self, kind: str, name: str) -> str:
        chains, bodies = [], []
        for hook, priorities in HOOKS.items():
            if self.random.random() < 0.75:
                chains.append((hook, "filter", self._priority(hook, priorities)))
        for hook, priority in NAT_HOOKS.items():
            if self.random.random() < 0.6:
                chains.append((hook, "nat", self._priority(f"nat {hook}", (priority, priority + 1, priority - 1))))
        for number, (hook, what, priority) in enumerate(chains):
            self._base, self._early = number, priority < -200
            users = [f"u{number}x{n}" for n in range(3)]
            # what is called must be there already: the user chains come first, the last of them before all
            for depth, user in reversed(list(enumerate(users))):
                bodies.append(self._chain(user, "", hook, what, users[depth + 1 :], kind))
            policy = "drop" if what == "filter" and self.random.random() < 0.1 else "accept"
            head = f"type {what} hook {hook} priority {priority}; policy {policy};"
            bodies.append(self._chain(f"b{number}", head, hook, what, users, kind))
        return f"table {kind} {name} {{\n{self._sets()}{''.join(bodies)}}}\n"

    def _priority(self, hook: str, choice: tuple[int, ...]) -> int:
        """Return a priority that no other chain at the hook has: in what order equal ones run is not listed."""
        priority = self.random.choice([each for each in choice if (hook, each) not in self._taken])
        self._taken.add((hook, priority))
        return priority

    def _sets(self) -> str:
        a, _, c, d, *_ = ADDRESSES[self.family]
        kind = f"{'ipv4' if self.family == 4 else 'ipv6'}_addr"
        triple = f"{kind} . inet_proto . inet_service"
        return f"""
 set ips {{ type {kind}; elements = {{ {a}, {d} }}; }}
 set nets {{ type {kind}; flags interval; elements = {{ {"fd00:1::/64" if self.family == 6 else "10.1.0.0/24"}, {c}-{d} }}; }}
 set triple {{ type {triple}; elements = {{ {c} . tcp . 80, {c} . udp . 53, {d} . tcp . 443 }}; }}
 set boxes {{ type {kind} . inet_service; flags interval; elements = {{ {c}-{d} . 80-443, {a} . 53 }}; }}
 set names {{ type ifname; flags interval; elements = {{ "rc", "x*" }}; }}
{"".join(f" set dyn{n} {{ type {kind} . inet_service; flags dynamic,timeout; timeout 1h; }}{chr(10)}" for n in range(6))} map marks {{ type inet_service : mark; elements = {{ 80 : 0x1, 53 : 0x2, 443 : 0x3 }}; }}
 map where {{ type inet_service : {kind}; elements = {{ 80 : {c}, 443 : {d} }}; }}
 limit wide {{ rate 1/hour burst 500 packets; }}
 quota much {{ over 900 mbytes; }}
"""

    def _chain(self, name: str, head: str, hook: str, what: str, further: list[str], kind: str) -> str:
        lines = [f" chain {name} {{", f"  {head}"] if head else [f" chain {name} {{"]
        if head:
            lines.append(f"  {self.ip} saddr {MARKER[self.family]} counter accept")
        lines += [f"  {self._rule(hook, what, further, kind)}" for _ in range(self.random.randrange(2, 7))]
        return "\n".join((*lines, " }", ""))

    def _rule(self, hook: str, what: str, further: list[str], kind: str) -> str:
        pick = self.random.choice
        if self.random.random() < 0.15:
            return self._verdict_map(hook, further)
        statement = pick(self._statements(hook, what, further, kind))
        transport = bool(TRANSPORT.search(statement))
        matches: list[str] = []
        network = bool(NETWORK.search(statement))
        for found in self.random.sample(self._matches(hook, kind), pick((0, 1, 1, 1, 1, 2))):
            of_transport, of_link = bool(TRANSPORT.search(found)), bool(LINK.search(found))
            if not (transport and of_transport) and not (
                of_link and (network or matches)
            ):  # nft refuses what conflicts
                matches.append(found)
                transport = transport or of_transport
                network = network or of_link
            if of_link and found in matches:
                break
        needs = ""
        if statement.startswith("["):
            needs, _, statement = statement[1:].partition("] ")
        words = (*matches, needs, *_counted(statement))
        return " ".join(word for word in words if word)

    def _not(self) -> str:
        return "!= " if self.random.random() < 0.25 else ""

    def _verdict_map(self, hook: str, further: list[str]) -> str:
        pick = self.random.choice
        verdicts = ["accept", "continue", "return", "continue"]
        verdicts += [f"{pick(('jump', 'goto'))} {name}" for name in further]
        c, d = ADDRESSES[self.family][2:4]
        one, two, rest = (pick(verdicts) for _ in range(3))
        return pick(
            (
                f"th dport vmap {{ 80 : {one}, 53 : {two} }}",
                f"meta l4proto {{ tcp, udp }} th dport vmap {{ 50-100 : {one}, 443 : {two} }}",
                f"{self.ip} daddr . meta l4proto . th dport vmap {{ {c} . tcp . 80 : {one}, {d} . udp . 53 : {two} }}",
                f"ct state vmap {{ new : {one}, invalid : {two} }}",
                f"meta mark vmap {{ 0 : {one}, 1 : {two}, * : {rest} }}",
                f"numgen random mod 1 vmap {{ 0 : {one} }}",
                f"numgen inc mod 1 offset 5 vmap {{ 5-6 : {two} }}",
                f"jhash {self.ip} saddr mod 1 vmap {{ 0 : {one} }}",
                f"meta l4proto vmap {{ tcp : {one}, udp : {two} }}",
            )
        )

    def _matches(self, hook: str, kind: str) -> list[str]:
        pick, no, ip, six = self.random.choice, self._not(), self.ip, self.family == 6
        ips = ADDRESSES[self.family]
        a, b = sorted(self.random.sample(range(len(ips)), 2))
        end, port = pick(("saddr", "daddr")), pick(PORTS)
        found = [
            *(f"{ip} {end} {no}{pick(PLAIN[self.family])}" for _ in range(2)),
            f"{ip} {end} {no}{{ {', '.join({ips[a], ips[b]})} }}",
            f"{ip} {end} {no}@{pick(('ips', 'nets'))}",
            f"{ip} saddr . udp sport {no}@dyn{self._base}",  # each packet has its own port: what others left is not met
            f"{ip} daddr . meta l4proto . th dport {no}@triple",
            f"{ip} {end} . {pick(('tcp', 'udp'))} dport {no}@boxes",
            f"tcp dport {no}{pick((port, '1-100', '{ 80, 443 }', '{ 22, 80-443 }'))}",
            f"udp dport {pick((port, '< 100', '>= 443'))}",
            f"th dport {no}{pick((port, '{ 53, 80 }'))}",
            f"th sport {no}{pick((2048, 3333))}",
            f"meta l4proto {no}{pick(('tcp', 'udp', '{ tcp, udp }', 'icmp', 'ipv6-icmp'))}",
            f"ct state {no}{pick(STATES)}",
            f"ct direction {pick(('original', 'reply'))}",
            f"ct status {pick(('dnat', 'snat,dnat', 'confirmed'))}",
            f"ct status {pick(('==', '!='))} {pick(('dnat', 'snat'))}",
            f"ct status & (dnat|snat) == {pick(('0', 'dnat'))}",
            f"ct mark {no}{pick(('0x1', '0', '0-2'))}",
            f"ct mark & 0x3 {pick(('==', '!='))} {pick(('0x1', '0'))}",
            f"ct original {ip} daddr {no}{pick(ips)}",
            f"ct reply {ip} saddr {no}{pick(ips)}",
            f"ct protocol {pick(('tcp', 'udp'))}",
            f"ct zone {no}{pick((0, 5))}",
            f"meta mark {no}{pick(('0x1', '0', '1-3', '{ 0, 2 }'))}",
            f"meta mark & 0x3 {pick(('==', '!=', '>', '<='))} {pick(('0x1', '0', '0x2'))}",
            f"meta mark | 0x2 == {pick(('0x2', '0x3'))}",
            f"meta length {pick(('60', '> 80', '<= 80', '70-110'))}",
            f"meta nfproto {pick(('ipv4', 'ipv6'))}" if kind == "inet" else f"meta protocol {no}{ip}",
            f"meta pkttype {no}{pick(('host', 'broadcast', 'multicast'))}",
            f"iifname {no}{pick(('rc', 'r*', 'rs', '@names', '{ rc, eth0 }', '{ x*, r* }'))}",
            f"oifname {no}{pick(('rs', 'r*', 'rc'))}",
            f"iif {no}{pick(('rc', 'rs', 'lo'))}",
            f"iifname . oifname {no}{{ rc . rs, rs . rc }}",
            f"meta iiftype {no}{pick(('ether', 'loopback'))}",
            f"iifgroup {no}{pick(('default', '7'))}",
            f"{ip} dscp {no}{pick(('cs0', 'ef', '{ ef, cs2 }', '0x04'))}",
            f"{ip} ecn {no}{pick(('not-ect', 'ce'))}",
            f"tcp flags {pick(('syn', 'syn,ack', '== syn', '! syn', '!= syn', '& (fin|syn|rst|ack) == syn', '& (syn|ack) == (syn|ack)', '{ syn, ack }'))}",
            f"ether saddr {no}{pick((C_MAC, '02:00:00:00:00:09'))}",
            f"numgen random mod 1 {pick(('0', '!= 0', '< 1'))}",
            f"jhash {ip} saddr . th sport mod 1 {pick(('0', '!= 0'))}",
            "limit rate 1/hour burst 500 packets",
            "limit rate over 1/hour burst 500 packets",
            'limit name "wide"',
            'quota name "much"',
            "quota over 900 mbytes",
            f"{'icmpv6' if six else 'icmp'} type {no}{pick(('echo-request', 'echo-reply', '{ echo-request, destination-unreachable }'))}",
            f"{ip} {'hoplimit' if six else 'ttl'} {no}{pick((63, 64, 40))}",
            f"@th,16,16 {port}",
            f"fib {end} type {no}{pick(TYPES[self.family])}",
            f"exthdr frag {pick(('exists', 'missing'))}" if six else f"ip frag-off & 0x1fff {pick(('==', '!='))} 0",
        ]  # fmt: skip
        if hook in ("prerouting", "input", "forward"):
            found += [
                f"fib saddr . iif oif {pick(('exists', 'missing'))}",
                f"fib daddr . mark oif {pick(('exists', 'missing'))}",
                "fib saddr oifname rc",
            ]
            found += [f"fib daddr . iif type {no}local"] if hook != "forward" else []
        return found

    def _statements(self, hook: str, what: str, further: list[str], kind: str) -> list[str]:
        pick, ip = self.random.choice, self.ip
        found = ["accept", "return", "continue", "", ""]
        found += [f"{pick(('jump', 'jump', 'jump', 'goto'))} {name}" for name in further for _ in range(3)]
        found += [
            f"meta mark set {pick(('0x1', '0x3', 'meta mark | 0x2', 'meta mark & 0x1', 'meta mark ^ 0x3', 'ct mark', 'meta mark << 1'))}",
            "meta mark set tcp dport map @marks",
            f"meta mark set {ip} saddr map {{ {ADDRESSES[self.family][0]} : 0x1, {ADDRESSES[self.family][1]} : 0x2 }}",
            f"ct mark set {pick(('0x1', 'meta mark', 'ct mark | 0x2'))}",
            f"meta mark set numgen inc mod 1 offset {pick((1, 2))}",
            f"{pick(('add', 'update', 'delete'))} @dyn{self._base} {{ {ip} saddr . udp sport }}",
            "meta mark set 0x1 accept",
            "meta mark set 0x2 tcp dport 80 meta mark set 0x1",
        ]
        if what == "filter":
            found += [
                "drop",
                f"{ip} dscp set {pick(('ef', 'cs1'))}",
                f"{ip} {'hoplimit' if ip == 'ip6' else 'ttl'} set 40",
            ]
            found += ["[meta l4proto udp] udp dport set 8080", f"{ip} ecn set {pick(('ce', 'ect0'))}"]
            if hook in ("input", "forward"):
                found += [
                    f"reject{' with icmpx admin-prohibited' if kind == 'inet' else ''}",
                    "[meta l4proto tcp] reject with tcp reset",
                ]
            if hook == "prerouting":
                found += ["notrack", "notrack"] if self.random.random() < 0.3 else []
                found += ["ct zone set 5"] if self._early else []  # conntrack has not seen the packet yet
        else:
            found += self._nat(hook, kind) * 2
        return found

    def _nat(self, hook: str, kind: str) -> list[str]:
        a, b = ADDRESSES[self.family][2:4]
        to = f"{self.ip} to" if kind == "inet" else "to"
        at = ("{}:{}" if self.family == 4 else "[{}]:{}").format
        if hook == "prerouting":
            return [
                f"dnat {to} {a}",
                f"dnat {to} {b}",
                f"[meta l4proto tcp] dnat {to} {at(b, 8080)}",
                f"[meta l4proto tcp] dnat {to} tcp dport map @where",
                f"[meta l4proto udp] dnat {to} numgen random mod 1 map {{ 0 : {a} . 53 }}",
                f"dnat {to} {self.ip} saddr map {{ {ADDRESSES[self.family][0]} : {a}, {ADDRESSES[self.family][1]} : {b} }}",
                "[meta l4proto udp] redirect to :53",
                "[meta l4proto udp] redirect",
            ]
        net = "10.2.0.50" if self.family == 4 else "fd00:2::50"
        return ["masquerade", f"snat {to} {net}"]
