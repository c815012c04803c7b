"""What is listed as not understood before any packet comes: every doubtful part by its name, and nothing else."""

import io
import json
import tarfile
from pathlib import Path, PurePath

import pytest
import zstandard

from tasks.skoop.model.ids import node_netns
from tasks.skoop.model.state import IpSet, IpSetEntry, NetNS, NftTable
from tasks.skoop.model.xtables import Backend
from tasks.skoop.netstack.understood import not_understood
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.parse.nft import parse_nft

NODE = node_netns("n1")
DATA = Path(__file__).resolve().parents[2] / "data"


def _iptables(rule: str) -> NetNS:
    text = f"*filter\n:FORWARD ACCEPT [0:0]\n:c - [0:0]\n-A FORWARD {rule}\nCOMMIT\n"
    sets = (
        IpSet(name="good", type="hash:ip", entries=(IpSetEntry("10.0.0.1"),)),
        IpSet(name="list", type="list:set", family=0, entries=(IpSetEntry("good"),)),
    )
    return NetNS(id=NODE, tables=parse_iptables_save(text, backend=Backend.LEGACY, family=4), ipsets=sets)


@pytest.mark.parametrize(
    "rule",
    [
        "-p tcp -m tcp --dport 80 -m set --match-set list src -j c",
        "-m recent --update --seconds 3 --name x --rsource -m limit --limit 1/sec -j LOG --log-prefix x",
        "-j TCPMSS --clamp-mss-to-pmtu",
    ],
)
def test_understood(rule: str) -> None:
    assert not list(not_understood(_iptables(rule)))


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        pytest.param("-m string --string x --algo bm -j DROP", "-m string: it is not simulated", id="match"),
        pytest.param("-m mark --mark x -j DROP", "-m mark: 'x' is not a number", id="value of a match"),
        pytest.param("-m set --match-set gone src", "-m set: the ipset gone is not", id="set that is not there"),
        pytest.param("-j QUEUE", "-j QUEUE: it is not simulated", id="target"),
        pytest.param("-j MARK --set-x 1", "-j MARK: --set-x", id="option of a target"),
    ],
)
def test_not_understood_in_iptables(rule: str, what: str) -> None:
    (doubt,) = not_understood(_iptables(rule))
    assert doubt.where == "legacy filter/FORWARD#1"
    assert doubt.what.startswith(what)


@pytest.mark.parametrize(
    ("kind", "element"), [("hash:ip", "10.0.0.x"), ("hash:ip,color", "10.0.0.1,red"), ("hash:ip,port", "10.0.0.1")]
)
def test_not_understood_in_ipsets(kind: str, element: str) -> None:
    one = IpSet(name="odd", type=kind, entries=(IpSetEntry(element),))
    (doubt,) = not_understood(NetNS(id=NODE, ipsets=(one,)))
    assert doubt.where == "ipset odd"


@pytest.mark.parametrize(
    ("statement", "doubts"),
    [
        ({"accept": None}, 0),
        ({"queue": {"num": 1}}, 1),
        ({"match": {"op": "==", "left": {"osf": {"key": "name"}}, "right": "Linux"}}, 1),
        ({"jump": {"target": "gone"}}, 1),
        ({"vmap": {"key": {"meta": {"key": "mark"}}, "data": {"set": [[1, {"drop": None}], [2, {"goto": {"target": "x"}}]]}}}, 1),
        ({"vmap": {"key": {"meta": {"key": "mark"}}, "data": "@verdicts"}}, 1),
        ({"vmap": {"key": {"meta": {"key": "mark"}}, "data": "@gone"}}, 1),
    ],
    ids=["verdict", "queue", "osf", "chain that is not there", "anonymous map", "named map", "no map"],
)  # fmt: skip
def test_not_understood_in_nftables(statement: object, doubts: int) -> None:
    verdicts = {"family": "ip", "table": "t", "name": "verdicts", "type": "mark", "map": "verdict", "elem": [[1, {"jump": {"target": "y"}}]]}  # fmt: skip
    listing = [
        {"table": {"family": "ip", "name": "t"}},
        {"chain": {"family": "ip", "table": "t", "name": "c"}},
        {"map": verdicts},
        {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [{"accept": None}]}},
        {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [statement]}},
    ]
    found = list(not_understood(NetNS(id=NODE, nft=parse_nft(json.dumps({"nftables": listing})))))
    assert [doubt.where for doubt in found] == ["nft ip t/c#2"] * doubts


ARCHIVES = sorted((DATA / "broken").glob("*.tar.zst")) + sorted((DATA / "base").glob("*.tar.zst"))


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.zst"))
def test_every_rule_of_the_recorded_clusters_is_understood(path: Path) -> None:
    rules = 0
    with tarfile.open(
        fileobj=io.BytesIO(zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read())
    ) as files:
        for item in files:
            name, content = PurePath(item.name).name, files.extractfile(item) if item.isfile() else None
            if content is None or not name.startswith(("iptables-save", "ip6tables-save", "nft-ruleset.json")):
                continue
            text = content.read().decode()
            if name.endswith(".json"):
                state = NetNS(id=NODE, nft=_native(text) if text.strip() else ())
            elif name.endswith(".txt"):
                family = 6 if name.startswith("ip6") else 4
                tables = parse_iptables_save(text, backend=Backend.LEGACY, family=family, source=item.name)
                state = NetNS(id=NODE, tables=tables)
            else:
                continue
            rules += sum(len(chain.rules) for table in state.tables for chain in table.chains)
            rules += sum(each.startswith('{"rule"') for table in state.nft for each in table.objects)
            assert not list(not_understood(state)), item.name
    assert rules > 100


def _native(text: str) -> tuple[NftTable, ...]:
    """Return the tables of a listing but for those that iptables-nft owns, which are read with iptables-save."""
    names = {(family, name) for family in ("ip", "ip6") for name in ("raw", "mangle", "nat", "filter", "security")}
    return tuple(table for table in parse_nft(text) if (table.family, table.name) not in names)
