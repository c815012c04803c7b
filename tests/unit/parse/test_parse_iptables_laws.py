"""Laws: what is rendered reads back as it was; the fast reader and the reference agree on whatever comes."""

import os
import shutil
import string
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.skoop.model.xtables import Backend, Chain, Match, Rule, Target, XTable
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.parse.iptables_render import render_iptables_save, render_rule, render_spec
from tasks.skoop.parse.iptables_rule import BASIC, ONE_VALUE, OWN_MATCH, RuleReader, SpecError, read_spec

WORD = st.text(string.ascii_letters + string.digits + "_-:/.,;^|}$[~?+", min_size=1, max_size=12)
NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9_.:+~-]{0,11}", fullmatch=True)
OPTION_NAME = st.from_regex(r"[a-z][a-z0-9-]{1,14}", fullmatch=True)
FREE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=20)
ADDRESS = st.sampled_from(["10.0.0.1/32", "10.0.0.0/8", "0.0.0.0/0", "10.0.0.1/255.0.255.0", "fd00::/64", "::1/128"])


@st.composite
def options(draw: st.DrawFn, own: bool) -> tuple[str, bool, tuple[str, ...]]:
    name = draw(st.one_of(OPTION_NAME, st.sampled_from(sorted(ONE_VALUE)), st.sampled_from(["dport", "ctstate"])))
    negated = draw(st.booleans())
    if name in ONE_VALUE:
        return name, negated, (draw(FREE),)
    values = draw(st.lists(FREE, min_size=1, max_size=3))
    if name == "dport" and not own:
        name = "dports"
    return name, negated, tuple(values)


@st.composite
def matches(draw: st.DrawFn) -> Match:
    kind = draw(st.sampled_from(["src", "dst", "in", "out", "proto", "frag", "ext", "ext", "header"]))
    negated = draw(st.booleans())
    if kind == "header":  # extensions of IPv6 that are named like -f and -d
        name = draw(st.sampled_from(["frag", "dst"]))
        return Match(name, tuple((f"{name}-{each}", negated, (each,)) for each in draw(st.lists(NAME, max_size=2))))
    if kind in ("src", "dst"):
        return Match(kind, ((kind, negated, (draw(ADDRESS),)),))
    if kind == "frag":
        return Match(kind, ((kind, negated, ()),))
    if kind in ("in", "out", "proto"):
        return Match(kind, ((kind, negated, (draw(NAME).lower(),)),))
    name = draw(st.one_of(NAME, st.sampled_from(sorted(OWN_MATCH))).filter(lambda name: name not in BASIC.values()))
    return Match(name, tuple(draw(st.lists(options(name in OWN_MATCH), max_size=3))))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    found = tuple(draw(st.lists(matches(), max_size=4)))
    target = Target()
    if draw(st.booleans()):
        target = Target(draw(NAME), draw(st.booleans()), tuple(draw(st.lists(options(own=True), max_size=2))))
    return Rule(render_spec(found, target), found, target)


@st.composite
def tables(draw: st.DrawFn) -> tuple[XTable, ...]:
    chains = st.builds(Chain, NAME, st.sampled_from(["ACCEPT", "DROP", ""]), st.lists(rules(), max_size=3).map(tuple))
    table = st.builds(
        lambda name, chains: XTable(backend=Backend.NFT, family=6, name=name, chains=tuple(chains)),
        st.sampled_from(["raw", "mangle", "nat", "filter", "security"]),
        st.lists(chains, max_size=3, unique_by=lambda chain: chain.name),
    )
    return tuple(draw(st.lists(table, max_size=2, unique_by=lambda table: table.name)))


@settings(max_examples=70, deadline=None)
@given(tables())
def test_what_is_rendered_reads_back(value: tuple[XTable, ...]) -> None:
    assert parse_iptables_save(render_iptables_save(value), backend=Backend.NFT, family=6) == value


TOKENS = st.lists(
    st.one_of(
        st.sampled_from(
            ["-s", "-d", "-p", "tcp", "-i", "!", "-m", "-j", "-g", "-f", "comment", "--comment", "--dport"]
        ),
        st.sampled_from(
            ["10.0.0.1/32", "10.0.0.1", '"a b"', '"', "80", "-1", "--to-destination", "DNAT", "", "--x", "-", "a\tb"]
        ),
        WORD,
    ),
    max_size=12,
)


@settings(max_examples=500, deadline=None)
@given(TOKENS)
def test_the_fast_reader_agrees_with_the_reference(words: list[str]) -> None:
    spec = " ".join(words).strip(" ")
    try:
        expected: Rule | str = Rule(spec, *read_spec(spec))
    except SpecError as error:
        expected = str(error)
    try:
        got: Rule | str = RuleReader().rule(spec)
    except SpecError as error:
        got = str(error)
    assert got == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    try:
        parse_iptables_save(f"*filter\n:A - [0:0]\n-A A {text}\nCOMMIT\n", backend=Backend.NFT, family=4)
    except ParseError as error:
        assert error.line >= 1


def test_every_rule_of_a_recorded_node_renders_as_it_was(recorded_dump: str) -> None:
    tables = parse_iptables_save(recorded_dump, backend=Backend.LEGACY, family=4)
    rules = [rule for table in tables for chain in table.chains for rule in chain.rules]
    assert len(rules) == recorded_dump.count(" -A ") > 150
    assert [render_rule(rule) for rule in rules] == [rule.raw for rule in rules]


def test_the_node_with_ten_thousand_services(large_dump: str) -> None:
    tables = parse_iptables_save(large_dump, backend=Backend.LEGACY, family=4)
    counts = {table.name: (len(table.chains), sum(len(chain.rules) for chain in table.chains)) for table in tables}
    assert counts == {"raw": (2, 0), "mangle": (6, 0), "nat": (52185, 148559), "filter": (10, 471)}
    every = [rule for table in tables for chain in table.chains for rule in chain.rules][::50]
    assert [Rule(rule.raw, *read_spec(rule.raw)) for rule in every] == every


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("iptables-legacy-restore"), reason="needs root and iptables")
def test_iptables_takes_what_is_rendered_and_prints_it_again(recorded_dump: str) -> None:
    before = parse_iptables_save(recorded_dump, backend=Backend.LEGACY, family=4)
    shell = "iptables-legacy-restore && iptables-legacy-save"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", shell],
        input=render_iptables_save(before),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = parse_iptables_save(done.stdout, backend=Backend.LEGACY, family=4)
    assert {table.name: table for table in after} == {table.name: table for table in before}
