"""Holds the simulator to what user-mode Linux has shown: every row of every case must be foretold."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace

from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.diagnosis import Diagnosis, FlowOutcome
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.trace import Reason, Stage
from tests.uml.ipvs.record import Recorded, Row

CHANCE = 1e-3
"""A view foretold with this chance or less of going unmeasured in a row's tries must have been measured."""


@dataclass
class Result:
    """What a comparison found."""

    cases: int = 0
    rows: int = 0
    unknown: int = 0
    wrong: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the mismatches and the figures in the last line."""
        figures = f"cases={self.cases} rows={self.rows} mismatches={len(self.wrong)} unknown={self.unknown}"
        return "\n".join((*self.wrong, figures))


def compare(cases: Iterable[Recorded]) -> Result:
    """Return how the simulator fares against recorded cases."""
    result = Result()
    for case in cases:
        patient, hasty = (Diagnostor(SimpleNamespace(state=case.state), repeats_syn=wait) for wait in (True, False))
        result.cases += 1
        for row in case.rows:
            # nodes were given 1.4 seconds, in which a SYN is sent twice, pods half a second (`inside`)
            diagnosis = (patient if row.src.startswith("node/") else hasty).diagnose(question(case.state, row))
            result.rows += 1
            if any(share > 1e-9 for view, share in diagnosis.client_sees.items() if view == "unknown"):
                assert diagnosis.missing, f"unknown without a reason: {describe(case, row)}"
                result.unknown += 1
                continue
            objections = judge(row, diagnosis)
            if objections:
                result.wrong.append(f"{describe(case, row)}: {'; '.join(objections)}")
    return result


def question(state: ClusterState, row: Row) -> Question:
    """Return the question that a row answers."""
    netns = NetnsId(row.src)
    version6 = ":" in row.dst
    link = state.netns[netns].interface("eth0")
    own = [one.ip for one in link.addresses if (":" in one.ip) == version6 and one.scope == "global"] if link else []
    return Question(
        src=Endpoint(ip=own[0] if own else Ip("::" if version6 else "0.0.0.0"), netns=netns, uid=0, gid=0),
        dst=Endpoint(ip=Ip(row.dst), port=row.dport),
        protocol=Protocol(row.protocol),
    )


def judge(row: Row, diagnosis: Diagnosis) -> list[str]:
    """Return what speaks against a diagnosis: a view not foretold, a likely one not measured, a server or source not foretold."""
    foretold = {str(view): share for view, share in diagnosis.client_sees.items() if share > 1e-9}
    tries = sum(row.views.values())
    found = []
    measured = set(row.views)
    if "timeout" in measured and "unreachable" in foretold and any(_limited(one) for one in diagnosis.outcomes):
        measured |= {"unreachable"}
        measured -= {"timeout"} - foretold.keys()
    if not measured <= set(foretold):
        found.append(f"measured {row.views}, foretold {foretold}")
    for view, share in foretold.items():
        if view not in measured and (1 - share) ** tries <= CHANCE:
            found.append(f"foretold {view} ({share:.3f}), measured {row.views}")
    seen = {(one.server_sees.netns, one.server_sees.src) for one in diagnosis.outcomes if one.server_sees is not None}
    found += [f"{server} saw {src}, foretold {sorted(seen)}" for server, src in row.pairs if (server, src) not in seen]
    return found


def _limited(outcome: FlowOutcome) -> bool:
    """Say whether the error that ends an outcome is one that the kernel does not always send.

    ip_error (net/ipv4/route.c) tells a source of IPv4 packets that no route leads on five times, then once a second.
    """
    end = outcome.forward
    by_route = end.reason in (Reason.IP_INNOROUTES, Reason.ROUTE_UNREACHABLE, Reason.ROUTE_PROHIBIT)
    at_route = end.place is not None and end.place.stage == Stage.ROUTE and end.error is None
    return by_route and at_route and end.packet is not None and end.packet.version == 4


def describe(case: Recorded, row: Row) -> str:
    """Return a line's beginning: which case, which question."""
    return f"[{case.name}] {row.src} -> {row.dst}:{row.dport}/{row.protocol}"
