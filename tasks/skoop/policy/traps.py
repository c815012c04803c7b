"""Which policies do not do what their author may have meant? The common traps, each a finding with a code of its own (KP-POL).

Everything here is read from the objects alone. A policy may well be right as it is; what only may be a mistake is of level info.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.model.addr import Ip, contains
from tasks.skoop.model.cluster import PodMeta, Service
from tasks.skoop.model.endpoint import Endpoint, EndpointType
from tasks.skoop.model.ids import PodKey
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.suspicion import Level, Suspicion
from tasks.skoop.policy import parse
from tasks.skoop.policy.catalogue import ADMIN_KINDS
from tasks.skoop.policy.engine import PolicyEngine
from tasks.skoop.policy.peers import NetworksPeer, NobodyKnows, Peer, PodsPeer, PortMatch, Scope
from tasks.skoop.policy.rules import Direction, Policy, Rule
from tasks.skoop.policy.selectors import EVERYTHING, Selector
from tasks.skoop.policy.translated import verdicts
from tasks.skoop.policy.verdict import PolicyVerdict, Ruling

NODELOCAL_DNS = Ip("169.254.20.10")
DNS_PORT = 53
ENFORCERS = frozenset(
    (
        "calico-node",
        "cilium",
        "canal",
        "kube-router",
        "weave-net",
        "antrea",
        "aws-node",
        "ovnkube-node",
        "kube-network-policies",
    )
)
"""Names (labels app, k8s-app, name) of agents that enforce policies."""
FLANNEL = frozenset(("flannel", "kube-flannel", "kube-flannel-ds"))
_NAME_LABELS = ("k8s-app", "app", "name", "app.kubernetes.io/name")
_BOTH = tuple(Direction)


def traps(engine: PolicyEngine) -> tuple[Suspicion, ...]:
    """Return the findings about a cluster's policies, in the order of their codes."""
    return tuple(sorted((one for check in CHECKS for one in check(engine)), key=lambda one: (one.code, one.subject)))


def _subject(policy: Policy) -> str:
    return f"policy/{policy.ref.namespace}/{policy.ref.name}" if policy.ref.namespace else f"policy/{policy.ref.name}"


def _policies(engine: PolicyEngine) -> Iterator[Policy]:
    """Yield the policies that were read, without what stands for lists and objects that were not."""
    for policy in engine.catalogue.policies:
        if not isinstance(policy.subject, NobodyKnows):
            yield policy


def _rules(policy: Policy) -> Iterator[tuple[str, Direction, Rule]]:
    """Yield each rule with its path in the object."""
    for direction in _BOTH:
        for rule in policy.rules(direction) or ():
            yield f"{direction}[{rule.index}]", direction, rule


def _selected(engine: PolicyEngine, peer: Peer) -> list[PodMeta]:
    """Return the pods that a subject or peer finds, or may."""
    scope = Scope(reading=engine.reading)
    pods = (pod for pod in engine.objects.pods if not pod.host_network)
    return [pod for pod in pods if peer.matches(engine.world.pod(pod), scope) is not False]


def _lists_are_whole(engine: PolicyEngine) -> bool:
    return not {"pods", "namespaces"} & engine.objects.missing.keys()


def _dns(engine: PolicyEngine) -> Iterator[Suspicion]:
    service = next((one for one in engine.objects.services if _is_dns(one)), None)
    ip = next((ip for ip in service.cluster_ips if ip not in ("", "None")), "") if service else ""
    if service is None or not ip:
        return
    target = Endpoint(ip=Ip(ip), type=EndpointType.SERVICE, name=service.key)
    groups: dict[object, list[PodMeta]] = defaultdict(list)
    for pod in engine.objects.pods:
        if not pod.host_network:
            groups[pod.namespace, frozenset(pod.labels.items())].append(pod)
    nodelocal = any(pod.labels.get("k8s-app") == "node-local-dns" for pod in engine.objects.pods)
    for pods in groups.values():
        src = Endpoint(ip=pods[0].ips[0] if pods[0].ips else Ip(""), type=EndpointType.POD, name=pods[0].key)
        asked = verdicts(engine, src, target, DNS_PORT, Protocol.UDP)
        if asked and all(found.egress.ruling is Ruling.DENIED for found in asked):
            yield _no_dns(pods, asked[0], service.key, Level.WARNING)
        elif nodelocal:
            local = engine.verdict(src, Endpoint(ip=NODELOCAL_DNS), DNS_PORT, Protocol.UDP)
            if local.egress.ruling is Ruling.DENIED:
                yield _no_dns(pods, local, f"NodeLocal DNS at {NODELOCAL_DNS}, which some plugins police", Level.INFO)


