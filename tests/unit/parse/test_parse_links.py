"""Interfaces as `ip -j -d link`, `ip -j addr` and `bridge -j link` print them."""

import pytest

from tasks.skoop.model.addr import Ip, Mac
from tasks.skoop.model.state import Address, Bridge, BridgePort, Interface, PortVlan, Tunnel, Vxlan
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.links import combine, parse_addresses, parse_links, parse_ports, parse_vlans


def row(rest: str, name: str = "x0", flags: str = '"BROADCAST","MULTICAST","UP","LOWER_UP"') -> str:
    head = f'{{"ifindex":7,"ifname":"{name}","flags":[{flags}],"mtu":1450,"operstate":"UP","group":"default"'
    return f'{head},"link_type":"ether","address":"02:42:AC:12:00:11"{rest}}}'


def same(**fields: object) -> Interface:
    start = {"index": 7, "name": "x0", "mtu": 1450, "mac": Mac("02:42:ac:12:00:11"), "operstate": "UP"}
    return Interface(**{**start, **fields})  # type: ignore[arg-type]


KINDS = [
    pytest.param("", same(), id="physical"),
    pytest.param(
        ',"link_index":5,"link_netnsid":0,"linkinfo":{"info_kind":"veth"}',
        same(kind="veth", peer_index=5, peer_nsid=0),
        id="veth into another namespace",
    ),
    pytest.param(
        ',"link":"if9","linkinfo":{"info_kind":"veth"}', same(kind="veth", peer_index=9), id="veth, peer unnamed"
    ),
    pytest.param(
        ',"linkinfo":{"info_kind":"vxlan","info_data":{"id":1,"local":"172.18.0.11","link":"eth0","port":8472,"ttl":0,'
        '"df":"unset","external":false,"learning":false,"udp_csum":true}}',
        same(kind="vxlan", vxlan=Vxlan(vni=1, local=Ip("172.18.0.11"), link="eth0", learning=False)),
        id="flannel's vxlan",
    ),
    pytest.param(
        ',"linkinfo":{"info_kind":"vxlan","info_data":{"id":9,"remote6":"fd00::9","local6":"fd00::1","port":4789,"ttl":"auto"}}',
        same(kind="vxlan", vxlan=Vxlan(vni=9, local=Ip("fd00::1"), group=Ip("fd00::9"), port=4789)),
        id="vxlan over IPv6 with one remote",
    ),
    pytest.param(
        ',"linkinfo":{"info_kind":"vxlan","info_data":{"external":true,"id":0,"port":4790,"learning":false}}',
        same(kind="vxlan", vxlan=Vxlan(vni=0, port=4790, external=True, learning=False)),
        id="vxlan, collect metadata",
    ),
    pytest.param(
        ',"linkinfo":{"info_kind":"bridge","info_data":{"stp_state":1,"vlan_filtering":1,"nf_call_iptables":1,"x":{"y":1}}}',
        same(kind="bridge", bridge=Bridge(stp=True, vlan_filtering=True, nf_call_iptables=True)),
        id="bridge",
    ),
    pytest.param(
        ',"master":"cni0","link_index":2,"link_netnsid":1,"linkinfo":{"info_kind":"veth","info_slave_kind":"bridge",'
        '"info_slave_data":{"state":"blocking","hairpin":true,"isolated":true,"learning":false,"flood":false,"id":"0x8001"}}',
        same(
            kind="veth",
            master="cni0",
            peer_index=2,
            peer_nsid=1,
            port=BridgePort(state="blocking", hairpin=True, isolated=True, learning=False, flood=False),
        ),
        id="bridge port",
    ),
    pytest.param(
        ',"master":"bond0","linkinfo":{"info_slave_kind":"bond","info_slave_data":{"state":"ACTIVE","queue_id":0}}',
        same(master="bond0"),
        id="slave of a bond is no bridge port",
    ),
    pytest.param(
        ',"link":"eth0","linkinfo":{"info_kind":"vlan","info_data":{"protocol":"802.1Q","id":5,"flags":["REORDER_HDR"]}}',
        same(kind="vlan", lower="eth0", vlan_id=5),
        id="vlan",
    ),
    pytest.param(
        ',"link":"eth0","linkinfo":{"info_kind":"macvlan","info_data":{"mode":"bridge"}}',
        same(kind="macvlan", lower="eth0", mode="bridge"),
        id="macvlan",
    ),
    pytest.param(
        ',"link_index":2,"link_netnsid":0,"linkinfo":{"info_kind":"macvlan","info_data":{"mode":"bridge"}}',
        same(kind="macvlan", mode="bridge", lower_index=2, lower_nsid=0),
        id="macvlan on a device of another namespace",
    ),
    pytest.param(
        ',"linkinfo":{"info_kind":"sit","info_data":{"proto":"ip6ip","remote":"any","local":"10.0.0.1","ttl":64}}',
        same(kind="sit", tunnel_local=Ip("10.0.0.1"), tunnel=Tunnel(ttl=64, proto="ip6ip")),
        id="sit with any remote",
    ),
    pytest.param(
        ',"linkinfo":{"info_kind":"ipip","info_data":{"remote":"10.0.0.2","local":"10.0.0.1"}}',
        same(kind="ipip", tunnel_local=Ip("10.0.0.1"), tunnel_remote=Ip("10.0.0.2"), tunnel=Tunnel()),
        id="ipip",
    ),
    pytest.param(
        ',"linkinfo":{"info_kind":"gre","info_data":{"remote":"any","local":"any","ttl":0,"pmtudisc":false,"ikey":"0.0.0.7",'
        '"okey":"0.0.1.0"}}',
        same(kind="gre", tunnel=Tunnel(pmtudisc=False, ikey=7, okey=256)),
        id="gre with keys",
    ),
    pytest.param(
        ',"linkinfo":{"info_kind":"ip6tnl","info_data":{"proto":"any","remote":"2001:db8::1","ttl":64,"encap_limit":4}}',
        same(
            kind="ip6tnl",
            tunnel_remote=Ip("2001:db8::1"),
            tunnel=Tunnel(ttl=64, pmtudisc=False, proto="any", encap_limit=4),
        ),
        id="ip6tnl with a limit of encapsulation",
    ),
    pytest.param(
        ',"linkinfo":{"info_kind":"geneve","info_data":{"id":5,"remote":"10.0.0.2","ttl":0,"df":"inherit","port":6081}}',
        same(kind="geneve", tunnel_remote=Ip("10.0.0.2"), tunnel=Tunnel(vni=5, port=6081, df="inherit")),
        id="geneve",
    ),
    pytest.param(
        ',"linkinfo":{"info_kind":"bond","info_data":{"mode":"active-backup","active_slave":"eth1"}}',
        same(kind="bond", mode="active-backup", active_slave="eth1"),
        id="bond",
    ),
    pytest.param(
        ',"master":"bond0","linkinfo":{"info_slave_kind":"bond","info_slave_data":{"state":"BACKUP"}}',
        same(master="bond0", slave_active=False),
        id="backup slave of a bond",
    ),
    pytest.param(',"linkinfo":{"info_kind":"vrf","info_data":{"table":10}}', same(kind="vrf", vrf_table=10), id="vrf"),
]


