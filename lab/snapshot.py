"""What a namespace had before a fault: routes, addresses, permanent neighbours and forwarding entries, to put back.

Taken as the kernel's own dump messages and given back to it as they are; only what has gone missing is sent again.
"""

import errno
import struct
from pathlib import Path

from lab import rtnl
from lab.netns import Netns

RTM_DELNEIGH, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH = 29, 22, 26, 30
_NUD_NOARP = 0x40
_RTPROT_KERNEL, _RT_TABLE_MAIN, _SCOPE_LINK = 2, 254, 253


class Snapshot:
    """The state of one namespace when this was made."""

    def __init__(self, netns: Netns) -> None:
        self._netns = netns
        self._addresses, self._neighbours, self._routes = _addresses(netns), _neighbours(netns), _routes(netns)

    def put_back(self) -> None:
        """Add again what is missing now. Raises NetlinkError where the kernel refuses."""
        for kind, before, now in (
            (rtnl.RTM_NEWADDR, self._addresses, _addresses),
            (rtnl.RTM_NEWNEIGH, self._neighbours, _neighbours),
            (rtnl.RTM_NEWROUTE, self._routes, _routes),
        ):
            left = now(self._netns)
            for key, body in before.items():
                if key not in left:
                    self._add(kind, body)

    def _add(self, kind: int, body: bytes) -> None:
        flags = rtnl.NLM_F_CREATE | (rtnl.NLM_F_APPEND if kind == rtnl.RTM_NEWNEIGH else rtnl.NLM_F_REPLACE)
        try:
            self._netns.rtnl.send(kind, body, flags, "putting back what was there")
        except rtnl.NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise


def _pick(body: bytes, head: int, wanted: tuple[int, ...]) -> bytes:
    """Return the message with only the attributes that identify and make the object (no statistics, no cache info)."""
    return body[:head] + b"".join(
        rtnl.attr(kind, value) for kind, value in rtnl.attributes(body[head:]) if kind in wanted
    )


def _addresses(netns: Netns) -> dict[bytes, bytes]:
    found = {}
    for body in netns.rtnl.dump(RTM_GETADDR, struct.pack("=BBBBi", 0, 0, 0, 0, 0)):
        if body[3] != _SCOPE_LINK:
            # IPv6: IFA_F_NODAD, so that it is usable at once
            head = body[:2] + bytes([rtnl.IFA_F_NODAD if body[0] == 10 else 0]) + body[3:8]
            kept = _pick(head + body[8:], 8, (1, 2, 3, 4))
            found[kept] = kept
    return found


def _neighbours(netns: Netns) -> dict[bytes, bytes]:
    found = {}
    for family in (2, 10, rtnl.AF_BRIDGE):
        for body in netns.rtnl.dump(RTM_GETNEIGH, struct.pack("=BxxxiHBB", family, 0, 0, 0, 0)):
            (state,) = struct.unpack_from("=H", body, 8)
            attributes = dict(rtnl.attributes(body[12:]))
            tunnel = family != rtnl.AF_BRIDGE or 1 in attributes
            if state == rtnl.NUD_PERMANENT and tunnel and body[11] in (0, 1):
                kept = _pick(body, 12, (1, 2))
                found[kept] = kept
    return found


def _routes(netns: Netns) -> dict[bytes, bytes]:
    found = {}
    for family in (2, 10):
        for body in netns.rtnl.dump(RTM_GETROUTE, struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)):
            table, protocol = body[4], body[5]
            if body[0] == family and table == _RT_TABLE_MAIN and protocol != _RTPROT_KERNEL:
                (flags,) = struct.unpack_from("=I", body, 8)
                head = body[:8] + struct.pack("=I", flags & rtnl.RTNH_F_ONLINK)
                kept = _pick(head + body[12:], 12, (1, 4, 5, 6, 7, 8, 9, 15))
                found[kept] = kept
    return found


def forget_neighbours(netns: Netns) -> None:
    """Delete every learned neighbour of a namespace; permanent ones stay."""
    for family in (2, 10):
        for body in list(netns.rtnl.dump(RTM_GETNEIGH, struct.pack("=BxxxiHBB", family, 0, 0, 0, 0))):
            (state,) = struct.unpack_from("=H", body, 8)
            if not state & (rtnl.NUD_PERMANENT | _NUD_NOARP):
                netns.rtnl.queue(RTM_DELNEIGH, _pick(body, 12, (1,)), 0, "forgetting a neighbour")
    try:
        netns.rtnl.flush()
    except rtnl.NetlinkError as error:
        if error.errno != errno.ENOENT:  # it has just gone by itself
            raise


def forget_path_mtus(netns: Netns) -> None:
    """Drop the route exceptions of a namespace, where the kernel lets us."""
    with netns.inside():
        for family in ("ipv4", "ipv6"):
            switch = Path(f"/proc/sys/net/{family}/route/flush")
            if switch.exists():
                switch.write_text("1")
