"""The index of long chains leaves nothing out: the same ways and steps as asking every rule."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.skoop.model.packet import CtState, Protocol, TcpFlags
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
SETS = (ipset("s", "hash:net", "10.1.0.0/24"), ipset("s6", "hash:net", "fd00:1::/64", family=6))

negation = st.sampled_from(("", "", "", "! "))


def _option(name: str, values: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.builds("{}{} {}".format, negation, st.just(name), st.sampled_from(values))


def _matches(family: int) -> st.SearchStrategy[str]:
    nets = NETS if family == 4 else NETS6
    protocol = st.one_of(
        st.just(""),
        st.builds(
            "-p {0} -m {0} {1}".format,
            st.sampled_from(("tcp", "udp")),
            st.one_of(st.just(""), _option("--dport", PORTS), _option("--sport", PORTS)),
        ),
        st.builds("-p tcp -m multiport {}".format, _option("--dports", ("80,443", "1:79"))),
    )
    return st.builds(
        " ".join,
        st.tuples(
            st.one_of(st.just(""), _option("-s", nets)),
            st.one_of(st.just(""), _option("-d", nets)),
            st.one_of(st.just(""), _option("-i", ("rc", "r+", "eth0"))),
            st.one_of(st.just(""), _option("-o", ("rs", "r+", "eth0"))),
            protocol,
            st.sampled_from(
                (
                    *("", "", "", "-m mark --mark 0x1/0x1", "-m conntrack --ctstate NEW", "-m nosuchmatch --x 1"),
                    "-m statistic --mode random --probability 0.25",
                    f"-m set --match-set {SETS[0 if family == 4 else 1].name} src",
                )
            ),
        ),
    )


def _rules(family: int) -> st.SearchStrategy[str]:
    jumps = {"FORWARD": CHAINS, "A": CHAINS[1:], "B": CHAINS[2:], "C": ()}
    ends = (
        "-j ACCEPT",
        "-j DROP",
        "-j RETURN",
        "-j MARK --set-xmark 0x1/0x1",
        "-j MARK --set-xmark 0x0/0x3",
        "",
        "-j LOG",
        "-j NOSUCH",
    )

    def chain(name: str) -> st.SearchStrategy[str]:
        targets = st.sampled_from(ends + tuple(f"{flag} {to}" for to in jumps[name] for flag in ("-j", "-g")))
        rule = st.builds(f"-A {name} {{}} {{}}\n".format, _matches(family), targets)
        return st.builds("".join, st.lists(rule, max_size=12))

    head = st.builds(":FORWARD {}\n:A -\n:B -\n:C -\n".format, st.sampled_from(("ACCEPT", "DROP")))
    return st.builds("*filter\n{}{}{}{}{}COMMIT\n".format, head, *(chain(name) for name in jumps))


@st.composite
def _worlds(draw: st.DrawFn) -> tuple[int, str, dict[str, object]]:
    family = draw(st.sampled_from((4, 6)))
    addresses = ADDRESSES if family == 4 else ADDRESSES6
    protocol = draw(st.sampled_from((Protocol.TCP, Protocol.UDP, Protocol.ICMP, Protocol.OTHER)))
    changes: dict[str, object] = {
        "src": draw(st.sampled_from(addresses)),
        "dst": draw(st.sampled_from(addresses)),
        "protocol": protocol,
        "sport": draw(st.sampled_from((0, 80, 40000))),
        "dport": draw(st.sampled_from((0, 80, 443, 9999))),
        "tcp_flags": TcpFlags.SYN if protocol == Protocol.TCP else TcpFlags.NONE,
        "ct_state": draw(st.sampled_from((CtState.NEW, CtState.ESTABLISHED))),
        "mark": draw(st.sampled_from((0, 1, 2))),
    }
    return family, draw(_rules(family)), changes


@settings(max_examples=300, deadline=None)
@given(_worlds())
def test_indexed_and_plain_evaluation_agree(world: tuple[int, str, dict[str, object]]) -> None:
    family, text, changes = world
    scene = context(Hook.FORWARD, family=family, **changes)  # type: ignore[arg-type]
    indexed, plain = (
        compiled(text, family=family, index_from=index_from, ipsets=SETS).tables[family, "filter"][0].evaluate(scene)
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