@pytest.mark.parametrize(("rest", "interface"), KINDS)
def test_kinds(rest: str, interface: Interface) -> None:
    assert parse_links(f"[{row(rest)}]") == (interface,)


def test_loopback_and_flags() -> None:
    text = (
        '[{"ifindex":1,"ifname":"lo","flags":["LOOPBACK","UP","LOWER_UP"],"mtu":65536,"link_type":"loopback",'
        '"address":"00:00:00:00:00:00"},{},'
        '{"ifindex":2,"ifname":"t0","flags":["POINTOPOINT","NOARP"],"mtu":1480,"operstate":"DOWN","link_type":"ipip",'
        '"address":"10.0.0.1"}]'
    )
    lo, tunnel = parse_links(text)
    assert (lo.kind, lo.mtu, lo.up, lo.carrier) == ("loopback", 65536, True, True)
    assert (tunnel.up, tunnel.carrier, tunnel.noarp, tunnel.mac, tunnel.operstate) == (False, False, True, "", "DOWN")


def test_two_ends_in_one_namespace_name_each_other() -> None:
    text = (
        '[{"ifindex":2,"ifname":"d1","link":"d0","linkinfo":{"info_kind":"veth"}},'
        '{"ifindex":3,"ifname":"d0","link":"d1","linkinfo":{"info_kind":"veth"}}]'
    )
    assert [(link.peer_index, link.peer_nsid) for link in parse_links(text)] == [(3, None), (2, None)]


