"""What kube-proxy's IPVS mode would program on the lab's nodes."""

import pytest

from lab.build import POD_NETS, vtep_address
from lab.kubeproxy import Config
from lab.kubeproxy_ipvs import Programming, VirtualServer, render_ipvs
from lab.objects import all_objects
from lab.plan import Kind, make_plan

PLAN = make_plan(Kind.FLANNEL_VXLAN, nodes=2)
NODE = PLAN.node("n1")


def program(family: int, **more: bool) -> Programming:
    lists = all_objects(PLAN)
    config = Config(node="n1", node_ips=NODE.ips, cluster_cidrs=tuple(POD_NETS.values()), **more)
    local = (*NODE.ips, *NODE.gateways, vtep_address(NODE, 4), vtep_address(NODE, 6))
    return render_ipvs(lists["services"]["items"], lists["endpointslices"]["items"], config, family, local)


FOUR, SIX = program(4), program(6)


def servers(made: Programming, text: str) -> tuple[str, ...] | None:
    return next((server.servers for server in made.servers if server.text == text), None)


@pytest.mark.parametrize(
    ("made", "text", "expected"),
    [
        pytest.param(FOUR, "10.96.10.1:80", ("10.244.1.4:8080", "10.244.2.4:8080"), id="cluster address"),
        pytest.param(SIX, "[fd00:10:96::a06]:80", (), id="no endpoint: a server without real servers"),
        pytest.param(FOUR, "172.18.0.11:30080", ("10.244.1.4:8080", "10.244.2.4:8080"), id="node port"),
        pytest.param(FOUR, "10.244.1.1:30080", ("10.244.1.4:8080", "10.244.2.4:8080"), id="node port on the bridge"),
        pytest.param(FOUR, "172.18.0.11:30081", ("10.244.1.5:8080",), id="externalTrafficPolicy: Local"),
        pytest.param(FOUR, "10.96.10.10:80", ("10.244.1.5:8080",), id="internalTrafficPolicy: Local"),
        pytest.param(FOUR, "172.18.0.200:80", ("10.244.1.4:8080", "10.244.2.4:8080"), id="external address"),
        pytest.param(FOUR, "10.96.0.1:8443", None, id="no such port"),
    ],
)
def test_real_servers(made: Programming, text: str, expected: tuple[str, ...] | None) -> None:
    assert servers(made, text) == expected


def test_sticky_services_are_persistent() -> None:
    sticky = [server for server in FOUR.servers if server.persistent_s]
    assert [(server.text, server.persistent_s) for server in sticky] == [("10.96.10.5:80", 600)]
    assert "-A -t 10.96.10.5:80 -s rr -p 600\n" in FOUR.ipvsadm_restore()


def test_the_dummy_has_cluster_external_and_balancer_addresses_once() -> None:
    addresses = FOUR.addresses
    assert len(addresses) == len(set(addresses))
    assert {"10.96.10.1", "172.18.0.200", "172.18.0.210"} <= set(addresses)
    assert "172.18.0.11" not in addresses
    assert all(":" in ip for ip in SIX.addresses)


def test_sets() -> None:
    text = FOUR.ipset_restore()
    assert "create KUBE-CLUSTER-IP hash:ip,port family inet\n" in text
    assert "add KUBE-CLUSTER-IP 10.96.10.15,udp:80\n" in text
    assert "add KUBE-LOOP-BACK 10.244.1.4,tcp:8080,10.244.1.4\n" in text
    assert "10.244.2.4,tcp:8080,10.244.2.4" not in text, "only endpoints of this node need it"
    assert "create KUBE-NODE-PORT-TCP bitmap:port range 0-65535\n" in text
    assert "add KUBE-NODE-PORT-LOCAL-TCP 30081\n" in text
    names = [line.split()[1] for line in SIX.ipset_restore().splitlines() if line.startswith("create")]
    assert all(name.startswith("KUBE-6-") and len(name) <= 31 for name in names)


def test_rules() -> None:
    nat = FOUR.tables.chains["nat"]
    assert "MASQUERADE" in nat["KUBE-POSTROUTING"][0]
    assert "KUBE-LOOP-BACK dst,dst,src" in nat["KUBE-POSTROUTING"][0]
    outsiders = next(rule for rule in nat["KUBE-SERVICES"] if "KUBE-CLUSTER-IP" in rule)
    assert outsiders.startswith("! -s 10.244.0.0/16 ")
    assert outsiders.endswith("--match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ")
    everyone = next(
        r for r in program(4, masquerade_all=True).tables.chains["nat"]["KUBE-SERVICES"] if "CLUSTER-IP" in r
    )
    assert not everyone.startswith("! -s")
    empty = [name for name, entries in FOUR.sets.items() if not entries]
    assert "KUBE-NODE-PORT-UDP" in empty
    assert not any("KUBE-NODE-PORT-UDP" in rule for rules in nat.values() for rule in rules), "no rule for an empty set"


def test_a_virtual_servers_text_is_what_ipvsadm_reads() -> None:
    six = VirtualServer(protocol="udp", ip="fd00::1", port=53, persistent_s=0, servers=())
    assert six.text == "[fd00::1]:53"
