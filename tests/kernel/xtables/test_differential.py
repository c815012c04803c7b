"""Random rulesets and packets: the kernel's own counters and deliveries against the rule engine's steps.

Each case is one packet sent through one ruleset, by one back end and family; a difference names the seed that makes it again.
"""

import os
from collections import Counter
from collections.abc import Iterator
from shutil import which
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.model.state import NetNS
from tasks.skoop.model.xtables import Backend
from tasks.skoop.netstack.xtables.api import Hook
from tasks.skoop.netstack.xtables.compile import compile_tables
from tasks.skoop.parse.ipset import parse_ipset_save
from tasks.skoop.parse.iptables import parse_iptables_save
from tests.kernel.xtables.random_rules import BASES, SETS, RuleMaker
from tests.kernel.xtables.reference_walk import ROUTER, Traveller
from tests.kernel.xtables.router_lab import MARKER, RouterLab, counters

pytestmark = pytest.mark.root

RULESETS = 25
PACKETS = 8
SEED = int(os.environ.get("XTABLES_SEED", "1"))
EMPTY = "".join(
    f"*{table}\n" + "".join(f":{chain} ACCEPT\n" for chain in chains) + "COMMIT\n" for table, chains in BASES.items()
)
TOOLS = {4: "iptables", 6: "ip6tables"}
Key = tuple[str, str, int]


class Sent(NamedTuple):
    """What was sent, what arrived by position, and the dump with counters afterwards."""

    packets: list[Packet]
    arrived: dict[int, Packet]
    dump: str


@pytest.fixture(scope="module")
def lab() -> Iterator[RouterLab]:
    if os.geteuid():
        pytest.skip("needs root to make network namespaces")
    lacking = [
        tool for tool in ("ip", "nft", "ipset", "iptables-legacy-restore", "iptables-nft-restore") if not which(tool)
    ]
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}")
    with RouterLab() as router:
        for text in SETS.values():
            router.on_router("ipset", "restore", given=text)
        yield router


def _marker(family: int) -> Packet:
    dst = Ip("10.2.0.2" if family == 4 else "fd00:2::2")
    return Packet(
        src=Ip(MARKER[family]), dst=dst, protocol=Protocol.UDP, sport=9, dport=9, length=60 if family == 4 else 80
    )


def _foretold(
    dump: str, packets: list[Packet], family: int, backend: Backend
) -> tuple[Counter[Key], dict[int, Packet]]:
    netns = NetNS(
        id=ROUTER,
        tables=parse_iptables_save(dump, backend=backend, family=family),
        ipsets=parse_ipset_save(SETS[family]),
    )
    tables = compile_tables(netns)
    met: Counter[Key] = Counter()
    arrived: dict[int, Packet] = {}
    for position, packet in enumerate(packets):
        passage = Traveller(tables, packet).walk()
        met.update((step.place.table, step.place.chain, step.place.rule) for step in passage.steps)
        if passage.arrives is not None:
            arrived[position] = passage.arrives.with_(mark=0, ct_state="")
    return met, arrived


def _send(lab: RouterLab, backend: Backend, family: int, seed: int) -> Sent:
    """Let the packets of a seed go through its ruleset."""
    maker, tool = RuleMaker(seed, family), f"{TOOLS[family]}-{backend}"
    lab.on_router(f"{tool}-restore", given=maker.ruleset())
    try:
        packets = [maker.packet(lab.serial + number) for number in range(PACKETS)]
        arrived = lab.send(packets, _marker(family))
        return Sent(packets, arrived, lab.on_router(f"{tool}-save", "-c"))
    finally:
        lab.on_router(f"{tool}-restore", given=EMPTY)


def _differences(sent: Sent, dump: str, backend: Backend, family: int) -> list[str]:
    """Return where what was seen is not what the rules of `dump` foretell."""
    met, foretold = _foretold(dump, sent.packets, family, backend)
    found = [
        f"{'/'.join(key[:2])}#{key[2]}: kernel {seen}, foretold {met[key]}"
        for key, seen in counters(sent.dump).items()
        if seen != met[key] and not _of_the_marker(key) and not (key[2] == 0 and backend == Backend.NFT)
    ]
    found += [
        f"{packet}: arrived {sent.arrived.get(position)!r}, foretold {foretold.get(position)!r}"
        for position, packet in enumerate(sent.packets)
        if sent.arrived.get(position) != foretold.get(position)
    ]
    return found


def _of_the_marker(key: Key) -> bool:
    return key[2] == 1 and key[1] in tuple(Hook)


def test_the_sets_are_saved_and_listed_as_they_were_made(lab: RouterLab) -> None:
    made = {one.name: (replace(one, entries=()), set(one.entries)) for one in parse_ipset_save("".join(SETS.values()))}
    for verb in ("save", "list"):
        found = parse_ipset_save(lab.on_router("ipset", verb))
        assert {one.name: (replace(one, entries=()), set(one.entries)) for one in found} == made


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("backend", list(Backend))
def test_rules_met_and_packets_delivered_are_those_foretold(lab: RouterLab, backend: Backend, family: int) -> None:
    print(f"seeds {SEED * 1000} to {SEED * 1000 + RULESETS - 1}")  # noqa: T201 (a failure must name its seed)
    rules_met = 0
    for seed in range(SEED * 1000, SEED * 1000 + RULESETS):
        sent = _send(lab, backend, family, seed)
        found = _differences(sent, sent.dump, backend, family)
        assert not found, "\n".join((f"seed {seed}", *found, sent.dump))
        rules_met += sum(count > 0 for count in counters(sent.dump).values())
    assert rules_met > RULESETS * 10


ALTERED = [
    pytest.param("-j MARK --set-xmark 0x1/0x1", "-m mark --mark 0x77 -j MARK --set-xmark 0x1/0x1", id="a rule said not to match"),
    pytest.param("-j ACCEPT", "-j DROP", id="a verdict turned round"),
    pytest.param("-j RETURN", "", id="a return taken for nothing"),
    pytest.param("-g ", "-j ", id="a goto taken for a jump"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wrong"), ALTERED)
def test_the_comparison_notices_what_is_wrong(lab: RouterLab, text: str, wrong: str) -> None:
    found = []
    for seed in range(12):
        sent = _send(lab, Backend.LEGACY, 4, seed)
        found += _differences(sent, sent.dump.replace(text, wrong), Backend.LEGACY, 4)
    assert found
