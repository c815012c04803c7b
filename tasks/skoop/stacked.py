"""Where does a frame come out that a stacked device sends, and which device takes one that comes in?

Devices stand on one another: VLANs, macvlans and ipvlans on a lower device (often one of another namespace: a pod's macvlan on its
node's link), bonds on their slaves. `down` goes from the sending device to the wire, or sideways to a sibling; `up` from the device
on the wire to the one whose stack gets the frame. The order is that of __netif_receive_skb_core (net/core/dev.c): first the tag,
then the receive handler (bond, macvlan, ipvlan).

Follows vlan_do_receive and vlan_dev_hard_start_xmit (net/8021q), macvlan_handle_frame and macvlan_queue_xmit
(drivers/net/macvlan.c), ipvlan_handle_frame and ipvlan_queue_xmit (drivers/net/ipvlan/ipvlan_core.c), bond_handle_frame and
bond_start_xmit (drivers/net/bonding/bond_main.c). Left out: macvlan's source mode, VLANs in VLANs, a team's choice among several
ports (its daemon's matter), stacks on a bridge of another namespace: all `unknown`.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Frame
from tasks.skoop.model.state import Interface, NetNS
from tasks.skoop.model.trace import Reason

At = tuple[NetnsId, str]
"""A device: its namespace and name."""

IPVLANS = frozenset(("ipvlan", "ipvtap"))
MACVLANS = frozenset(("macvlan", "macvtap"))
BONDS = frozenset(("bond", "team"))
STACKED = IPVLANS | MACVLANS | BONDS | {"vlan"}


class Lost(NamedTuple):
    """The frame ends at a device; `missing` is what would have to be known where it is not certain."""

    at: At
    reason: Reason
    detail: str
    missing: str = ""


class Reached(Struct, frozen=True, gc=False):
    """The frame is at a device: about to leave by it (`down`) or taken by it (`up`, or a sibling: `arrived`)."""

    at: At
    frame: Frame
    arrived: bool = False
    passed: tuple[At, ...] = ()
    """The devices that it has crossed to get there: below the one that sent it, or below the one that takes it."""
    entry: str = ""
    """How a packet enters a namespace other than by a device: `output` (ipvlan l3 sends from its lower device's stack)."""


class Stacks:
    """Which device stands on which, over all namespaces."""

    def __init__(self, namespaces: Mapping[NetnsId, NetNS]) -> None:
        self._links = {(netns, link.name): link for netns, state in namespaces.items() for link in state.interfaces}
        self._below: dict[At, At] = {}
        self._above: dict[At, tuple[At, ...]] = {}
        for at, link in self._links.items():
            lower = link.lower_at or ((at[0], link.lower) if link.lower else None)
            if lower is not None and lower in self._links:
                self._below[at] = lower
                self._above[lower] = (*self._above.get(lower, ()), at)

    @property
    def stacked(self) -> bool:
        """Say whether any device stands on another at all."""
        return bool(self._above)

    def link(self, at: At) -> Interface:
        """Return a device's state."""
        return self._links[at]

    def above(self, at: At, kinds: frozenset[str]) -> Iterator[tuple[At, Interface]]:
        """Yield the devices of some kinds that stand on a device."""
        for one in self._above.get(at, ()):
            if self._links[one].kind in kinds:
                yield one, self._links[one]

    def below(self, at: At) -> At | None:
        """Return the device that a device stands on, None if that was not collected."""
        return self._below.get(at)

    def slaves(self, at: At) -> list[At]:
        """Return the slaves of a bond or team that can send now; of active-backup the active one."""
        bond = self._links[at]
        found = [
            (netns, link.name)
            for (netns, _), link in self._links.items()
            if netns == at[0] and link.master == bond.name and link.up and link.carrier
        ]
        if bond.active_slave:
            return [one for one in found if one[1] == bond.active_slave]
        return [one for one in found if self._links[one].slave_active]

    # --- towards the wire ------------------------------------------------------------------------------------------

    def down(self, at: At, frame: Frame) -> Reached | Lost:
        """Follow a frame from the device that sends it to the one on the wire, or to a sibling of it."""
        passed: tuple[At, ...] = ()
        for _ in range(8):
            link = self._links.get(at)
            if link is None:
                return Lost(at, Reason.MISSING_STATE, f"{at[1]} was not collected", f"{at[0]}: link {at[1]}")
            if not link.up:
                return Lost(at, Reason.LINK_DOWN, f"{link.name} is down")
            if link.kind not in STACKED:
                return Reached(at, frame, passed=passed)
            if not link.carrier:
                return Lost(at, Reason.LINK_DOWN, f"{link.name} has no carrier")
            step = self._step_down(at, link, frame)
            if isinstance(step, Lost):
                return step
            if step.arrived or step.entry:
                return replace(step, passed=passed)
            at, frame = step.at, step.frame
            passed = (*passed, at)
        return Lost(at, Reason.LOOP, "devices stand on one another in a circle")

    def _step_down(self, at: At, link: Interface, frame: Frame) -> Reached | Lost:
        if link.kind in BONDS:
            return self._slave(at, link, frame)
        below = self.below(at)
        if below is None:
            return Lost(at, Reason.MISSING_STATE, f"what {link.name} stands on was not collected", f"{at[0]}: {at[1]}")
        if link.kind == "vlan":
            if frame.vlan:
                what = "VLANs in VLANs are not simulated"
                return Lost(at, Reason.UNSUPPORTED, what, f"{at[0]}: {link.name}")
            return Reached(below, Frame(frame.packet, frame.src_mac, frame.dst_mac, link.vlan_id or 0))
        sibling = self._sibling(at, below, link, frame)
        if sibling is not None:
            return sibling
        if self._links[below].kind == "bridge":
            what = f"{link.name} on the bridge {below[1]} is not simulated"
            return Lost(at, Reason.UNSUPPORTED, what, f"{at[0]}: {link.name}")
        if link.kind in IPVLANS and link.mode in ("l3", "l3s"):
            return Reached(below, frame, entry="output")
        return Reached(below, frame)

    def _slave(self, at: At, bond: Interface, frame: Frame) -> Reached | Lost:
        slaves = self.slaves(at)
        if not slaves:
            return Lost(at, Reason.NO_TX_TARGET, f"{bond.name} has no slave that can send")
        if bond.kind == "team" and len(slaves) > 1:
            what = f"which port of {bond.name} its daemon has chosen"
            return Lost(at, Reason.MISSING_STATE, f"{what} is not known", f"{at[0]}: {what}")
        return Reached(slaves[0], frame)

    def _sibling(self, at: At, below: At, link: Interface, frame: Frame) -> Reached | Lost | None:
        """Return the device on the same lower one that the frame goes to without touching the wire, if it does."""
        if link.kind in MACVLANS:
            if link.mode != "bridge":
                return None
            for other, peer in self.above(below, MACVLANS):
                if other != at and peer.mac == frame.dst_mac and peer.mode == "bridge":
                    return Reached(other, frame, arrived=True)
            return None
        found = self._ipvlan_of(below, frame)
        if found is not None and found != at:
            return Reached(found, frame, arrived=True)
        if link.mode in ("l2", "") and frame.dst_mac and frame.dst_mac == link.mac:
            return Reached(
                below, frame, arrived=True
            )  # all have the lower device's address: what is nobody's is its own
        return None

    def _ipvlan_of(self, below: At, frame: Frame) -> At | None:
        for other, peer in self.above(below, IPVLANS):
            if peer.up and any(address.ip == frame.packet.dst for address in peer.addresses):
                return other
        return None

    # --- from the wire ---------------------------------------------------------------------------------------------

    def up(self, at: At, frame: Frame) -> Reached | Lost:
        """Follow a frame from the device on the wire to the one whose host gets it."""
        passed: tuple[At, ...] = ()
        for _ in range(8):
            link = self._links.get(at)
            if link is None or not link.up or (frame.packet.length > link.mtu + 4 and link.name != "lo"):
                # its own receive drops it, or tells what is missing
                return Reached(at, frame, arrived=True, passed=passed)
            step = self._step_up(at, link, frame)
            if step is None:
                return Reached(at, frame, arrived=True, passed=passed)
            if isinstance(step, Lost):
                return step
            passed = (*passed, at)
            at, frame = step.at, step.frame
        return Lost(at, Reason.LOOP, "devices stand on one another in a circle")

    def _step_up(self, at: At, link: Interface, frame: Frame) -> Reached | Lost | None:
        if frame.vlan:
            for other, vlan in self.above(at, frozenset(("vlan",))):
                if vlan.vlan_id == frame.vlan:
                    return Reached(other, Frame(frame.packet, frame.src_mac, frame.dst_mac))
        master = self._links.get((at[0], link.master)) if link.master else None
        if master is not None and master.kind in BONDS:
            if not link.slave_active and (master.mode in ("active-backup", "") or frame.vlan == 0):
                return Lost(
                    at, Reason.OTHERHOST, f"{link.name} is a backup of {master.name}, which takes nothing in by it"
                )
            return Reached((at[0], master.name), frame)
        if master is not None and master.kind == "bridge":
            return None
        if at not in self._above:
            return self._untaken(at, link, frame)
        return self._macvlan(at, frame) or self._ipvlan(at, link, frame) or self._untaken(at, link, frame)

    def _macvlan(self, at: At, frame: Frame) -> Reached | None:
        for other, macvlan in self.above(at, MACVLANS):
            if macvlan.mode == "passthru" or (macvlan.mac == frame.dst_mac and macvlan.up):
                return Reached(other, frame)
        return None

    def _ipvlan(self, at: At, link: Interface, frame: Frame) -> Reached | None:
        if frame.dst_mac and frame.dst_mac != link.mac:
            return None
        for other, ipvlan in self.above(at, IPVLANS):
            if ipvlan.mode != "l3s" and other == self._ipvlan_of(at, frame):
                return Reached(other, frame)
        return None

    def _untaken(self, at: At, link: Interface, frame: Frame) -> Lost | None:
        if frame.vlan:
            detail = f"{link.name} has no device for VLAN {frame.vlan}"
            return Lost(at, Reason.OTHERHOST, detail)
        return None