def _is_dns(service: Service) -> bool:
    named = service.key == "kube-system/kube-dns" or service.selector.get("k8s-app") == "kube-dns"
    return named and any(port.port == DNS_PORT for port in service.ports)


def _no_dns(pods: list[PodMeta], found: PolicyVerdict, where: str, level: Level) -> Suspicion:
    more = f" (and {len(pods) - 1} like it)" if len(pods) > 1 else ""
    message = f"{pods[0].key}{more} may not ask {where}: {found.egress.why}"
    return suspect("KP-POL-001", message, subject=pods[0].netns, expected="UDP and TCP 53 allowed", level=level)


def _and_or(engine: PolicyEngine) -> Iterator[Suspicion]:
    for policy in _policies(engine):
        if policy.ref.kind != parse.KIND:
            continue
        for path, _, rule in _rules(policy):
            peers = [peer for peer in rule.peers or () if isinstance(peer, PodsPeer)]
            for first, second in pairwise(peers):
                spaces, pods = (first, second) if first.namespaces is not None else (second, first)
                alone = spaces.namespaces is not None and spaces.pods.selects_everything
                if alone and pods.namespaces is None and not pods.pods.selects_everything:
                    yield suspect(
                        "KP-POL-002",
                        f"{policy.ref} {path}: every pod of namespaces with {spaces.namespaces}, or pods of "
                        f"{policy.ref.namespace} with {pods.pods}",
                        subject=_subject(policy),
                    )


def _nobody(engine: PolicyEngine) -> Iterator[Suspicion]:
    if not _lists_are_whole(engine):
        return
    for policy in _policies(engine):
        if not _selected(engine, policy.subject):
            yield suspect("KP-POL-004", f"{policy.ref} selects no pod", subject=_subject(policy))
        for path, _, rule in _rules(policy):
            for peer in rule.peers or ():
                if isinstance(peer, PodsPeer):
                    yield from _nobody_there(engine, policy, path, peer)


def _nobody_there(engine: PolicyEngine, policy: Policy, path: str, peer: PodsPeer) -> Iterator[Suspicion]:
    labels = (engine.world.namespace_labels(one.name) for one in engine.objects.namespaces)
    if peer.namespaces is not None and all(peer.namespaces.selects(one) is False for one in labels):
        yield suspect(
            "KP-POL-003",
            f"{policy.ref} {path}: no namespace has {peer.namespaces}",
            subject=_subject(policy),
            expected=str(peer.namespaces),
        )
    elif not _selected(engine, peer):
        yield suspect("KP-POL-005", f"{policy.ref} {path}: no pod has {peer.pods}", subject=_subject(policy))


def _port_names(engine: PolicyEngine) -> Iterator[Suspicion]:
    if not _lists_are_whole(engine):
        return
    for policy in _policies(engine):
        subjects = _selected(engine, policy.subject)
        for path, direction, rule in _rules(policy):
            pods = subjects if direction is Direction.INGRESS else _peer_pods(engine, rule)
            for port in rule.ports or ():
                if isinstance(port, PortMatch) and port.name and pods and not any(_has(pod, port) for pod in pods):
                    message = f"{policy.ref} {path}: none of {len(pods)} pods has a port {port.name!r}"
                    yield suspect("KP-POL-006", message, subject=_subject(policy), seen=_names(pods))


def _peer_pods(engine: PolicyEngine, rule: Rule) -> list[PodMeta]:
    if rule.peers is None:
        return [pod for pod in engine.objects.pods if not pod.host_network]
    return [pod for peer in rule.peers for pod in _selected(engine, peer)]


def _has(pod: PodMeta, port: PortMatch) -> bool:
    return any(one.name == port.name and port.protocol in (None, one.protocol) for one in pod.ports)


def _names(pods: Iterable[PodMeta]) -> str:
    names = sorted({port.name for pod in pods for port in pod.ports if port.name})
    return f"names there are: {', '.join(names)}" if names else "no port has a name"


def _unenforced(engine: PolicyEngine) -> Iterator[Suspicion]:
    count = len(tuple(_policies(engine)))
    names = {pod.labels.get(label, "") for pod in engine.objects.pods for label in _NAME_LABELS}
    flannel = names & FLANNEL or "flannel/net-conf.json" in engine.objects.config
    if count and flannel and not names & ENFORCERS:
        yield suspect("KP-POL-007", f"{count} policies exist, and flannel enforces none", subject="cluster")


