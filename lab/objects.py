"""What `kubectl get -A -o json` would say of a lab's cluster.

Pure: a plan goes in, lists of objects come out, in the shape of the API server's answers (v1, discovery.k8s.io/v1,
networking.k8s.io/v1). Endpoints follow Services' selectors and pods' readiness as the EndpointSlice controller does it.
NetworkPolicies are absent: nothing in a lab would enforce them.
"""

import json
from hashlib import sha256
from typing import Any

from lab.plan import ClusterPlan, Kind, NodePlan, PodPlan, PortPlan, ServicePlan, by_family

Json = dict[str, Any]
_BORN = "2026-01-01T00:00:00Z"


def all_objects(plan: ClusterPlan) -> dict[str, Json]:
    """Return file stem → List object: nodes, pods, services, endpointslices, namespaces, networkpolicies."""
    kinds: dict[str, list[Json]] = {
        "nodes": [_node(plan, node) for node in plan.nodes],
        "pods": [_pod(plan, pod) for pod in plan.pods] + _host_network_pods(plan),
        "services": [_service(plan, service) for service in plan.services],
        "endpointslices": [
            _slice(plan, service, family)
            for service in plan.services
            if service.type != "ExternalName"
            for family in plan.families
            if service.selector or by_family(service.endpoints, family)
        ],
        "namespaces": [_namespace(name) for name in ("default", "kube-flannel", "kube-system", "shop")],
        "networkpolicies": [],
    }
    return {
        stem: {"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}}
        for stem, items in kinds.items()
    }


def _meta(name: str, namespace: str = "", **more: Any) -> Json:  # noqa: ANN401  (JSON)
    uid = sha256(f"{namespace}/{name}".encode()).hexdigest()
    meta: Json = {"creationTimestamp": _BORN, "name": name, "resourceVersion": "1"}
    meta["uid"] = f"{uid[:8]}-{uid[8:12]}-4{uid[13:16]}-8{uid[17:20]}-{uid[20:32]}"
    if namespace:
        meta["namespace"] = namespace
    return meta | more


def _namespace(name: str) -> Json:
    labels = {"kubernetes.io/metadata.name": name}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": _meta(name, labels=labels),
        "status": {"phase": "Active"},
    }


def flannel_annotations(plan: ClusterPlan, node: NodePlan) -> dict[str, str]:
    """Return what flanneld writes on its Node."""
    prefix = "flannel.alpha.coreos.com/"
    vxlan = plan.kind is Kind.FLANNEL_VXLAN
    notes = {f"{prefix}backend-type": "vxlan" if vxlan else "host-gw", f"{prefix}kube-subnet-manager": "true"}
    for family in plan.families:
        six = "v6-" if family == 6 else ""
        data = json.dumps({"VNI": 1, "VtepMAC": node.vtep_macs[family]}, separators=(",", ":")) if vxlan else "null"
        notes[f"{prefix}backend-{six}data"] = data
        notes[f"{prefix}public-ip{'v6' if family == 6 else ''}"] = by_family(node.ips, family)
    return notes


def _node(plan: ClusterPlan, node: NodePlan) -> Json:
    annotations = {"node.alpha.kubernetes.io/ttl": "0"}
    if plan.kind.is_flannel:
        annotations |= flannel_annotations(plan, node)
    labels = {"kubernetes.io/arch": "amd64", "kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"}
    conditions = [
        {"type": "Ready", "status": "True", "reason": "KubeletReady"},
        {"type": "NetworkUnavailable", "status": "False", "reason": "RouteCreated"},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": _meta(node.name, annotations=annotations, labels=labels),
        "spec": {"podCIDR": node.pod_cidrs[0], "podCIDRs": list(node.pod_cidrs)},
        "status": {
            "addresses": [{"type": "InternalIP", "address": ip} for ip in node.ips]
            + [{"type": "Hostname", "address": node.name}],
            "conditions": conditions,
            "nodeInfo": {
                "architecture": "amd64",
                "containerRuntimeVersion": "containerd://1.7.24",
                "kernelVersion": "",
                "kubeProxyVersion": "v1.28.0",
                "kubeletVersion": "v1.28.0",
                "operatingSystem": "linux",
                "osImage": "lab",
            },
        },
    }


def _status(ips: tuple[str, ...], host: NodePlan, *, ready: bool) -> Json:
    word = "True" if ready else "False"
    return {
        "conditions": [
            {"type": "Initialized", "status": "True"},
            {"type": "Ready", "status": word},
            {"type": "ContainersReady", "status": word},
            {"type": "PodScheduled", "status": "True"},
        ],
        "hostIP": host.ips[0],
        "phase": "Running",
        "podIP": ips[0],
        "podIPs": [{"ip": ip} for ip in ips],
        "qosClass": "BestEffort",
        "startTime": _BORN,
    }


def _owner(kind: str, name: str) -> list[Json]:
    uid = _meta(name)["uid"]
    return [
        {
            "apiVersion": "apps/v1",
            "blockOwnerDeletion": True,
            "controller": True,
            "kind": kind,
            "name": name,
            "uid": uid,
        }
    ]


