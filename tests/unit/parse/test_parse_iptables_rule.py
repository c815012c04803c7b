"""What one rule's text means: matches, options, values, target; and that the fast reader agrees with the reference."""

from pathlib import Path

import pytest

from tasks.skoop.model.xtables import Backend, Match, Rule, Target
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.parse.iptables_render import render_rule
from tasks.skoop.parse.iptables_rule import RuleReader, SpecError, read_spec

DATA = Path(__file__).resolve().parents[2] / "data" / "parse"


def one(name: str, *values: str, negated: bool = False) -> Match:
    return Match(name, ((name, negated, values),))


READ = [
    pytest.param("", (), Target(), id="nothing: counts only"),
    pytest.param("-j ACCEPT", (), Target("ACCEPT"), id="target alone"),
    pytest.param("-g FOO", (), Target("FOO", goto=True), id="goto"),
    pytest.param("-s 10.0.0.1/32", (one("src", "10.0.0.1/32"),), Target(), id="host"),
    pytest.param("-s 10.0.0.1", (one("src", "10.0.0.1/32"),), Target(), id="host without length"),
    pytest.param("-d 10.1.2.3/8", (one("dst", "10.0.0.0/8"),), Target(), id="host bits are cleared"),
    pytest.param("-d 192.168.0.0/255.255.0.0", (one("dst", "192.168.0.0/16"),), Target(), id="dotted mask"),
    pytest.param("-d 10.0.0.1/255.0.255.0", (one("dst", "10.0.0.1/255.0.255.0"),), Target(), id="mask with holes"),
    pytest.param("-s 0:babe::/0:FFFF::", (one("src", "0:babe::/0:ffff::"),), Target(), id="mask with holes, IPv6"),
    pytest.param("-s fd00::1/ffff:ffff::", (one("src", "fd00::/32"),), Target(), id="mask written out, IPv6"),
    pytest.param(
        "-m policy --dir in --proto esp -p udp",
        (Match("policy", (("dir", False, ("in",)), ("proto", False, ("esp",)))), one("proto", "udp")),
        Target(),
        id="an option named like a condition",
    ),
    pytest.param("-m frag --fragfirst", (Match("frag", (("fragfirst", False, ()),)),), Target(), id="named like -f"),
    pytest.param("-m dst ! --dst-len 5", (Match("dst", (("dst-len", True, ("5",)),)),), Target(), id="named like -d"),
    pytest.param(
        "-d 10.0.0.1/0.255.255.255", (one("dst", "10.0.0.1/0.255.255.255"),), Target(), id="not a wildcard mask"
    ),
    pytest.param("-s FD00:0::1/128", (one("src", "fd00::1/128"),), Target(), id="IPv6, canonical"),
    pytest.param("! -i lo", (one("in", "lo", negated=True),), Target(), id="negated interface"),
    pytest.param("-d ! 10.0.0.0/8", (one("dst", "10.0.0.0/8", negated=True),), Target(), id="negation as of old"),
    pytest.param("-m state --state ! NEW", (Match("state", (("state", True, ("NEW",)),)),), Target(), id="old, option"),
    pytest.param("! -f -j DROP", (one("frag", negated=True),), Target("DROP"), id="fragment"),
    pytest.param("-p TCP", (one("proto", "tcp"),), Target(), id="protocol in capitals"),
    pytest.param(
        "-p tcp --dport 80",
        (one("proto", "tcp"), Match("tcp", (("dport", False, ("80",)),))),
        Target(),
        id="implicit match",
    ),
    pytest.param(
        "-p 6 -m comment --comment a --dport 80",
        (one("proto", "6"), one("comment", "a"), Match("tcp", (("dport", False, ("80",)),))),
        Target(),
        id="implicit match behind another",
    ),
    pytest.param(
        "-p tcp -m tcp -m comment --comment x --dport 80",
        (one("proto", "tcp"), Match("tcp", (("dport", False, ("80",)),)), one("comment", "x")),
        Target(),
        id="the option goes to the match that owns it",
    ),
    pytest.param(
        "-p tcp -m multiport --dports 1,2 -m tcp ! --sport 5",
        (
            one("proto", "tcp"),
            Match("multiport", (("dports", False, ("1,2",)),)),
            Match("tcp", (("sport", True, ("5",)),)),
        ),
        Target(),
        id="multiport and tcp",
    ),
    pytest.param(
        "-m tcp --tcp-flags SYN,ACK SYN",
        (Match("tcp", (("tcp-flags", False, ("SYN,ACK", "SYN")),)),),
        Target(),
        id="two values",
    ),
    pytest.param(
        "-m set ! --match-set a;^|}$[~? src,dst",
        (Match("set", (("match-set", True, ("a;^|}$[~?", "src,dst")),)),),
        Target(),
        id="set with a wild name",
    ),
    pytest.param(
        '-m comment --comment "a \\"b\\" \\\\ it\\\'s -j DROP" -j RETURN',
        (one("comment", 'a "b" \\ it\'s -j DROP'),),
        Target("RETURN"),
        id="quotes and backslashes",
    ),
    pytest.param("-m comment --comment -m -j X", (one("comment", "-m"),), Target("X"), id="a value like an option"),
    pytest.param(
        "-m comment --comment a -m comment --comment b",
        (one("comment", "a"), one("comment", "b")),
        Target(),
        id="one twice",
    ),
    pytest.param(
        "-m future --deep 1 -2 --flag -j NEW --how a b",
        (Match("future", (("deep", False, ("1", "-2")), ("flag", False, ()))),),
        Target("NEW", options=(("how", False, ("a", "b")),)),
        id="unknown extensions",
    ),
    pytest.param(
        '-j LOG --log-prefix "-x " --log-level 4',
        (),
        Target("LOG", options=(("log-prefix", False, ("-x ",)), ("log-level", False, ("4",)))),
        id="quoted value with a dash",
    ),
    pytest.param(
        "-j DROP -p udp -m udp --dport 5",
        (one("proto", "udp"), Match("udp", (("dport", False, ("5",)),))),
        Target("DROP"),
        id="target first",
    ),
    pytest.param("-p  tcp   -j\tACCEPT", (one("proto", "tcp"),), Target("ACCEPT"), id="more blanks, a tab"),
    pytest.param("-j X --how a\tb", (), Target("X", options=(("how", False, ("a", "b")),)), id="a tab parts values"),
    pytest.param(
        "-m statistic --mode random --probability 0.5 -j X",
        (Match("statistic", (("mode", False, ("random",)), ("probability", False, ("0.5",)))),),
        Target("X"),
        id="kube-proxy's dice",
    ),
]


