"""What do people call the ends of a connection? Names, as they are written on a command line, turned into endpoints.

One grammar, tried in this order: a kind and a slash (`svc/shop/cart:80`), an address, a DNS name inside the cluster, a pod as
`namespace/name`, and last a bare name, which may be a pod's (or the unique beginning of one), a Service's, a node's or a
host's. A name that means two things is refused with both listed; one that means nothing, with the nearest that exist.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.errors import RequestError
from tasks.skoop.model.addr import AddressError, Ip, ip_version, is_link_local, is_loopback, parse_ip
from tasks.skoop.model.cluster import ClusterState, PodMeta, Service
from tasks.skoop.model.endpoint import Endpoint, EndpointType
from tasks.skoop.model.ids import NetnsId, node_netns

KINDS: Mapping[str, str] = {
    **dict.fromkeys(("pod", "pods", "po"), "pod"),
    **dict.fromkeys(("svc", "service", "services"), "service"),
    **dict.fromkeys(("node", "nodes", "no"), "node"),
    **dict.fromkeys(("host", "hosts"), "host"),
    **dict.fromkeys(("deploy", "deployment", "deployments"), "Deployment"),
    **dict.fromkeys(("sts", "statefulset", "statefulsets"), "StatefulSet"),
    **dict.fromkeys(("ds", "daemonset", "daemonsets"), "DaemonSet"),
    **dict.fromkeys(("rs", "replicaset", "replicasets"), "ReplicaSet"),
    **dict.fromkeys(("job", "jobs"), "Job"),
}
"""What may stand before the first slash → what it means."""

WORKLOADS = frozenset(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"))
TEMPLATE_HASH = re.compile(r"-[a-z0-9]{1,10}$")
"""The suffix that a Deployment gives to the names of its ReplicaSets."""
BRACKETED = re.compile(r"^\[([^\]]+)\](?::(\w[\w-]*))?$")
CLUSTER_DOMAINS = (".svc.cluster.local", ".svc")
MAX_SHOWN = 8


class Target(Struct, frozen=True, kw_only=True):
    """One object that a name means. `endpoints` has one per family, IPv4 first; `ports` maps port names to numbers."""

    name: str
    type: EndpointType
    endpoints: tuple[Endpoint, ...]
    ports: Mapping[str, int] = {}


class UnknownNameError(RequestError):
    """Nothing has this name; `near` are names that exist and look like it."""

    def __init__(self, text: str, near: Sequence[str], what: str = "") -> None:
        self.text = text
        self.near = tuple(near)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "names look like ns/pod, svc/ns/name, node/name or 10.0.0.1"
        )
        super().__init__(f"nothing here is called {text!r}{f' ({what})' if what else ''}; {hint}")


class AmbiguousNameError(RequestError):
    """A name means several things; `candidates` are ways to write each without doubt."""

    def __init__(self, text: str, candidates: Sequence[str]) -> None:
        self.text = text
        self.candidates = tuple(candidates)
        shown = ", ".join(candidates[:MAX_SHOWN]) + (" …" if len(candidates) > MAX_SHOWN else "")
        super().__init__(f"{text!r} may be any of {shown}; write one of these")


class NoAddressError(RequestError):
    """An object has no address (of the family that was asked for)."""

    def __init__(self, text: str, why: str) -> None:
        self.text = text
        self.why = why
        super().__init__(f"{text!r} has no address to use: {why}")


class PortError(RequestError):
    """A port is no number, no name of a port of that object, or contradicts another one that was given."""

    def __init__(self, text: str, why: str) -> None:
        self.text = text
        self.why = why
        super().__init__(f"port of {text!r}: {why}")


class Naming:
    """Names of one collected state. `lookup` says whose an address is."""

    def __init__(self, state: ClusterState, lookup: Callable[[str], Endpoint | None]) -> None:
        self._state = state
        self._lookup = lookup

    def resolve(
        self, text: str, *, port: int | None, default_namespace: str, family: int | None
    ) -> tuple[Endpoint, ...]:
        """Return one endpoint per object (IPCache.resolve)."""
        found = []
        for target in self.targets(text, default_namespace=default_namespace):
            fitting = [end for end in target.endpoints if family in (None, ip_version(end.ip))]
            if not fitting:
                why = f"no IPv{family} address" if target.endpoints else "none was recorded or collected"
                raise NoAddressError(target.name, why)
            end = fitting[0]
            if port is not None and end.port not in (0, port) and _has_port(text):
                raise PortError(text, f"both {end.port} and {port} were given; leave one out")
            found.append(replace(end, port=end.port if port is None else port))
        return tuple(found)

    def targets(self, text: str, *, default_namespace: str) -> tuple[Target, ...]:
        """Return the objects that a name means (IPCache.targets)."""
        text = text.strip()
        if not text:
            raise UnknownNameError(text, (), "the name is empty")
        address = _address(text)
        if address is not None:
            return (self._of_address(*address),)
        name, port = _split_port(text)
        found = self._of_name(name, default_namespace)
        return tuple(_with_port(target, port, text) for target in found)

    def _of_address(self, ip: Ip, port: int) -> Target:
        end = self._lookup(ip) or Endpoint(ip=ip)
        return Target(name=end.name or ip, type=end.type, endpoints=(replace(end, port=port),))

    def _of_name(self, name: str, namespace: str) -> tuple[Target, ...]:
        head, slash, rest = name.partition("/")
        kind = KINDS.get(head) if slash else None
        if kind == "node":
            return (self._pick(name, (self._nodes.get(rest),)),)
        if kind == "host":
            return (self._pick(name, (self._hosts.get(rest),)),)
        if kind is not None:
            inner = rest if "/" in rest else f"{namespace}/{rest}"
            if kind == "service":
                return self._service(name, inner)
            if kind in WORKLOADS:
                return self._workload(name, kind, inner)
            return (self._pod(name, inner),)
        if slash:
            return (self._pod(name, name),)
        return self._dns(name) or self._bare(name, namespace)

    def _pick(self, text: str, found: Iterable[Target | None]) -> Target:
        targets = [target for target in found if target is not None]
        if not targets:
            raise UnknownNameError(text, self._near(text))
        return targets[0]

    # --- kinds ---------------------------------------------------------------------------------------------------

    def _pod(self, text: str, key: str) -> Target:
        """Return the pod of that key, or the only one whose key begins with it."""
        exact = self._pods.get(key)
        if exact is not None:
            return exact
        begins = sorted(known for known in self._pods if known.startswith(key))
        if len(begins) > 1:
            raise AmbiguousNameError(text, begins)
        if not begins or key.endswith("/"):
            raise UnknownNameError(text, self._near(text))
        return self._pods[begins[0]]

    def _workload(self, text: str, kind: str, key: str) -> tuple[Target, ...]:
        namespace, _, name = key.partition("/")
        found = [
            self._pods[pod.key]
            for pod in self._state.objects.pods
            if pod.namespace == namespace and pod.key in self._pods and name in _owners(pod, kind)
        ]
        if not found:
            near = get_close_matches(key, sorted(self._workload_keys(kind)), 3, 0.5)
            raise UnknownNameError(
                text, [f"{text.partition('/')[0]}/{name}" for name in near], f"no pod of such a {kind}"
            )
        return tuple(found)

    def _workload_keys(self, kind: str) -> set[str]:
        return {f"{pod.namespace}/{owner}" for pod in self._state.objects.pods for owner in _owners(pod, kind)}

    def _service(self, text: str, key: str) -> tuple[Target, ...]:
        service = self._services.get(key)
        if service is None:
            near = get_close_matches(key, sorted(self._services), 3, 0.5)
            raise UnknownNameError(text, [f"svc/{name}" for name in near])
        return self._of_service(text, service)

    def _of_service(self, text: str, service: Service, seen: tuple[str, ...] = ()) -> tuple[Target, ...]:
        if service.type == "ExternalName":
            if service.key in seen:
                raise NoAddressError(text, f"its names lead in a circle ({' → '.join(seen)})")
            inner = self._dns(service.external_name.rstrip("."), (*seen, service.key))
            if not inner:
                raise NoAddressError(
                    text, f"it is an alias for {service.external_name}, which lies outside the cluster"
                )
            return inner
        ports = {port.name: port.port for port in service.ports if port.name}
        if "None" in service.cluster_ips:
            return tuple(replace(target, ports={}) for target in self._backends(text, service))
        ips = [parse_ip(ip) for ip in service.cluster_ips if ip]
        return (_target(service.key, EndpointType.SERVICE, ips, None, ports, _only_port(service)),)

    def _backends(self, text: str, service: Service) -> list[Target]:
        """Return what the DNS name of a headless Service means: its ready endpoints."""
        found: dict[str, Target] = {}
        for piece in self._state.objects.endpoint_slices:
            if (piece.namespace, piece.service) == (service.namespace, service.name):
                for endpoint in piece.endpoints:
                    if endpoint.ready or service.publish_not_ready:
                        for ip in endpoint.addresses:
                            target = self._of_address(ip, piece.ports[0].port if len(piece.ports) == 1 else 0)
                            found.setdefault(target.name, target)
        if not found:
            raise NoAddressError(text, "it is headless and has no ready endpoint")
        return list(found.values())

    # --- DNS and bare names --------------------------------------------------------------------------------------

    def _dns(self, name: str, seen: tuple[str, ...] = ()) -> tuple[Target, ...]:
        """Return what cluster DNS says of `service.namespace.svc…`, `pod.service.namespace.svc…`, `a-b-c-d.namespace.pod…`."""
        name = name.rstrip(".")
        if name.endswith((".pod.cluster.local", ".pod")):
            dashed = name.partition(".")[0]
            for separator in (".", ":"):
                address = _address(dashed.replace("-", separator))
                if address is not None:
                    return (self._of_address(*address),)
        for domain in CLUSTER_DOMAINS:
            if name.endswith(domain):
                labels = name.removesuffix(domain).split(".")
                if len(labels) == 2:
                    service = self._services.get(f"{labels[1]}/{labels[0]}")
                    if service is not None:
                        return self._of_service(name, service, seen)
                elif len(labels) == 3 and f"{labels[2]}/{labels[0]}" in self._pods:
                    return (self._pods[f"{labels[2]}/{labels[0]}"],)
                raise UnknownNameError(name, self._near(name), "no such Service")
        return ()

    def _bare(self, name: str, namespace: str) -> tuple[Target, ...]:
        """Return what a name without namespace means; in the default namespace first, then anywhere."""
        service, _, inside = name.partition(".")
        if inside and f"{inside}/{service}" in self._services:
            return self._of_service(name, self._services[f"{inside}/{service}"])
        candidates: dict[str, tuple[Target, ...]] = {}
        if name in self._nodes:
            candidates[f"node/{name}"] = (self._nodes[name],)
        if name in self._hosts:
            candidates[f"host/{name}"] = (self._hosts[name],)
        for where in (namespace, None):
            for begin in (False, True):
                pods = self._named(self._pods, name, where, begin=begin)
                services = () if begin else self._named(self._services, name, where, begin=False)
                candidates.update({f"pod/{key}": (self._pods[key],) for key in pods})
                candidates.update({f"svc/{key}": () for key in services})
                if len(candidates) == 1:
                    only = next(iter(candidates))
                    return candidates[only] or self._service(name, only.removeprefix("svc/"))
                if candidates:
                    raise AmbiguousNameError(name, sorted(candidates))
        raise UnknownNameError(name, self._near(name))

    @staticmethod
    def _named(keys: Iterable[str], name: str, namespace: str | None, *, begin: bool) -> list[str]:
        found = []
        for key in keys:
            inside, _, own = key.partition("/")
            if (own.startswith(name) if begin else own == name) and namespace in (None, inside):
                found.append(key)
        return sorted(found)

    # --- tables --------------------------------------------------------------------------------------------------

    @cached_property
    def _pods(self) -> dict[str, Target]:
        return {pod.key: self._pod_target(pod) for pod in self._state.objects.pods}

    def _pod_target(self, pod: PodMeta) -> Target:
        ports = {port.name: port.port for port in pod.ports if port.name}
        ips = pod.ips or self._collected(pod.netns)
        return _target(pod.key, EndpointType.POD, ips, pod.netns, ports, 0)

    @cached_property
    def _services(self) -> dict[str, Service]:
        return {service.key: service for service in self._state.objects.services}

    @cached_property
    def _nodes(self) -> dict[str, Target]:
        table = {}
        for node in self._state.objects.nodes:
            netns = node_netns(node.name)
            table[str(node.name)] = _target(
                node.name, EndpointType.NODE, node.ips or self._collected(netns), netns, {}, 0
            )
        return table

    @cached_property
    def _hosts(self) -> dict[str, Target]:
        return {
            netns.removeprefix("host/"): _target(
                netns.removeprefix("host/"), EndpointType.EXTERNAL, self._collected(netns), netns, {}, 0
            )
            for netns in self._state.netns
            if netns.startswith("host/")
        }

    def _collected(self, netns_id: str) -> tuple[Ip, ...]:
        netns = next((known for key, known in self._state.netns.items() if key == netns_id), None)
        links = netns.interfaces if netns else ()
        found = [address.ip for link in links for address in link.addresses]
        return tuple(ip for ip in found if not is_loopback(ip) and not is_link_local(ip))

    def _near(self, text: str) -> list[str]:
        known = [
            *self._pods,
            *(f"svc/{key}" for key in self._services),
            *(f"node/{name}" for name in self._nodes),
            *(f"host/{name}" for name in self._hosts),
        ]
        short = {key.rpartition("/")[2]: key for key in known}
        near = get_close_matches(text, known, 3, 0.5)
        near += [short[name] for name in get_close_matches(text.rpartition("/")[2], list(short), 3, 0.6)]
        return list(dict.fromkeys(near))[:3]


def _target(
    name: str, kind: EndpointType, ips: Iterable[str], netns: str | None, ports: Mapping[str, int], port: int
) -> Target:
    ordered = sorted(dict.fromkeys(ips), key=ip_version)
    ends = (
        Endpoint(ip=Ip(ip), type=kind, port=port, name=name, netns=None if netns is None else NetnsId(netns))
        for ip in ordered
    )
    return Target(name=name, type=kind, endpoints=tuple(ends), ports=ports)


def _only_port(service: Service) -> int:
    """Return the Service's port if there is no choice."""
    numbers = {port.port for port in service.ports}
    return numbers.pop() if len(numbers) == 1 else 0


