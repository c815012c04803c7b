"""Do the kernel's switches let a node route for its pods? Forwarding, reverse path filter, bridge and iptables, IPv6."""

from collections.abc import Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.rules import tables_of
from tasks.skoop.assertions.scene import Scene
from tasks.skoop.model.addr import Ip, ip_version
from tasks.skoop.model.state import Interface, Section
from tasks.skoop.model.suspicion import Change, SetSysctl, Suspicion
from tasks.skoop.model.trace import Place, Stage


def sysctl_suspicions(scene: Scene) -> Iterator[Suspicion]:
    """Yield what the switches of a namespace stop."""
    if not scene.netns.sysctls or scene.netns.lacks(Section.SYSCTLS) is not None:
        return
    if scene.carries_pods():
        if 4 in scene.cluster.families:
            yield from _forwarding(scene)
            yield from _reverse_path(scene)
        if 6 in scene.cluster.families:
            yield from _forwarding6(scene)
        yield from _bridge(scene)
    yield from _echo(scene)


def _change(scene: Scene, key: str, value: str) -> tuple[Change, ...]:
    return (SetSysctl(netns=scene.id, key=key, value=value),)


def _place(scene: Scene, key: str) -> Place:
    return Place(netns=scene.id, stage=Stage.SYSCTL, key=key, text=f"{key.replace('/', '.')} = {scene.sysctl(key)}")


def _routed(scene: Scene) -> list[Interface]:
    """Return the interfaces on which packets come in that the node should forward."""
    return [
        link
        for link in scene.netns.interfaces
        if link.name != "lo" and link.master is None and link.up and any(ip_version(a.ip) == 4 for a in link.addresses)
    ]


def _forwarding(scene: Scene) -> Iterator[Suspicion]:
    routed = _routed(scene)
    off = [link for link in routed if scene.sysctl(f"net/ipv4/conf/{link.name}/forwarding") == "0"]
    if scene.sysctl("net/ipv4/ip_forward") == "0" and len(off) == len(routed):
        key = "net/ipv4/ip_forward"
        yield suspect(
            "KP-SYSCTL-001",
            f"IP forwarding is off on {scene.name}: it routes nothing for its pods",
            subject=scene.id,
            place=_place(scene, key),
            seen="0",
            expected="1",
            changes=_change(scene, key, "1"),
        )
        return
    for link in off:
        key = f"net/ipv4/conf/{link.name}/forwarding"
        yield suspect(
            "KP-SYSCTL-007",
            f"{scene.name} does not forward what comes in on {link.name}",
            subject=scene.id,
            place=_place(scene, key),
            seen="0",
            expected="1",
            changes=_change(scene, key, "1"),
        )


def _forwarding6(scene: Scene) -> Iterator[Suspicion]:
    key = "net/ipv6/conf/all/forwarding"
    if scene.sysctl(key) == "0":
        yield suspect(
            "KP-SYSCTL-008",
            f"IPv6 forwarding is off on {scene.name}",
            subject=scene.id,
            place=_place(scene, key),
            seen="0",
            expected="1",
            changes=_change(scene, key, "1"),
        )
    for link in scene.netns.interfaces:
        key = f"net/ipv6/conf/{link.name}/disable_ipv6"
        pods = scene.node.pod_cidrs if scene.node is not None else ()
        bridge = scene.pod_bridge()
        if bridge is not None and link.name == bridge.name and scene.sysctl(key) == "1":
            yield suspect(
                "KP-SYSCTL-005",
                f"IPv6 is disabled on {link.name} of {scene.name}, which carries {', '.join(pods)}",
                subject=scene.id,
                place=_place(scene, key),
                seen="1",
                expected="0",
                changes=_change(scene, key, "0"),
            )


def _strictness(scene: Scene, dev: str) -> int:
    """Return the effective rp_filter: the larger of all's and the interface's."""
    values = [scene.sysctl(f"net/ipv4/conf/{name}/rp_filter") or "0" for name in ("all", dev)]
    return max(int(value) for value in values if value.isdigit()) if all(v.isdigit() for v in values) else 0


