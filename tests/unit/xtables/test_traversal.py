"""How a packet goes through chains, and how it parts where rules are not certain."""

import pytest

from tasks.skoop.model.state import NetNS
from tasks.skoop.model.trace import Place, Stage
from tasks.skoop.model.xtables import Backend
from tasks.skoop.netstack.xtables.api import Hook, Verdict
from tasks.skoop.netstack.xtables.compile import compile_tables
from tasks.skoop.netstack.xtables.table import MAX_DOUBTFUL_WAYS, MAX_WAYS
from tests.unit.xtables.scene import NODE, compiled, context, minimal, table_of

WAYS = [
    pytest.param("", "ACCEPT", ["FORWARD#0 accept"], id="empty chain: policy"),
    pytest.param(":FORWARD DROP", "DROP", ["FORWARD#0 drop"], id="policy DROP"),
    pytest.param("-A FORWARD -p udp -j DROP", "ACCEPT", ["FORWARD#0 accept"], id="no rule matches: policy"),
    pytest.param(
        ":FORWARD DROP\n-A FORWARD -j RETURN\n-A FORWARD -j ACCEPT",
        "DROP",
        ["FORWARD#1 return", "FORWARD#0 drop"],
        id="return in a base chain: policy",
    ),
    pytest.param(
        ":A\n-A FORWARD -j A\n-A FORWARD -j DROP\n-A A -p udp -j ACCEPT",
        "DROP",
        ["FORWARD#1 jump to A", "FORWARD#2 drop"],
        id="end of a chain: back to the caller",
    ),
    pytest.param(
        ":A\n-A FORWARD -j A\n-A FORWARD -j DROP\n-A A -j RETURN\n-A A -j ACCEPT",
        "DROP",
        ["FORWARD#1 jump to A", "A#1 return", "FORWARD#2 drop"],
        id="return: back to the caller",
    ),
    pytest.param(
        ":A\n:B\n-A FORWARD -j A\n-A FORWARD -j DROP\n-A A -g B\n-A A -j ACCEPT\n-A B -j RETURN",
        "DROP",
        ["FORWARD#1 jump to A", "A#1 goto to B", "B#1 return", "FORWARD#2 drop"],
        id="return after goto: to the caller of the chain that went",
    ),
    pytest.param(
        ":A\n:B\n-A FORWARD -j A\n-A FORWARD -j DROP\n-A A -g B\n-A A -j ACCEPT",
        "DROP",
        ["FORWARD#1 jump to A", "A#1 goto to B", "FORWARD#2 drop"],
        id="end after goto",
    ),
    pytest.param(
        ":FORWARD DROP\n:A\n-A FORWARD -g A\n-A FORWARD -j ACCEPT\n-A A -p udp -j ACCEPT",
        "DROP",
        ["FORWARD#1 goto to A", "FORWARD#0 drop"],
        id="goto from a base chain: its policy",
    ),
    pytest.param(
        ":A\n:B\n:C\n-A FORWARD -j A\n-A FORWARD -j DROP\n-A A -j B\n-A A -j C\n-A B -g C\n-A C -m mark --mark 0x1 -j ACCEPT\n-A C -j MARK --set-xmark 0x1/0x1",
        "ACCEPT",
        ["FORWARD#1 jump to A", "A#1 jump to B", "B#1 goto to C", "C#2 mark 0x1", "A#2 jump to C", "C#1 accept"],
        id="jump, goto, return nested; marks are kept",
    ),
]


@pytest.mark.parametrize(("rules", "verdict", "steps"), WAYS)
def test_traversal(rules: str, verdict: str, steps: list[str]) -> None:
    (result,) = table_of(rules).evaluate(context())
    assert (result.verdict, minimal(result)) == (verdict, steps)
    assert result.probability == 1.0


def test_a_step_names_its_rule_as_the_user_sees_it() -> None:
    tables = compiled(
        "*filter\n:FORWARD DROP [1:2]\n[0:0] -A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT\nCOMMIT\n",
        backend=Backend.NFT,
    )
    table = tables.tables[4, "filter"][0]
    expected = Place(
        netns=NODE, stage=Stage.NETFILTER, backend="nft", family=4, hook="FORWARD", table="filter", chain="FORWARD", rule=1,
        text="-p tcp -m tcp --dport 80 -j ACCEPT",
    )  # fmt: skip
    assert table.evaluate(context())[0].steps[0].place == expected
    policy = table.evaluate(context(dport=81))[0].steps[0].place
    assert (policy.rule, policy.text) == (0, ":FORWARD DROP")


