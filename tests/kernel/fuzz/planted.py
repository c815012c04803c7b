"""Errors that the simulator might have, to be planted one at a time: each must be found by the campaign.

A planted error is a function that patches the simulator; pytest's MonkeyPatch takes it out again. Compiled namespaces that a
campaign keeps are of no harm: what is patched is looked up anew at every packet.
"""

from collections.abc import Callable

from pytest import MonkeyPatch

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.state import Interface, Socket
from tasks.skoop.netstack import bridge, conntrack, ip, nat, netfilter, source, tracking
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import Skb
from tasks.skoop.netstack.xtables import way
from tasks.skoop.netstack.xtables.api import Hook


def rp_filter_ignored(patch: MonkeyPatch) -> None:
    """Strict reverse path filtering lets everything in."""
    patch.setattr(source, "_filtered", lambda *_: None)


def goto_as_jump(patch: MonkeyPatch) -> None:
    """A chain that was gone to returns to the rule behind the goto."""
    right = way.Way.enter
    patch.setattr(way.Way, "enter", lambda self, chain, *, push: right(self, chain, push=push or True))


def masquerade_by_prefsrc(patch: MonkeyPatch) -> None:
    """MASQUERADE takes the address that the route prefers: the first of the underlay."""
    right = Namespace.source_for

    def wrong(self: Namespace, dev: str, towards: Ip, scope: str = "link") -> Ip | None:
        return right(self, "eth0" if scope == "global" else dev, towards, scope)

    patch.setattr(Namespace, "source_for", wrong)


def nat_before_mangle(patch: MonkeyPatch) -> None:
    """Destination NAT runs before mangle: rules there see the new destination."""
    patch.setattr(netfilter, "_NAT_DST", -199)


def nat_before_conntrack(patch: MonkeyPatch) -> None:
    """Destination NAT runs before a packet has a connection, so that there is nothing to translate by."""
    patch.setattr(netfilter, "_NAT_DST", -250)


def forward_skipped(patch: MonkeyPatch) -> None:
    """Forwarded packets do not see FORWARD."""
    right = ip.traverse
    patch.setattr(ip, "traverse", lambda ns, skb, hook: [skb] if hook == Hook.FORWARD else right(ns, skb, hook))


def hairpin_ignored(patch: MonkeyPatch) -> None:
    """A frame may always leave by the port that it came in on."""
    right = bridge._may_not_deliver

    def wrong(port: Interface, ingress: Interface | None) -> str:
        said = right(port, ingress)
        return "" if said.startswith("hairpin") else said

    patch.setattr(bridge, "_may_not_deliver", wrong)


def bridge_nf_ignored(patch: MonkeyPatch) -> None:
    """Bridged frames never see iptables."""
    patch.setattr(Namespace, "bridge_calls_iptables", lambda *_: False)


def forwarding_ignored(patch: MonkeyPatch) -> None:
    """Every host forwards."""
    patch.setattr(Namespace, "forwards", lambda *_: True)


def notrack_ignored(patch: MonkeyPatch) -> None:
    """NOTRACK does nothing."""
    right = tracking.track

    def wrong(ns: Namespace, skb: Skb) -> None:
        skb.untracked = False
        right(ns, skb)

    patch.setattr(tracking, "track", wrong)


def replies_not_translated(patch: MonkeyPatch) -> None:
    """Answers keep the addresses that NAT gave the request."""
    right = conntrack.translate

    def wrong(packet: Packet, conn: conntrack.Conn, is_reply: bool, *, source: bool) -> Packet:
        return packet if is_reply and source else right(packet, conn, is_reply, source=source)

    patch.setattr(conntrack, "translate", wrong)


def reroute_forgotten(patch: MonkeyPatch) -> None:
    """After OUTPUT has translated the destination the packet still goes where the first lookup said."""
    for module in (nat, netfilter):
        patch.setattr(module, "reroute", lambda _, skb: [skb])


def own_source_accepted(patch: MonkeyPatch) -> None:
    """A host takes packets that come from its own address."""
    patch.setattr(source, "_own_address", lambda *_: None)


def listeners_everywhere(patch: MonkeyPatch) -> None:
    """A listener that is bound to one address takes packets for any."""
    right = Namespace.listener

    def wrong(self: Namespace, packet: Packet, dev: str) -> Socket | None:
        others = self.listeners.get((str(packet.protocol), packet.dport), ())
        return right(self, packet, dev) or next(iter(others), None)

    patch.setattr(Namespace, "listener", wrong)


PLANTED: tuple[Callable[[MonkeyPatch], None], ...] = (
    rp_filter_ignored,
    goto_as_jump,
    masquerade_by_prefsrc,
    nat_before_mangle,
    nat_before_conntrack,
    forward_skipped,
    hairpin_ignored,
    bridge_nf_ignored,
    forwarding_ignored,
    notrack_ignored,
    replies_not_translated,
    reroute_forgotten,
    own_source_accepted,
    listeners_everywhere,
)
