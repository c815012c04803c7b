"""Kubernetes' lists as objects of the model: defaults, owners, what is left out."""

import json

import pytest

from tasks.skoop.model.addr import Ip, Net
from tasks.skoop.model.cluster import (
    ContainerPort,
    EndpointSlice,
    Namespace,
    NodeMeta,
    PodMeta,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from tasks.skoop.model.ids import NodeName, PodKey
from tasks.skoop.model.packet import Protocol
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.kube import KINDS, parse_objects

APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def listed(*items: dict[str, object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def obj(kind: str, name: str = "x", namespace: str = "shop", **fields: object) -> dict[str, object]:
    metadata = {"name": name, "namespace": namespace, **fields.pop("metadata", {})}  # type: ignore[dict-item]
    return {"kind": kind, "metadata": metadata, **fields}


def test_node() -> None:
    node = obj(
        "Node",
        "n1",
        metadata={
            "labels": {"zone": "a"},
            "annotations": {APPLIED: "{}", "flannel.alpha.coreos.com/public-ip": "1.2.3.4"},
        },
        spec={"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "FD00::/64"], "providerID": "aws:///x"},
        status={
            "addresses": [{"type": "InternalIP", "address": "172.18.0.11"}, {"type": "Hostname", "address": "n1"}],
            "conditions": [{"type": "MemoryPressure", "status": "True"}, {"type": "Ready", "status": "Unknown"}],
            "nodeInfo": {"kernelVersion": "6.1", "osImage": "Debian", "kubeletVersion": "v1.28.0"},
        },
    )
    assert parse_objects({"nodes.json": listed(node)}).nodes == (
        NodeMeta(
            name=NodeName("n1"),
            addresses=(("InternalIP", "172.18.0.11"), ("Hostname", "n1")),
            pod_cidrs=(Net("10.244.1.0/24"), Net("fd00::/64")),
            labels={"zone": "a"},
            annotations={"flannel.alpha.coreos.com/public-ip": "1.2.3.4"},
            ready=False,
            provider_id="aws:///x",
            kernel_version="6.1",
            os_image="Debian",
            kubelet_version="v1.28.0",
        ),
    )


def test_pod() -> None:
    owners = [{"kind": "Node", "name": "n1"}, {"kind": "ReplicaSet", "name": "web-1", "controller": True}]
    pod = obj(
        "Pod",
        "web-1-a",
        metadata={
            "uid": "u",
            "labels": {"app": "web"},
            "ownerReferences": owners,
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        spec={
            "nodeName": "n1",
            "containers": [{"name": "c", "env": [{"name": "SECRET", "value": "x"}], "ports": [{"containerPort": 80}]}],
            "initContainers": [
                {"ports": [{"containerPort": 1}]},
                {
                    "restartPolicy": "Always",
                    "ports": [{"containerPort": 53, "protocol": "UDP", "name": "dns", "hostPort": 53}],
                },
            ],
        },
        status={
            "phase": "Running",
            "podIP": "10.244.1.5",
            "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00::5"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    )
    assert parse_objects({"pods.json": listed(pod)}).pods == (
        PodMeta(
            namespace="shop",
            name="web-1-a",
            uid="u",
            node_name=NodeName("n1"),
            ips=(Ip("10.244.1.5"), Ip("fd00::5")),
            labels={"app": "web"},
            deleting=True,
            ports=(
                ContainerPort(port=80),
                ContainerPort(port=53, name="dns", protocol=Protocol.UDP, host_port=53),
            ),
            owner="ReplicaSet/web-1",
        ),
    )


def test_pod_that_is_not_scheduled() -> None:
    (pod,) = parse_objects({"pods.json": listed(obj("Pod", status={"phase": "Pending"}))}).pods
    assert (pod.node_name, pod.ips, pod.ready, pod.phase, pod.owner) == ("", (), False, "Pending", "")


def test_service() -> None:
    service = obj(
        "Service",
        "web-lb",
        spec={
            "type": "LoadBalancer",
            "clusterIP": "10.96.10.12",
            "clusterIPs": ["10.96.10.12", "FD00::C"],
            "externalIPs": ["172.18.0.200"],
            "loadBalancerSourceRanges": ["172.18.0.0/24"],
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http", "nodePort": 30083},
                {"port": 53, "protocol": "UDP"},
            ],
            "selector": {"app": "web"},
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 31000,
            "publishNotReadyAddresses": True,
        },
        status={
            "loadBalancer": {
                "ingress": [{"ip": "172.18.0.210"}, {"hostname": "x"}, {"ip": "1.2.3.4", "ipMode": "Proxy"}]
            }
        },
    )
    assert parse_objects({"s.json": listed(service)}).services == (
        Service(
            namespace="shop",
            name="web-lb",
            type="LoadBalancer",
            cluster_ips=("10.96.10.12", "fd00::c"),
            external_ips=(Ip("172.18.0.200"),),
            load_balancer_ips=(Ip("172.18.0.210"), Ip("1.2.3.4")),
            load_balancer_ip_modes=("VIP", "Proxy"),
            load_balancer_source_ranges=(Net("172.18.0.0/24"),),
            ports=(
                ServicePort(port=80, name="http", target="http", node_port=30083),
                ServicePort(port=53, protocol=Protocol.UDP, target="53"),
            ),
            selector={"app": "web"},
            session_affinity="ClientIP",
            affinity_timeout_s=600,
            external_traffic_policy="Local",
            health_check_node_port=31000,
            publish_not_ready=True,
        ),
    )


@pytest.mark.parametrize(
    ("spec", "cluster_ips"),
    [
        pytest.param({"clusterIP": "None", "clusterIPs": ["None"]}, ("None",), id="headless"),
        pytest.param({"clusterIP": "10.96.0.9"}, ("10.96.0.9",), id="old API: one address"),
        pytest.param({"type": "ExternalName", "externalName": "a.b"}, (), id="ExternalName"),
    ],
)
def test_cluster_ips(spec: dict[str, object], cluster_ips: tuple[str, ...]) -> None:
    (service,) = parse_objects({"s.json": listed(obj("Service", spec=spec))}).services
    assert service.cluster_ips == cluster_ips


@pytest.mark.parametrize(
    ("conditions", "ready", "serving", "terminating"),
    [
        pytest.param(None, True, True, False, id="no conditions"),
        pytest.param({}, True, True, False, id="none set"),
        pytest.param({"ready": False}, False, False, False, id="serving follows ready"),
        pytest.param({"ready": False, "serving": True, "terminating": True}, False, True, True, id="terminating"),
        pytest.param({"ready": None, "serving": False}, True, False, False, id="null is not set"),
    ],
)
def test_endpoint_conditions(conditions: object, ready: bool, serving: bool, terminating: bool) -> None:
    part = obj("EndpointSlice", endpoints=[{"addresses": ["10.0.0.1"], "conditions": conditions}])
    (found,) = parse_objects({"e.json": listed(part)}).endpoint_slices
    assert [(end.ready, end.serving, end.terminating) for end in found.endpoints] == [(ready, serving, terminating)]


def test_endpoint_slice() -> None:
    part = obj(
        "EndpointSlice",
        "web-abc",
        metadata={"labels": {"kubernetes.io/service-name": "web"}},
        addressType="IPv6",
        ports=[{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": None, "port": None}],
        endpoints=[
            {
                "addresses": ["FD00::1"],
                "nodeName": "n1",
                "zone": "a",
                "hints": {"forZones": [{"name": "a"}]},
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-1"},
            }
        ],
    )
    assert parse_objects({"e.json": listed(part)}).endpoint_slices == (
        EndpointSlice(
            namespace="shop",
            name="web-abc",
            service="web",
            address_type="IPv6",
            endpoints=(
                SliceEndpoint(
                    addresses=(Ip("fd00::1"),),
                    node_name=NodeName("n1"),
                    pod=PodKey("shop/web-1"),
                    zone="a",
                    hints=("a",),
                ),
            ),
            ports=(SlicePort(port=8080, name="http"), SlicePort()),
        ),
    )


def test_slice_without_endpoints_is_null_in_the_api() -> None:
    (found,) = parse_objects({"e.json": listed(obj("EndpointSlice", endpoints=None, ports=None))}).endpoint_slices
    assert (found.endpoints, found.ports) == ((), ())


def test_policies_are_kept_whole_but_for_what_kubectl_adds() -> None:
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80, "endPort": 90}]}]}
    policy = obj("NetworkPolicy", "deny", metadata={"annotations": {APPLIED: "x"}, "managedFields": [1]}, spec=spec)
    (text,) = parse_objects({"p.json": listed(policy)}).network_policies
    found = json.loads(text)
    assert found["spec"] == spec
    assert found["metadata"] == {"name": "deny", "namespace": "shop"}
    assert ": " not in text


def test_other_policies_are_kept_by_kind_and_told_apart_by_their_group() -> None:
    spec = {"selector": "all()", "ingress": [{"action": "Deny"}]}
    calico = obj("NetworkPolicy", "a", apiVersion="projectcalico.org/v3", spec=spec, metadata={"managedFields": [1]})
    stored = obj("NetworkPolicy", "default.a", apiVersion="crd.projectcalico.org/v1", spec=spec)
    cilium = obj("CiliumNetworkPolicy", "c", apiVersion="cilium.io/v2", specs=[{"endpointSelector": {}}])
    admin = obj("AdminNetworkPolicy", "b", "", apiVersion="policy.networking.k8s.io/v1alpha1", spec={"priority": 1})
    foreign = obj("AdminNetworkPolicy", "f", "", apiVersion="example.org/v1", spec={})
    plain = obj("NetworkPolicy", "p", apiVersion="networking.k8s.io/v1", spec={"podSelector": {}})
    objects = parse_objects({"p.json": listed(stored, calico, cilium, admin, foreign, plain)})
    assert [json.loads(text)["metadata"]["name"] for text in objects.network_policies] == ["p"]
    assert {kind: [json.loads(text) for text in texts] for kind, texts in objects.policies.items()} == {
        "CalicoNetworkPolicy": [
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": "NetworkPolicy",
                "metadata": {"name": "a", "namespace": "shop"},
                "spec": spec,
            }
        ],
        "CiliumNetworkPolicy": [{**cilium, "specs": [{"endpointSelector": {}}]}],
        "AdminNetworkPolicy": [{**admin, "metadata": {"name": "b"}}],
    }


def test_a_typed_list_says_of_which_group_its_policies_are() -> None:
    items = [{"metadata": {"name": "a", "namespace": "b"}, "spec": {}}]
    text = json.dumps({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicyList", "items": items})
    objects = parse_objects({"p.json": text})
    assert (len(objects.network_policies), list(objects.policies)) == (0, ["CalicoNetworkPolicy"])
    assert "networkpolicies" in objects.missing


def test_a_policy_of_another_api_that_is_bad_is_kept_as_it_is() -> None:
    bad = {"kind": "AdminNetworkPolicy", "apiVersion": "policy.networking.k8s.io/v1alpha1", "metadata": []}
    assert parse_objects({"p.json": listed(bad)}).policies["AdminNetworkPolicy"] == (
        json.dumps(bad, separators=(",", ":")),
    )


def test_configuration_is_taken_from_two_maps_and_secrets_from_nowhere() -> None:
    items = [
        obj("ConfigMap", "kube-flannel-cfg", data={"net-conf.json": "{}", "cni-conf.json": "no"}),
        obj("ConfigMap", "kube-proxy", data={"config.conf": "mode: iptables", "kubeconfig.conf": "token: no"}),
        obj("ConfigMap", "mine", data={"config.conf": "no"}),
        obj("Secret", "s", data={"password": "bm8="}),
    ]
    objects = parse_objects({"all.json": listed(*items)})
    assert objects.config == {"flannel/net-conf.json": "{}", "kube-proxy/config.conf": "mode: iptables"}


def test_kinds_that_nobody_listed_are_missing() -> None:
    assert set(parse_objects({}).missing) == set(KINDS.values())
    typed = json.dumps({"kind": "PodList", "items": [{"metadata": {"name": "a", "namespace": "b"}}]})
    empty = json.dumps({"kind": "List", "items": []})
    objects = parse_objects({"typed.json": typed, "k8s/services.json": empty})
    assert [pod.key for pod in objects.pods] == ["b/a"]
    assert set(objects.missing) == set(KINDS.values()) - {"pods", "services"}


def test_one_object_instead_of_a_list() -> None:
    objects = parse_objects({"ns.json": json.dumps(obj("Namespace", "shop", "", metadata={"labels": {"a": "b"}}))})
    assert objects.namespaces == (Namespace(name="shop", labels={"a": "b"}),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param('{"kind": "List", "items": [', "ends in the middle", id="cut short"),
        pytest.param(listed({"kind": "Pod", "metadata": {"name": 5}}), "name", id="wrong type"),
        pytest.param(listed(obj("Pod", status={"podIP": "10.0.0"})), "10.0.0", id="address"),
        pytest.param("NAME  READY\nweb  1/1\n", "not JSON", id="a table for people"),
    ],
)
def test_refuses(text: str, problem: str) -> None:
    with pytest.raises(ParseError, match=problem):
        parse_objects({"pods.json": text})
