"""kube-proxy's rules: what this project writes for the recorded objects is what the real kube-proxy wrote."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lab import kubeproxy
from lab.build import node_rules
from lab.kubeproxy import Config, chain_hash
from lab.plan import Kind, make_plan
from lab.ruletext import parse_save

Json = dict[str, Any]
Rules = dict[str, dict[str, list[str]]]
RECORDED = Path(__file__).parent / "recorded"
# One rule or more per Service, in the order of a Go map: their order differs from node to node.
SHARED = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL")


def load(name: str) -> Json:
    loaded: Json = json.loads(gzip.decompress((RECORDED / f"{name}.json.gz").read_bytes()))
    return loaded


def written(recorded: Json, node: str, family: int) -> Rules:
    config = Config(node=node, node_ips=tuple(recorded["nodes"][node]), cluster_cidrs=("10.244.0.0/16",))
    tables = kubeproxy.render(recorded["services"], recorded["endpointslices"], config, family)
    return parse_save(tables.render())


def comparable(tables: Rules) -> dict[tuple[str, str], list[str]]:
    """Chains of kube-proxy and the built-in ones, flannel's rules left out, map order taken out."""
    return {
        (table, chain): sorted(rules) if chain in SHARED else rules
        for table, chains in tables.items()
        if table != "raw"
        for chain, all_rules in chains.items()
        if not chain.startswith("FLANNEL")
        for rules in [[rule for rule in all_rules if "flanneld" not in rule]]
    }


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("node", ["n1", "n2", "n3"])
@pytest.mark.parametrize("name", ["legacy", "nft"])
def test_the_recorded_kube_proxy_wrote_the_same_rules(name: str, node: str, family: int) -> None:
    recorded = load(name)
    want = comparable(parse_save(recorded["saves"][node][str(family)]))
    got = comparable(written(recorded, node, family))
    assert want[("nat", "KUBE-SERVICES")], "the recording holds rules"
    assert got == want


def test_a_missing_endpoint_shows() -> None:
    recorded = load("legacy")
    want = comparable(parse_save(recorded["saves"]["n1"]["4"]))
    for one in recorded["endpointslices"]:
        if one["metadata"]["name"].startswith("web-pvq2l"):
            one["endpoints"] = one["endpoints"][1:]
    assert comparable(written(recorded, "n1", 4)) != want


def test_the_node_port_rule_is_last() -> None:
    rules = written(load("legacy"), "n1", 4)["nat"]["KUBE-SERVICES"]
    assert rules[-1].endswith("-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")


def test_chain_names_are_those_of_kube_proxy() -> None:
    assert chain_hash("shop/web:http", "tcp") == "67NZLRHBNDSAWJRO"
    assert chain_hash("shop/web:http", "tcp", "10.244.1.5:8080") == "34ZZ2QFGO32YYXXO"


def service(**spec: object) -> Json:
    base = {
        "type": "ClusterIP",
        "clusterIPs": ["10.96.0.9"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    }
    return {"metadata": {"namespace": "a", "name": "b"}, "spec": base | spec, "status": {}}


def endpoints(*conditions: Json, name: str = "b") -> Json:
    return {
        "metadata": {"namespace": "a", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [f"10.0.0.{i}"], "conditions": c} for i, c in enumerate(conditions, 1)],
    }


READY = {"ready": True}
DYING = {"ready": False, "serving": True, "terminating": True}


@pytest.mark.parametrize(
    ("conditions", "used"),
    [
        pytest.param([READY, DYING], ["10.0.0.1"], id="a ready endpoint wins over one that is going"),
        pytest.param([DYING], ["10.0.0.1"], id="one that is going serves where none is ready"),
        pytest.param([{"ready": False}], [], id="an unready one never"),
        pytest.param([{}], ["10.0.0.1"], id="no condition means ready"),
    ],
)
def test_which_endpoints_are_used(conditions: list[Json], used: list[str]) -> None:
    config = Config(node="n1", node_ips=("192.0.2.1",), cluster_cidrs=("10.0.0.0/8",))
    nat = parse_save(kubeproxy.render([service()], [endpoints(*conditions)], config, 4).render())["nat"]
    dnats = [rule for chain, rules in nat.items() if "KUBE-SEP" in chain for rule in rules if "DNAT" in rule]
    assert [rule.rpartition(" ")[2] for rule in dnats] == [f"{ip}:8080" for ip in used]


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("family", [4, 6])
def test_every_jump_of_a_labs_rules_has_its_chain(kind: Kind, family: int) -> None:
    plan = make_plan(kind)
    for node in plan.nodes:
        for chains in parse_save(node_rules(plan, node, family).render()).values():
            targets = {
                rule.rpartition("-j ")[2].split()[0] for rules in chains.values() for rule in rules if "-j " in rule
            }
            verdicts = {"ACCEPT", "DROP", "REJECT", "RETURN", "MARK", "MASQUERADE", "DNAT"}
            assert targets <= set(chains) | verdicts
