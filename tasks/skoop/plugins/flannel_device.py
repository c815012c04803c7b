"""Is a node's vxlan device as flanneld makes it, and does the node masquerade for its pods?"""

from collections import Counter
from collections.abc import Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.rules import network, tables_of
from tasks.skoop.model.addr import Net, bounds, ip_version
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId, NodeName, node_netns
from tasks.skoop.model.state import Interface, NetNS, Section
from tasks.skoop.model.suspicion import ForgetPathMtu, InsertRule, SetLink, Suspicion
from tasks.skoop.model.trace import Place, Stage
from tasks.skoop.plugins.flannel_config import FlannelConfig, FlannelNode, underlay_device


def device_suspicions(
    state: ClusterState, config: FlannelConfig, netns: NetNS, node: FlannelNode
) -> Iterator[Suspicion]:
    """Yield what is wrong with the node's own vxlan device."""
    if netns.lacks(Section.LINKS) is not None or not node.pod_cidrs:
        return
    name = config.device(node.vni)
    link = netns.interface(name)
    place = Place(netns=netns.id, stage=Stage.TUNNEL, dev=name, key=name)
    if link is None:
        message = f"{node.name} has no device {name}"
        yield suspect("KP-VXLAN-001", message, subject=netns.id, place=place, expected=f"{name}, vxlan id {node.vni}")
        return
    if not link.up:
        change = SetLink(netns=netns.id, dev=name, up=True)
        message = f"{name} on {node.name} is down"
        yield suspect(
            "KP-VXLAN-002", message, subject=netns.id, place=place, seen="down", expected="up", changes=(change,)
        )
    yield from _settings(config, netns.id, node, link, place)
    yield from _mac_and_address(netns.id, node, link, place)
    yield from _mtu(state, config, netns, node, link)
    yield from _strangers(config, netns, node, link)


def _settings(
    config: FlannelConfig, netns: NetnsId, node: FlannelNode, link: Interface, place: Place
) -> Iterator[Suspicion]:
    vxlan = link.vxlan
    if vxlan is None:
        return
    if vxlan.vni != node.vni:
        yield suspect(
            "KP-VXLAN-003",
            f"{link.name} on {node.name} uses VNI {vxlan.vni}, announced is {node.vni}",
            subject=netns,
            place=place,
            seen=str(vxlan.vni),
            expected=str(node.vni),
        )
    if vxlan.port != config.port:
        yield suspect(
            "KP-VXLAN-004",
            f"{link.name} on {node.name} uses UDP port {vxlan.port}, the others {config.port}",
            subject=netns,
            place=place,
            seen=str(vxlan.port),
            expected=str(config.port),
        )
    if vxlan.local is not None and node.public_ip is not None and vxlan.local != node.public_ip:
        yield suspect(
            "KP-VXLAN-005",
            f"{link.name} on {node.name} sends from {vxlan.local}, announced is {node.public_ip}",
            subject=netns,
            place=place,
            seen=vxlan.local,
            expected=node.public_ip,
        )


def _mac_and_address(netns: NetnsId, node: FlannelNode, link: Interface, place: Place) -> Iterator[Suspicion]:
    if node.vtep_mac and link.mac and link.mac != node.vtep_mac:
        yield suspect(
            "KP-VXLAN-006",
            f"{link.name} on {node.name} has the MAC {link.mac}, announced is {node.vtep_mac}",
            subject=netns,
            place=place,
            seen=link.mac,
            expected=node.vtep_mac,
        )
    own = [address for address in link.addresses if ip_version(address.ip) == node.family]
    if node.gateway and link.up and not any(address.ip == node.gateway for address in own):
        yield suspect(
            "KP-VXLAN-012",
            f"{link.name} on {node.name} does not have the address {node.gateway}",
            subject=netns,
            place=place,
            seen=", ".join(address.ip for address in own) or "none",
            expected=node.gateway,
        )


def _strangers(config: FlannelConfig, netns: NetNS, node: FlannelNode, link: Interface) -> Iterator[Suspicion]:
    """Report forwarding entries that lead to no node of the cluster."""
    known = {peer.public_ip for peer in config.nodes.values()}
    for entry in netns.fdb:
        if entry.dev == link.name and entry.master is None and entry.dst is not None and entry.dst not in known:
            yield suspect(
                "KP-VXLAN-011",
                f"{link.name} on {node.name} has an entry for {entry.mac} at {entry.dst}, which is no node",
                subject=netns.id,
                place=Place(netns=netns.id, stage=Stage.TUNNEL, dev=link.name, key=entry.mac),
                seen=f"{entry.mac} dst {entry.dst}",
            )


