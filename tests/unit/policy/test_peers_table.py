"""Every cell of the peers' NetworkPolicy tables, both directions apart."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.engine import PolicyEngine
from tasks.skoop.policy.peers import Reading
from tasks.skoop.policy.verdict import Ruling
from tests.unit.policy.peers_data import suite, world_objects

LETTER = {Ruling.ALLOWED: "1", Ruling.DENIED: "0", Ruling.UNKNOWN: "?"}


class Cell(NamedTuple):
    where: str
    expected: str
    got: str


def _cells(step: dict[str, Any], base: dict[str, Any], where: str) -> Iterator[Cell]:
    objects = world_objects(step["namespaces"] or base["namespaces"], step["pods"] or base["pods"], step["policies"])
    engine = PolicyEngine(objects, Reading.EVERY_ADDRESS)
    order = step["podOrder"]
    parties = [engine.world.pod(engine.world.pods[key]) for key in order]
    for spoken in step["ingress"]:
        port, protocol = spoken.split("/")
        for row, src in enumerate(parties):
            for column, dst in enumerate(parties):
                if row == column:
                    continue
                found = engine.verdict(src, dst, int(port), Protocol(protocol.lower()))
                for direction, side in (("ingress", found.ingress), ("egress", found.egress)):
                    expected = step[direction][spoken][row][column]
                    yield Cell(
                        f"{where} {direction} {spoken} {order[row]} {order[column]}", expected, LETTER[side.ruling]
                    )


def test_every_cell_agrees() -> None:
    table = suite("networkpolicy_cyclonus")
    count = 0
    wrong = []
    for case in table["cases"]:
        for number, step in enumerate(case["steps"]):
            for cell in _cells(step, table["base"], f"{case['id']} step {number}"):
                count += 1
                if cell.expected != cell.got:
                    wrong.append(cell)
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:5]}"
    assert count > 100_000, count
