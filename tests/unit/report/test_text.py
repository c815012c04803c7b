import pytest
from msgspec.structs import replace

from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.trace import Place, Reason, Stage
from tasks.skoop.report.depth import Depth
from tasks.skoop.report.pair_line import line_text
from tasks.skoop.report.text import Ink, Style, render
from tasks.skoop.report.walk_lines import LineKind, lines_of
from tasks.skoop.report.words import REASON_WORDS, how_to_see, place_words, sysctl_name
from tests.unit.report import samples
from tests.unit.report.golden import expect

N1 = NetnsId("node/n1")


@pytest.mark.parametrize("name", samples.ALL)
def test_report(name: str) -> None:
    expect(f"{name}.txt", render(samples.ALL[name]()))


def test_detailed_report_tells_every_step() -> None:
    expect("fails-detailed.txt", render(samples.fails(), Style(depth=Depth.DETAILED)))


def test_minimal_report_tells_hops_alone() -> None:
    expect("fails-minimal.txt", render(samples.fails(), Style(depth=Depth.MINIMAL)))


@pytest.mark.parametrize("name", samples.ALL)
def test_one_line_for_each_of_many(name: str) -> None:
    line = line_text(samples.ALL[name]())
    assert "\n" not in line
    expect(f"{name}.line.txt", line + "\n")


def test_the_verdict_comes_first() -> None:
    assert render(samples.fails()).splitlines()[0].startswith("FAILS: shop/client-1")


@pytest.mark.parametrize("width", [40, 60, 100, 120])
def test_prose_fits_the_width_and_commands_are_never_broken(width: int) -> None:
    text = render(samples.fails(), Style(width=width))
    assert "bridge fdb replace 9a:7c:10:24:40:03 dev flannel.1 dst 172.18.0.13 self permanent\n" in text
    story = text.split("\n\n")[1]
    assert max(len(line) for line in story.splitlines()) <= width


def test_colours_only_where_asked_for() -> None:
    plain, coloured = render(samples.fails()), render(samples.fails(), Style(ink=Ink.ANSI))
    assert "\x1b" not in plain
    assert "\x1b[1;31mFAILS\x1b[0m" in coloured
    import re

    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_a_cause_that_was_not_proven_is_not_called_the_cause() -> None:
    diagnosis = samples.fails()
    guess = replace(samples.FDB_MISSING, confirmed=False)
    cause = replace(diagnosis.root_causes[0], suspicions=(guess,), turns_to={})
    text = " ".join(render(replace(diagnosis, root_causes=(cause,))).split())
    assert "The likely cause: flannel.1 on n1 has no forwarding entry" in text
    assert "Cause (not confirmed)" in text
    assert "was tested" not in text


def test_a_suspicion_that_is_a_cause_is_not_told_twice() -> None:
    assert render(samples.fails()).count("KP-VXLAN-008") == 1


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words(reason: Reason) -> None:
    assert (REASON_WORDS[reason] == "") == (reason is Reason.NONE)


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_is_told_and_can_be_looked_up(stage: Stage) -> None:
    place = Place(netns=N1, stage=stage, dev="eth0", key="x", table="filter", chain="INPUT", rule=2)
    assert place_words(place)
    assert how_to_see(place).command or stage is Stage.INFRA


@pytest.mark.parametrize(
    ("place", "command"),
    [
        pytest.param(samples.nat(N1, "KUBE-SERVICES", 3), "iptables-legacy-save -t nat", id="legacy"),
        pytest.param(
            Place(netns=N1, stage=Stage.NETFILTER, backend="nft", family=6, table="filter", chain="FORWARD"),
            "ip6tables-nft-save -t filter", id="nft-v6",
        ),
        pytest.param(Place(netns=N1, stage=Stage.ROUTE, family=6, key="::/0"), "ip -6 route show table all", id="route-v6"),
        pytest.param(
            Place(netns=N1, stage=Stage.SYSCTL, key="net/ipv4/conf/eth0.5/rp_filter"), "sysctl net.ipv4.conf.eth0/5.rp_filter",
            id="dot-in-interface",
        ),
    ],
)  # fmt: skip
def test_the_command_that_shows_a_place(place: Place, command: str) -> None:
    assert how_to_see(place).command == command


def test_sysctl_names_are_those_of_sysctl_8() -> None:
    assert sysctl_name("net/ipv4/ip_forward") == "net.ipv4.ip_forward"


def test_the_namespace_where_it_ends_is_named_even_if_no_step_was_made_there() -> None:
    walk = samples.refused().outcomes[0].forward
    lines = lines_of(walk, Depth.SUMMARY)
    assert [line.left for line in lines if line.kind is LineKind.NETNS] == ["pod/shop/client-1", "node/n1"]
    assert lines[-1].kind is LineKind.BAD_END
