"""Where the other end of a veth, or the device below a macvlan, is: in which collected namespace, under what name.

A veth tells the ifindex of its peer and the number that this namespace has for the peer's (IFLA_LINK_NETNSID). The kernel
tells the number of a namespace that we hold open (RTM_GETNSID); its interface's name is asked for inside it.
"""

import os
import socket
from typing import Any

from msgspec.structs import replace

from tasks.skoop.collect.enter import inside
from tasks.skoop.collect.messages import Place, Request
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import Interface


def resolve_peers(netlink: Any, interfaces: tuple[Interface, ...], request: Request) -> tuple[Interface, ...]:  # noqa: ANN401 -- pyroute2 is untyped
    """Return the interfaces with `peer` (and `lower_at` of macvlans and the like) set where the other end is in a namespace of the request. Raises OSError."""
    wanted = {nsid for link in interfaces for nsid in (link.peer_nsid, link.lower_nsid) if nsid is not None}
    names = {link.index: link.name for link in interfaces}
    held: dict[int, tuple[Place, int]] = {}
    try:
        for place in request.others:
            if len(held) == len(wanted):
                break
            _hold(netlink, place, wanted, held)
        return tuple(_resolved(link, names, held, request) for link in interfaces)
    finally:
        for _, descriptor in held.values():
            os.close(descriptor)


def _hold(netlink: Any, place: Place, wanted: set[int], held: dict[int, tuple[Place, int]]) -> None:  # noqa: ANN401
    """Open a namespace, and keep it open if its number here is one of those wanted."""
    try:
        descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # gone, or not ours to enter: its own collection says so
    number = netlink.get_netnsid(fd=descriptor)["nsid"]
    if number in wanted and number not in held:
        held[number] = place, descriptor
    else:
        os.close(descriptor)


def _resolved(
    link: Interface, names: dict[int, str], held: dict[int, tuple[Place, int]], request: Request
) -> Interface:
    if link.lower_index:
        return replace(link, lower_at=_named(link.lower_index, link.lower_nsid, held))
    if not link.peer_index:
        return link
    if link.peer_nsid is None:
        name = names.get(link.peer_index)
        return replace(link, peer=(request.place.id, name)) if name else link
    return replace(link, peer=_named(link.peer_index, link.peer_nsid, held))


def _named(index: int, nsid: int | None, held: dict[int, tuple[Place, int]]) -> tuple[NetnsId, str] | None:
    """Return the namespace and name of a device of another namespace, None if that is not held or the device is gone."""
    if nsid not in held:
        return None
    place, descriptor = held[nsid]
    with inside(descriptor):
        try:
            return place.id, socket.if_indextoname(index)
        except OSError:
            return None  # it went away between two looks
