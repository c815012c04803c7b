"""Rule by rule: what the kernel's own traces tell of real connections is what the simulator walked, with either back end."""

import random

import pytest
from msgspec.structs import replace

from lab.cluster import Lab
from lab.plan import Backend, Kind
from lab.prober import Ask, Attempt, attempt_all
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.diagnosis import FlowOutcome
from tasks.skoop.model.trace import Stage
from tests.kernel.differential.comparing import asks, diagnostor_of, question_of
from tests.kernel.oracle.comparing import courses_of, wires_of
from tests.kernel.oracle.oracle import Oracle, inum, unavailable_because
from tests.kernel.oracle.paths import Story
from tests.kernel.oracle.ruletrace import RuleTrace, Traced, compare_rules
from tests.kernel.oracle.watching import Watching

pytestmark = pytest.mark.root
Played = tuple[Attempt, Story, list[Traced], list[FlowOutcome]]


def play(lab: Lab, oracle: Oracle, trace: RuleTrace, diagnostor: Diagnostor, question: Ask) -> Played:
    """Try one connection, traced; return also those outcomes that went the kernel's way."""
    lab.forget()
    trace.drain()
    watching = Watching(oracle)
    (attempt,) = attempt_all([question], lab.spaces, lab.servers, watching)
    (story,) = watching.stories()
    told = diagnostor.connections(question_of(question))
    courses = courses_of(told, story, attempt, wires_of(diagnostor.state))
    return attempt, story, trace.drain(), [outcome for outcome, _ in courses]


def test_every_rule_is_foretold() -> None:
    if reason := unavailable_because():
        pytest.skip(reason)
    for backend in Backend:
        with Lab(Kind.FLANNEL_VXLAN, nodes=2, backend=backend) as lab:
            nodes = {name: netns for name, netns in lab.spaces.items() if name.startswith("node/")}
            nodes["node/n2"].run(
                [f"iptables-{backend}", "-I", "FORWARD", "-p", "tcp", "--dport", "8080", "-j", "DROP"], lock=lab.lock
            )
            lab.forget()
            diagnostor = diagnostor_of(lab)
            before = {name: netns.run([f"iptables-{backend}-save"]) for name, netns in nodes.items()}
            questions = random.Random(str(backend)).sample(list(asks(lab)), 25)
            wrong, rules = [], 0
            with (
                Oracle({inum(netns): name for name, netns in lab.spaces.items()}) as oracle,
                RuleTrace(nodes, legacy=backend == Backend.LEGACY) as trace,
            ):
                for question in questions:
                    attempt, story, traced, outcomes = play(lab, oracle, trace, diagnostor, question)
                    rules += len(traced)
                    assert outcomes, f"no foretold way is the kernel's: {attempt} {story}"
                    said = compare_rules(outcomes, traced, story, attempt, backend=backend)
                    wrong += [f"{question}: {one}" for one in said]
                    blamed = compare_rules(
                        [next_rule(outcome) for outcome in outcomes], traced, story, attempt, backend=backend
                    )
                    assert blamed or not any(has_rules(outcome) for outcome in outcomes)
            after = {name: netns.run([f"iptables-{backend}-save"]) for name, netns in nodes.items()}
        assert not wrong, "\n".join(wrong)
        assert rules > 300
        assert {name: rules_of(text) for name, text in after.items()} == {
            name: rules_of(text) for name, text in before.items()
        }


def rules_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("-A")]


def has_rules(outcome: FlowOutcome) -> bool:
    return any(step.place.stage == Stage.NETFILTER and step.place.rule for step in outcome.forward.steps)


def next_rule(outcome: FlowOutcome) -> FlowOutcome:
    """Return the outcome as if its first packet had first met the rule below the one it met."""
    steps = list(outcome.forward.steps)
    for number, step in enumerate(steps):
        if step.place.stage == Stage.NETFILTER and step.place.rule:
            steps[number] = replace(step, place=replace(step.place, rule=step.place.rule + 1))
            break
    return replace(outcome, forward=replace(outcome.forward, steps=tuple(steps)))
