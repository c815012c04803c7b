import json

import pytest
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import NetNS, Socket
from tasks.skoop.snapshot.redact import REMOVED, keeps_config, redact, redact_command, redact_text
from tests.unit.snapshot.states import cluster

COMMANDS = [
    pytest.param("nginx", "nginx", id="a program's name"),
    pytest.param("etcd --data-dir=/x --name m0", "etcd --data-dir=/x --name m0", id="harmless options"),
    pytest.param("app --token=abc123 -v", f"app --token={REMOVED} -v", id="with ="),
    pytest.param("app --db-password hunter2 -v", f"app --db-password {REMOVED} -v", id="with a space"),
    pytest.param("app --password --verbose", "app --password --verbose", id="without a value"),
    pytest.param("cli postgres://me:pw@db:5432/x", f"cli postgres://me:{REMOVED}@db:5432/x", id="in a URL"),
    pytest.param("curl http://10.96.0.10:80/a@b", "curl http://10.96.0.10:80/a@b", id="a URL without a user"),
]


@pytest.mark.parametrize(("command", "expected"), COMMANDS)
def test_command_lines_lose_their_secrets(command: str, expected: str) -> None:
    assert redact_command(command) == expected


SETTINGS = [
    pytest.param('{"Network": "10.244.0.0/16"}', '{"Network": "10.244.0.0/16"}', id="flannel's, untouched"),
    pytest.param('{"apiToken": "xyz", "mtu": 1450}', f'{{"apiToken": "{REMOVED}", "mtu": 1450}}', id="JSON"),
    pytest.param(
        '{"secrets": ["a", {"b": "c"}], "n": 3}',
        f'{{"secrets": ["{REMOVED}", {{"b": "{REMOVED}"}}], "n": 3}}',
        id="JSON, deep",
    ),
    pytest.param("{password: p, mtu: 1}", f"{{password: {REMOVED}, mtu: 1}}", id="YAML in its flow form"),
    pytest.param('PASSWORD="a b"', f'PASSWORD="{REMOVED}"', id="a variable in quotes"),
    pytest.param("a: 1\npassword: p\nb: 2", f"a: 1\npassword: {REMOVED}\nb: 2", id="YAML"),
    pytest.param("client-key-data: TFMw", f"client-key-data: {REMOVED}", id="a kubeconfig's key"),
    pytest.param(
        "x\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\ny", f"x\n{REMOVED}\ny", id="a PEM key"
    ),
]


@pytest.mark.parametrize(("text", "expected"), SETTINGS)
def test_settings_lose_their_secrets(text: str, expected: str) -> None:
    assert redact_text(text) == expected
    assert redact_text(expected) == expected


KEPT = [
    "flannel/net-conf.json",
    "kube-proxy/config.conf",
    "node/n1/subnet.env",
    "node/n1/kube-proxy.conf",
    "calico/felix.yaml",
    "cni-conf.json",
    "10-flannel.conflist",
]
DROPPED = [
    "shop/app.properties",
    "kube-proxy/kubeconfig.conf",
    "node/n1/kubelet.key",
    "shop/tls.crt",
    "extension-ca/ca",
]


@pytest.mark.parametrize("name", KEPT)
def test_configuration_that_a_diagnosis_reads_is_kept(name: str) -> None:
    assert keeps_config(name)


@pytest.mark.parametrize("name", DROPPED)
def test_other_configuration_is_dropped(name: str) -> None:
    assert not keeps_config(name)


def annotated(annotations: dict[str, str]) -> ClusterState:
    state = cluster("n1")
    nodes = tuple(replace(one, annotations=annotations) for one in state.objects.nodes)
    services = tuple(replace(one, annotations=annotations) for one in state.objects.services)
    return replace(state, objects=replace(state.objects, nodes=nodes, services=services))


def test_annotations_keep_what_a_plugin_says_and_lose_copies_and_credentials() -> None:
    kept = {"flannel.alpha.coreos.com/public-ip": "172.18.0.11", "projectcalico.org/IPv4Address": "172.18.0.11/24"}
    copy = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "x/api-token": "t", "x/huge": "x" * 20_000}
    objects = redact(annotated(kept | copy)).objects
    assert objects.nodes[0].annotations == kept
    assert objects.services[0].annotations == kept


def test_policies_lose_what_no_policy_engine_reads() -> None:
    last = "kubectl.kubernetes.io/last-applied-configuration"
    policy = {"metadata": {"name": "p", "managedFields": [1], "annotations": {last: "{}"}}, "spec": {"podSelector": {}}}
    texts = (json.dumps(policy), "not JSON", "[]")
    objects = replace(cluster().objects, network_policies=texts, policies={"GlobalNetworkPolicy": texts})
    found = redact(replace(cluster(), objects=objects)).objects
    assert found.policies == {"GlobalNetworkPolicy": found.network_policies}
    first, *rest = found.network_policies
    assert json.loads(first) == {"metadata": {"name": "p", "annotations": {}}, "spec": {"podSelector": {}}}
    assert rest == ["not JSON", "[]"]


def test_sockets_and_settings_of_the_kernel() -> None:
    netns = NetNS(
        id=next(iter(cluster("n1").netns)),
        sockets=(Socket(protocol=Protocol.TCP, ip=Ip("::"), port=1, process="app --secret=s"),),
        sysctls={
            "net/ipv4/ip_forward": "1",
            "net/ipv4/tcp_fastopen_key": "1-2-3-4",
            "net/ipv6/conf/eth0/stable_secret": "::1",
        },
    )
    found = redact(replace(cluster("n1"), netns={netns.id: netns})).netns[netns.id]
    assert found.sockets[0].process == f"app --secret={REMOVED}"
    assert found.sysctls == {"net/ipv4/ip_forward": "1"}


def test_a_state_without_secrets_is_returned_as_it_is() -> None:
    state = cluster()
    assert redact(state) is state
