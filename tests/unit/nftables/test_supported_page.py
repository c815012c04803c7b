"""The page of what is supported tells the truth about native expressions: what cannot be told of a plain packet is not exact."""

import pytest

from scripts.supported_page import ASSUMED, _level
from tasks.skoop.model.packet import Protocol
from tasks.skoop.netstack.nftables import header_fields, packet_facts
from tasks.skoop.netstack.nftables.outcomes import HIDDEN, Draw, Getter, Unsure
from tasks.skoop.netstack.nftables.view import PacketView
from tasks.skoop.netstack.xtables.api import ConnectionView, Hook
from tests.unit.xtables.scene import Field, context

GETTERS: dict[str, Getter] = {
    **{f"meta {name}": get for name, (_, get) in packet_facts.META.items()},
    **{f"ct {name}": get for name, (_, get) in packet_facts.CT.items()},
    **{f"ip {name}": get for name, (_, get) in header_fields.IPV4.items()},
    **{f"{header} {name}": get for header, (_, found) in header_fields.TRANSPORTS.items() for name, (_, get) in found.items()},
}  # fmt: skip


@pytest.mark.parametrize("what", GETTERS)
def test_what_cannot_be_told_is_not_called_exact(what: str) -> None:
    icmp: dict[str, Field] = (
        {"protocol": Protocol.ICMP, "icmp_type": 8, "icmp_code": 0} if what.startswith("icmp") else {}
    )
    view = PacketView(context(Hook.POSTROUTING, at={"in_dev": "", "connection": ConnectionView()}, **icmp))
    found = GETTERS[what](view)
    told = not isinstance(found, (Unsure, Draw)) and found != HIDDEN
    level = "approximate" if what.removeprefix("meta ") in ASSUMED else _level(GETTERS[what])
    assert (level == "exact") <= told, level
    assert told or level in ("approximate", "unknown")
