"""What the simulator says of each scenario is what stands in its file."""

from pathlib import Path

import pytest

from tests.scenarios.scenario import Scenario, ScenarioError, load, parse
from tests.scenarios.simulated import tell
from tests.scenarios.texts import CASES, FOLDER, rewritten


@pytest.mark.parametrize("path", CASES, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_the_trace_is_the_expected_one(path: Path) -> None:
    scenario = load(path)
    assert scenario.trials, "nothing is tried"
    assert scenario.title, "what is it about?"
    for trial, (_, lines) in zip(scenario.trials, tell(scenario), strict=True):
        assert trial.expected is not None, "python -m tests.scenarios --rewrite"
        assert list(lines) == list(trial.expected)


def test_every_part_of_the_stack_has_its_scenarios() -> None:
    topics = {path.parent.name for path in CASES}
    assert topics >= {
        *("bridge", "conntrack", "hooks", "ipv6", "mtu", "nat", "neighbour", "reject", "route", "socket", "sysctl"),
        *("vxlan", "cni", "ipset", "match", "nft"),
    }
    assert len(CASES) >= 320


def test_rewriting_changes_nothing_that_is_right() -> None:
    for path in CASES[::10]:
        scenario = load(path)
        told = [lines for _, lines in tell(scenario)]
        assert rewritten(path.read_text(), scenario, told) == path.read_text()


def scenario_of(*lines: str) -> Scenario:
    return parse("\n".join(lines), "made-up")


def test_rewriting_replaces_old_traces_and_keeps_the_rest() -> None:
    text = "# About.\nnetns a\n  link lo up\nconnect a tcp 127.0.0.1:80\nexpect minimal\n  = old\n# between\nconnect a icmp 127.0.0.1\n"
    scenario = parse(text, "made-up")
    new = rewritten(text, scenario, [["= one"], ["= two"]])
    assert new == text.replace("  = old", "  = one") + "expect minimal\n  = two\n"
    assert [trial.expected for trial in parse(new, "made-up").trials] == [("= one",), ("= two",)]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        pytest.param(
            ["netns a", "  lnik eth0"], r"made-up:2: 'lnik eth0': .*no such line: lnik", id="a word that is none"
        ),
        pytest.param(["  route default via 10.0.0.1"], r"made-up:1: .*before any netns", id="no namespace yet"),
        pytest.param(["netns a", "connect a tcp"], r"made-up:2: ", id="half a line"),
        pytest.param(
            ["netns a", "netns b", "packet in=eth0 icmp 10.0.0.1 > 10.0.0.2"], "of which netns", id="which device"
        ),
        pytest.param(["veth a:eth0 b:eth0"], "made-up:1: ", id="a pair of namespaces that are not there"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(lines: list[str], problem: str) -> None:
    with pytest.raises(ScenarioError, match=problem):
        scenario_of(*lines)
