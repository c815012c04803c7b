"""Whatever a reader is given, it returns a value or says ParseError: damaged dumps, wrong types, random bytes.

The seeds are recordings. `make fuzz-parsers` runs it for longer (FUZZ_PARSERS is the number of texts for each reader).
"""

import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tasks.skoop.parse as package
from tasks.skoop.model.xtables import Backend
from tasks.skoop.parse.conntrack import parse_conntrack
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.ipset import parse_ipset_save
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.parse.ipvs import parse_ip_vs, parse_ip_vs_conn, parse_ipvsadm
from tasks.skoop.parse.kube import parse_objects
from tasks.skoop.parse.links import parse_addresses, parse_links, parse_ports, parse_vlans
from tasks.skoop.parse.neighbours import parse_fdb, parse_neighbours
from tasks.skoop.parse.nexthops import parse_nexthops
from tasks.skoop.parse.nft import parse_nft
from tasks.skoop.parse.routes import locked_mtus, parse_exceptions, parse_routes, parse_rules
from tasks.skoop.parse.rtnames import read_rt_tables
from tasks.skoop.parse.sockets import parse_sockets
from tasks.skoop.parse.sysctl import parse_sysctl
from tasks.skoop.parse.wireguard import parse_wireguard
from tests.unit.parse.conftest import member

EXAMPLES = int(os.environ.get("FUZZ_PARSERS", "40"))
LONGEST = 6000
"""Of a recording so many characters are taken, whole lines at a time."""

IPSETS = (
    "create kr:pods hash:net family inet6 hashsize 1024 maxelem 65536 timeout 0 netmask 24\nadd kr:pods fd00::/64 nomatch\n"
    'create d hash:net,iface family inet markmask 0xff\nadd d 10.0.0.0/8,eth wildcard comment "x y"\ncreate l list:set size 8\nadd l d\n'
)
IPSET_LIST = "Name: a\nType: hash:net\nHeader: family inet markmask 0x1\nNumber of entries: 1\nMembers:\n10.0.0.0/8 nomatch\n\nName: b\nType: list:set\nMembers:\na\n"
IPVSADM = (
    "-A -t 10.96.0.1:443 -s rr -p 10800 -M 255.255.0.0\n-a -t 10.96.0.1:443 -r 192.168.0.1:6443 -m -w 1\n"
    "-A -f 7 -6 -s sh -b sh-port -o\n-a -f 7 -6 -r [fd00::1]:0 -i -w 2 --tun-type gue\n"
)
HEADINGS = (
    "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port\n"
)
LISTED = (
    f"{HEADINGS}TCP  10.0.0.1:443 rr persistent 10800 mask 255.0.0.0\n  -> 192.168.0.1:6443 Masq 1 1 0\nFWM 7 IPv6 sh\n"
)
PROC = f"{HEADINGS}TCP  0A600001:01BB rr persistent 2700000 FFFFFFFF\n  -> C0A80001:192B      Masq    1      0          0\n"
CONN = "Pro FromIP\nTCP 0A000002 9C40 0A600001 01BB C0A80001 192B ESTABLISHED 899\n"
WG = (
    "interface: wg0\n  public key: abc=\n  listening port: 51820\n  fwmark: 0xca6c\n\npeer: def=\n  endpoint: 192.0.2.1:51820\n"
    "  allowed ips: 10.0.0.0/24, fd00::/64\n  latest handshake: 1 minute ago\n  persistent keepalive: every 25 seconds\n"
)
NEXTHOPS = '[{"id":1,"gateway":"10.0.0.1","dev":"e","flags":["onlink"]},{"id":2,"group":[{"id":1,"weight":3}]},{"id":3,"blackhole":null}]'
RULES = '[{"priority":9,"not":null,"src":"10.0.0.0","srclen":8,"fwmark":"0x1","fwmask":"0xf","table":"main","iif":"lo","ipproto":"tcp","dport_start":1,"dport_end":9,"uid_start":0,"uid_end":1,"suppress_prefixlen":0,"suppress_ifgroup":"default"},{"priority":1,"src":"all","goto":9},{"priority":2,"src":"all","action":"8","tos":"0x10"}]'  # fmt: skip
TUNNEL = '[{"ifindex":2,"ifname":"g","link_type":"ether","address":"02:00:00:00:00:01","linkinfo":{"info_kind":"gre","info_data":{"local":"any","remote":"10.0.0.1","ikey":"0.0.0.7","okey":"9","fwmark":"0x1","encap":{"type":"gue"}}}}]'
VLANS = '[{"ifname":"cni0","vlans":[{"vlan":1,"vlanEnd":9,"flags":["PVID","Egress Untagged"]}]}]'
PORTS = '[{"ifindex":3,"ifname":"v","flags":[],"state":3,"hairpin":true,"isolated":false}]'

