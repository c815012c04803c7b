"""Into which VLAN does a bridge put a frame, and with which tag, if any, does it leave by a port?

Follows __allowed_ingress, br_allowed_egress and br_handle_vlan (net/bridge/br_vlan.c). A bridge that does not filter passes tags
through as they are. Left out: VLAN protocols other than 802.1Q, per-VLAN states, VLAN tunnels.
"""

from tasks.skoop.model.state import Interface


def filters(bridge: Interface) -> bool:
    """Say whether the bridge looks at VLANs."""
    return bridge.bridge is not None and bridge.bridge.vlan_filtering


def vlan_of(bridge: Interface, port: Interface, tag: int) -> int | None:
    """Return the VLAN of a frame that comes in on a port (or from the bridge itself) with a tag, None if it is not let in.

    A bridge that does not filter has no VLANs: the tag itself stands for what is carried along. VLANs that were not collected let
    nothing in; ask `unknown_vlans` first.
    """
    if not filters(bridge):
        return tag
    own = port.vlans or ()
    if not tag:
        return next((one.vid for one in own if one.pvid), None)
    return tag if any(one.vid == tag for one in own) else None


def tag_of(bridge: Interface, port: Interface, vid: int) -> int | None:
    """Return the tag with which a frame of a VLAN leaves by a port (or to the bridge itself), 0 for none; None: it may not."""
    if not filters(bridge):
        return vid
    found = next((one for one in port.vlans or () if one.vid == vid), None)
    if found is None:
        return None
    return 0 if found.untagged else vid


def unknown_vlans(bridge: Interface, port: Interface) -> bool:
    """Say whether the VLANs of a port matter and were not collected."""
    return filters(bridge) and port.vlans is None
