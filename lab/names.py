"""Whose namespace, which address: names as people type them, for a lab's own plan. Pure."""

from ipaddress import ip_address

from lab.errors import BadRequest
from lab.plan import ClusterPlan, Machine, PodPlan, ServicePlan, by_family


def things(plan: ClusterPlan) -> dict[str, Machine]:
    """Return every accepted name → what it is: `pod/shop/web-1`, `shop/web-1`, `node/n1`, `n1`, `host/ext`, `ext`."""
    found: dict[str, Machine] = {}
    for thing in plan.machines:
        found[thing.netns] = thing
        found[thing.key if isinstance(thing, PodPlan) else thing.name] = thing
    return found


def source_netns(plan: ClusterPlan, name: str) -> str:
    """Return the namespace id of a name, or of an address of the lab. Raises BadRequest."""
    known = things(plan)
    if name in known:
        return known[name].netns
    for thing in known.values():
        if name in thing.ips:
            return thing.netns
    raise BadRequest("source", name, tuple(machine.netns for machine in plan.machines))


def target_address(plan: ClusterPlan, name: str, family: int, protocol: str = "tcp") -> tuple[str, int]:
    """Return the address of a name, and its port where the name says one (0: it does not).

    `svc/ns/name[:port]` gives the cluster IP; the port is a number or a port's name, the first port of the protocol without.
    Raises BadRequest.
    """
    try:
        return str(ip_address(name)), 0
    except ValueError:
        pass
    known = things(plan)
    if name in known:
        ip = by_family(known[name].ips, family)
        if not ip:
            raise BadRequest(f"IPv{family} address of", name)
        return ip, 8080 if isinstance(known[name], PodPlan) or name.endswith("ext") else 0
    if name.startswith("svc/"):
        return _service_address(plan, name, family, protocol)
    services = tuple(f"svc/{service.key}" for service in plan.services)
    raise BadRequest("destination", name, (*known, *services))


def _service_address(plan: ClusterPlan, name: str, family: int, protocol: str) -> tuple[str, int]:
    key, _, wanted = name.removeprefix("svc/").partition(":")
    service = next((service for service in plan.services if service.key == key), None)
    if service is None:
        raise BadRequest("service", name, tuple(f"svc/{service.key}" for service in plan.services))
    if not service.number or family not in plan.families:
        raise BadRequest(f"IPv{family} cluster IP of", name)
    return service.cluster_ips((family,))[0], _port(service, wanted, protocol)


def _port(service: ServicePlan, wanted: str, protocol: str) -> int:
    if wanted.isdigit():
        return int(wanted)
    for port in service.ports:
        if wanted in ("", port.name) and (wanted or port.protocol.lower() == protocol):
            return port.port
    raise BadRequest("port", wanted or protocol, tuple(port.name for port in service.ports))
