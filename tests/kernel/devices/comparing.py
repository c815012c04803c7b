"""A record asked of the simulator: for each connection that was tried, how the simulator disagrees with what the kernel did."""

from collections.abc import Iterator
from types import SimpleNamespace

from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.trace import View
from tests.kernel.devices.performing import Record, Tried


def question_of(tried: Tried) -> Question:
    """Return the question that a try answers."""
    return Question(
        src=Endpoint(ip=Ip("::" if ":" in tried.dst else "0.0.0.0"), netns=NetnsId(tried.src), uid=0, gid=0),
        dst=Endpoint(ip=Ip(tried.dst), port=tried.dport),
        protocol=Protocol(tried.protocol),
        sport=tried.sport,
        payload_bytes=tried.payload,
        df=tried.df,
    )


def differences(record: Record) -> Iterator[str]:
    """Yield a line for each connection about which the simulator is wrong, or says `unknown`."""
    diagnostor = Diagnostor(SimpleNamespace(state=record.state()), repeats_syn=False)
    for tried in record.tried:
        said = difference(tried, diagnostor.diagnose(question_of(tried)))
        if said:
            yield f"{record.world}, {record.fault or 'healthy'}: {said}"


def difference(tried: Tried, diagnosis: Diagnosis) -> str:
    """Return how the kernel and the simulator disagree about one connection, or ""."""
    foretold = {view: share for view, share in diagnosis.client_sees.items() if share > 1e-9}
    options = f"{tried.payload or ''}{' df' if tried.df else ''}"
    label = f"{tried.src} -> {tried.dst}:{tried.dport} {tried.protocol} {options}: kernel {tried.view} {tried.errno} {tried.answer}"
    ends = "; ".join(
        f"{outcome.probability:.2f} {outcome.client_sees}{' stalls' if outcome.stalls else ''}: {outcome.forward.place}"
        f" {outcome.forward.detail} | {outcome.reply.place if outcome.reply else ''}"
        f" {outcome.reply.detail if outcome.reply else ''}"
        for outcome in diagnosis.outcomes[:4]
    )
    if View.UNKNOWN in foretold:
        return f"{label}, simulator unknown: {diagnosis.missing} ({ends})"
    if tried.view not in foretold:
        return f"{label}, simulator {foretold} ({ends})"
    if tried.view == View.CONNECTED and tried.protocol == "tcp" and tried.payload:
        stalls = {outcome.stalls for outcome in diagnosis.outcomes if outcome.client_sees == View.CONNECTED}
        if (tried.answer == "none") not in stalls:
            return f"{label}, simulator {'stalls' if True in stalls else 'does not stall'} ({ends})"
    if tried.server:
        seen = {
            (outcome.server_sees.netns, outcome.server_sees.src)
            for outcome in diagnosis.outcomes
            if outcome.server_sees is not None
        }
        if (tried.server, tried.seen_src) not in seen:
            return f"{label}, {tried.server} saw {tried.seen_src}, foretold {sorted(seen)}"
    return ""
