"""The index of long chains leaves nothing out: the same ways and steps as asking every rule."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.skoop.model.packet import Protocol, TcpFlags
from tasks.skoop.model.xtables import Backend
from tasks.skoop.netstack.xtables.api import Hook
from tasks.skoop.netstack.xtables.index import ChainIndex
from tasks.skoop.netstack.xtables.view import PacketView
from tasks.skoop.parse.iptables import parse_iptables_save
from tests.unit.xtables.scene import compiled, context, ipset

ADDRESSES = ("10.1.0.2", "10.1.0.3", "10.2.0.2", "10.2.0.130")
NETS = (
    *(f"{ip}/32" for ip in ADDRESSES),
    "10.1.0.0/24",
    "10.2.0.128/25",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "10.0.0.2/255.0.0.255",
)
ADDRESSES6 = ("fd00:1::2", "fd00:1::3", "fd00:2::2", "fd00:2::8002")
NETS6 = (*(f"{ip}/128" for ip in ADDRESSES6), "fd00:1::/64", "fd00:2::8000/113", "fd00::/16", "::/0")
PORTS = ("80", "443", "80:443", "1024:", "0")
CHAINS = ("A", "B", "C")
OTHERS = (
    "-m mark --mark 0x1/0x1",
    "-m conntrack --ctstate NEW",
    "-m nosuchmatch --x 1",
    "-m statistic --mode random --probability 0.25",
)
ENDS = (
    "-j ACCEPT",
    "-j DROP",
    "-j RETURN",
    "-j MARK --set-xmark 0x1/0x1",
    "-j MARK --set-xmark 0x0/0x3",
    "",
    "-j LOG",
    "-j NOSUCH",
)
SETS = (ipset("s", "hash:net", "10.1.0.0/24"), ipset("s6", "hash:net", "fd00:1::/64", family=6))


class World:
    """A random ruleset and packet of a seed: few addresses and ports, so that much of it fits."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.family = self.random.choice((4, 6))
        self.addresses = ADDRESSES if self.family == 4 else ADDRESSES6
        self.nets = NETS if self.family == 4 else NETS6

    def option(self, name: str, values: tuple[str, ...]) -> str:
        return f"{self.random.choice(('', '', '', '! '))}{name} {self.random.choice(values)}"

    def matches(self) -> str:
        pick = self.random.choice
        protocol = pick(("tcp", "udp"))
        kinds = (
            self.option("-s", self.nets),
            self.option("-d", self.nets),
            self.option("-d", self.nets),
            self.option("-i", ("rc", "r+", "eth0")),
            self.option("-o", ("rs", "r+", "eth0")),
            f"-p {protocol} -m {protocol} {self.option(pick(('--dport', '--dport', '--sport')), PORTS)}",
            f"-p tcp -m multiport {self.option('--dports', ('80,443', '1:79'))}",
            pick(OTHERS),
            f"-m set --match-set {SETS[0 if self.family == 4 else 1].name} src",
        )
        chosen: dict[str, str] = {}
        for kind in self.random.sample(kinds, self.random.randrange(4)):
            chosen.setdefault(kind.removeprefix("! ")[:2], kind)
        return " ".join(chosen.values())

    def ruleset(self) -> str:
        lines = ["*filter", f":FORWARD {self.random.choice(('ACCEPT', 'DROP'))}", *(f":{name} -" for name in CHAINS)]
        for depth, name in enumerate(("FORWARD", *CHAINS)):
            further = tuple(f"{flag} {to}" for to in CHAINS[depth:] for flag in ("-j", "-j", "-g"))
            lines += [
                f"-A {name} {self.matches()} {self.random.choice(ENDS + further)}"
                for _ in range(self.random.randrange(12))
            ]
        return "\n".join((*lines, "COMMIT", ""))

    def packet(self) -> dict[str, object]:
        pick = self.random.choice
        protocol = pick((Protocol.TCP, Protocol.TCP, Protocol.UDP, Protocol.ICMP, Protocol.OTHER))
        return {
            "src": pick(self.addresses),
            "dst": pick(self.addresses),
            "protocol": protocol,
            "sport": pick((0, 80, 40000)),
            "dport": pick((0, 80, 443, 9999)),
            "tcp_flags": TcpFlags.SYN if protocol == Protocol.TCP else TcpFlags.NONE,
            "mark": pick((0, 1, 2)),
        }


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 40))
def test_indexed_and_plain_evaluation_agree(seed: int) -> None:
    world = World(seed)
    text, scene = world.ruleset(), context(Hook.FORWARD, family=world.family, **world.packet())  # type: ignore[arg-type]
    indexed, plain = (
        compiled(text, family=world.family, index_from=index_from, ipsets=SETS)
        .tables[world.family, "filter"][0]
        .evaluate(scene)
        for index_from in (1, 1000)
    )
    assert indexed == plain
    assert abs(sum(result.probability for result in plain) - 1.0) < 1e-9


def _index(*specs: str) -> ChainIndex:
    lines = "".join(f"-A A {spec} -j DROP\n" for spec in specs)
    (table,) = parse_iptables_save(f"*filter\n:A -\n{lines}COMMIT\n", backend=Backend.LEGACY, family=4)
    return ChainIndex(table.chains[0].rules, 4)


def test_a_service_chain_leaves_only_the_rules_of_the_destination() -> None:
    index = _index(
        *(f"-d 10.96.{n >> 8}.{n & 255}/32 -p tcp -m tcp --dport 80" for n in range(1000)),
        "-m addrtype --dst-type LOCAL",
    )
    assert index.candidates(PacketView(context(dst="10.96.1.4"), 4)) == [260, 1000]


def test_a_nodeport_chain_leaves_only_the_rules_of_the_port() -> None:
    index = _index(*(f"-p tcp -m tcp --dport {30000 + n}" for n in range(1000)))
    assert index.candidates(PacketView(context(dport=30007), 4)) == [7]
    assert index.candidates(PacketView(context(dport=30007, protocol=Protocol.UDP), 4)) == []


def test_a_dispatch_chain_leaves_only_the_rules_of_the_device() -> None:
    index = _index(*(f"-i cali{n:04}" for n in range(1000)), "-i r+")
    assert index.candidates(PacketView(context(at={"in_dev": "cali0042"}), 4)) == [42, 1000]


def test_rules_are_filed_under_what_tells_them_apart() -> None:
    index = _index(*(f"-s 10.0.{n}.1/32 -d 10.2.0.2/32" for n in range(100)))
    assert index.candidates(PacketView(context(src="10.0.7.1"), 4)) == [7]
