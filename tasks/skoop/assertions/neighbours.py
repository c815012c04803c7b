"""Do neighbour entries tell the truth? Compared with the MACs that the owners of the addresses really have."""

from collections.abc import Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.scene import Scene
from tasks.skoop.model.addr import Mac, ip_version, is_link_local
from tasks.skoop.model.state import Neighbour, NeighbourState, Section
from tasks.skoop.model.suspicion import SetNeighbour, Suspicion
from tasks.skoop.model.trace import Place, Stage

UNUSABLE = frozenset((NeighbourState.FAILED, NeighbourState.INCOMPLETE, NeighbourState.NONE))
NEARLY_FULL = 0.9


def neighbour_suspicions(scene: Scene) -> Iterator[Suspicion]:
    """Yield entries with a MAC that their owner does not have, owners that did not answer, and a table near its limit."""
    if scene.netns.lacks(Section.NEIGHBOURS) is not None:
        return
    for entry in scene.netns.neighbours:
        if not entry.proxy and not is_link_local(entry.ip):
            yield from _entry(scene, entry)
    yield from _room(scene)


def _entry(scene: Scene, entry: Neighbour) -> Iterator[Suspicion]:
    macs = _macs_of_owner(scene, entry)
    if not macs:
        return
    place = Place(netns=scene.id, stage=Stage.NEIGHBOUR, dev=entry.dev, key=entry.ip)
    if entry.state in UNUSABLE or entry.mac is None:
        yield suspect(
            "KP-NEIGH-002",
            f"{entry.ip} did not answer {scene.name} on {entry.dev}",
            subject=scene.id,
            place=place,
            seen=f"{entry.ip} dev {entry.dev} {entry.state}",
        )
    elif entry.mac not in macs:
        right = min(macs)
        yield suspect(
            "KP-NEIGH-001",
            f"{scene.name} takes {entry.mac} for the MAC of {entry.ip} on {entry.dev}; its owner has {right}",
            subject=scene.id,
            place=place,
            seen=f"{entry.ip} dev {entry.dev} lladdr {entry.mac} {entry.state}",
            expected=f"lladdr {right}",
            changes=(SetNeighbour(netns=scene.id, ip=entry.ip, dev=entry.dev, mac=right, state=NeighbourState.STALE),),
        )


def _macs_of_owner(scene: Scene, entry: Neighbour) -> set[Mac]:
    """Return the MACs of the one other namespace that has the address; nothing if none or several have it.

    Any of its MACs will do, since a host may answer for an address of another of its interfaces (arp_ignore 0); the one of the
    interface that has the address alone where that is a tunnel's or a bridge's, whose MAC is on no other link.
    """
    owners = [owner.netns for owner in scene.cluster.ipcache.owners(entry.ip) if owner.netns is not None]
    if len(set(owners)) != 1 or owners[0] == scene.id:
        return set()
    netns = scene.cluster.state.netns.get(owners[0])
    links = netns.interfaces if netns is not None else ()
    holder = next((link for link in links if any(address.ip == entry.ip for address in link.addresses)), None)
    if holder is not None and holder.vxlan is not None:
        return {holder.mac} if holder.mac else set()
    return {link.mac for link in links if link.mac and link.name != "lo"}


def _room(scene: Scene) -> Iterator[Suspicion]:
    """Each family has one table for the whole host, permanent entries left out (neigh_alloc: exempt_from_gc)."""
    for family in (4, 6):
        yield from _room_of(scene, family)


def _room_of(scene: Scene, family: int) -> Iterator[Suspicion]:
    key = f"net/ipv{family}/neigh/default/gc_thresh3"
    limit = scene.sysctl(key)
    if scene.node is None or limit is None or not limit.isdigit():
        return
    on_host = [scene.id, *(pod.netns for pod in scene.cluster.pods_on(scene.node.name))]
    count = sum(
        ip_version(entry.ip) == family and entry.state != NeighbourState.PERMANENT and not entry.proxy
        for netns in on_host
        if (known := scene.cluster.state.netns.get(netns)) is not None
        for entry in known.neighbours
    )
    if count >= int(limit) * NEARLY_FULL:
        yield suspect(
            "KP-NEIGH-003",
            f"the neighbour table of {scene.name} for IPv{family} holds {count} entries, the limit is {limit}",
            subject=scene.id,
            place=Place(netns=scene.id, stage=Stage.SYSCTL, key=key),
            seen=str(count),
            expected=f"well below {limit}",
        )