@pytest.mark.parametrize(("spec", "matches", "target"), READ)
def test_reads(spec: str, matches: tuple[Match, ...], target: Target) -> None:
    assert read_spec(spec) == (matches, target)
    assert RuleReader().rule(spec) == Rule(spec, matches, target)


REFUSED = [
    pytest.param("-s 300.0.0.1/32 -j X", 3, "not an address", id="octet"),
    pytest.param("-s 10.0.0.0/33", 3, "not an address", id="length"),
    pytest.param("-s a,b", 3, "not an address", id="names"),
    pytest.param("-p", 0, "missing", id="no value"),
    pytest.param("-p tcp -j", 7, "missing", id="no target"),
    pytest.param("-p tcp -m", 7, "missing", id="no match"),
    pytest.param("-p tcp !", 7, "nothing follows", id="hanging negation"),
    pytest.param("! -j DROP", 2, "cannot be negated", id="negated target"),
    pytest.param("-j A -j B", 5, "second target", id="two targets"),
    pytest.param("-q 5", 0, "unknown option", id="unknown letter"),
    pytest.param("stray -j X", 0, "neither", id="stray word"),
    pytest.param("--foo -j X", 0, "belongs to no", id="option of nothing"),
    pytest.param("--dport 80 -j X", 0, "without -p", id="port without protocol"),
    pytest.param('-m comment --comment "abc', 21, "quotation", id="open quote"),
    pytest.param('-m comment --comment ab"c', 21, "quotation", id="quote inside a word"),
    pytest.param(
        "-j DNAT --to-destination  --random --to-destination 0.0.0.0:0", 8, "no value", id="garbled by old iptables"
    ),
    pytest.param("-m conntrack --ctstate -j X", 13, "no value", id="lost value"),
]


@pytest.mark.parametrize(("spec", "offset", "problem"), REFUSED)
def test_refuses(spec: str, offset: int, problem: str) -> None:
    for read in (read_spec, RuleReader().rule):
        with pytest.raises(SpecError) as caught:
            read(spec)
        assert (caught.value.offset, problem in caught.value.problem) == (offset, True), caught.value


@pytest.mark.parametrize("backend", list(Backend))
def test_every_extension_as_the_tools_print_it(backend: Backend) -> None:
    """extensions-*.txt are dumps of rules of our own with nearly every extension, printed by iptables 1.8.9."""
    text = (DATA / f"extensions-{backend}.txt").read_text()
    tables = parse_iptables_save(text, backend=backend, family=4)
    rules = [rule for table in tables for chain in table.chains for rule in chain.rules]
    assert len(rules) == text.count("\n[0:0] -A ") == 93
    for rule in rules:
        assert Rule(rule.raw, *read_spec(rule.raw)) == rule
        assert render_rule(rule) == rule.raw


def test_the_memory_of_the_fast_reader_does_not_leak_between_rules() -> None:
    reader = RuleReader()
    specs = [
        "-p udp -m comment --comment x --dport 5",
        "-p tcp -m comment --comment x --dport 5",
        "-m comment --comment x",
    ]
    for spec in [*specs, *reversed(specs)]:
        assert reader.rule(spec) == Rule(spec, *read_spec(spec))


def test_matches_of_ip6tables_named_like_conditions_keep_their_options() -> None:
    spec = "-d fd00::1/128 -m dst --dst-len 8 -m frag ! --fragid 1 -j DROP"
    matches, _ = read_spec(spec)
    assert matches[1:] == (
        Match("dst", (("dst-len", False, ("8",)),)),
        Match("frag", (("fragid", True, ("1",)),)),
    )
    assert RuleReader().rule(spec).matches == matches