Reader = Callable[[str], object]
IL, NF = ("il-healthy", "nodes/n1/"), ("nf-healthy", "nodes/n1/")
READERS: dict[str, tuple[Reader, tuple[str | tuple[str, str], ...]]] = {
    "parse_iptables_save": (
        lambda text: parse_iptables_save(text, backend=Backend.NFT, family=4),
        ((*IL, "iptables-save-c.legacy.txt"), (*NF, "iptables-save-c.nft.txt")),  # type: ignore[dict-item]
    ),
    "parse_nft": (parse_nft, ((*NF, "nft-ruleset.json"),)),  # type: ignore[dict-item]
    "parse_routes": (parse_routes, ((*IL, "ip-route-all.json"), (*IL, "ip-route6-all.json"))),  # type: ignore[dict-item]
    "parse_exceptions": (parse_exceptions, ((*IL, "ip-route-cache.json"), (*IL, "ip-route-all.json"))),  # type: ignore[dict-item]
    "parse_rules": (parse_rules, ((*IL, "ip-rule.json"), RULES)),  # type: ignore[dict-item]
    "parse_nexthops": (parse_nexthops, (NEXTHOPS,)),
    "parse_neighbours": (parse_neighbours, ((*IL, "ip-neigh.json"),)),  # type: ignore[dict-item]
    "parse_fdb": (parse_fdb, ((*IL, "bridge-fdb.json"),)),  # type: ignore[dict-item]
    "parse_links": (parse_links, ((*IL, "ip-link.json"), (*IL, "ip-addr.json"), TUNNEL)),  # type: ignore[dict-item]
    "parse_addresses": (parse_addresses, ((*IL, "ip-addr.json"),)),  # type: ignore[dict-item]
    "parse_ports": (parse_ports, ((*IL, "bridge-link-d.json"), PORTS)),  # type: ignore[dict-item]
    "parse_vlans": (parse_vlans, (VLANS,)),
    "parse_conntrack": (parse_conntrack, ((*IL, "conntrack-L.txt"),)),  # type: ignore[dict-item]
    "parse_sockets": (parse_sockets, ((*IL, "ss-tlnupH.txt"), (*IL, "ss-tanH.txt"))),  # type: ignore[dict-item]
    "parse_sysctl": (parse_sysctl, ((*IL, "sysctl-net.txt"),)),  # type: ignore[dict-item]
    "parse_ipset_save": (parse_ipset_save, (IPSETS, IPSET_LIST)),
    "parse_ipvsadm": (parse_ipvsadm, (IPVSADM, LISTED)),
    "parse_ip_vs": (parse_ip_vs, (PROC,)),
    "parse_ip_vs_conn": (parse_ip_vs_conn, (CONN,)),
    "parse_wireguard": (parse_wireguard, (WG,)),
    "parse_objects": (
        lambda text: parse_objects({"pods.json": text}),
        tuple(
            ("il-healthy", f"k8s/{kind}.json")
            for kind in ("pods", "nodes", "services", "endpointslices", "networkpolicies", "namespaces")
        ),
    ),
}
"""Reader → how to call it, recordings of what it reads."""


@lru_cache
def seeds(name: str) -> tuple[str, ...]:
    """Return the texts to start from, cut to a length that is quickly read."""
    return tuple(_short(one if isinstance(one, str) else member(one[0], "".join(one[1:]))) for one in READERS[name][1])


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    if text.lstrip()[:1] in "[{":
        return json.dumps(_fewer(json.loads(text)))
    kept, lines = 0, []
    for line in text.splitlines(keepends=True):
        kept += len(line)
        if kept > LONGEST:
            break
        lines.append(line)
    return "".join(lines) + ("COMMIT\n# Completed\n" if text.startswith(("*", "# Generated")) else "")