def _pod(plan: ClusterPlan, pod: PodPlan) -> Json:
    labels = dict(pod.labels)
    ports: list[Json] = [
        {"containerPort": number, "name": name, "protocol": protocol} for name, protocol, number in pod.ports
    ]
    if pod.host_port:
        ports[0]["hostPort"] = pod.host_port
    container: Json = {"image": f"lab/{pod.app}:1", "name": pod.app, "resources": {}}
    if ports:
        container["ports"] = ports
    owner = _owner("ReplicaSet", f"{pod.app}-{labels['pod-template-hash']}")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _meta(pod.name, pod.namespace, labels=labels, ownerReferences=owner),
        "spec": {
            "containers": [container],
            "dnsPolicy": "ClusterFirst",
            "nodeName": pod.node,
            "restartPolicy": "Always",
        },
        "status": _status(pod.ips, plan.node(pod.node), ready=pod.ready),
    }


def _host_network_pods(plan: ClusterPlan) -> list[Json]:
    daemons = [("kube-system", "kube-proxy")] + ([("kube-flannel", "kube-flannel-ds")] if plan.kind.is_flannel else [])
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": _meta(
                f"{daemon}-{node.name}", namespace, labels={"app": daemon}, ownerReferences=_owner("DaemonSet", daemon)
            ),
            "spec": {
                "containers": [{"image": f"lab/{daemon}:1", "name": daemon, "resources": {}}],
                "hostNetwork": True,
                "nodeName": node.name,
            },
            "status": _status(node.ips, node, ready=True),
        }
        for namespace, daemon in daemons
        for node in plan.nodes
    ]


def _target(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _service_port(port: PortPlan) -> Json:
    built: Json = {"name": port.name, "port": port.port, "protocol": port.protocol, "targetPort": _target(port.target)}
    return built | ({"nodePort": port.node_port} if port.node_port else {})


def _service_families(plan: ClusterPlan, service: ServicePlan) -> tuple[int, ...]:
    """A Service with hand-made endpoints of one family only is single-stack."""
    if service.selector:
        return plan.families
    return tuple(family for family in plan.families if by_family(service.endpoints, family))


def _service(plan: ClusterPlan, service: ServicePlan) -> Json:
    spec: Json = {"sessionAffinity": "ClientIP" if service.affinity_s else "None", "type": service.type}
    status: Json = {"loadBalancer": {}}
    if service.type == "ExternalName":
        spec["externalName"] = service.external_name
    else:
        families = _service_families(plan, service)
        ips = list(service.cluster_ips(families)) if service.number else ["None"]
        spec |= {
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "internalTrafficPolicy": "Local" if service.internal_local else "Cluster",
            "ipFamilies": [f"IPv{family}" for family in families],
            "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "PreferDualStack",
            "ports": [_service_port(port) for port in service.ports],
        }
        if service.selector:
            spec["selector"] = dict(service.selector)
    if service.affinity_s:
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": service.affinity_s}}
    if service.type in ("NodePort", "LoadBalancer"):
        spec["externalTrafficPolicy"] = "Local" if service.external_local else "Cluster"
    if service.external_ips:
        spec["externalIPs"] = list(service.external_ips)
    if service.source_ranges:
        spec["loadBalancerSourceRanges"] = list(service.source_ranges)
    if service.health_port:
        spec["healthCheckNodePort"] = service.health_port
    if service.lb_ips:
        status["loadBalancer"] = {"ingress": [{"ip": ip} for ip in service.lb_ips]}
    meta = _meta(service.name, service.namespace)
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec, "status": status}


def _endpoint(pod: PodPlan, family: int) -> Json:
    return {
        "addresses": [by_family(pod.ips, family)],
        "conditions": {"ready": pod.ready, "serving": pod.ready, "terminating": False},
        "nodeName": pod.node,
        "targetRef": {"kind": "Pod", "name": pod.name, "namespace": pod.namespace},
    }


def _slice(plan: ClusterPlan, service: ServicePlan, family: int) -> Json:
    chosen = [
        pod
        for pod in plan.pods
        if service.selector and pod.namespace == service.namespace and set(service.selector) <= set(pod.labels)
    ]
    endpoints = [_endpoint(pod, family) for pod in chosen]
    if not service.selector:
        ready = {"ready": True, "serving": True, "terminating": False}
        endpoints = [{"addresses": [by_family(service.endpoints, family)], "conditions": ready}]
    ports: list[Json] = []
    for port in service.ports:
        named = {name: number for pod in chosen for name, _, number in pod.ports}
        number = int(port.target) if port.target.isdigit() else named.get(port.target, 0)
        if number and endpoints:
            ports.append({"name": port.name, "port": number, "protocol": port.protocol})
    labels = {"kubernetes.io/service-name": service.name}
    return {
        "addressType": f"IPv{family}",
        "apiVersion": "discovery.k8s.io/v1",
        "endpoints": endpoints,
        "kind": "EndpointSlice",
        "metadata": _meta(f"{service.name}-ipv{family}", service.namespace, labels=labels),
        "ports": ports,
    }
