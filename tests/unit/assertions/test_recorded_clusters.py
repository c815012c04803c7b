"""The recorded clusters, each with one fault: exactly what looks wrong there, and nothing in those that are healthy."""

import pytest

from tasks.skoop.model.suspicion import Level
from tasks.skoop.network import Network
from tests.unit.clusters import recorded

BROKEN_ON_PURPOSE = {
    ("KP-K8S-002", "svc/shop/orphan"),
    ("KP-K8S-003", "svc/shop/slow"),
    ("KP-K8S-004", "svc/shop/db-wrongport"),
}
"""What every recording has: a Service that selects nobody, one whose pod is never ready, one with a wrong port."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("il-healthy", [], id="healthy"),
        pytest.param("nf-healthy", [], id="healthy, nftables mode"),
        pytest.param("il-ok-foreign-chains", [], id="harmless chains of strangers"),
        pytest.param("il-ok-rpfilter2", [], id="harmless loose reverse path filter"),
        pytest.param("il-brnf-off-n1", ["KP-SYSCTL-003 node/n1"], id="bridge passes iptables by"),
        pytest.param("il-cni0-down-n3", ["KP-LINK-005 node/n3"], id="bridge down"),
        pytest.param("il-fdb-missing-n3", ["KP-VXLAN-008 node/n3"], id="forwarding entry missing"),
        pytest.param("il-forward-drop-n1", ["KP-NF-001 node/n1"], id="policy DROP"),
        pytest.param("il-hairpin-off-db", ["KP-LINK-007 node/n2"], id="hairpin off"),
        pytest.param("il-ipfwd-n2", ["KP-SYSCTL-001 node/n2"], id="forwarding off"),
        pytest.param("nf-ipfwd-n2", ["KP-SYSCTL-001 node/n2"], id="forwarding off, nftables mode"),
        pytest.param("il-masq-deleted-n3", ["KP-SVC-007 node/n3"], id="masquerade rule deleted"),
        pytest.param("il-mtu-n2", ["KP-LINK-014 node/n2", "KP-VXLAN-007 node/n2"], id="small underlay MTU"),
        pytest.param("il-nft-stray-n2", ["KP-NF-006 node/n2"], id="stray nftables chain"),
        pytest.param("il-notrack-n1", ["KP-CT-003 node/n1"], id="no tracking"),
        pytest.param("il-pod-localhost-n2", ["KP-SOCK-001 pod/shop/web-776fb8b5b9-tjrt6"], id="listens on loopback"),
        pytest.param("il-pod-no-default", ["KP-ROUTE-003 pod/shop/client-74cdc48d-vdrd8"], id="no default route"),
        pytest.param("il-reject-reset-n1", ["KP-NF-002 node/n1"], id="stray REJECT"),
        pytest.param("il-route-missing-n3", ["KP-ROUTE-001 node/n3"], id="route missing"),
        pytest.param("il-rpfilter-asym-n1", ["KP-ROUTE-006 node/n2", "KP-SYSCTL-002 node/n1"], id="strict filter, asymmetric"),
        pytest.param("il-sep-rule-deleted-n2", ["KP-SVC-002 node/n2"], id="backend rule deleted"),
        pytest.param("il-veth-unplugged-n1", ["KP-LINK-004 node/n1"], id="veth off the bridge"),
        pytest.param("il-vxlan-blocked-n2", ["KP-VXLAN-010 node/n2"], id="overlay port closed"),
    ],
)  # fmt: skip
def test_what_looks_wrong_in(name: str, expected: list[str]) -> None:
    found = [item for item in Network.build(recorded(name)).suspicions() if item.level != Level.INFO]
    assert {(item.code, item.subject) for item in found} >= BROKEN_ON_PURPOSE
    rest = [item for item in found if (item.code, item.subject) not in BROKEN_ON_PURPOSE]
    assert sorted(f"{item.code} {item.subject}" for item in rest) == expected


def test_the_worst_comes_first() -> None:
    levels = [item.level for item in Network(recorded("il-mtu-n2")).suspicions()]
    order = [Level.FATAL, Level.CRITICAL, Level.WARNING, Level.INFO]
    assert levels == sorted(levels, key=order.index)