def _fewer(value: Any) -> Any:  # noqa: ANN401 -- JSON
    """Return JSON with its outer lists cut down."""
    if isinstance(value, list):
        return value[:: max(1, len(value) // 8)][:9]
    return {key: _fewer(each) for key, each in value.items()} if isinstance(value, dict) else value


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 1 << 31, 1 << 63, 1 << 64, 10**40, 1.5, 1e308]),
    st.text(max_size=12),
    st.sampled_from(["", "default", "0x", "0xzz", "-1", "10.0.0.0/33", "fd00::/64", "1.2.3", "999999999999999999999", "²", "٣", "any", "%"]),
    st.sampled_from([[], {}, [[]], [None], {"a": 1}, [{}]]),
)  # fmt: skip
PIECES = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["\n", " ", '"', "\\", "=", ":", "/", "-", "!", ",", "[", "]", "\t", "\x00", "\r\n", "²", "٣", "\u2028", "\x1c"]),
    st.sampled_from(["0x", "-1", "99999999999999999999", "4294967296", "::", "1.2.3.4.5", "255.255.255.256", "add ", "create ", "-A ", "*nat", "COMMIT", "Name: "]),
)  # fmt: skip


def _spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401
    """Return the ways to every value inside JSON."""
    found = [path]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pairs:
        found += _spots(each, (*path, key))
    return found


@st.composite
def damaged(draw: st.DrawFn, name: str) -> str:
    """A text of the reader with a few damages, or random text."""
    seed = draw(st.sampled_from(seeds(name)))
    how = draw(st.sampled_from(["text", "text", "json", "json", "random"]))
    if how == "random":
        return draw(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
    if how == "json" and seed.lstrip()[:1] in "[{":
        value = json.loads(seed)
        for _ in range(draw(st.integers(1, 3))):
            path = draw(st.sampled_from(_spots(value)))
            value = _put(value, path, draw(SCALARS))
        return json.dumps(value)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(seed)))
        end = min(len(seed), at + draw(st.sampled_from([0, 0, 1, 2, 5, 40])))
        seed = seed[:at] + draw(PIECES) + seed[end:]
    return seed[: draw(st.sampled_from([len(seed), len(seed), len(seed) // 2]))]


def _put(value: Any, path: tuple[Any, ...], new: Any) -> Any:  # noqa: ANN401
    if not path:
        return new
    if isinstance(value, dict):
        return {key: _put(each, path[1:], new) if key == path[0] else each for key, each in value.items()}
    return [_put(each, path[1:], new) if number == path[0] else each for number, each in enumerate(value)]


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Let the test have a gigabyte more than it has: a text that makes a reader take more fails instead of stopping the host."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.timeout(max(300, EXAMPLES))
@pytest.mark.parametrize("name", READERS)
def test_a_reader_returns_a_value_or_says_where_it_cannot(name: str) -> None:
    read, _ = READERS[name]

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(damaged(name))
    def law(text: str) -> None:
        try:
            read(text)
        except ParseError as error:
            assert error.line >= 1 or not text.strip() or name == "parse_objects", error  # those name the object
            assert len(str(error)) < 1000

    law()


@pytest.mark.parametrize("reader", [read_rt_tables, locked_mtus], ids=["rt_tables", "locked MTUs"])
def test_readers_that_pass_over_what_they_do_not_know(reader: Reader) -> None:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(
        st.lists(PIECES | st.sampled_from(["254 main\n", "1.2.3.4 via 10.0.0.1 mtu lock 1400\n", " mtu lock "])).map(
            "".join
        )
    )
    def law(text: str) -> None:
        reader(text)

    law()


@pytest.mark.parametrize("name", READERS)
def test_the_recordings_themselves_are_read(name: str) -> None:
    for text in seeds(name):
        assert READERS[name][0](text) is not None


def test_no_reader_is_forgotten() -> None:
    folder = Path(str(package.__file__)).parent
    public = {
        name
        for path in folder.glob("*.py")
        for name in vars(import_module(f"tasks.skoop.parse.{path.stem}") if path.stem != "__init__" else package)
        if re.match(r"parse_(?!ip$|net$)", name)
    }
    assert public == set(READERS)
