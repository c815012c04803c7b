"""Questions asked of the states that scenario files describe, for laws that must hold in all of them."""

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace

from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.trace import Stage
from tests.scenarios.scenario import Connect, Scenario, load
from tests.scenarios.state import netns_of, state_of
from tests.scenarios.texts import CASES


@cache
def scenarios() -> tuple[Scenario, ...]:
    """Every scenario in which a program connects."""
    return tuple(scenario for scenario in map(load, CASES) if any(connects(scenario)))


def connects(scenario: Scenario) -> Iterator[Connect]:
    for trial in scenario.trials:
        if isinstance(trial.what, Connect):
            yield trial.what


@cache
def state_named(name: str) -> ClusterState:
    """The state of a scenario."""
    return state_of(next(scenario for scenario in scenarios() if scenario.name == name))


def ask(state: ClusterState, what: Connect) -> Diagnosis:
    """What the simulator says of a connection in a state."""
    source = Endpoint(ip=Ip("::" if ":" in what.dst else "0.0.0.0"), netns=netns_of(what.netns), uid=0, gid=0)
    question = Question(
        src=source,
        dst=Endpoint(ip=what.dst, port=what.dport),
        protocol=what.protocol,
        sport=what.sport,
        payload_bytes=what.payload,
        df=what.df,
    )
    return Diagnostor(SimpleNamespace(state=state)).diagnose(question)


def said(diagnosis: Diagnosis) -> list[tuple[object, ...]]:
    """What matters of an answer, without the positions of rules: how each way ends, who saw whom, through which places."""
    return [
        (
            round(outcome.probability, 9),
            outcome.client_sees,
            outcome.forward.reason,
            outcome.server_sees,
            outcome.forward.packet,
            outcome.reply.packet if outcome.reply else None,
            [
                (step.place.netns, step.place.stage, step.action)
                for step in outcome.forward.steps
                if step.place.stage != Stage.NETFILTER or step.place.rule  # a policy is told only of a chain with rules
            ],
        )
        for outcome in diagnosis.outcomes
    ]