def _unread(engine: PolicyEngine) -> Iterator[Suspicion]:
    for policy in engine.catalogue.policies:
        for defect in policy.defects:
            yield suspect("KP-POL-008", f"{policy.ref}: {defect}", subject=_subject(policy), seen=defect)
    for bad in engine.catalogue.bad:
        yield suspect("KP-POL-008", bad, subject="cluster", seen=bad)


def _host_network(engine: PolicyEngine) -> Iterator[Suspicion]:
    hosts = [pod for pod in engine.objects.pods if pod.host_network]
    for policy in _policies(engine):
        subject = policy.subject
        if isinstance(subject, PodsPeer) and subject.namespace and subject.pods != EVERYTHING:
            found = [pod.key for pod in hosts if _labels_fit(engine, pod, subject.namespace, subject.pods)]
            if found:
                message = f"{policy.ref} fits {', '.join(found[:3])}, on the host's network: it does not concern them"
                yield suspect("KP-POL-009", message, subject=_subject(policy))


def _labels_fit(engine: PolicyEngine, pod: PodMeta, namespace: str, selector: Selector) -> bool:
    labels = engine.world.pod_labels(pod.key)
    return pod.namespace == namespace and selector.selects(labels) is True


def _same_priority(engine: PolicyEngine) -> Iterator[Suspicion]:
    for tier in engine.catalogue.tiers:
        for rank in tier.ranks:
            admins = [one for one in rank if one.ref.kind in ADMIN_KINDS and not isinstance(one.subject, NobodyKnows)]
            for index, one in enumerate(admins):
                pods = {pod.key for pod in _selected(engine, one.subject)}
                shared = [other for other in admins[index + 1 :] if _share(engine, one, other, pods)]
                for other in shared:
                    message = f"{one.ref} and {other.ref} both have priority {one.rank[1]:.0f}"
                    yield suspect("KP-POL-010", message, subject=_subject(one))


def _share(engine: PolicyEngine, one: Policy, other: Policy, pods: set[PodKey]) -> bool:
    way = any(one.rules(way) is not None and other.rules(way) is not None for way in _BOTH)
    return way and any(pod.key in pods for pod in _selected(engine, other.subject))


def _service_addresses(engine: PolicyEngine) -> Iterator[Suspicion]:
    virtual = {ip: one.key for one in engine.objects.services for ip in one.cluster_ips if ip not in ("", "None")}
    for policy in _policies(engine):
        for path, _, rule in _rules(policy):
            nets = [net for peer in rule.peers or () if isinstance(peer, NetworksPeer) for net in peer.nets]
            single = [net for net in nets if net.endswith(("/32", "/128"))]
            for net in single:
                hit = next((f"{name} ({ip})" for ip, name in virtual.items() if contains(net, Ip(ip))), "")
                if hit:
                    message = f"{policy.ref} {path}: {net} is Service {hit}"
                    yield suspect("KP-POL-011", message, subject=_subject(policy))


def _service_ports(engine: PolicyEngine) -> Iterator[Suspicion]:
    for policy in _policies(engine):
        pods = _selected(engine, policy.subject)
        for path, direction, rule in _rules(policy):
            if direction is not Direction.INGRESS or not pods:
                continue
            for port in rule.ports or ():
                if not isinstance(port, PortMatch) or not port.first or (port.last or port.first) != port.first:
                    continue
                if any(one.port == port.first for pod in pods for one in pod.ports):
                    continue
                found = _translating(engine, pods, port)
                if found:
                    message = f"{policy.ref} {path}: port {port.first} is that of Service {found}"
                    yield suspect("KP-POL-014", message, subject=_subject(policy))


def _translating(engine: PolicyEngine, pods: list[PodMeta], port: PortMatch) -> str:
    """Return the Service that has this port and translates it to another one of these pods, or ""."""
    for service in engine.objects.services:
        chosen = service.selector and any(
            pod.namespace == service.namespace and service.selector.items() <= pod.labels.items() for pod in pods
        )
        for one in service.ports if chosen else ():
            same = one.port == port.first and port.protocol in (None, one.protocol)
            if same and one.target not in ("", str(port.first)):
                return f"{service.key}, whose pods listen on {one.target}"
    return ""


CHECKS: tuple[Callable[[PolicyEngine], Iterable[Suspicion]], ...] = (
    _dns,
    _and_or,
    _nobody,
    _port_names,
    _unenforced,
    _unread,
    _host_network,
    _same_priority,
    _service_addresses,
    _service_ports,
)
"""All checks of policies."""