def test_chains_that_are_not_there_let_pass_without_a_step() -> None:
    table = table_of("-A FORWARD -j DROP")
    (result,) = table.evaluate(context(Hook.INPUT))
    assert (result.verdict, result.steps) == (Verdict.ACCEPT, ())


def test_has_chain() -> None:
    text = "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n:PREROUTING -\n-A OUTPUT -j ACCEPT\n-A PREROUTING -j ACCEPT\nCOMMIT\n"
    table = compiled(text).tables[4, "filter"][0]
    assert [hook for hook in Hook if table.has_chain(hook)] == [Hook.FORWARD, Hook.OUTPUT]


def test_a_user_chain_with_the_name_of_a_hook_is_none() -> None:
    (result,) = compiled("*nat\n:FORWARD -\n-A FORWARD -j DROP\nCOMMIT\n").tables[4, "nat"][0].evaluate(context())
    assert result.verdict == Verdict.ACCEPT


def test_both_back_ends_of_a_table_are_kept_in_order() -> None:
    text = "*filter\n:FORWARD ACCEPT\nCOMMIT\n"
    tables = compiled(text).tables[4, "filter"] + compiled(text, backend=Backend.NFT).tables[4, "filter"]
    netns = NetNS(id=NODE, tables=tuple(table.source for table in tables))  # type: ignore[attr-defined]
    assert [table.backend for table in compile_tables(netns).tables[4, "filter"]] == ["legacy", "nft"]


def test_chains_in_a_circle_end_unknown() -> None:
    (result,) = table_of(":A\n:B\n-A FORWARD -j A\n-A A -j B\n-A B -j A").evaluate(context())
    assert result.verdict == Verdict.UNKNOWN
    assert "circle" in result.missing[0]


def test_a_jump_to_a_chain_that_is_not_in_the_dump_is_unknown() -> None:
    (result,) = table_of("-A FORWARD -j GONE").evaluate(context())
    assert (result.verdict, result.missing) == (
        Verdict.UNKNOWN,
        ("node/n1 filter/FORWARD#1: -j GONE: it is not simulated",),
    )


BACKENDS = """
:SVC
-A FORWARD -j SVC
-A SVC -m statistic --mode random --probability 0.33333333349 -j ACCEPT
-A SVC -m statistic --mode random --probability 0.50000000000 -j DROP
-A SVC -j REJECT
"""


def test_statistic_parts_the_ways_with_its_probability() -> None:
    results = table_of(BACKENDS).evaluate(context())
    assert [result.verdict for result in results] == ["ACCEPT", "DROP", "REJECT"]
    assert [result.probability for result in results] == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert [minimal(result)[-1] for result in results] == [
        "SVC#1 accept",
        "SVC#2 drop",
        "SVC#3 reject with icmp-port-unreachable",
    ]
    assert results[2].branches == (("node/n1 filter/SVC#1", False), ("node/n1 filter/SVC#2", False))
    assert not any(result.missing for result in results)


def test_ways_do_not_share_what_they_change() -> None:
    rules = """
    -A FORWARD -m statistic --mode random --probability 0.5 -j MARK --set-xmark 0x1/0x1
    -A FORWARD -m statistic --mode random --probability 0.5 -j MARK --set-xmark 0x2/0x2
    """
    results = table_of(rules).evaluate(context())
    assert [result.packet.mark for result in results] == [3, 1, 2, 0]
    assert [len(result.steps) for result in results] == [3, 2, 2, 1]


def test_an_unknown_match_leaves_both_ways_open_and_names_its_rule() -> None:
    results = table_of("-A FORWARD -m string --algo bm --string x -j DROP").evaluate(context())
    assert [result.verdict for result in results] == ["DROP", "ACCEPT"]
    assert {result.missing for result in results} == {("node/n1 filter/FORWARD#1: -m string: it is not simulated",)}