def _reverse_path(scene: Scene) -> Iterator[Suspicion]:
    """Report strict filters that drop packets of other nodes' pods, by the way those really take to this node."""
    assert scene.node is not None, "it carries pods"
    seen: set[str] = set()
    for peer in scene.peers():
        source, target = _pod_address(peer), _pod_address(scene)
        dev = _arrives_on(scene, peer, source, target)
        if source is None or dev is None or dev in seen or _strictness(scene, dev) != 1:
            continue
        back = scene.lookup(source, src=target)
        ways = {leg.dev for leg in back.legs} if back is not None else set()
        if dev not in ways:
            seen.add(dev)
            key = f"net/ipv4/conf/{dev}/rp_filter"
            yield suspect(
                "KP-SYSCTL-002",
                f"{scene.name} drops what pods of {peer.name} send: it arrives on {dev}, "
                f"the way back is {' or '.join(sorted(ways)) or 'unknown'}, and the reverse path filter is strict",
                subject=scene.id,
                place=_place(scene, key),
                seen="1 (strict)",
                expected="2 (loose), or symmetric routes",
                changes=_change(scene, key, "2"),
            )


def _pod_address(scene: Scene) -> Ip | None:
    if scene.node is None:
        return None
    for pod in scene.cluster.pods_on(scene.node.name):
        for ip in pod.ips:
            if ip_version(ip) == 4:
                return ip
    return None


def _arrives_on(scene: Scene, peer: Scene, source: Ip | None, target: Ip | None) -> str | None:
    """Return the interface of this node on which a packet of the peer's pod comes in, None if it cannot be told."""
    if source is None or target is None:
        return None
    bridge = peer.pod_bridge()
    found = peer.lookup(target, src=source, iif=bridge.name if bridge else "")
    if found is None or not found.legs:
        return None
    hop = found.legs[0].nexthop
    out = peer.netns.interface(hop.dev or "")
    if out is None:
        return None
    if out.vxlan is not None:
        same = (link for link in scene.netns.interfaces if link.vxlan is not None and link.vxlan.vni == out.vxlan.vni)
        return next((link.name for link in same), None)
    wanted = hop.via or target
    for link in scene.netns.interfaces:
        if any(address.ip == wanted for address in link.addresses):
            return link.name
    return None


def _bridge(scene: Scene) -> Iterator[Suspicion]:
    """Report a pod bridge whose frames pass iptables by, on a node that translates Services in iptables or nftables."""
    bridge = scene.pod_bridge()
    if bridge is None:
        return
    translates = any("KUBE-SERVICES" in view.chains for view in tables_of(scene.netns, "nat"))
    translates = translates or any(table.name == "kube-proxy" for table in scene.netns.nft)
    own = bridge.bridge is not None and bridge.bridge.nf_call_iptables
    key = "net/bridge/bridge-nf-call-iptables"
    if translates and not own and scene.sysctl(key) in ("0", None):
        value = scene.sysctl(key)
        yield suspect(
            "KP-SYSCTL-003",
            f"frames between pods of {scene.name} do not pass iptables: answers of a Service's backend on the client's "
            "own node keep the backend's address",
            subject=scene.id,
            place=_place(scene, key),
            seen="0" if value == "0" else "the sysctl does not exist (br_netfilter is not loaded)",
            expected="1",
            changes=_change(scene, key, "1"),
        )


def _echo(scene: Scene) -> Iterator[Suspicion]:
    key = "net/ipv4/icmp_echo_ignore_all"
    if scene.sysctl(key) == "1":
        yield suspect(
            "KP-SYSCTL-006",
            f"{scene.name} ignores echo requests",
            subject=scene.id,
            place=_place(scene, key),
            seen="1",
            expected="0",
            changes=_change(scene, key, "0"),
        )
