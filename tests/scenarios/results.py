"""What is seen of one trial, in the words that both runners use, so that the two can be compared.

`connect`: what the program sees, with errno, the ICMP error behind it, its own address, and who answered. `packet`: what leaves
towards the bench. Both: the rules of iptables that were hit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol as Contract

from tasks.skoop.model.packet import Packet, Protocol, TcpFlags
from tasks.skoop.model.trace import View
from tests.scenarios.scenario import Connect, Scenario, Trial

Rule = tuple[str, int, str, str, str, int]
"""(namespace, family, back end, table, chain, position from 1)."""
ICMP = (Protocol.ICMP, Protocol.ICMPV6)
NOTHING = "nothing leaves"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What can come of a trial (by the simulator), or what came of it (in the kernel): text → probability or share.

    `rules` are those that are surely hit; `at_most` those that some way hits (None: later packets may hit others as well).
    """

    results: Mapping[str, float]
    rules: frozenset[Rule] = frozenset()
    at_most: frozenset[Rule] | None = None


class Runner(Contract):
    """Carries out a scenario."""

    def run(self, scenario: Scenario) -> Sequence[Seen]:
        """Return what came of each trial, in order."""


def connect_text(
    view: View, *, errno: str = "", icmp: str = "", local: str = "", server: str = "", saw: str = "", after: str = ""
) -> str:
    """Return a line such as `connected from 10.0.0.1, web saw 10.0.0.1`."""
    parts = [f"{after or view} {errno}".rstrip() + (f" from {local}" if local else "")]
    if icmp:
        parts.append(f"icmp {icmp}")
    if server:
        parts.append(f"{server} saw {saw}")
    return ", ".join(parts)


def packet_text(packet: Packet) -> str:
    """Return a packet as it stands on the wire: `tcp 10.0.0.1:4 > 10.0.0.2:80 SYN ttl 63`."""
    text = str(packet)
    if packet.tcp_flags != TcpFlags.NONE:
        text += f" {packet.tcp_flags}"
    if packet.protocol in ICMP:
        text += f" {packet.icmp_type}/{packet.icmp_code}"
        if packet.icmp_mtu:
            text += f" mtu {packet.icmp_mtu}"
    if packet.inner is not None:
        text += f" about {packet.inner}"
    return f"{text} ttl {packet.ttl}"


def leaving_text(leaving: Sequence[tuple[str, str, Packet]]) -> str:
    """Return what leaves towards the bench, (namespace, device, packet) each."""
    return " + ".join(sorted(f"{netns} {dev} {packet_text(packet)}" for netns, dev, packet in leaving)) or NOTHING


SURELY = 1e-3
"""A result so unlikely not to have been seen in all the tries, and yet not seen, is a difference."""


def difference(trial: Trial, foretold: Seen, found: Seen) -> str:
    """Return how a simulated and a real trial differ, or "" if they do not."""
    possible = {text: share for text, share in foretold.results.items() if share > 1e-9}
    unforeseen = [text for text in found.results if text not in possible]
    if unforeseen:
        return f"kernel: {'; '.join(unforeseen)} -- simulator: {'; '.join(possible)}"
    times = trial.what.times if isinstance(trial.what, Connect) else 1
    unseen = [text for text, share in possible.items() if text not in found.results and (1 - share) ** times < SURELY]
    if unseen:
        return f"{times} tries never gave {'; '.join(unseen)}, but {'; '.join(found.results)}"
    said = []
    if missed := foretold.rules - found.rules:
        said.append(f"foretold but not hit: {_rules(missed)}")
    if foretold.at_most is not None and (more := found.rules - foretold.at_most):
        said.append(f"hit but not foretold: {_rules(more)}")
    return "; ".join(said)


def _rules(rules: frozenset[Rule]) -> str:
    return ", ".join(f"{netns} {table}/{chain}#{number}" for netns, _, _, table, chain, number in sorted(rules))