def test_one_unknown_match_has_one_answer_per_packet() -> None:
    rule = "-m string --algo bm --string x"
    results = table_of(f"-A FORWARD {rule} -j MARK --set-xmark 0x1/0x1\n-A FORWARD {rule} -j DROP").evaluate(context())
    assert [(result.verdict, result.packet.mark) for result in results] == [("DROP", 1), ("ACCEPT", 0)]


def test_a_list_asked_twice_has_one_answer_and_its_negation_the_other() -> None:
    rule = "-m recent {} --rcheck --name L --mask 255.255.255.255 --rsource"
    rules = f"-A FORWARD {rule.format('')} -j MARK --set-xmark 0x1/0x1\n-A FORWARD {rule.format('!')} -j DROP"
    results = table_of(rules).evaluate(context())
    assert [(result.verdict, result.packet.mark) for result in results] == [("ACCEPT", 1), ("DROP", 0)]


def test_an_uncertain_rule_that_changes_nothing_does_not_part_the_ways() -> None:
    (result,) = table_of("-A FORWARD -m string --algo bm --string x -j LOG\n-A FORWARD -j DROP").evaluate(context())
    assert (minimal(result), result.missing) == (["FORWARD#2 drop"], ())


def test_a_rate_limit_is_assumed_to_have_tokens_left() -> None:
    (result,) = table_of("-A FORWARD -m limit --limit 3/min -j DROP").evaluate(context())
    assert (result.verdict, result.probability) == (Verdict.DROP, 1.0)
    assert result.assumed == ("node/n1 filter/FORWARD#1: the rate limit is not used up",)


def test_what_is_assumed_of_a_rule_that_then_does_not_match_is_told_too() -> None:
    (result,) = table_of("-A FORWARD -m policy --dir in --pol ipsec -j DROP").evaluate(context())
    assert (result.verdict, len(result.assumed)) == (Verdict.ACCEPT, 1)


def test_session_affinity_leaves_all_endpoints_alike() -> None:
    lists = "".join(f"-A FORWARD -m recent --rcheck --seconds 600 --reap --name E{n} -j E{n}\n" for n in range(3))
    draws = "".join(
        f"-A FORWARD -m statistic --mode random --probability {1 / (3 - n):.11f} -j E{n}\n" for n in range(2)
    )
    ends = "".join(f"-A E{n} -j MARK --set-xmark 0x{n}/0xff\n-A E{n} -j ACCEPT\n" for n in range(3))
    results = table_of(":E0\n:E1\n:E2\n" + lists + draws + "-A FORWARD -j E2\n" + ends).evaluate(context())
    for mark in range(3):
        assert sum(r.probability for r in results if r.packet.mark == mark) == pytest.approx(1 / 3, abs=1e-6)


def test_too_many_ways_are_summed_up_as_unknown() -> None:
    rules = "\n".join(
        f"-A FORWARD -m statistic --mode random --probability 0.5 -j MARK --set-xmark {1 << n}/{1 << n}"
        for n in range(20)
    )
    results = table_of(rules).evaluate(context())
    assert MAX_WAYS / 2 < len(results) <= MAX_WAYS + 1
    assert sum(result.probability for result in results) == pytest.approx(1.0)
    assert results[-1].verdict == Verdict.UNKNOWN
    assert "too many ways" in results[-1].missing[0]


def test_ways_that_rest_on_the_unknown_and_come_to_the_same_are_one() -> None:
    rules = "-A FORWARD -m string --string x -j RETURN\n-A FORWARD -m u32 --u32 0=0 -j RETURN\n-A FORWARD -j DROP"
    results = table_of(rules).evaluate(context())
    assert [(result.verdict, result.probability, len(result.missing)) for result in results] == [
        ("ACCEPT", 0.75, 2),
        ("DROP", 0.25, 2),
    ]


def test_doubtful_ways_do_not_run_away() -> None:
    rules = "\n".join(f"-A FORWARD -m string --string {n} -j MARK --set-xmark {1 << n}/{1 << n}" for n in range(24))
    results = table_of("-A FORWARD -m statistic --mode random --probability 0.5 -j DROP\n" + rules).evaluate(context())
    assert len(results) <= MAX_DOUBTFUL_WAYS + 3
    assert sum(result.probability for result in results) == pytest.approx(1.0)
    assert (results[0].verdict, results[0].probability, results[0].missing) == ("DROP", 0.5, ())
