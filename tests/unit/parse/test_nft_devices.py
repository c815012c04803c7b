"""The devices of base chains that nft tells in its text form alone."""

from tasks.skoop.parse.nft import lacks_devices, parse_nft, with_devices

JSON = (
    '{"nftables": [{"metainfo": {}}, {"table": {"family": "netdev", "name": "n", "handle": 1}},'
    ' {"chain": {"family": "netdev", "table": "n", "name": "one", "handle": 1, "type": "filter", "hook": "ingress",'
    ' "prio": 0, "policy": "accept"}},'
    ' {"chain": {"family": "netdev", "table": "n", "name": "two", "handle": 2, "type": "filter", "hook": "egress",'
    ' "prio": 0, "policy": "accept"}}]}'
)
TEXT = """table netdev n {
	chain one {
		type filter hook ingress device "eth0" priority filter; policy accept;
	}
	chain two {
		type filter hook egress devices = { "eth0", eth1 } priority filter; policy accept;
	}
}
"""


def test_devices_are_filled_in_from_the_text() -> None:
    (table,) = parse_nft(JSON)
    assert lacks_devices(table)
    (told,) = with_devices([table], TEXT)
    assert not lacks_devices(told)
    assert [text.partition('"dev":')[2] for text in told.objects[1:]] == ['["eth0"]}}', '["eth0","eth1"]}}']
    assert with_devices([told], "") == (told,)