def _mtu(
    state: ClusterState, config: FlannelConfig, netns: NetNS, node: FlannelNode, link: Interface
) -> Iterator[Suspicion]:
    """Compare the device with the node's own underlay, and that with the other nodes' (a receiver drops what is longer)."""
    under = underlay_device(netns, node.public_ip, link)
    if under is None:
        return
    usual = usual_underlay_mtu(state, config)
    if usual is not None and under.mtu < usual:
        yield suspect(
            "KP-LINK-014",
            f"{under.name} on {node.name} has the MTU {under.mtu}, the other nodes use {usual}",
            subject=netns.id,
            place=Place(netns=netns.id, stage=Stage.MTU, dev=under.name, key=under.name),
            seen=str(under.mtu),
            expected=str(usual),
            changes=(SetLink(netns=netns.id, dev=under.name, mtu=usual), *_forget(state, under.mtu)),
        )
    most = under.mtu - config.headroom
    if link.mtu > most:
        yield suspect(
            "KP-VXLAN-007",
            f"{link.name} on {node.name} has the MTU {link.mtu}, but {under.name} carries {most} bytes inside vxlan",
            subject=netns.id,
            place=Place(netns=netns.id, stage=Stage.MTU, dev=link.name, key=link.name),
            seen=str(link.mtu),
            expected=f"at most {most}",
            changes=(SetLink(netns=netns.id, dev=link.name, mtu=most),),
        )


def _forget(state: ClusterState, mtu: int) -> Iterator[ForgetPathMtu]:
    """Yield the changes that make namespaces forget path MTUs which the small device taught them."""
    for netns in state.netns.values():
        if any(0 < known.mtu <= mtu for known in netns.route_exceptions) and not netns.id.startswith("host/"):
            yield ForgetPathMtu(netns=netns.id)


def usual_underlay_mtu(state: ClusterState, config: FlannelConfig) -> int | None:
    """Return the MTU that most nodes have on the underlay (the larger one if it is a draw), None if none is known."""
    found: Counter[int] = Counter()
    for peer in config.nodes.values():
        netns = state.netns.get(node_netns(peer.name))
        under = underlay_device(netns, peer.public_ip) if netns is not None else None
        if under is not None:
            found[under.mtu] += 1
    return max(found, key=lambda mtu: (found[mtu], mtu)) if found else None


def masquerade_suspicions(
    state: ClusterState, config: FlannelConfig, netns: NetNS, node: NodeName
) -> Iterator[Suspicion]:
    """Yield a warning if no rule masquerades for this node's pods, though flannel is set to, or other nodes do."""
    own = config.nodes[node]
    if not own.pod_cidrs or netns.lacks(Section.IPTABLES) is not None or _masquerades(config, netns, own.pod_cidrs[0]):
        return
    if not config.masquerade.get(node, _others_masquerade(state, config, node)):
        return
    views = tables_of(netns, "nat", config.family)
    if any(table.hooks for table in netns.nft):
        return  # newer flannel masquerades in native nftables
    pods = config.network or own.pod_cidrs[0]
    raw = f'-s {pods} ! -d {pods} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully'
    changes = [
        InsertRule(
            netns=netns.id, backend=view.backend, family=view.family, table="nat", chain="POSTROUTING", rule=0, raw=raw
        )
        for view in views[:1]
    ]
    yield suspect(
        "KP-NF-007",
        f"no rule on {node} masquerades what pods ({pods}) send to the outside",
        subject=netns.id,
        place=views[0].place("POSTROUTING", hook="POSTROUTING") if views else None,
        seen="no MASQUERADE or SNAT rule for this source after POSTROUTING",
        expected=f"-A POSTROUTING {raw}",
        changes=changes,
    )


def _masquerades(config: FlannelConfig, netns: NetNS, pods: Net) -> bool:
    for view in tables_of(netns, "nat", config.family):
        for _, _, rule in view.reachable("POSTROUTING"):
            source = network(rule, "src")
            if rule.target.name in ("MASQUERADE", "SNAT") and source is not None and _covers(source, pods):
                return True
    return False


def _others_masquerade(state: ClusterState, config: FlannelConfig, node: NodeName) -> bool:
    """Say whether the other nodes masquerade for their pods: the usage, where no configuration tells."""
    others = [
        (netns, peer.pod_cidrs[0])
        for peer in config.nodes.values()
        if peer.name != node and peer.pod_cidrs and (netns := state.netns.get(node_netns(peer.name))) is not None
    ]
    return bool(others) and all(_masquerades(config, netns, pods) for netns, pods in others)


def _covers(outer: Net, inner: Net) -> bool:
    wide, narrow = bounds(outer), bounds(inner)
    return wide.version == narrow.version and wide.first <= narrow.first and narrow.last <= wide.last
