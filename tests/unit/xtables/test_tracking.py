"""Which rules make the kernel track connections."""

import pytest

from tasks.skoop.model.state import NetNS, NftTable
from tasks.skoop.netstack.xtables.compile import compile_tables
from tests.unit.xtables.scene import NODE, compiled


@pytest.mark.parametrize(
    ("rule", "tracks"),
    [
        ("-j ACCEPT", False),
        ("-m mark --mark 0x1 -j MARK --set-xmark 0x1/0x1", False),
        ("-j NOTRACK", False),
        ("-j CT --notrack", False),
        ("-j CT --zone 1", True),
        ("-j CT --helper ftp", True),
        ("-d 9.9.9.9 -p tcp -j DNAT --to-destination 1.1.1.1", True),
        ("-j MASQUERADE", True),
        ("-j CONNMARK --save-mark", True),
        ("-m conntrack --ctstate NEW -j ACCEPT", True),
        ("-m state --state NEW -j ACCEPT", True),
        ("-m connlimit --connlimit-above 3 -j DROP", True),
        ("-m comment --comment conntrack -j ACCEPT", False),
    ],
)
def test_rule_in_a_chain_that_nobody_calls(rule: str, tracks: bool) -> None:
    tables = compiled(f"*filter\n:FORWARD ACCEPT\n:UNUSED -\n-A UNUSED {rule}\nCOMMIT\n")
    assert dict(tables.needs_conntrack) == {4: tracks, 6: False}


@pytest.mark.parametrize(
    ("family", "text", "tracks"),
    [
        ("ip", '{"rule": {"expr": [{"match": {"left": {"ct": {"key": "state"}}}}]}}', (True, False)),
        ("ip6", '{"rule": {"expr": [{"masquerade": null}]}}', (False, True)),
        ("inet", '{"rule": {"expr": [{"dnat":{"addr": "1.1.1.1"}}]}}', (True, True)),
        ("ip", '{"rule": {"expr": [{"jump": {"target": "masquerade"}}], "comment": "\\"ct\\": x"}}', (False, False)),
        ("ip", '{"rule": {"expr": [{"notrack": null}]}}', (False, False)),
        ("bridge", '{"rule": {"expr": [{"match": {"left": {"ct": {"key": "state"}}}}]}}', (False, False)),
    ],
)
def test_native_nftables(family: str, text: str, tracks: tuple[bool, bool]) -> None:
    netns = NetNS(id=NODE, nft=(NftTable(family=family, name="t", objects=(text,)),))
    assert tuple(compile_tables(netns).needs_conntrack.values()) == tracks
