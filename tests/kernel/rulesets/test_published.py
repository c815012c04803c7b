"""Rulesets that others published: all are read, and every rule is understood or named; runs where KUBEPROBE_CORPUS is set.

What a cluster's own programs write must be understood to the last rule. An input of iptables-restore or nft is first loaded,
and what the tool then prints is read. A file that neither we nor the tool take is refused with its place.
"""

import os
from collections import Counter
from collections.abc import Iterator
from shutil import which

import pytest

from tasks.skoop.model.ids import node_netns
from tasks.skoop.model.state import NetNS
from tasks.skoop.model.xtables import Backend, XTable
from tasks.skoop.netstack.understood import not_understood
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.ipset import parse_ipset_save
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.parse.iptables_render import render_rule
from tasks.skoop.parse.iptables_rule import read_spec
from tasks.skoop.parse.ipvs import parse_ipvsadm
from tasks.skoop.parse.nft import parse_nft
from tests.kernel.rulesets.published import Published, framed, listed, published, saved, stand_ins

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not published("nft"), reason="KUBEPROBE_CORPUS names no folder with index.json"),
    pytest.mark.skipif(os.geteuid() != 0 or not which("unshare"), reason="needs root and unshare"),
]

NODE = node_netns("published")
OURS = (
    *("kube-proxy", "flannel", "calico", "kube-router", "moby", "docker", "cni-", "istio", "k3s", "gke", "eks", "aks"),
    *(
        "k8s-",
        "podman",
        "cilium",
        "weave",
        "linkerd",
        "multi-networkpolicy",
        "kindnet",
        "tailscale",
        "openwrt",
        "firewalld",
    ),
)
"""How the names of origins begin of whose rules none may be unknown."""
EXCUSED = frozenset(("kube-proxy-ipvs__broken-dnat-nat.txt", "k8s-handbook__apps_istio_istio-traffic-management.txt"))
"""Dumps that were garbled on their way, and must be refused."""


def _tables(one: Published) -> tuple[XTable, ...]:
    """Return the tables of a file as it is, as an excerpt, or as the tool prints it. Raises ParseError."""
    error: ParseError | None = None
    for text in _forms(one):
        try:
            tables = parse_iptables_save(text, backend=Backend.LEGACY, family=one.family, source=one.path.name)
        except ParseError as found:
            assert found.line >= 1, found
            assert found.column >= 1, found
            error = error or found
            continue
        if any(chain.rules for table in tables for chain in table.chains) or "-A" not in one.text:
            return tables
    assert error is not None, one.path.name
    raise error


def _forms(one: Published) -> Iterator[str]:
    yield one.text
    yield framed(one.text)
    yield saved(one)


def _of_ours(one: Published) -> bool:
    return one.origin.startswith(OURS) and one.path.name not in EXCUSED


def test_iptables_rulesets_are_read_and_understood() -> None:
    refused, doubts, rules = [], Counter[tuple[str, str]](), 0
    for one in published("iptables-save"):
        try:
            tables = _tables(one)
        except ParseError as error:
            refused.append((one, str(error)))
            continue
        for rule in (rule for table in tables for chain in table.chains for rule in chain.rules):
            rules += 1
            assert read_spec(render_rule(rule)) == (rule.matches, rule.target)
        state = NetNS(id=NODE, tables=tables, ipsets=stand_ins(one))
        doubts.update((one.origin, doubt.what) for doubt in not_understood(state))
    print(f"{rules} rules; refused: {[text for _, text in refused]}; not understood: {dict(doubts)}")  # noqa: T201
    assert rules > 50_000
    assert not [text for one, text in refused if _of_ours(one)]
    assert len(refused) <= 13
    assert not [doubt for doubt in doubts if doubt[0].startswith(OURS)]
    assert len(doubts) <= 6


def test_nft_rulesets_are_read_and_understood() -> None:
    if not which("nft"):
        pytest.skip("needs nft")
    refused, doubts, rules = [], Counter[tuple[str, str]](), 0
    for one in published("nft"):
        text, complaint = listed(one)
        if not text:
            refused.append((one.path.name, complaint.partition("\n")[0]))
            continue
        tables = parse_nft(text, one.path.name)
        rules += sum(each.startswith('{"rule"') for table in tables for each in table.objects)
        doubts.update((one.origin, doubt.what) for doubt in not_understood(NetNS(id=NODE, nft=tables)))
    print(f"{rules} rules; refused by nft: {refused}; not understood: {dict(doubts)}")  # noqa: T201
    assert rules > 3_500
    assert len(refused) <= 39
    assert not doubts


def test_ipsets_and_virtual_services_are_read_and_understood() -> None:
    for one in published("ipset"):
        sets = parse_ipset_save(one.text, one.path.name)
        assert sets
        if "create " in one.text or "Header: " in one.text:  # else a test-suite has cut the family out
            assert not list(not_understood(NetNS(id=NODE, ipsets=sets))), one.path.name
    for one in published("ipvsadm"):
        assert parse_ipvsadm(one.text, one.path.name)
