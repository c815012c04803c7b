"""What `wg show all` and `ip -j nexthop show` print, read."""

import pytest

from tasks.skoop.model.addr import Ip, Net
from tasks.skoop.model.state import NextHop, NextHopObject, Route, WireGuard, WireGuardPeer
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.nexthops import UnresolvedNexthop, parse_nexthops, resolve
from tasks.skoop.parse.wireguard import parse_wireguard

SHOWN = """interface: wg0
  public key: AAAA
  private key: (hidden)
  listening port: 51820
  fwmark: 0xca6c

peer: BBBB
  preshared key: (hidden)
  endpoint: 192.0.2.7:51821
  allowed ips: 10.1.0.0/16, fd00::/64
  latest handshake: 1 minute, 3 seconds ago
  transfer: 1.2 KiB received, 3 KiB sent
  persistent keepalive: every 25 seconds

peer: CCCC
  endpoint: [2001:db8::7]:51820
  allowed ips: (none)
"""


def test_a_device_with_its_peers() -> None:
    known = WireGuardPeer(
        public_key="BBBB",
        endpoint=Ip("192.0.2.7"),
        endpoint_port=51821,
        allowed_ips=(Net("10.1.0.0/16"), Net("fd00::/64")),
        keepalive_s=25,
        handshake=True,
    )
    silent = WireGuardPeer(public_key="CCCC", endpoint=Ip("2001:db8::7"), endpoint_port=51820)
    assert parse_wireguard(SHOWN) == {
        "wg0": WireGuard(public_key="AAAA", port=51820, fwmark=0xCA6C, peers=(known, silent))
    }


def test_a_private_key_that_is_shown_is_not_kept() -> None:
    shown = SHOWN.replace("private key: (hidden)", "private key: SECRET").replace(
        "preshared key: (hidden)", "preshared key: SECRET"
    )
    assert "SECRET" not in repr(parse_wireguard(shown))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("peer: x", id="no device"),
        pytest.param(SHOWN.replace("51820\n  fwmark", "x\n  fwmark"), id="port"),
        pytest.param(SHOWN.replace("10.1.0.0/16", "10.1.0/16"), id="prefix"),
        pytest.param("interface: wg0\nhello", id="other text"),
    ],
)
def test_what_is_no_such_text_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        parse_wireguard(text)


OBJECTS = (
    '[{"id":5,"gateway":"10.9.0.2","dev":"v0","scope":"link","flags":["onlink"]},{"id":6,"via":"fe80::1","dev":"v1","flags":[]},'
    '{"id":7,"group":[{"id":5,"weight":3},{"id":6}],"flags":[]},{"id":8,"blackhole":null,"flags":[]},'
    '{"id":12,"gateway":"10.9.0.7","flags":[],"fdb":null}]'
)


def test_nexthop_objects_and_the_routes_that_go_by_them() -> None:
    objects = parse_nexthops(OBJECTS)
    five = NextHop(dev="v0", via=Ip("10.9.0.2"), onlink=True)
    six = NextHop(dev="v1", via=Ip("fe80::1"))
    assert objects[:2] == (NextHopObject(id=5, nexthop=five), NextHopObject(id=6, nexthop=six))
    assert objects[2].group == ((5, 3), (6, 1))
    assert (objects[3].blackhole, objects[4].fdb) == (True, True)
    one, many, none = resolve(tuple(Route(dst=Net("10.0.0.0/8"), nhid=nhid) for nhid in (5, 7, 8)), objects)
    assert one.nexthops == (five,)
    assert [(hop.dev, hop.weight) for hop in many.nexthops] == [("v0", 3), ("v1", 1)]
    assert (none.type, none.nexthops) == ("blackhole", ())


def test_a_route_by_an_object_that_nobody_collected_is_not_guessed() -> None:
    with pytest.raises(UnresolvedNexthop, match="nexthop object 9"):
        resolve((Route(dst=Net("10.0.0.0/8"), nhid=9),), ())
