"""Does a node's routing discard what is for pods or Services? By looking addresses up, not by reading routes."""

from collections.abc import Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.scene import Scene
from tasks.skoop.model.addr import Ip, ip_version
from tasks.skoop.model.state import Section
from tasks.skoop.model.suspicion import Change, DeletePolicyRule, DeleteRoute, Suspicion
from tasks.skoop.model.trace import Place, Stage
from tasks.skoop.netstack.fib import Found
from tasks.skoop.remedy_commands import route_text


def route_suspicions(scene: Scene) -> Iterator[Suspicion]:
    """Yield what routes and policy rules of a node discard."""
    if scene.node is None or scene.netns.lacks(Section.ROUTES) is not None or not scene.netns.routes:
        return
    yield from _discarded(scene)
    yield from _services(scene)
    for route in scene.netns.routes:
        dead = [hop for hop in route.nexthops if hop.dead or hop.linkdown]
        if len(route.nexthops) > 1 and dead:
            yield suspect(
                "KP-ROUTE-009",
                f"{len(dead)} of {len(route.nexthops)} next hops of {route.dst} on {scene.name} are dead",
                subject=scene.id,
                place=Place(netns=scene.id, stage=Stage.ROUTE, key=route.dst),
                seen=route_text(route),
            )


def _discarded(scene: Scene) -> Iterator[Suspicion]:
    """Report each route or rule that discards the address of some pod, once."""
    seen: set[str] = set()
    bridge = scene.pod_bridge()
    for pod in scene.cluster.ipcache.pods_by_netns.values():
        for ip in pod.ips:
            here = scene.node is not None and pod.node_name == scene.node.name
            found = scene.lookup(ip, src=_source(scene, ip), iif="" if here or bridge is None else bridge.name)
            if found is None or not found.errno:
                continue
            name, changes = _named(scene, found)
            if name not in seen:
                seen.add(name)
                yield suspect(
                    "KP-ROUTE-005",
                    f"{scene.name} discards packets for pods such as {pod.key} ({ip}): {name}",
                    subject=scene.id,
                    place=Place(netns=scene.id, stage=Stage.ROUTE, key=found.route.dst if found.route else name),
                    seen=name,
                    changes=changes,
                )


def _source(scene: Scene, dst: Ip) -> Ip | None:
    if scene.node is None:
        return None
    for pod in scene.cluster.pods_on(scene.node.name):
        for ip in pod.ips:
            if ip_version(ip) == ip_version(dst):
                return ip
    return None


def _named(scene: Scene, found: Found) -> tuple[str, tuple[Change, ...]]:
    if found.route is not None:
        return route_text(found.route), (DeleteRoute(netns=scene.id, route=found.route),)
    rule = found.rule
    change = DeletePolicyRule(netns=scene.id, family=rule.family, priority=rule.priority, table=rule.table)
    return f"ip rule {rule.priority} {rule.action}", (change,)


def _services(scene: Scene) -> Iterator[Suspicion]:
    """Report a node that has no route at all for a Service's address: its own processes fail before NAT."""
    for ip, services in scene.cluster.ipcache.services_by_ip.items():
        if ip in services[0].cluster_ips and (ip_version(ip) == 4 or 6 in scene.cluster.families):
            if scene.lookup(ip) is None:
                yield suspect(
                    "KP-ROUTE-007",
                    f"{scene.name} has no route for {ip} ({services[0].key}), not even a default route",
                    subject=scene.id,
                    place=Place(netns=scene.id, stage=Stage.ROUTE, key="0.0.0.0/0" if ip_version(ip) == 4 else "::/0"),
                    seen="no route",
                )
            return