def _owners(pod: PodMeta, kind: str) -> tuple[str, ...]:
    """Return the names of workloads of a kind that may own a pod (a Deployment is known by its ReplicaSet's name)."""
    owner_kind, _, owner = pod.owner.partition("/")
    if kind == "Deployment" and owner_kind == "ReplicaSet":
        return (TEMPLATE_HASH.sub("", owner),)
    return (owner,) if owner_kind == kind else ()


def _address(text: str) -> tuple[Ip, int] | None:
    """Return (address, port or 0) of text that is an address, else None. Raises PortError for a bad port."""
    bracketed = BRACKETED.match(text)
    if bracketed is not None:
        host, port = bracketed.group(1), bracketed.group(2) or ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    try:
        return parse_ip(host), _port_number(port, text) if port else 0
    except AddressError:
        return None


def _split_port(text: str) -> tuple[str, str]:
    name, _, port = text.partition(":")
    return name, port


def _has_port(text: str) -> bool:
    address = _address(text)
    return bool(address[1]) if address is not None else bool(_split_port(text)[1])


def _port_number(port: str, text: str) -> int:
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise PortError(text, f"{port!r} is not a number from 1 to 65535")
    return int(port)


def _with_port(target: Target, port: str, text: str) -> Target:
    """Give every endpoint the port that the text names, by number or by its name in the object."""
    if not port:
        return target
    number = target.ports.get(port)
    if number is None:
        if not port.isdigit():
            known = ", ".join(sorted(target.ports)) or "none"
            raise PortError(text, f"{target.name} has no port called {port!r} (its ports have the names: {known})")
        number = _port_number(port, text)
    return replace(target, endpoints=tuple(replace(end, port=number) for end in target.endpoints))