ADDRESSES = """[{"ifindex":7,"ifname":"x0","addr_info":[
 {"family":"inet","local":"10.9.0.1","address":"10.9.0.2","prefixlen":32,"scope":"global","label":"x0"},
 {"family":"inet","local":"10.0.0.2","prefixlen":24,"broadcast":"10.0.0.255","scope":"global","secondary":true},
 {"family":"inet6","local":"FE80::1","prefixlen":64,"scope":"link","tentative":true,"dadfailed":true,"deprecated":true},
 {},{"family":"inet","local":"127.0.0.1","prefixlen":8,"scope":254,"noprefixroute":true}]}]"""


def test_addresses() -> None:
    assert parse_addresses(ADDRESSES) == {
        7: (
            Address(ip=Ip("10.9.0.1"), prefixlen=32, peer=Ip("10.9.0.2")),
            Address(ip=Ip("10.0.0.2"), prefixlen=24, broadcast=Ip("10.0.0.255"), secondary=True),
            Address(ip=Ip("fe80::1"), prefixlen=64, scope="link", tentative=True, dadfailed=True, deprecated=True),
            Address(ip=Ip("127.0.0.1"), prefixlen=8, scope="host", noprefixroute=True),
        )
    }


def test_ports_of_bridge_link_fill_what_the_links_lack() -> None:
    ports = parse_ports(
        '[{"ifindex":7,"ifname":"x0","master":"cni0","state":3,"hairpin":true,"locked":true,"priority":32}]'
    )
    assert ports == {"x0": BridgePort(hairpin=True, locked=True)}
    (link,) = combine(parse_links(f"[{row('')}]"), parse_addresses(ADDRESSES), ports)
    assert (link.port, len(link.addresses)) == (ports["x0"], 4)


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        pytest.param(f"[{row('')}", (1, 175), "ends in the middle", id="cut short"),
        pytest.param('[{"ifindex":1,\n"ifname":}]', (2, 10), "not JSON", id="broken"),
        pytest.param('[{"ifindex":"one","ifname":"x"}]', (1, 1), "ifindex", id="wrong type"),
        pytest.param('{"ifindex":1}', (1, 1), "array", id="not a list"),
        pytest.param(
            '[{"ifindex":1,"ifname":"x","addr_info":[{"family":"inet","local":"1.2"}]}]', (1, 1), "1.2", id="address"
        ),
        pytest.param("[" * 100_000, (1, 1), "", id="nested"),
    ],
)
def test_refuses(text: str, place: tuple[int, int], problem: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_links(text, "ip-link.json")
    assert (caught.value.source, (caught.value.line, caught.value.column)) == ("ip-link.json", place), caught.value
    assert problem in caught.value.problem


def test_nothing_printed_is_no_links() -> None:
    assert parse_links("\n") == ()


def test_vlans_of_bridge_ports_one_by_one_or_as_ranges() -> None:
    text = (
        '[{"ifname":"v2","vlans":[{"vlan":1,"flags":["PVID","Egress Untagged"]},{"vlan":10,"vlanEnd":12}]},'
        '{"ifname":"br0","vlans":[{"vlan":10}]}]'
    )
    assert parse_vlans(text) == {
        "v2": (PortVlan(vid=1, pvid=True, untagged=True), PortVlan(vid=10), PortVlan(vid=11), PortVlan(vid=12)),
        "br0": (PortVlan(vid=10),),
    }


def test_a_port_that_the_dump_of_vlans_leaves_out_is_in_none() -> None:
    port = same(port=BridgePort())
    plain = same(name="eth9", index=8)
    assert [link.vlans for link in combine((port, plain), {}, {}, {})] == [(), None]
    assert [link.vlans for link in combine((port, plain), {}, {})] == [None, None]


def test_damaged_ranges_of_vlans_stay_small() -> None:
    text = '[{"ifname":"a","vlans":[{"vlan":-9223372036854775808,"vlanEnd":2},{"vlan":4094,"vlanEnd":9223372036854775807}]}]'
    assert [one.vid for one in parse_vlans(text)["a"]] == [0, 1, 2, 4094, 4095]
