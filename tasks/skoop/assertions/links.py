"""Are the interfaces that everybody needs up? lo, the underlay, and IPv6 addresses that passed their check."""

from collections.abc import Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.scene import Scene
from tasks.skoop.model.state import Interface, Section
from tasks.skoop.model.suspicion import Level, SetLink, Suspicion
from tasks.skoop.model.trace import Place, Stage


def link_suspicions(scene: Scene) -> Iterator[Suspicion]:
    """Yield interfaces that are down, without carrier, or with an address that does not answer."""
    if scene.netns.lacks(Section.LINKS) is not None:
        return
    for link in scene.netns.interfaces:
        place = Place(netns=scene.id, stage=Stage.LINK, dev=link.name, key=link.name)
        if link.name == "lo" and not link.up:
            yield suspect(
                "KP-LINK-002",
                f"lo is down in {scene.name}",
                subject=scene.id,
                place=place,
                seen="down",
                expected="up",
                changes=(SetLink(netns=scene.id, dev="lo", up=True),),
            )
        elif _is_underlay(scene, link):
            yield from _underlay(scene, link, place)
        for address in link.addresses:
            if address.dadfailed:
                yield suspect(
                    "KP-ADDR-005",
                    f"{address.ip} on {link.name} of {scene.name} failed duplicate address detection",
                    subject=scene.id,
                    place=place,
                    seen="dadfailed",
                    level=Level.INFO if address.scope == "link" else None,
                )


def _is_underlay(scene: Scene, link: Interface) -> bool:
    return scene.node is not None and any(address.ip in scene.node.ips for address in link.addresses)


def _underlay(scene: Scene, link: Interface, place: Place) -> Iterator[Suspicion]:
    if not link.up:
        yield suspect(
            "KP-LINK-001",
            f"{link.name} of {scene.name}, which has the node's address, is down",
            subject=scene.id,
            place=place,
            seen="down",
            expected="up",
            changes=(SetLink(netns=scene.id, dev=link.name, up=True),),
        )
    elif not link.carrier:
        yield suspect(
            "KP-LINK-010",
            f"{link.name} of {scene.name}, which has the node's address, has no carrier",
            subject=scene.id,
            place=place,
            seen="NO-CARRIER",
        )
